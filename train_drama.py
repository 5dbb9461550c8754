"""Train a GPT to write plays.

    python train_drama.py                                  the full run: minutes on a GPU, hours without
    python train_drama.py config/laptop.py                 a smaller model, for a machine with no GPU
    python train_drama.py --n_layer=4 --dropout=0.1        any setting, by name (--help lists them)
    torchrun --standalone --nproc_per_node=4 train_drama.py      several GPUs, or several CPUs

The same command run again continues where the run was stopped.
"""

import contextlib
import functools
import math
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drama.program import Stop, is_out_of_memory, run_program

import torch
import torch.distributed as dist

import prepare
from configurator import FilePath, UserError, check, configure, one_line
from drama.dataset import Corpus, load_data
from drama.disk import lock
from drama.graph import Replayed
from drama.logs import require_packages
from drama.machine import Dtype, Machine, seed_at, training_machine
from drama.optimizer import learning_rate_at, set_learning_rate
from drama.report import Report
from drama.run import SHAPE, Run, require_source
from model import GPTConfig

# ---------------------------------------------------------------------------- settings

Arch = Literal["gpt2", "modern"]
Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Settings:
    """python train_drama.py [config/FILE.py ...] [--name=value ...]"""

    # Files
    out_dir: FilePath = "model"  # the folder for ckpt.pt, last.pt and log.csv; one run each
    dataset: str = "drama"  # the folder under data/ to train on; prepare.py writes it
    init_from: FilePath = "auto"  # auto: continue an unfinished run; resume: insist on one; scratch: start
    #                               over with random weights; gpt2, gpt2-medium, a folder in Hugging Face's
    #                               format, or an out_dir of another run: start from its weights
    save_minutes: float = 5.0  # save last.pt this often between evaluations; raise it for a slow disk
    # Model
    arch: Arch = "gpt2"  # gpt2, or modern, which learns the same in fewer iterations: see model.py
    n_layer: int = 6  # blocks; more are slower and need more text
    n_ensemble: int = 1  # stacks of blocks side by side, predictions averaged; 3 overfits later than 1
    n_head: int = 6  # attention heads in each block; 64 channels a head is usual
    n_embd: int = 384  # channels; a multiple of n_head
    block_size: int = 256  # tokens of context; longer remembers more and costs more memory
    dropout: float = 0.2  # raise it when train loss falls and val loss rises; 0 for a large corpus
    bias: bool = False  # biases in the linear and norm layers, as GPT-2 has them; none is a bit better
    # Training
    batch_size: int = 64  # sequences a step; lower it when memory runs out
    gradient_accumulation_steps: int = 1  # batches before each update; raise it when batch_size is lowered
    max_iters: int = 5000  # the last iteration; raise it to train a finished run further
    minutes: float = 0.0  # train about so long: sets max_iters and lr_decay_iters by the speed here; 0: no
    learning_rate: float = 1e-3  # the highest, after the warm-up; smaller for a larger model
    min_lr: float = 1e-4  # the lowest, at lr_decay_iters; a tenth of learning_rate is usual
    warmup_iters: int = 100  # iterations of rising learning rate; more when the loss jumps at the start
    lr_decay_iters: int = 5000  # iteration at which the cosine reaches min_lr; usually max_iters
    optimizer: Optimizer = "adamw"  # adamw; or muon for the matrices of the blocks, which learns faster
    weight_decay: float = 0.1  # pull of the matrices towards zero; raise it against overfitting
    beta1: float = 0.9  # AdamW: memory of the gradient
    beta2: float = 0.99  # AdamW: memory of its square; 0.95 for batches of a million tokens
    grad_clip: float = 1.0  # largest norm of the gradient; 0 leaves it alone
    seed: int = 1337  # another seed, another run
    # Evaluation and output
    eval_interval: int = 250  # iterations between evaluations; each reads as much text as two val splits
    eval_iters: int = 0  # 0: the whole val split; else at most this many batches of windows, for a huge one
    log_interval: int = 10  # iterations between lines
    sample_interval: int = 0  # iterations between short samples, to see it learn to speak; 0: none
    tensorboard: bool = False  # write to out_dir/tensorboard as well; needs pip install tensorboard
    wandb: bool = False  # write to wandb.ai as well; needs pip install wandb
    # Machine
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them, or cuda:1
    dtype: Dtype = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32
    compile: bool | None = None  # None: torch.compile on CUDA; true or false to insist
    cuda_graph: bool = False  # each iteration as one CUDA graph, for small models on one GPU; see docs/gpu.md

    def __post_init__(self):
        at_least_0 = ("max_iters", "warmup_iters", "lr_decay_iters", "eval_iters", "sample_interval", "seed")
        at_least_0 += ("learning_rate", "min_lr", "weight_decay", "grad_clip", "save_minutes", "minutes")
        at_least_1 = ("batch_size", "gradient_accumulation_steps", "eval_interval", "log_interval")
        check(self, {**dict.fromkeys(at_least_0, 0), **dict.fromkeys(at_least_1, 1)})
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is not at least 0 and below 1")
        if self.min_lr > self.learning_rate:
            rates = f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}"
            raise UserError(f"{rates}; try --min_lr={self.learning_rate / 10:g}")
        if self.minutes > 525_600:
            raise UserError(f"minutes={self.minutes:g} is more than a year")
        try:
            self.model_config(vocab_size=1)
        except ValueError as e:  # model.py knows which shapes can be built
            raise UserError(str(e)) from None

    def model_config(self, vocab_size: int) -> GPTConfig:
        shape = {name: getattr(self, name) for name in (*SHAPE, "block_size", "dropout")}
        return GPTConfig(vocab_size=vocab_size, **shape)


