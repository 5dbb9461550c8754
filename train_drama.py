"""Train a GPT to write plays.

    python train_drama.py                                  the full run: minutes on a GPU, hours without
    python train_drama.py config/laptop.py                 a smaller model, for a machine with no GPU
    python train_drama.py --n_layer=4 --dropout=0.1        any setting, by name (--help lists them)
    torchrun --standalone --nproc_per_node=4 train_drama.py      several GPUs, or several CPUs

The same command run again continues where the run was stopped.
"""

import contextlib
import functools
import gc
import math
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from drama.program import Stop, is_out_of_memory, run_program

import torch
import torch.distributed as dist

import prepare
from configurator import FilePath, UserError, check, configure
from drama.cuda_graph import CudaGraph
from drama.device import Dtype, seed_at
from drama.disk import lock
from drama.nanogpt import prepare_command
from drama.training.clock import Clock
from drama.training.dataset import Corpus, is_prepared, load_data
from drama.training.logs import require_packages
from drama.training.machine import Machine, others_may_be_gone, training_machine, uncompiled
from drama.training.optimizer import learning_rate_at, set_learning_rate
from drama.training.pretrained import require_source
from drama.training.report import Report, Silent
from drama.training.run import WARM_UP, Run
from drama.training.trial import compile_blocks, loss_and_norm, try_accelerations
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
    #                               over with random weights; gpt2, gpt2-medium, gpt2-large, gpt2-xl, a
    #                               folder in Hugging Face's format, or another run's: start from its weights
    save_minutes: float = 5.0  # save last.pt this often between evaluations; raise it for a slow disk
    # Model
    arch: Arch = "gpt2"  # gpt2, or modern, which learns the same in fewer iterations: see model.py
    match: int = 0  # modern: positions see what followed an earlier match of up to so many tokens; try 4
    n_layer: int = 6  # blocks; more are slower and need more text
    n_ensemble: int = 1  # stacks of blocks side by side, predictions averaged; 3 overfits later than 1
    n_head: int = 6  # attention heads in each block; 64 channels per head are usual
    n_embd: int = 384  # channels; a multiple of n_head
    block_size: int = 256  # tokens of context; longer sees more of the text before, and costs memory
    dropout: float = 0.2  # raise it when train loss falls and val loss rises; 0 for a large corpus
    bias: bool = False  # biases in the linear and norm layers, as GPT-2 has them; none is a bit better
    # Training
    batch_size: int = 64  # sequences per step; lower it when memory runs out
    gradient_accumulation_steps: int = 1  # batches before each update; raise it when batch_size is lowered
    max_iters: int = 5000  # the last iteration; raise it to train a finished run further
    minutes: float = 0.0  # how long the run should take on this computer: sets max_iters; 0: off
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
    eval_interval: int = 250  # iterations between evaluations, each of both splits
    eval_iters: int = 0  # 0: the whole val split, or a part that takes less time than the training between
    #                      two evaluations; else at most this many batches of windows
    log_interval: int = 10  # iterations between lines
    sample_interval: int = 0  # iterations between short samples, to see it learn to speak; 0: none
    tensorboard: bool = False  # write to out_dir/tensorboard as well; needs pip install tensorboard
    wandb: bool = False  # write to wandb.ai as well; needs pip install wandb. The environment names the
    #                      project and run: WANDB_PROJECT, WANDB_NAME; WANDB_MODE=offline sends nothing
    # Machine
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them, or cuda:1
    dtype: Dtype = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32
    compile: bool | None = None  # None: torch.compile on CUDA; true or false to insist
    cuda_graph: bool | None = None  # None: one CUDA graph an iteration, on one GPU; true or false to insist

    # of trained weights
    SHAPE: ClassVar = ("arch", "match", "n_ensemble", "n_layer", "n_head", "n_embd", "bias")
    CHOSEN: ClassVar = ("max_iters", "lr_decay_iters", "warmup_iters", "block_size")  # by the run, perhaps
    FREE_TO_CHANGE: ClassVar = (  # when a run is continued: neither what it reads nor what it learns
        "out_dir", "init_from", "save_minutes", "max_iters", "eval_interval", "log_interval",
        "sample_interval", "tensorboard", "wandb", "device", "dtype", "compile", "cuda_graph",
    )  # fmt: skip

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
        shape = {name: getattr(self, name) for name in (*self.SHAPE, "block_size", "dropout")}
        return GPTConfig(vocab_size=vocab_size, **shape)


# ---------------------------------------------------------------------------- one step


