"""Train a GPT to write plays.

    python train_drama.py                                  the full run: minutes on a GPU, hours without
    python train_drama.py config/laptop.py                 a smaller model, for a machine with no GPU
    python train_drama.py --n_layer=4 --dropout=0.1        any setting, by name (--help lists them)
    torchrun --standalone --nproc_per_node=4 train_drama.py      several GPUs, or several CPUs

The same command run again continues where the run was stopped.
"""

from configurator import configure, one_line, run  # first: see starting() there

# isort: split
import contextlib
import copy
import dataclasses
import importlib.util
import math
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

import checkpoint
import plot
from dataset import draw_batches, evaluate, fixed_windows, load_data, windows_per_batch
from generation import generate, pack
from huggingface import OPENAI_WEIGHTS, OWN_WEIGHTS, from_gpt2
from machine import DTYPES, Machine, Stop, peak_flops, training_machine
from model import GPT, GPTConfig, seed_at
from optimizer import learning_rate_at, make_optimizers, restore
from tracking import open_logs, require_packages

# ---------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Settings:
    """python train_drama.py [config/FILE.py ...] [--name=value ...]"""

    # Files
    out_dir: str = "model"  # the folder for ckpt.pt, last.pt and log.csv; one run each
    dataset: str = "drama"  # the folder under data/ to train on; prepare.py writes it
    init_from: str = "auto"  # auto: continue an unfinished run; resume: insist on one; scratch: start over
    #                          with random weights; gpt2, gpt2-medium, or a folder in Hugging Face's format:
    #                          start from its weights
    save_minutes: float = 5.0  # save last.pt this often between evaluations; raise it for a slow disk
    # Model
    arch: str = "gpt2"  # gpt2, or modern, which learns the same in fewer iterations: see model.py
    n_layer: int = 6  # blocks; more are slower and need more text
    n_ensemble: int = 1  # such stacks of blocks side by side, whose mean counts; against overfitting
    n_head: int = 6  # attention heads in each block; 64 channels a head is usual
    n_embd: int = 384  # channels; a multiple of n_head
    block_size: int = 256  # tokens of context; longer remembers more and costs more memory
    dropout: float = 0.2  # raise it when train loss falls and val loss rises; 0 for a large corpus
    bias: bool = False  # biases in the linear and norm layers, as GPT-2 has them; none is a bit better
    # Training
    batch_size: int = 64  # sequences a step; lower it when memory runs out
    gradient_accumulation_steps: int = 1  # batches before each update; raise it when batch_size is lowered
    max_iters: int = 5000  # the last iteration; raise it to train a finished run further
    learning_rate: float = 1e-3  # the highest, after the warm-up; smaller for a larger model
    min_lr: float = 1e-4  # the lowest, at lr_decay_iters; a tenth of learning_rate is usual
    warmup_iters: int = 100  # iterations of rising learning rate; more when the loss jumps at the start
    lr_decay_iters: int = 5000  # iteration at which the cosine reaches min_lr; usually max_iters
    optimizer: str = "adamw"  # adamw; or muon for the matrices of the blocks, which learns faster
    corruption: float = 0.0  # share of input tokens replaced at random; against overfitting, as dropout is
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
    dtype: str = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32
    compile: bool | None = None  # None: torch.compile on CUDA; true or false to insist

    def __post_init__(self):
        zero = ("max_iters", "warmup_iters", "lr_decay_iters", "eval_iters", "sample_interval", "seed")
        zero += ("learning_rate", "min_lr", "weight_decay", "grad_clip", "save_minutes")
        one = ("batch_size", "gradient_accumulation_steps", "eval_interval", "log_interval")
        at_least = {**dict.fromkeys(zero, 0), **dict.fromkeys(one, 1)}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is below {least}")
        for name in ("beta1", "beta2", "corruption"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not at least 0 and below 1")
        for name, values in {"dtype": DTYPES, "optimizer": ("adamw", "muon")}.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(values)}")
        if self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}; "
                f"try --min_lr={self.learning_rate / 10:g}"
            )
        named = OWN_WEIGHTS + OPENAI_WEIGHTS
        if self.init_from not in named and not Path(self.init_from).is_dir():
            raise ValueError(f"init_from={self.init_from!r} is none of {', '.join(named)}, nor a folder")
        self.model_config(vocab_size=1)

    def model_config(self, vocab_size: int) -> GPTConfig:
        names = (*SHAPE, "block_size", "dropout")
        return GPTConfig(vocab_size=vocab_size, **{name: getattr(self, name) for name in names})


