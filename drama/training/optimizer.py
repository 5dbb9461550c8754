"""The learning rate, AdamW and Muon."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from drama.training.machine import Machine
from model import GPT

if TYPE_CHECKING:
    from train_drama import Settings


def learning_rate_at(settings: Settings, iteration: int) -> float:
    """Linear warm-up to learning_rate, then a cosine down to min_lr at lr_decay_iters, and min_lr after."""
    s = settings
    if iteration < s.warmup_iters:
        return s.learning_rate * (iteration + 1) / (s.warmup_iters + 1)
    if iteration >= s.lr_decay_iters:
        return s.min_lr
    progress = (iteration - s.warmup_iters) / (s.lr_decay_iters - s.warmup_iters)
    return s.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (s.learning_rate - s.min_lr)


# Of a model with a head of its own: times learning_rate, its head, which begins at zero, and its tables, of
# which a batch reads each row often. What weight decay takes of them at a step stays the same.
TIMES = {"lm_head": 3.0, "wte": 0.4, "wte_past": 0.4}


def make_optimizers(model: GPT, settings: Settings, machine: Machine) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices only; with optimizer=muon, Muon for the matrices of the blocks."""
    s = settings
    muon = [p for p in model.blocks.parameters() if p.dim() == 2 and s.optimizer == "muon"]
    taken = set(map(id, muon))
    # a graph reads the rate anew where it is a tensor
    lr = torch.tensor(s.learning_rate, device=machine.device) if s.cuda_graph else s.learning_rate
    by_rate = {}  # (times learning_rate, whether they decay) -> weights
    for name, p in model.named_parameters():
        if id(p) not in taken:
            times = TIMES.get(name.split(".")[0], 1.0) if model.lm_head else 1.0
            by_rate.setdefault((times, p.dim() >= 2), []).append(p)
    groups = [
        {"params": params, "lr": lr * times, "weight_decay": decays * s.weight_decay / times, "times": times}
        for (times, decays), params in sorted(by_rate.items(), key=lambda item: not item[0][1])
    ]
    fused = machine.device.type in ("cuda", "cpu")
    kwargs = dict(betas=(s.beta1, s.beta2), fused=fused, capturable=s.cuda_graph)
    optimizers = [torch.optim.AdamW(groups, lr=lr, **kwargs)]
    if muon:
        # float16 has the digits, and where it is used (a T4) float32 takes eight times as long; not on a CPU
        half = machine.dtype == torch.bfloat16 or machine.device.type == "cuda"
        dtype = machine.dtype if half else torch.float32
        optimizers.append(Muon(muon, lr, s.weight_decay, dtype))
    return optimizers


def set_learning_rate(optimizers, value: float):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = value * group.get("times", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def restore(optimizer: torch.optim.Optimizer, state: dict):
    """Load an optimizer's saved state. Raises ValueError where it belongs to other weights."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    weights = {p for group in optimizer.param_groups for p in group["params"]}
    if optimizer.state and set(optimizer.state) != weights:  # empty when all steps so far overflowed
        raise ValueError("not of these weights")
    for p, values in optimizer.state.items():
        if any(value.dim() and value.shape != p.shape for value in values.values()):
            raise ValueError("not of these sizes")


# a x + b x^3 + c x^5, one after the other: each as near to 1 as it can be, at its farthest, on what the one
# before leaves of [0.001, 1], and 2 % above ("Polar Express", Amsel et al., 2025, arXiv:2505.16932)
POLYNOMIALS = (
    (8.3042, -23.6599, 16.8731), (4.1026, -2.9311, 0.5262), (3.8958, -2.7935, 0.5115),
    (3.2656, -2.3600, 0.4657), (2.3301, -1.7078, 0.4296),
)  # fmt: skip


def orthogonalize(matrices, dtype: torch.dtype):
    """The orthogonal matrices U Vᵀ near matrices = U S Vᵀ (N, rows, columns), by Newton-Schulz steps.

    Singular values of at least a thousandth of a matrix's norm come out between 0.87 and 1.14.
    """
    wide = matrices.size(1) <= matrices.size(2)
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    For the matrices within the blocks; AdamW takes embeddings, the head, norms and biases. Steps are scaled
    to the size of AdamW's, so that both use one learning rate (Liu et al., 2025, arXiv:2502.16982). The same
    as torch.optim.Muon except for the polynomials and for the number format of the products, which is always
    bfloat16 there: a hundred times as slow as float32 on a processor without bfloat16 instructions.
    """

    def __init__(self, params, lr, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum, weights = group["lr"], group["momentum"], group["params"]
            for p in weights:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            means, gradients = [self.state[p]["momentum_buffer"] for p in weights], [p.grad for p in weights]
            torch._foreach_lerp_(means, gradients, 1 - momentum)  # one kernel on a GPU, not one for each
            directions = torch._foreach_lerp(gradients, means, momentum)  # Nesterov's look ahead
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            by_shape = defaultdict(list)  # matrices of one shape are multiplied together
            for p, direction in zip(weights, directions, strict=True):
                by_shape[p.shape].append((p, direction))
            for shape, pairs in by_shape.items():
                same, directions = zip(*pairs, strict=True)
                steps = orthogonalize(torch.stack(directions), self.dtype).to(same[0].dtype)
                steps = steps.mul_(lr * 0.2 * math.sqrt(max(shape)))
                torch._foreach_sub_(same, steps.unbind())
