"""Before the first iteration on a GPU: does what makes it fast work there, and compute what plain code does?

Everything is tried once, on one batch, without dropout and with it. What raises, or gives another loss or
gradient than its number format explains, is turned off in all processes; one line says so, and the run goes
on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING

from drama.program import going_without, is_out_of_memory

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import GPT

if TYPE_CHECKING:
    from drama.training.report import Report
    from drama.training.run import Run

LOSS, NORM = 0.01, 0.05  # relative differences that bfloat16's eight bits explain, of a batch's means
SCALE = 256.0  # of the loss, so that float16 can hold its gradients


class Different(Exception):
    """A result that is not that of plain code, or a failure of another process."""


def failure(run: Run, attempt) -> Exception | None:
    """What attempt() raises in this process, or Different where it fails in another one. Collective."""
    error = None
    try:
        attempt()
    except Exception as e:  # each library has its own
        error = e
    failed = run.machine.any_rank(error is not None)
    return error or (Different("it fails in another process") if failed else None)


def try_accelerations(run: Run, report: Report):
    """Turn off what does not work on this device: one thing alone where that is enough. Collective."""
    if error := failure(run, lambda: require_fused_adamw(run)):
        report.say(going_without("the fused optimizer", error))
        for group in run.optimizers[0].param_groups:
            group["fused"] = False
        run.optimizers[0]._step_supports_amp_scaling = False
    expected = []

    def plain_code():
        with plain():
            expected.extend(loss_and_norm(run.model, run, rows=1, autocast=contextlib.nullcontext))

    def as_it_is():
        require_close(loss_and_norm(run.model, run), expected)
        # dropout makes other numbers, and may take another kernel: these need only be finite
        require_close(loss_and_norm(run.model, run, train=True), expected, loss=10, norm=1000)

    if error := failure(run, plain_code):
        if not is_out_of_memory(error) and type(error) is not Different:
            raise error
        return report.say("too little memory to compare what is fast with plain code; going on")
    if not (error := failure(run, as_it_is)):
        return
    dtype = str(run.machine.dtype).removeprefix("torch.")
    ways = {"fused attention": plain_attention, dtype: in_float32, "TF32": plain_products}
    ways.pop("float32", None)
    for what, turn_off in ways.items():
        undo = turn_off(run)
        if not failure(run, as_it_is):
            return report.say(going_without(what, error))
        undo()
    for turn_off in ways.values():
        turn_off(run)
    report.say(going_without(", ".join(ways), error))


def require_fused_adamw(run: Run):
    """Raise Different where the fused optimizer's steps are not those of plain code."""
    device, recorded, results = run.machine.device, run.into_a_graph, []
    rate = torch.tensor(0.1, device=device) if recorded else 0.1
    for fused in (True, False):
        p = torch.linspace(-1, 1, 64, device=device).requires_grad_()
        optimizer = torch.optim.AdamW([p], lr=rate, fused=fused, capturable=recorded)
        for _ in range(2):
            p.grad = torch.linspace(1, 3, 64, device=device)
            optimizer.step()
        results.append(p.detach())
    if not torch.allclose(*results, rtol=1e-4, atol=1e-5):
        raise Different("its steps are others")


def require_close(found, expected, loss=LOSS, norm=NORM):
    """Raise Different where a (loss, norm of the gradient) is not the expected one, or not a number."""
    names = "loss", "gradient norm"
    for name, a, b, tolerance in zip(names, found, expected, (loss, norm), strict=True):
        if not abs(a - b) <= tolerance * abs(b):
            raise Different(f"{name} {a:.4g}, without it {b:.4g}")


def loss_and_norm(model, run: Run, rows: int = 0, autocast=None, train=False) -> tuple[float, float]:
    """Of a batch of this iteration, without dropout unless train; so many rows at a time."""
    torch.manual_seed(run.settings.seed)
    x, y = next(run.corpus.batches(run.settings, run.iteration, run.machine))
    loss, rows = 0.0, rows or len(x)
    model.train(train)
    try:
        with no_zeros(run.model):
            for x_part, y_part in zip(x.split(rows), y.split(rows), strict=True):
                with (autocast or run.machine.autocast)():
                    part = model(x_part, y_part)[1] * (len(x_part) / len(x))
                (part * SCALE).backward()
                loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), math.inf)
        return loss, norm.item() / SCALE
    finally:
        run.model.zero_grad(set_to_none=True)
        model.train()


@contextlib.contextmanager
def no_zeros(model: GPT):
    """Within, matrices that begin as zeros hold numbers: else nothing before them shows in the loss."""
    zeros = [p for p in model.parameters() if p.dim() == 2 and not p.any()]
    with torch.no_grad():
        for n, p in enumerate(zeros):
            p.normal_(0, p.size(1) ** -0.5, generator=torch.Generator(p.device).manual_seed(n))
    try:
        yield
    finally:
        with torch.no_grad():
            for p in zeros:
                p.zero_()


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


# ---------------------------------------------------------------------------- each returns what undoes it


def plain_attention(run: Run):
    names = ("flash", "mem_efficient", "cudnn")
    before = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in names}

    def enable(values: dict):
        for name, value in values.items():
            getattr(torch.backends.cuda, f"enable_{name}_sdp")(value)

    enable(dict.fromkeys(names, False))
    return lambda: enable(before)


def in_float32(run: Run):
    muon, before = run.optimizers[1:], (run.machine, run.scaler, [o.dtype for o in run.optimizers[1:]])

    def use(machine, scaler, dtypes):
        run.machine, run.scaler = machine, scaler
        for optimizer, dtype in zip(muon, dtypes, strict=True):
            optimizer.dtype = dtype

    scaler = torch.amp.GradScaler(run.machine.device.type, enabled=False)
    use(dataclasses.replace(run.machine, dtype=torch.float32), scaler, [torch.float32] * len(muon))
    return lambda: use(*before)


def plain_products(run: Run):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------------------- compiling


def compile_blocks(run: Run, report: Report):
    """Compile the model's blocks, for training alone, where that works and computes the same. Collective."""
    expected = loss_and_norm(run.model, run, train=True)

    def compiled():
        torch._dynamo.config.optimize_ddp = False  # it would cut the blocks once more
        for block in run.model.blocks:  # not the whole: so gradients are exchanged as they come
            block.compile()
        # so that nothing is compiled again in training; dropout is drawn in another way
        require_close(loss_and_norm(run.model, run, train=True), expected, loss=0.05, norm=0.3)

    if error := failure(run, compiled):  # no compiler, no Triton, an old GPU
        report.say(going_without("torch.compile", error))
        for block in run.model.blocks:
            block._compiled_call_impl = None
