"""The state of a training: begun, continued, saved. `settings` are train_drama's."""

import dataclasses
import math
import os
from pathlib import Path

import torch

from configurator import UserError
from drama import checkpoint
from drama.dataset import Corpus, require_windows
from drama.huggingface import OPENAI_WEIGHTS, from_gpt2
from drama.machine import Machine
from drama.optimizer import make_optimizers, restore
from drama.transfer import load_start, own_checkpoint, start_from
from model import GPT

OWN_WEIGHTS = ("auto", "resume", "scratch")  # values of init_from that begin with random weights
NAMED_WEIGHTS = OWN_WEIGHTS + OPENAI_WEIGHTS
SHAPE = ("arch", "n_ensemble", "n_layer", "n_head", "n_embd", "bias")  # what pretrained weights fix

# Settings that may differ when a run is continued: they change neither what it reads nor what it learns.
FREE_TO_CHANGE = {
    "out_dir", "init_from", "save_minutes", "max_iters", "eval_interval", "log_interval", "sample_interval",
    "tensorboard", "wandb", "device", "dtype", "compile", "cuda_graph",
}  # fmt: skip

CHOSEN = {"max_iters", "lr_decay_iters", "warmup_iters", "block_size", *SHAPE}  # what a run may set itself


class Run:
    """The state of a training; what it saves is what it holds.

    iteration: the next one, and so the number of updates made. val_loss: of the last evaluation.
    """

    def __init__(self, settings, machine: Machine, corpus: Corpus):
        """A run at its first iteration, or where last.pt of settings.out_dir left it. Collective.

        Raises UserError for a saved run of other settings and for weights that do not fit, OSError for
        weights that cannot be had.
        """
        self.machine, self.out = machine, Path(settings.out_dir)
        self.iteration, self.best_val_loss = 0, math.inf
        self.val_loss, self.origin = math.inf, ""  # origin: for people
        self.chosen = {}  # settings that the run itself has set: of --minutes, or a trained model's shape
        # the files are needed on the first process's machine only
        state = machine.from_first(saved_state(settings, corpus.identity) if machine.rank == 0 else None)
        torch.manual_seed(settings.seed)
        tok, source = corpus.tokenizer, own_checkpoint(settings.init_from)
        if state is not None:
            self.model, tok = checkpoint.build_model(state, self.out / "last.pt")
            self.iteration, self.best_val_loss = state["next_iteration"], state["best_val_loss"]
            self.val_loss = self.best_val_loss
            self.chosen = state.get("chosen", {})
            origin = state["settings"].get("init_from", "auto")
            if origin not in OWN_WEIGHTS:  # where its weights come from, whatever is asked now
                settings = dataclasses.replace(settings, init_from=origin)
        elif source:
            trained = machine.from_first(load_start(source) if machine.rank == 0 else None)
            self.model, tok = start_from(trained, source, settings, corpus.tokenizer)
            self.chosen = {name: getattr(self.model.config, name) for name in (*SHAPE, "block_size")}
            added = tok.vocab_size - trained["config"]["vocab_size"]
            shape = ", ".join(
                f"{name} {self.chosen[name]}" for name in ("arch", "n_layer", "n_embd", "block_size")
            )
            new = f", with {added:,} new characters" * (added > 0)
            self.origin = f"starting from {source} ({shape}){new}"
        else:
            self.model = new_model(settings, tok)
        self.settings = dataclasses.replace(settings, **self.chosen)
        self.corpus = corpus.encoded_by(tok)
        counts = dict(train=len(self.corpus.train), val=len(self.corpus.val))
        require_windows(counts, self.settings.block_size)  # pieces of words are fewer than characters
        self.model.to(machine.device)
        self.optimizers = make_optimizers(self.model, settings, machine)
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
        if state is not None:
            self.restore(state)

    @property
    def finished(self) -> bool:
        return self.length_known and self.iteration > self.settings.max_iters

    @property
    def length_known(self) -> bool:
        return not self.settings.minutes or "max_iters" in self.chosen

    def choose_length(self, max_iters: int | None):
        """Take max_iters for the length that --minutes asks for; None: it is not known yet."""
        if max_iters is not None:
            warmup = min(self.settings.warmup_iters, max_iters // 10)
            self.chosen |= dict(max_iters=max_iters, lr_decay_iters=max_iters, warmup_iters=warmup)
            self.settings = dataclasses.replace(self.settings, **self.chosen)

    def restore(self, state: dict):
        """Take over the optimizer state of last.pt. Raises UserError where it is another model's."""
        try:
            for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
                restore(optimizer, optimizer_state)
            if self.scaler.is_enabled() and state["scaler"]:  # empty where the run was not in float16 so far
                self.scaler.load_state_dict(state["scaler"])
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            path = self.out / "last.pt"
            raise UserError(f"{path} does not fit its settings; --init_from=scratch starts over") from None

    def keep_best(self, train_loss: float, val_loss: float):
        """Take note of an evaluation; save ckpt.pt when it is the best so far. An untrained model is not."""
        self.val_loss = val_loss
        self.require_finite(math.isfinite(val_loss), f"the validation loss is {val_loss}", self.iteration)
        trained = self.iteration or self.settings.init_from not in OWN_WEIGHTS
        if trained and val_loss < self.best_val_loss:
            self.save("ckpt.pt", iteration=self.iteration, train_loss=train_loss, val_loss=val_loss)
            self.best_val_loss = val_loss

    def save_last(self):
        """Save last.pt, from which the next start continues."""
        self.save(
            "last.pt",
            next_iteration=self.iteration,
            best_val_loss=self.best_val_loss,
            data_sha256=self.corpus.identity,
            optimizers=[optimizer.state_dict()["state"] for optimizer in self.optimizers],
            scaler=self.scaler.state_dict(),
            launch=launch(),
            chosen=self.chosen,
        )

    def save(self, name: str, **values):
        if self.machine.rank:
            return
        finite = all(p.isfinite().all() for p in self.model.parameters())
        self.require_finite(finite, "the weights are no longer finite", self.iteration)
        corpus = self.corpus
        common = checkpoint.model_state(self.model, corpus.tokenizer, self.settings, corpus.speakers)
        checkpoint.save(self.out / name, {**common, **values})

    def require_finite(self, finite: bool, what: str, iteration: int):
        """Raise FloatingPointError with what happened unless all is finite."""
        if not finite:
            restart = "--init_from=scratch" if self.settings.init_from in OWN_WEIGHTS else "another --out_dir"
            advice = f"start over with a lower --learning_rate and {restart}; what was saved is kept"
            raise FloatingPointError(f"{what} at iteration {iteration}; {advice}")


def require_source(init_from: str):
    """Raise UserError where init_from names nothing to start from."""
    path = Path(init_from)
    if init_from not in NAMED_WEIGHTS and not (init_from and (path.is_dir() or path.is_file())):
        named = ", ".join(NAMED_WEIGHTS)
        raise UserError(f"init_from={init_from!r} is none of {named}, nor a folder or a checkpoint")


def same_source(a: str, b: str) -> bool:
    """Whether two values of init_from name the same, as model/plays and model/plays/ckpt.pt do."""
    folders = (path.parent if path.name == "ckpt.pt" else path for path in (Path(a), Path(b)))
    return a == b or len(set(folders)) == 1


def new_model(settings, tok) -> GPT:
    """A model to begin with. Raises UserError or OSError for weights that cannot be had or do not fit."""
    if settings.init_from in OWN_WEIGHTS:
        return GPT(settings.model_config(tok.vocab_size))
    model = from_gpt2(settings.init_from, settings.block_size, settings.dropout, tok)
    shape = {name: getattr(model.config, name) for name in SHAPE}
    if any(getattr(settings, name) != value for name, value in shape.items()):
        flags = " ".join(f"--{name}={value}" for name, value in shape.items())
        raise UserError(f"{settings.init_from} is of another shape; its own is {flags}")
    return model


def saved_state(settings, identity: str) -> dict | None:
    """What last.pt holds, when this run continues it. Raises UserError when it is another run's."""
    path = Path(settings.out_dir) / "last.pt"
    scratch = settings.init_from == "scratch"
    if scratch and not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return None
    if not path.exists():
        return None
    state = checkpoint.load(path)
    if scratch and state.get("launch") != launch():  # a process died, but before it had saved anything
        return None
    types = dict(next_iteration=int, best_val_loss=float, optimizers=list, scaler=dict, settings=dict)
    chosen = state.get("chosen", {})  # not there in files of earlier versions
    fits = type(chosen) is dict and set(chosen) <= CHOSEN
    fits = fits and all(type(value) is type(getattr(settings, name)) for name, value in chosen.items())
    fits &= all(type(state.get(name)) is kind for name, kind in types.items())
    if not fits or state["next_iteration"] < 0:
        raise UserError(f"{path} holds no state to continue; --init_from=scratch starts over and keeps it")
    saved = state["settings"]
    asked = {**dataclasses.asdict(settings), **chosen}
    earlier = {name: getattr(type(settings), name) for name in asked} | saved  # before a setting was there
    different = [
        f"{name} (saved {earlier[name]!r}, asked {asked[name]!r})"
        for name in asked
        if name not in FREE_TO_CHANGE and earlier[name] != asked[name]
    ]
    gone = [name for name in saved if name not in asked and saved[name]]  # of an earlier version, and in use
    different += [f"{name} (saved {saved[name]!r}, and there is no such setting now)" for name in gone]
    origin = str(saved.get("init_from"))
    if settings.init_from not in OWN_WEIGHTS and not same_source(settings.init_from, origin):
        different.append(f"init_from (saved {saved.get('init_from')!r}, asked {settings.init_from!r})")
    if state.get("data_sha256") != identity:
        different.append(f"the text in data/{settings.dataset}")
    if different:
        advice = f"{way_to_start_over(saved.get('init_from'))}or another --out_dir"
        if (path.parent / "ckpt.pt").is_file():
            advice += f" (with --init_from={path.parent} to start from its model)"
        others = f"{path} is a run with other settings: {'; '.join(different)}"
        raise UserError(f"{others}. Give the same ones to continue it, {advice}")
    return state


def way_to_start_over(init_from: str) -> str:
    """For messages; a run that began with pretrained weights cannot start over with random ones."""
    return "--init_from=scratch to start over (its files are kept), " if init_from in OWN_WEIGHTS else ""


def launch() -> str:
    """What torchrun calls the job, the same after it has restarted a process that died."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")