def train_step(model, run: Run, batches) -> dict[str, torch.Tensor]:
    """One step of every optimizer with the batches of x, y; model is run.model, or wraps it.

    Returns loss (of this process's batches) and grad_norm, scalars on the device. Raises FloatingPointError
    where they are not finite, before weights change; a CUDA graph, in which nothing can be read, goes on.
    """
    settings, machine, scaler = run.settings, run.machine, run.scaler
    loss = torch.zeros((), device=machine.device)
    rows = left = settings.gradient_accumulation_steps * settings.batch_size // machine.world
    for x, y in batches:
        left -= len(x)
        # processes exchange gradients once, in the last backward pass
        with contextlib.nullcontext() if left == 0 or machine.world == 1 else model.no_sync():
            with machine.autocast():
                micro_loss = model(x, y)[1] * (len(x) / rows)
            scaler.scale(micro_loss).backward()
        loss += micro_loss.detach()
    for optimizer in run.optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.grad_clip or math.inf)
    recording = machine.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if not (scaler.is_enabled() or recording or (loss + norm).isfinite()):
        run.require_finite(run.iteration, loss=loss, grad_norm=norm)
    if not scaler.is_enabled() or norm.isfinite():  # when float16 overflows, no optimizer takes a step
        for optimizer in run.optimizers:
            scaler.step(optimizer)
    scaler.update()
    run.model.zero_grad(set_to_none=True)
    return dict(loss=loss, grad_norm=norm)


def worth_compiling(run: Run, report: Report) -> bool:
    """Whether to compile: as the person says, else on CUDA where the rest of the run is long enough.

    Compiling takes about a minute, and saves about a third of what is arithmetic.
    """
    if run.settings.compile is not None or run.machine.device.type != "cuda":
        return bool(run.settings.compile)
    seconds = run.flops / (0.4 * run.machine.peak_flops()[0])  # of an iteration, as GPUs usually reach
    minutes = (run.settings.max_iters - run.iteration) * seconds / 60
    worth_it = run.machine.broadcast(minutes >= 3)
    if not worth_it:
        report.say("not compiling the model: the run is too short to gain from it (--compile=true insists)")
    return worth_it


def ready_to_train(run: Run, report: Report):
    """train_step as a function of batches: run.model is shared among processes, its blocks are compiled
    where that is worth it and works, and all of it is one CUDA graph where that can be."""
    model = run.model.train()
    if run.machine.device.type == "cuda":
        try_accelerations(run, report)
    if compiled := worth_compiling(run, report):
        report.say("compiling the model (about a minute; --compile=false goes without)")
        compile_blocks(run, report)
    if run.machine.world > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
        # a first pass, after which it settles in which order gradients are added, as in a run that goes on
        with uncompiled():
            loss_and_norm(model, run, train=True)
        if compiled:  # so that nothing is compiled again in training
            loss_and_norm(model, run, train=True)
    step = functools.partial(train_step, model, run)
    if not run.into_a_graph:
        return step
    gc.collect()  # what has failed holds autograd's nodes, of a stream that is not the graph's

    def without(line: str):
        run.model.zero_grad(set_to_none=True)  # of the recording that failed
        report.say(line)

    graph = CudaGraph(step, run.tensors, run.machine.device, WARM_UP, say=without)
    return lambda batches: graph(torch.stack([torch.stack(xy) for xy in batches]))


# ---------------------------------------------------------------------------- the loop


def train_loop(run: Run, report: Report, stop: Stop):
    """Iterate to max_iters, or until stop is true in any process. Collective: every rank must call it."""
    clock, start = run.clock, run.iteration
    with clock.paused("compiling", run.machine):
        step = ready_to_train(run, report)
    machine = run.machine
    while not run.finished:
        settings = run.settings  # --minutes changes them once
        # ---- evaluation
        if run.iteration % settings.eval_interval == 0 or run.iteration == settings.max_iters:
            with clock.paused("evaluation", machine):
                losses = run.corpus.evaluate(run.model, settings, machine, stop)
                if losses is None:  # stopped before it was done
                    break
                report.evaluation(losses)
                run.keep_best(losses)
                if run.iteration > start:  # before, there is nothing to lose
                    run.save_last()
        if settings.sample_interval and run.iteration and run.iteration % settings.sample_interval == 0:
            with clock.paused("sample", machine):
                report.sample()

        # ---- training
        learning_rate = learning_rate_at(settings, run.iteration)
        set_learning_rate(run.optimizers, learning_rate)
        # what is dropped follows from (seed, iteration, rank) alone
        torch.manual_seed(seed_at(settings.seed, "dropout", run.iteration, machine.rank))
        metrics = step(run.corpus.batches(settings, run.iteration, machine))
        metrics = dict(metrics)  # a graph returns the same one again
        line_due = run.iteration % settings.log_interval == 0 or run.iteration == settings.max_iters
        run.iteration += 1
        if line_due:
            metrics["loss"] = machine.all_reduce(metrics["loss"]) / machine.world
            metrics = {name: value.item() for name, value in metrics.items()}
            report.iteration(metrics | dict(lr=learning_rate))
            finite = ["loss"] if run.scaler.is_enabled() else ["loss", "grad_norm"]  # float16 may overflow
            run.require_finite(run.iteration - 1, **{name: metrics[name] for name in finite})
        report.progress()
        if run.choose_length():
            report.length_chosen()
        if run.save_due:
            with clock.paused("saving", machine):
                run.save_last()
        if (line_due or machine.any_rank_is_cheap) and machine.any_rank(stop):
            break
    run.save_last()
    if run.finished and run.corpus.eval_windows(run.settings) and not run.settings.eval_iters:
        report.say("evaluating the last model on the whole validation split")
        losses = run.corpus.evaluate_whole(run.model, run.settings, machine, stop)
        if losses is not None:
            report.evaluation(losses)


