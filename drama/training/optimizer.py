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


def make_optimizers(model: GPT, settings: Settings, machine: Machine) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices only; with optimizer=muon, Muon for the matrices of the blocks."""
    s = settings
    muon = [p for p in model.blocks.parameters() if p.dim() == 2 and s.optimizer == "muon"]
    taken = set(map(id, muon))
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": s.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = machine.device.type in ("cuda", "cpu")
    # a graph reads the rate anew where it is a tensor
    recorded = machine.records(s.cuda_graph)
    lr = torch.tensor(s.learning_rate, device=machine.device) if recorded else s.learning_rate
    kwargs = dict(betas=(s.beta1, s.beta2), fused=fused, capturable=recorded)
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
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value


def restore(optimizer: torch.optim.Optimizer, state: dict):
    """Load an optimizer's saved state. Raises ValueError where it belongs to other weights."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    weights = {p for group in optimizer.param_groups for p in group["params"]}
    if optimizer.state and set(optimizer.state) != weights:  # empty when all steps so far overflowed
        raise ValueError("not of these weights")
    for p, values in optimizer.state.items():
        for name, value in values.items():
            if value.dim() and value.shape != ((len(p), 1) if name == "row_squares" else p.shape):
                raise ValueError("not of these sizes")


def orthogonalize(matrices, dtype: torch.dtype):
    """The orthogonal matrices U Vᵀ near matrices = U S Vᵀ (N, rows, columns), by five Newton-Schulz steps.

    Singular values come out between 0.7 and 1.2, not at 1, which does as well. The coefficients are Muon's:
    they raise small singular values fastest.
    """
    wide = matrices.size(1) <= matrices.size(2)
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT


def even_rows(steps, squares: list, beta2: float = 0.95):
    """steps (N, rows, columns) with each row divided by its usual size; each matrix stays as large as it was.

    squares, one tensor (rows, 1) a matrix, are the running means of a row's squares, which this updates. That
    they begin as zeros needs no correction: it is the same factor for all rows of a matrix.
    """
    torch._foreach_lerp_(squares, steps.square().mean(2, keepdim=True).unbind(), 1 - beta2)
    even = steps / (torch.stack(squares).sqrt() + 1e-8)
    before, after = (x.norm(dim=(1, 2), keepdim=True) for x in (steps, even))
    return even.mul_(before / after.clamp(min=1e-8))  # a step may be all zeros


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

    For the matrices within the blocks; AdamW takes embeddings, the head, norms and biases. Steps are scaled
    to the size of AdamW's, so that both use one learning rate (Liu et al., 2025, arXiv:2502.16982). Each row
    is divided by the size it usually has, so that no neuron learns more slowly than others (NorMuon: Li et
    al., 2025, arXiv:2510.05491). Without the latter, torch.optim.Muon is the same except for the number
    format of its products, which is always bfloat16 there: on a processor without bfloat16 instructions that
    takes a hundred times as long as float32.
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
                if "row_squares" not in self.state[p]:  # a last.pt of before 29 November 2026 has none
                    self.state[p]["row_squares"] = p.new_zeros(len(p), 1)
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
                steps = even_rows(steps, [self.state[p]["row_squares"] for p in same])
                steps = steps.mul_(lr * 0.2 * math.sqrt(max(shape)))
                torch._foreach_sub_(same, steps.unbind())