SAMPLE = 200  # tokens of the samples on the way
SHAPE = ("arch", "n_ensemble", "n_layer", "n_head", "n_embd", "bias")  # what pretrained weights have already

# Settings that may differ when a run is continued: what it reads and what its losses mean stay the same.
FREE_TO_CHANGE = {
    "out_dir", "init_from", "save_minutes", "max_iters", "eval_interval", "log_interval", "sample_interval",
    "tensorboard", "wandb", "device", "dtype", "compile",
}  # fmt: skip

# ---------------------------------------------------------------------------- compiling


def compiled(model: GPT, settings: Settings, machine: Machine, batch, say):
    """The model through torch.compile where that is wanted and works, else as it is.

    batch is one of training's, so that nothing is compiled again there.
    """
    wanted = machine.device.type == "cuda" if settings.compile is None else settings.compile
    if not wanted:
        return model
    say("compiling the model (about a minute; --compile=false goes without)")
    try:
        faster = torch.compile(model)
        with machine.autocast():
            faster(*batch)[1].backward()
        model.zero_grad(set_to_none=True)
        return faster
    except Exception as e:  # no compiler, no Triton, an old GPU: every failure here has its own class
        if out_of_memory(e):
            raise
        say(f"torch.compile does not work here ({one_line(e)[:120] or type(e).__name__}); going on without")
        model.zero_grad(set_to_none=True)
        return model


def out_of_memory(e: Exception) -> bool:
    """CUDA has a class for it; MPS, and the CPU on Linux and on Windows, have their words."""
    return bool(re.search("out of memory|allocate memory|not enough memory", str(e)))


# ---------------------------------------------------------------------------- where a run stands


def new_model(settings: Settings, tok) -> GPT:
    """A model to begin with. Raises ValueError or OSError for weights that cannot be had or do not fit."""
    if settings.init_from in OWN_WEIGHTS:
        return GPT(settings.model_config(tok.vocab_size))
    model = from_gpt2(settings.init_from, settings.block_size, settings.dropout, tok)
    shape = {name: getattr(model.config, name) for name in SHAPE}
    if any(getattr(settings, name) != value for name, value in shape.items()):
        given = " ".join(f"--{name}={value}" for name, value in shape.items())
        raise ValueError(f"{settings.init_from} is of another shape; its own is {given}")
    return model


def saved_run(settings: Settings, meta: dict) -> dict | None:
    """What last.pt holds, when this run continues it. Raises ValueError when it is another run's."""
    path = Path(settings.out_dir) / "last.pt"
    scratch = settings.init_from == "scratch"
    if scratch and not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return None
    if not path.exists():
        return None
    state = checkpoint.load(path)
    if scratch and state.get("launch") != launch():  # a process died, but before it had saved anything
        return None
    wanted = dict(next_iteration=int, best_val_loss=float, optimizers=list, scaler=dict, settings=dict)
    if any(type(state.get(name)) is not kind for name, kind in wanted.items()) or state["next_iteration"] < 0:
        raise ValueError(f"{path} holds no state to continue; --init_from=scratch starts over and keeps it")
    saved = state["settings"]
    other = [
        f"{f.name} (saved {saved.get(f.name)!r}, asked {getattr(settings, f.name)!r})"
        for f in dataclasses.fields(settings)
        if f.name not in FREE_TO_CHANGE and saved.get(f.name) != getattr(settings, f.name)
    ]
    if settings.init_from not in (*OWN_WEIGHTS, saved.get("init_from")):
        other.append(f"init_from (saved {saved.get('init_from')!r}, asked {settings.init_from!r})")
    if state.get("data_sha256") != meta["sha256"]:
        other.append(f"the text in data/{settings.dataset}")
    if other:
        raise ValueError(
            f"{path} is a run with other settings: {'; '.join(other)}. Give the same ones to continue it, "
            f"{way_to_start_over(saved)}or another --out_dir"
        )
    return state


def way_to_start_over(saved: dict) -> str:
    """For messages; a run that began from weights elsewhere cannot do that with random ones."""
    if saved.get("init_from") not in OWN_WEIGHTS:
        return ""
    return "--init_from=scratch to start over (its files are kept), "