# ---------------------------------------------------------------------------- a whole training


def train(
    settings: Settings,
    machine: Machine | None = None,
    corpus: Corpus | None = None,
    report: Report | None = None,
    now=time.perf_counter,
) -> dict:
    """Train to the end or to a signal. machine and corpus are made where none are given; report observes.

    Returns iteration (the next one), val_loss (of the last evaluation, or the best when none was left to
    do), best_val_loss, and signal (the one that stopped it, or 0). Raises UserError for a wrong request,
    OSError for a disk that fails, MemoryError for a model or batch that is too large, FloatingPointError for
    a loss or gradient that is no longer finite; last.pt then holds the last good state.
    """
    clock, report = Clock(now), report or Silent()
    require_packages(settings)
    machine = machine or training_machine(settings.device, settings.dtype)
    check_request(settings, machine)
    corpus = corpus or find_corpus(settings, machine)
    out = Path(settings.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    try:
        busy = f"another training is writing to {out}: wait for it, stop it, or give another --out_dir"
        with lock(out, busy) if machine.rank == 0 else contextlib.nullcontext():
            run = Run(settings, machine, corpus, clock)
            signum, start = 0, run.iteration
            if run.finished:
                report.already_finished(run)
            else:
                report.begin(run, run.set_aside())
                with contextlib.closing(report), Stop() as stop:
                    try:
                        train_loop(run, report, stop)
                    except OSError:  # a disk that fails, or nobody left to read what is said, loses nothing
                        if run.iteration > start:
                            with contextlib.suppress(OSError):
                                run.save_last()
                        raise
                report.end()
                signum = 0 if run.finished else stop.signum or signal.SIGTERM
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        batch = "lower --batch_size and raise --gradient_accumulation_steps by as much, or "
        raise MemoryError(
            f"out of memory; {batch * (settings.batch_size > machine.world)}give a smaller --n_embd or "
            "--block_size; with another --out_dir if this run was saved before"
        ) from None
    losses = dict(val_loss=run.val_loss, best_val_loss=run.best_val_loss)
    return dict(iteration=run.iteration, signal=signum, **losses)


def check_request(settings: Settings, machine: Machine):
    """Raise UserError for what cannot be done here, before anything is read or written."""
    if settings.batch_size % machine.world:
        nearest = math.ceil(settings.batch_size / machine.world) * machine.world
        sizes = f"batch_size={settings.batch_size} cannot be split among {machine.world} processes"
        raise UserError(f"{sizes}; try --batch_size={nearest}")
    if settings.cuda_graph and not (machine.device.type == "cuda" and machine.world == 1):
        raise UserError("cuda_graph=True needs one GPU with CUDA; go without it here")
    if settings.cuda_graph and machine.dtype == torch.float16:
        raise UserError("cuda_graph=True cannot follow float16's overflows; try --dtype=bfloat16 or float32")
    last = Path(settings.out_dir) / "last.pt"
    if machine.rank or last.exists():  # the first process alone needs files, and a run that goes on none
        return
    require_source(settings.init_from)
    if settings.init_from == "resume":
        raise UserError(f"there is nothing to resume: {last} is missing; start without it")


def find_corpus(settings: Settings, machine: Machine) -> Corpus:
    """data/<dataset>, which is fetched when it is the default one and not there. Collective."""
    name = settings.dataset
    if machine.local_rank == 0 and not is_prepared(name):
        if name != prepare.Settings.dataset:
            command = prepare_command(name, "--input=PLAYS")
            raise UserError(f"data/{name} is not prepared; {command} does that (--help names other texts)")
        prepare.prepare(prepare.Settings())
    if machine.world > 1:
        dist.barrier()
    return load_data(name, settings.block_size, machine)


def main() -> int:
    try:
        with others_may_be_gone():
            result = train(configure(Settings, sys.argv[1:]), report=Report())
            if dist.is_initialized():
                # one that exits with a signal's status ends them all, and the first has a line to say
                dist.barrier()
                dist.destroy_process_group()
    except BaseException:
        # Gloo's threads may abort a process at its end; NCCL's group would wait for a process that is gone.
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()
        raise
    return 128 + result["signal"] if result["signal"] else 0


if __name__ == "__main__":
    run_program(main)
