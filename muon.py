"""Muon: momentum whose steps are orthogonal matrices (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

The same as torch.optim.Muon, but for the number format of its products, which is bfloat16 there: where a
processor has no such products, they take a hundred times as long as in float32.
"""

import math
from collections import defaultdict

import torch


def orthogonalize(matrices, dtype: torch.dtype):
    """The orthogonal matrices U Vᵀ near matrices = U S Vᵀ (N, rows, columns), by five Newton-Schulz steps.

    Singular values come out between 0.7 and 1.2 rather than at 1, which does as well.
    """
    wide = matrices.size(1) <= matrices.size(2)
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """For the matrices within a network; embeddings, the head, norms and biases belong to AdamW.

    Its steps are scaled to be as large as AdamW's, so that both go by one learning rate (Liu et al., 2025,
    arXiv:2502.16982).
    """

    def __init__(self, params, lr: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape = defaultdict(list)  # matrices of one shape are multiplied together
            for p in group["params"]:
                mean = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - momentum)
                by_shape[p.shape].append((p, p.grad.lerp(mean, momentum)))  # Nesterov's look ahead
            for shape, pairs in by_shape.items():
                steps = orthogonalize(torch.stack([direction for _, direction in pairs]), self.dtype)
                for (p, _), step in zip(pairs, steps, strict=True):
                    p.mul_(1 - lr * group["weight_decay"])
                    p.add_(step, alpha=-lr * 0.2 * math.sqrt(max(shape)))