def launch() -> str:
    """What torchrun calls the job, the same after it has restarted a process that died."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


# ---------------------------------------------------------------------------- the run


def train(settings: Settings) -> dict:
    """Run a training to its end or to a signal.

    Returns iteration (the next one), val_loss (the last evaluation's, or the best when none was left to
    do), best_val_loss, and signal (the one that stopped it, or 0). Raises ValueError for a wrong request,
    OSError for a disk that fails, MemoryError for a model or batch that is too large, FloatingPointError for
    a loss that is no longer finite; last.pt then holds the last good state.
    """
    require_packages(settings)
    machine = training_machine(settings.device, settings.dtype)
    if settings.batch_size % machine.world:
        more = math.ceil(settings.batch_size / machine.world) * machine.world
        raise ValueError(
            f"batch_size={settings.batch_size} cannot be split among {machine.world} processes; "
            f"try --batch_size={more}"
        )
    data = load_data(settings.dataset, settings.block_size, machine)
    out = Path(settings.out_dir)
    if settings.init_from == "resume" and machine.rank == 0 and not (out / "last.pt").exists():
        raise ValueError(f"there is nothing to resume: {out / 'last.pt'} is missing; start without it")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with checkpoint.lock(out) if machine.rank == 0 else contextlib.nullcontext():
            return train_alone(settings, machine, data, out)
    except RuntimeError as e:
        if out_of_memory(e):
            raise MemoryError(
                "out of memory; lower --batch_size and raise --gradient_accumulation_steps by as much, or "
                "give a smaller --n_embd or --block_size; with another --out_dir if this run was saved before"
            ) from None
        raise


def train_alone(settings: Settings, machine: Machine, data: tuple, out: Path) -> dict:
    """The run itself, with nothing else writing to `out`."""
    device, rank, world = machine.device, machine.rank, machine.world
    train_split, val_split, meta = data
    hear = "python sample.py" + ("" if settings.out_dir == "model" else f" --out_dir={settings.out_dir}")
    live = rank == 0 and bool(sys.stdout and sys.stdout.isatty())

    def say(text: str):
        if rank == 0:
            print("\r\x1b[K" * live + text, flush=True)

    # the model, new or as it was saved
    state = saved_run(settings, meta) if rank == 0 else None
    if world > 1:  # the files are needed on the first process's machine only
        box = [state]
        dist.broadcast_object_list(box, device=device)
        state = box[0]
    torch.manual_seed(settings.seed)
    if state is None:
        model, start, best = new_model(settings, meta["tokenizer"]), 0, math.inf
    else:
        model, _ = checkpoint.build_model(state, out / "last.pt")
        start, best = state["next_iteration"], state["best_val_loss"]
        if (origin := state["settings"]["init_from"]) not in OWN_WEIGHTS:  # where the weights come from
            settings = dataclasses.replace(settings, init_from=origin)
        if start > settings.max_iters:
            hearing = f", best val loss {best:.4f}; to hear it: {hear}" if math.isfinite(best) else ""
            say(f"this run is finished{hearing}")
            again = way_to_start_over(state["settings"])
            say(f"give a larger --max_iters to train it further, {again}or another --out_dir")
            return {"iteration": start, "val_loss": best, "best_val_loss": best, "signal": 0}
    model.to(device)
    optimizers = make_optimizers(model, settings, machine)
    scaler = torch.amp.GradScaler(device.type, enabled=machine.dtype == torch.float16)
    if state is not None:
        try:
            for optimizer, gathered in zip(optimizers, state["optimizers"], strict=True):
                restore(optimizer, gathered)
            if scaler.is_enabled() and state["scaler"]:  # empty when the run was not in float16 until now
                scaler.load_state_dict(state["scaler"])
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            raise ValueError(
                f"{out / 'last.pt'} does not fit its settings; --init_from=scratch starts over and keeps it"
            ) from None
    elif rank == 0 and (kept := checkpoint.set_aside(out)):
        say(f"the earlier run's files in {out} are kept as {', '.join(kept)}")
    del state
    logs = open_logs(settings, out, start) if rank == 0 else []

    # what lies ahead
    peak, peak_source = peak_flops(machine)
    tokens_per_iter = settings.gradient_accumulation_steps * settings.batch_size * settings.block_size
    flops_per_iter = model.flops_per_token() * tokens_per_iter
    say(
        f"{meta['source']}: {len(train_split):,} training tokens, {len(val_split):,} validation tokens, "
        f"vocabulary {model.config.vocab_size:,}"
    )
    say(
        f"{model.num_params() / 1e6:.2f}M parameters, {tokens_per_iter:,} tokens an iteration, "
        f"on {f'{world} processes with ' if world > 1 else ''}{device.type} in {str(machine.dtype)[6:]}"
    )
    say(f"mfu is measured against {peak_source}")
    seconds = (settings.max_iters + 1 - start) * flops_per_iter / (0.75 * peak * world)
    if device.type == "cpu" and seconds > 3600:
        say(
            f"with no GPU this takes about {duration(seconds)}; made for that: python train_drama.py "
            "config/laptop.py --out_dir=model/laptop (Ctrl-C stops here, the same command goes on later)"
        )
    if start:
        say(f"continuing at iteration {start}")
    batch = next(draw_batches(train_split, settings, start, machine))
    trained = compiled(model, settings, machine, batch, say)
    if world > 1:
        trained = torch.nn.parallel.DistributedDataParallel(trained)

    def log(**values):
        for place in logs:
            place.row(**values)

    def show_losses():
        try:
            if rank == 0:
                plot.draw([out / "log.csv"], out / "loss.png")
        except Exception as e:  # a picture is no reason to stop
            say(f"no picture of the losses: {one_line(e)}")

    def show_sample(i: int):
        try:
            text = sample_on_the_way()
        except RuntimeError as e:  # no memory left beside the training's
            return say(f"no sample: {one_line(e)[:120]}")
        say(f"sample {i}:\n{text}\n---------------")
        log(iter=i, sample=text.replace("\0", "\ufffd"))  # which csv cannot hold

    def sample_on_the_way() -> str:
        writer = pack(copy.deepcopy(model), machine.dtype)  # decoding as in sample.py, the model left alone
        first, _ = val_split.windows(torch.tensor([0]), 1)  # the token that the validation text begins with
        ids = generate(writer, first, SAMPLE, temperature=0.8, seed=settings.seed)
        return meta["tokenizer"].decode(ids[0].tolist()).strip("\n")

    # as many windows of the train split as of the whole val split, always the same ones
    sizes = settings.block_size, model.config.vocab_size
    val_windows = fixed_windows(len(val_split), *sizes, limit=settings.eval_iters * windows_per_batch(*sizes))
    count = sum(len(starts) for starts, _ in val_windows)
    train_windows = fixed_windows(len(train_split), *sizes, limit=count)

    def save(name: str, **more):
        if rank == 0:
            if not all(p.isfinite().all() for p in model.parameters()):
                raise FloatingPointError(f"the weights are no longer finite at iteration {i}; {way_out}")
            state = checkpoint.model_state(model, meta["tokenizer"], settings)
            checkpoint.save(out / name, {**state, **more})

    def save_last(next_iteration: int):
        save(
            "last.pt",
            next_iteration=next_iteration,
            best_val_loss=best,
            data_sha256=meta["sha256"],
            optimizers=[optimizer.state_dict()["state"] for optimizer in optimizers],
            scaler=scaler.state_dict(),
            launch=launch(),
        )

    @contextlib.contextmanager
    def paused():
        """What is done within is no part of the iterations' time."""
        nonlocal line_at
        machine.wait()
        paused_at = time.perf_counter()
        yield
        line_at += time.perf_counter() - paused_at

    def leave(kind, error, traceback):
        """However the loop ends: a disk that fails, or nobody left to read what it says, loses nothing."""
        if kind and issubclass(kind, OSError) and i > start:
            with contextlib.suppress(OSError):
                save_last(i)
        if live:
            with contextlib.suppress(OSError):
                print("\r\x1b[K", end="", flush=True)

    again = "--init_from=scratch" if settings.init_from in OWN_WEIGHTS else "another --out_dir"
    way_out = f"start over with a lower --learning_rate and {again}; what was saved is kept"
    i, val_loss, ended = start, best, False
    with Stop() as stop, contextlib.ExitStack() as at_the_end:
        for place in logs:
            at_the_end.callback(place.close)
        at_the_end.push(leave)
        model.train()
        saved_at = line_at = drawn_at = shown_at = time.perf_counter()
        since_line, per_iter = 0, 0.0  # iterations since the last line, and the seconds of each before it
        while i <= settings.max_iters and not ended:
            # evaluation
            if i % settings.eval_interval == 0 or i == settings.max_iters:
                with paused():
                    train_loss = evaluate(model, train_split, train_windows, machine, stop)
                    found = evaluate(model, val_split, val_windows, machine, stop)
                    if found is None:
                        break
                    val_loss = found
                    bits = val_loss / math.log(2) * len(val_split) / meta["val_characters"]
                    say(
                        f"step {i}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, "
                        f"{bits:.4f} bits a character"
                    )
                    if not math.isfinite(val_loss):
                        raise FloatingPointError(
                            f"the validation loss is {val_loss} at iteration {i}; {way_out}"
                        )
                    log(iter=i, train_loss=train_loss, val_loss=val_loss, val_bits_per_char=bits)
                    if i and val_loss < best:
                        save("ckpt.pt", iteration=i, train_loss=train_loss, val_loss=val_loss)
                        best = val_loss
                    if i > start:  # before, there is nothing to lose
                        save_last(i)
                    saved_at = time.perf_counter()
                    # without matplotlib, that is said once, at the end
                    if saved_at - drawn_at > 60 and importlib.util.find_spec("matplotlib"):
                        show_losses()
                        drawn_at = time.perf_counter()
            if settings.sample_interval and i and i % settings.sample_interval == 0 and rank == 0:
                with paused():
                    show_sample(i)

            # one update; what is dropped follows from (seed, iteration, rank) alone
            lr = learning_rate_at(settings, i)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
            torch.manual_seed(seed_at(settings.seed, "dropout", i, rank))
            loss = torch.zeros((), device=device)
            for step, (x, y) in enumerate(draw_batches(train_split, settings, i, machine), start=1):
                last = step == settings.gradient_accumulation_steps
                # processes exchange gradients once an update, in its last backward pass
                with contextlib.nullcontext() if last or world == 1 else trained.no_sync():
                    with machine.autocast():
                        part = trained(x, y)[1] / settings.gradient_accumulation_steps
                    scaler.scale(part).backward()
                loss += part.detach()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
            if not scaler.is_enabled() or norm.isfinite():  # none takes a step when float16 overflows
                for optimizer in optimizers:
                    scaler.step(optimizer)
            scaler.update()
            model.zero_grad(set_to_none=True)
            i += 1
            since_line += 1

            # a line: the only place that waits for a GPU, but for float16's overflows
            line = (i - 1) % settings.log_interval == 0 or i > settings.max_iters
            if line:
                mean_loss = machine.sum(loss).item() / world
                now = time.perf_counter()
                per_iter = (now - line_at) / since_line
                line_at, since_line = now, 0
                mfu = flops_per_iter / per_iter / (peak * world)
                speed = tokens_per_iter / per_iter
                left = duration((settings.max_iters + 1 - i) * per_iter)
                log(
                    iter=i - 1, loss=mean_loss, time_ms=per_iter * 1000, mfu=mfu, tokens_per_s=speed, lr=lr
                )  # fmt: skip
                say(
                    f"iter {i - 1}: loss {mean_loss:.4f}, time {per_iter * 1000:.2f}ms, "
                    f"mfu {mfu * 100:.2f}%, {speed:,.0f} tokens/s, {left} left"
                )
                if not math.isfinite(mean_loss):
                    raise FloatingPointError(f"the loss is {mean_loss} at iteration {i - 1}; {way_out}")
            if live and per_iter and (now := time.perf_counter()) - shown_at > 0.2:  # gone with the next line
                left = duration((settings.max_iters + 1 - i) * per_iter)
                print(f"\r\x1b[K{i:,} of {settings.max_iters:,}, {left} left", end="", flush=True)
                shown_at = now
            if time.perf_counter() - saved_at > settings.save_minutes * 60:
                with paused():
                    save_last(i)
                saved_at = time.perf_counter()
            if world == 1 or line or device.type == "cpu":
                ended = machine.any(stop)  # a signal to one process ends all, after the same iteration
        save_last(i)
    show_losses()
    stopped = i <= settings.max_iters
    if stopped:
        same = "the same command" + (" without --init_from" if settings.init_from == "scratch" else "")
        say(f"stopped before iteration {i} and saved; {same} continues from there")
    elif math.isfinite(best):
        say(f"the best model, val loss {best:.4f}, is {out / 'ckpt.pt'}; to hear it: {hear}")
    return {
        "iteration": i,
        "val_loss": val_loss,
        "best_val_loss": best,
        "signal": (stop.signum or signal.SIGTERM) if stopped else 0,
    }


def main() -> int:
    result = train(configure(Settings, sys.argv[1:]))
    if dist.is_initialized():  # only when all is well: with another process gone this would wait for it
        dist.barrier()  # one that ends with a signal's status ends them all, and the first has a line to say
        dist.destroy_process_group()
    return 128 + result["signal"] if result["signal"] else 0


if __name__ == "__main__":
    run(main)
