"""The state of a training: begun, continued, saved. It decides how long the run is and what is kept."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from configurator import UserError
from drama import checkpoint
from drama.training.clock import Clock
from drama.training.dataset import Corpus, require_windows
from drama.training.machine import Machine
from drama.training.optimizer import make_optimizers, restore
from drama.training.pretrained import RANDOM, load_start, same_source, start_from
from model import GPT

if TYPE_CHECKING:
    from train_drama import Settings


WARM_UP = 3  # iterations at each start before the one that a CUDA graph records


class Run:
    """The state of a training; what it saves is what it holds.

    iteration: the next one, and so the number of updates made. val_loss: of the last evaluation. continued:
    whether an earlier start saved it. chosen: settings that the run itself has set. origin: for people.
    """

    def __init__(self, settings: Settings, machine: Machine, corpus: Corpus, clock: Clock):
        """A run at its first iteration, or where last.pt of settings.out_dir left it. Collective.

        Raises UserError for a saved run of other settings and for weights that do not fit, OSError for
        weights that cannot be had.
        """
        self.machine, self.clock, self.out = machine, clock, Path(settings.out_dir)
        self.iteration, self.best_val_loss, self.val_loss = 0, math.inf, math.inf
        self.chosen, self.origin = {}, ""
        self.saved_at = clock.total()
        # the files are needed on the first process's machine only
        state = machine.broadcast(saved_state(settings, corpus.identity) if machine.rank == 0 else None)
        self.continued = state is not None
        torch.manual_seed(settings.seed)
        tok = corpus.tokenizer
        if self.continued:
            self.model, tok = checkpoint.build_model(state, self.out / "last.pt")
            self.iteration = state["next_iteration"]
            self.val_loss = self.best_val_loss = state["best_val_loss"]
            self.chosen = chosen_by(state, settings)
            origin = state["settings"].get("init_from", "auto")
            if origin not in RANDOM:  # where its weights come from, whatever is asked now
                settings = dataclasses.replace(settings, init_from=origin)
        elif settings.init_from not in RANDOM:
            source = settings.init_from
            trained = machine.broadcast(load_start(source, tok) if machine.rank == 0 else None)
            self.model, tok = start_from(trained, source, settings, tok)
            names = (*settings.SHAPE, "block_size")
            self.chosen = {name: getattr(self.model.config, name) for name in names}
            self.origin = f"starting from {source} ({', '.join(f'{k} {v}' for k, v in self.chosen.items())})"
            if added := tok.vocab_size - trained["config"]["vocab_size"]:
                self.origin += f", with {added:,} new characters"
        else:
            self.model = GPT(settings.model_config(tok.vocab_size))
        self.settings = dataclasses.replace(settings, **self.chosen)
        self.corpus = corpus.encoded_by(tok, self.out)
        counts = dict(train=len(self.corpus.train), val=len(self.corpus.val))
        require_windows(counts, self.settings.block_size)  # subword tokens are fewer than characters
        self.model.to(machine.device)
        self.optimizers = make_optimizers(self.model, self.settings, machine)
        self.slow_starts = WARM_UP + 1 if self.into_a_graph else 1  # iterations that --minutes leaves out
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
        if self.continued:
            self.restore(state)

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

    # ------------------------------------------------------------------------ how long

    @property
    def tokens(self) -> int:
        """Tokens of an iteration, in all processes."""
        s = self.settings
        return s.gradient_accumulation_steps * s.batch_size * s.block_size

    @property
    def flops(self) -> int:
        """Floating-point operations of an iteration."""
        return self.model.flops_per_token() * self.tokens

    @property
    def length_known(self) -> bool:
        return not self.settings.minutes or "max_iters" in self.chosen

    @property
    def into_a_graph(self) -> bool:
        """Whether iterations become a CUDA graph, as the optimizers were made for."""
        return self.optimizers[0].defaults["capturable"]

    def tensors(self) -> list[torch.Tensor]:
        """All that an iteration changes."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        return [*self.model.parameters(), *(value for state in states for value in state.values())]

    @property
    def finished(self) -> bool:
        return self.length_known and self.iteration > self.settings.max_iters

    @property
    def save_due(self) -> bool:
        return self.clock.total() - self.saved_at > self.settings.save_minutes * 60

    def choose_length(self) -> bool:
        """Set the length that --minutes asks for, once the speed is known; whether that is now. Collective.

        The speed is known after five seconds of iterations or at the end of the warm-up; the first, or those
        before the replays of a CUDA graph, are left out.
        """
        if self.length_known:
            return False
        self.machine.wait()
        s, seconds = self.settings, self.clock.iterating()
        if self.slow_starts:
            self.slow_starts -= 1
            self.measured_from = self.iteration, seconds
        first, start = self.measured_from
        known = self.iteration > first and (seconds - start >= 5 or self.iteration >= s.warmup_iters)
        max_iters = None
        if known:
            evaluation = self.clock.pauses.get("evaluation", 0)
            each = (seconds - start) / (self.iteration - first) + evaluation / s.eval_interval
            left = s.minutes * 60 - self.clock.total() - evaluation  # one more at the end
            max_iters = self.iteration - 1 + max(1, int(left / max(each, 1e-9)))
        max_iters = self.machine.broadcast(max_iters)
        if max_iters is not None:
            warmup = min(s.warmup_iters, max_iters // 10)
            self.chosen |= dict(max_iters=max_iters, lr_decay_iters=max_iters, warmup_iters=warmup)
            self.settings = dataclasses.replace(s, **self.chosen)
        return max_iters is not None

    # ------------------------------------------------------------------------ what is kept

    def set_aside(self) -> list[str]:
        """Rename an earlier run's files to ckpt-1.pt and so on, so that starting over loses nothing.

        Returns their new names: none where this run is continued or nothing was there.
        """
        # last.pt first: without it, a start that follows a kill between two of them goes on with the others
        files = [Path(name) for name in ("last.pt", "ckpt.pt", "log.csv", "loss.png", "tensorboard", "wandb")]
        kept = [file for file in files if (self.out / file).exists()]
        if self.continued or self.machine.rank or not kept:
            return []
        number = 1
        while any((self.out / f"{file.stem}-{number}{file.suffix}").exists() for file in kept):
            number += 1
        names = [f"{file.stem}-{number}{file.suffix}" for file in kept]
        for file, name in zip(kept, names, strict=True):
            os.rename(self.out / file, self.out / name)
        return sorted(names)

    def keep_best(self, losses: dict[str, float]):
        """Take note of an evaluation; save ckpt.pt when it is the best so far. An untrained model is not."""
        self.val_loss = losses["val_loss"]
        self.require_finite(self.iteration, validation_loss=self.val_loss)
        trained = self.iteration or self.settings.init_from not in RANDOM
        if trained and self.val_loss < self.best_val_loss:
            train_loss = losses["train_loss"]
            self.save("ckpt.pt", iteration=self.iteration, train_loss=train_loss, val_loss=self.val_loss)
            self.best_val_loss = self.val_loss

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
        self.saved_at = self.clock.total()

    def save(self, name: str, **values):
        if self.machine.rank:
            return
        finite = all(p.isfinite().all() for p in self.model.parameters())
        self.require_finite(self.iteration, a_weight=0.0 if finite else math.nan)
        corpus = self.corpus
        common = checkpoint.model_state(self.model, corpus.tokenizer, self.settings, corpus.speakers)
        checkpoint.save(self.out / name, {**common, **values})

    def require_finite(self, iteration: int, **values: float | torch.Tensor):
        """Raise FloatingPointError, with its name, where a value is not finite."""
        for name, value in values.items():
            if not math.isfinite(value):
                scratch = self.settings.init_from in RANDOM
                restart = "--init_from=scratch" if scratch else "another --out_dir"
                advice = f"start over with a lower --learning_rate and {restart}; what was saved is kept"
                what = f"{name.replace('_', ' ')} is {float(value)}"
                raise FloatingPointError(f"{what} at iteration {iteration}; {advice}")


def saved_state(settings: Settings, identity: str) -> dict | None:
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
    fits = all(type(state.get(name)) is kind for name, kind in types.items())
    chosen = chosen_by(state, settings) if fits else None
    if chosen is None or state["next_iteration"] < 0:
        raise UserError(f"{path} holds no state to continue; --init_from=scratch starts over and keeps it")
    saved = state["settings"]
    asked = {**dataclasses.asdict(settings), **chosen}
    earlier = {name: getattr(type(settings), name) for name in asked} | saved  # before a setting was there
    different = [
        f"{name} (saved {earlier[name]!r}, asked {asked[name]!r})"
        for name in asked
        if name not in settings.FREE_TO_CHANGE and earlier[name] != asked[name]
    ]
    gone = [name for name in saved if name not in asked and saved[name]]  # of an earlier version, and in use
    different += [f"{name} (saved {saved[name]!r}, and there is no such setting now)" for name in gone]
    origin = str(saved.get("init_from"))
    if settings.init_from not in RANDOM and not same_source(settings.init_from, origin):
        different.append(f"init_from (saved {origin!r}, asked {settings.init_from!r})")
    if state.get("data_sha256") != identity:
        different.append(f"the text in data/{settings.dataset}")
    if different:
        advice = f"{way_to_start_over(origin)}or another --out_dir"
        if (path.parent / "ckpt.pt").is_file():
            advice += f" (with --init_from={path.parent} to start from its model)"
        others = f"{path} is a run with other settings: {'; '.join(different)}"
        raise UserError(f"{others}. Give the same ones to continue it, {advice}")
    return state


def chosen_by(state: dict, settings: Settings) -> dict | None:
    """The settings that a saved run has set itself: of --minutes, or a trained model's shape.

    None where they are damaged. Earlier versions did not save the shape of pretrained weights.
    """
    chosen, saved = state.get("chosen", {}), state["settings"]
    if type(chosen) is not dict or not set(chosen) <= {*settings.SHAPE, *settings.CHOSEN}:
        return None
    if saved.get("init_from", "auto") not in RANDOM:
        chosen = {name: saved[name] for name in settings.SHAPE if name in saved} | chosen
    fits = all(type(value) is type(getattr(settings, name)) for name, value in chosen.items())
    return chosen if fits else None


def way_to_start_over(init_from: str) -> str:
    """For messages; a run that began with pretrained weights cannot start over with random ones."""
    return "--init_from=scratch to start over (its files are kept), " if init_from in RANDOM else ""


def launch() -> str:
    """What torchrun calls the job, the same after it has restarted a process that died."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")