# ---------------------------------------------------------------------------- one update


def update(step, run: Run, learning_rate: float) -> torch.Tensor:
    """One step of every optimizer at the run's iteration; step is what ready_to_train returns.

    Returns the loss of this process's part of the batch, a scalar on the device.
    """
    settings, machine = run.settings, run.machine
    set_learning_rate(run.optimizers, learning_rate)
    # what is dropped follows from (seed, iteration, rank) alone
    torch.manual_seed(seed_at(settings.seed, "dropout", run.iteration, machine.rank))
    return step(run.corpus.batches(settings, run.iteration, machine))


def forward_backward_step(model, run: Run, batches) -> torch.Tensor:
    """The step of `update` with these batches of x, y; model is run.model, or wraps it."""
    settings, machine = run.settings, run.machine
    loss = torch.zeros((), device=machine.device)
    rows = left = settings.gradient_accumulation_steps * settings.batch_size // machine.world
    for x, y in batches:
        left -= len(x)
        # processes exchange gradients once, in the last backward pass
        with contextlib.nullcontext() if left == 0 or machine.world == 1 else model.no_sync():
            with machine.autocast():
                part_loss = model(x, y)[1] * (len(x) / rows)
            run.scaler.scale(part_loss).backward()
        loss += part_loss.detach()
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.grad_clip or math.inf)
    if not run.scaler.is_enabled() or norm.isfinite():  # when float16 overflows, no optimizer takes a step
        for optimizer in run.optimizers:
            run.scaler.step(optimizer)
    run.scaler.update()
    run.model.zero_grad(set_to_none=True)
    return loss


def as_one_graph(step, run: Run):
    """step(batches), replayed as one CUDA graph: for small models, which wait for its many launches."""
    replayed = Replayed(step, run.machine.device, warm_up=3)
    return lambda batches: replayed(torch.stack([torch.stack(xy) for xy in batches]))


def worth_compiling(run: Run, report: Report) -> bool:
    """Whether to compile: as the person says, else on CUDA where the rest of the run is long enough.

    Compiling takes about a minute, and saves about a third of what is arithmetic.
    """
    if run.settings.compile is not None or run.machine.device.type != "cuda":
        return bool(run.settings.compile)
    minutes = (run.settings.max_iters - run.iteration) * report.arithmetic_ms() / 60_000
    if minutes < 3:
        report.say("not compiling the model: the run is too short to gain from it (--compile=true insists)")
    return minutes >= 3


def ready_to_train(run: Run, report: Report):
    """The function of batches that makes one step: run.model is shared among processes, its blocks are
    compiled where that is worth it and works, and all of it is one CUDA graph where that is asked for."""
    model = run.model.train()
    if run.machine.world > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    if worth_compiling(run, report):
        report.say("compiling the model (about a minute; --compile=false goes without)")
        try:
            for block in run.model.blocks:  # not the whole: so gradients are exchanged as they come
                block.compile()
            # a batch as training's are, so that nothing is compiled again there
            x, y = next(run.corpus.batches(run.settings, run.iteration, run.machine))
            with run.machine.autocast():
                model(x, y)[1].backward()
        except Exception as e:  # no compiler, no Triton, an old GPU: every failure here has its own class
            if is_out_of_memory(e):
                raise
            reason = one_line(e)[:120] or type(e).__name__
            report.say(f"torch.compile does not work here ({reason}); going on without")
            for block in run.model.blocks:
                block._compiled_call_impl = None
        run.model.zero_grad(set_to_none=True)
    step = functools.partial(forward_backward_step, model, run)
    return as_one_graph(step, run) if run.settings.cuda_graph else step


# ---------------------------------------------------------------------------- the loop


