"""Before the first iteration on a GPU: does what makes it fast work there, and compute what plain code does?

Everything is tried once, on one batch. What raises, or gives another loss or gradient than its number format
explains, is turned off; one line says so, and the run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING

from drama.program import going_without, is_out_of_memory

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from drama.training.report import Report
    from drama.training.run import Run

LOSS, NORM = 0.01, 0.05  # relative differences that bfloat16's eight bits explain, of a batch's means
SCALE = 256.0  # of the loss, so that float16 can hold its gradients


class Different(Exception):
    """A loss or a gradient that is not that of plain code."""


def try_accelerations(run: Run, report: Report):
    """Turn off, one after the other, what fails on this device until a batch's loss is that of plain code."""
    try:
        require_fused_adamw(run.machine.device)
    except Exception as e:  # each library has its own
        report.say(going_without("the fused optimizer", e))
        for group in run.optimizers[0].param_groups:
            group["fused"] = False
        run.optimizers[0]._step_supports_amp_scaling = False
    try:
        with plain():
            expected = loss_and_norm(run, rows=1, autocast=contextlib.nullcontext)
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        return report.say("too little memory to compare what is fast with plain code; going on")
    dtype = str(run.machine.dtype).removeprefix("torch.")
    ways = {"fused attention": plain_attention, dtype: in_float32, "TF32": plain_products}
    ways.pop("float32", None)
    for what, turn_off in ways.items():
        try:
            return require_close(loss_and_norm(run), expected)
        except Exception as e:
            report.say(going_without(what, e))
            turn_off(run)


def require_fused_adamw(device: torch.device):
    """Raise Different where the fused optimizer's steps are not those of plain code."""
    results = []
    for fused in (True, False):
        p = torch.linspace(-1, 1, 64, device=device).requires_grad_()
        optimizer = torch.optim.AdamW([p], lr=0.1, fused=fused)
        for _ in range(2):
            p.grad = torch.linspace(1, 3, 64, device=device)
            optimizer.step()
        results.append(p.norm().item())
    require_close((results[0], 0.0), (results[1], 0.0), loss=1e-4)


def require_close(found: tuple[float, float], expected: tuple[float, float], loss=LOSS, norm=NORM):
    """Raise Different where a (loss, norm of the gradient) is not the expected one, or not a number."""
    names = "loss", "gradient norm"
    for name, a, b, tolerance in zip(names, found, expected, (loss, norm), strict=True):
        if not abs(a - b) <= tolerance * abs(b):
            raise Different(f"{name} {a:.4g}, without it {b:.4g}")


def loss_and_norm(run: Run, rows: int = 0, autocast=None) -> tuple[float, float]:
    """Of a batch of this iteration, without dropout; so many rows at a time, where memory is short."""
    x, y = next(run.corpus.batches(run.settings, run.iteration, run.machine))
    loss, model, rows = 0.0, run.model.eval(), rows or len(x)
    try:
        for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
            with (autocast or run.machine.autocast)():
                part = model(x_part, y_part)[1] * (len(x_part) / len(x))
            (part * SCALE).backward()
            loss += part.item()
        return loss, torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf).item() / SCALE
    finally:
        model.zero_grad(set_to_none=True)
        model.train()


@contextlib.contextmanager
def plain():
    """Within, attention by its formula, and products with all digits of float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def plain_attention(run: Run):
    for backend in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{backend}_sdp")(False)


def in_float32(run: Run):
    run.machine = dataclasses.replace(run.machine, dtype=torch.float32)
    run.scaler = torch.amp.GradScaler(run.machine.device.type, enabled=False)
    for optimizer in run.optimizers[1:]:  # Muon
        optimizer.dtype = torch.float32


def plain_products(run: Run):
    torch.set_float32_matmul_precision("highest")