def train_loop(step, run: Run, report: Report, stop: Stop):
    """Iterate to max_iters, or until stop is true in any process; step is what ready_to_train returns.

    Collective: every rank must call it.
    """
    machine, start = run.machine, run.iteration
    report.start_clock()
    saved_at = report.clock()
    while not run.finished:
        settings = run.settings  # --minutes changes them once
        # ---- evaluation
        if run.iteration % settings.eval_interval == 0 or run.iteration == settings.max_iters:
            with report.paused("evaluation"):
                losses = run.corpus.evaluate(run.model, settings, machine, stop)
                if losses is None:  # stopped before it was done
                    break
                report.evaluation(*losses)
                run.keep_best(*losses)
                if run.iteration > start:  # before, there is nothing to lose
                    run.save_last()
                saved_at = report.clock()
                report.picture_when_due()
        if settings.sample_interval and run.iteration and run.iteration % settings.sample_interval == 0:
            with report.paused("sample"):
                report.sample()

        # ---- training
        learning_rate = learning_rate_at(settings, run.iteration)
        loss = update(step, run, learning_rate)
        line_due = run.iteration % settings.log_interval == 0 or run.iteration == settings.max_iters
        run.iteration += 1
        if line_due:  # the only place that waits for a GPU, except when float16 overflows
            mean_loss = machine.sum(loss).item() / machine.world
            report.line(mean_loss, learning_rate)
            run.require_finite(math.isfinite(mean_loss), f"the loss is {mean_loss}", run.iteration - 1)
        report.progress()
        if not run.length_known:
            run.choose_length(machine.from_first(report.iterations_in(settings.minutes)))
        if report.clock() - saved_at > settings.save_minutes * 60:
            with report.paused("saving"):
                run.save_last()
            saved_at = report.clock()
        if (line_due or machine.any_is_cheap) and machine.any(stop):
            break
    run.save_last()


# ---------------------------------------------------------------------------- a whole training


def train(
    settings: Settings,
    machine: Machine | None = None,
    corpus: Corpus | None = None,
    report: Report | None = None,
) -> dict:
    """Train to the end or to a signal. machine, corpus and report are made where none are given.

    Returns iteration (the next one), val_loss (of the last evaluation, or the best when none was left to
    do), best_val_loss, and signal (the one that stopped it, or 0). Raises UserError for a wrong request,
    OSError for a disk that fails, MemoryError for a model or batch that is too large, FloatingPointError for
    a loss that is no longer finite; last.pt then holds the last good state.
    """
    require_packages(settings)
    machine = machine or training_machine(settings.device, settings.dtype)
    if settings.batch_size % machine.world:
        nearest = math.ceil(settings.batch_size / machine.world) * machine.world
        sizes = f"batch_size={settings.batch_size} cannot be split among {machine.world} processes"
        raise UserError(f"{sizes}; try --batch_size={nearest}")
    if settings.cuda_graph and not (machine.device.type == "cuda" and machine.world == 1):
        raise UserError("cuda_graph=True needs one GPU with CUDA; go without it here")
    if settings.cuda_graph and machine.dtype == torch.float16:
        raise UserError("cuda_graph=True cannot follow float16's overflows; try --dtype=bfloat16 or float32")
    corpus, report = corpus or find_corpus(settings, machine), report or Report()
    out = Path(settings.out_dir)
    if not (out / "last.pt").exists():  # else it may be continued where what it began with is gone
        require_source(settings.init_from)
    if settings.init_from == "resume" and machine.rank == 0 and not (out / "last.pt").exists():
        raise UserError(f"there is nothing to resume: {out / 'last.pt'} is missing; start without it")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with lock(out) if machine.rank == 0 else contextlib.nullcontext():
            run = Run(settings, machine, corpus)
            if run.finished:
                report.already_finished(run)
            signum = 0 if run.finished else train_run(run, report)
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        raise MemoryError(
            "out of memory; lower --batch_size and raise --gradient_accumulation_steps by as much, or give "
            "a smaller --n_embd or --block_size; with another --out_dir if this run was saved before"
        ) from None
    losses = dict(val_loss=run.val_loss, best_val_loss=run.best_val_loss)
    return dict(iteration=run.iteration, signal=signum, **losses)


def train_run(run: Run, report: Report) -> int:
    """Train from where the run stands. Returns the signal that stopped it, or 0."""
    start = run.iteration
    with contextlib.closing(report):
        report.begin(run)
        step = ready_to_train(run, report)
        with Stop() as stop:
            try:
                train_loop(step, run, report, stop)
            except OSError:  # a disk that fails, or nobody left to read what is said, loses nothing
                if run.iteration > start:
                    with contextlib.suppress(OSError):
                        run.save_last()
                raise
    report.end()
    return 0 if run.finished else stop.signum or signal.SIGTERM


def find_corpus(settings: Settings, machine: Machine) -> Corpus:
    """data/<dataset>, which is fetched when it is the default one and not there. Collective."""
    name = settings.dataset
    if not Path("data", name, "meta.json").is_file() and machine.local_rank == 0:
        if name != prepare.Settings.dataset:
            command = f"python prepare.py --dataset={name} --input=PLAYS"
            raise UserError(f"data/{name} is not prepared; {command} does that (--help names other texts)")
        prepare.prepare(prepare.Settings())
    if machine.world > 1:
        dist.barrier()
    return load_data(name, settings.block_size, machine)


def main() -> int:
    result = train(configure(Settings, sys.argv[1:]))
    if dist.is_initialized():  # only when all is well: with another process gone this would wait for it
        dist.barrier()  # one that exits with a signal's status ends them all, and the first has a line to say
        dist.destroy_process_group()
    return 128 + result["signal"] if result["signal"] else 0


if __name__ == "__main__":
    run_program(main)
