"""What a run says: its lines, its log, the picture of its losses, and samples on the way."""

import contextlib
import copy
import importlib.util
import math
import sys
import time

from drama.program import is_out_of_memory

import torch

from configurator import UserError, one_line
from drama.checkpoint import set_aside
from drama.generation import generate, pack
from drama.logs import draw, open_logs
from drama.run import Run, way_to_start_over

SAMPLE = 200  # tokens of a sample on the way
CLEAR = "\r\x1b[K"  # the terminal's line


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class Report:
    """What a run says, and its clock. Of several processes only the first prints and logs.

    It is made before the run; begin() tells it which run it is about.
    """

    def __init__(self, clock=time.perf_counter):
        self.clock, self.logs = clock, []

    def begin(self, run: Run):
        """Open the logs and say what lies ahead."""
        self.run, self.first = run, run.machine.rank == 0
        self.live = self.first and bool(sys.stdout and sys.stdout.isatty())
        settings, machine, corpus = run.settings, run.machine, run.corpus
        if self.first and not run.iteration and (kept := set_aside(run.out)):
            self.say(f"the earlier run's files in {run.out} are kept as {', '.join(kept)}")
        self.logs = open_logs(settings, run.out, run.iteration) if self.first else []
        flops, source = machine.peak_flops()
        self.peak_flops = flops * machine.world
        self.tokens = settings.gradient_accumulation_steps * settings.batch_size * settings.block_size
        self.flops = run.model.flops_per_token() * self.tokens
        counts = f"{len(corpus.train):,} training tokens, {len(corpus.val):,} validation tokens"
        self.say(f"{corpus.source}: {counts}, vocabulary {run.model.config.vocab_size:,}")
        where = f"{machine.world} processes with " if machine.world > 1 else ""
        where += f"{machine.device.type} in {str(machine.dtype)[6:]}"
        size = f"{run.model.num_params() / 1e6:.2f}M parameters"
        self.say(f"{size}, {self.tokens:,} tokens per iteration, on {where}")
        self.say(f"mfu is measured against {source}")
        seconds = (settings.max_iters + 1 - run.iteration) * self.flops / (0.75 * self.peak_flops)
        if machine.device.type == "cpu" and seconds > 3600:
            self.say(
                f"with no GPU this takes about {duration(seconds)}; Ctrl-C stops it, and there is a run for"
            )
            self.say("such machines: python train_drama.py config/laptop.py --out_dir=model/laptop")
        if run.iteration:
            self.say(f"continuing at iteration {run.iteration}")

    def start_clock(self):
        """The next iterations' time counts from here."""
        self.line_at = self.shown_at = self.drawn_at = self.clock()
        self.line_iteration, self.seconds_per_iter = self.run.iteration, 0.0

    @contextlib.contextmanager
    def paused(self):
        """What is done within is not part of the iterations' time."""
        self.run.machine.wait()
        paused_at = self.clock()
        yield
        self.line_at += self.clock() - paused_at

    def say(self, text: str):
        if self.first:
            print(CLEAR * self.live + text, flush=True)

    def log(self, **values):
        for log in self.logs:
            log.row(**values)

    def evaluation(self, train_loss: float, val_loss: float):
        corpus = self.run.corpus
        bits = val_loss / math.log(2) * len(corpus.val) / corpus.val_characters
        losses = f"train loss {train_loss:.4f}, val loss {val_loss:.4f}"
        self.say(f"step {self.run.iteration}: {losses}, {bits:.4f} bits per character")
        values = dict(train_loss=train_loss, val_loss=val_loss, val_bits_per_char=bits)
        self.log(iter=self.run.iteration, **values)

    def line(self, loss: float, learning_rate: float):
        """The line of the iteration just made."""
        done, now = self.run.iteration, self.clock()
        self.seconds_per_iter = (now - self.line_at) / (done - self.line_iteration)
        self.line_at, self.line_iteration = now, done
        mfu = self.flops / self.seconds_per_iter / self.peak_flops
        speed, milliseconds = self.tokens / self.seconds_per_iter, self.seconds_per_iter * 1000
        values = dict(loss=loss, time_ms=milliseconds, mfu=mfu, tokens_per_s=speed, lr=learning_rate)
        self.log(iter=done - 1, **values)
        speeds = f"time {milliseconds:.2f}ms, mfu {mfu * 100:.2f}%, {speed:,.0f} tokens/s"
        self.say(f"iter {done - 1}: loss {loss:.4f}, {speeds}, {self.time_left()} left")

    def time_left(self) -> str:
        return duration((self.run.settings.max_iters + 1 - self.run.iteration) * self.seconds_per_iter)

    def progress(self):
        """On a terminal, a line that the next one replaces."""
        if self.live and self.seconds_per_iter and self.clock() - self.shown_at > 0.2:
            done, all_of_them = self.run.iteration, self.run.settings.max_iters
            print(f"{CLEAR}{done:,} of {all_of_them:,}, {self.time_left()} left", end="", flush=True)
            self.shown_at = self.clock()

    def sample(self):
        """A short text by the model as it is."""
        if not self.first:
            return
        run, iteration = self.run, self.run.iteration
        try:
            gpt = pack(copy.deepcopy(run.model), run.machine.dtype)  # as in sample.py
            first, _ = run.corpus.val.windows(torch.tensor([0]), 1)  # what the validation text begins with
            ids = generate(gpt, first, SAMPLE, temperature=0.8, seed=run.settings.seed)
        except RuntimeError as e:
            if is_out_of_memory(e):
                return self.say(f"no sample: {one_line(e)[:120]}")
            raise
        text = run.corpus.tokenizer.decode(ids[0].tolist()).strip("\n")
        self.say(f"sample {iteration}:\n{text}\n---------------")
        self.log(iter=iteration, sample=text.replace("\0", "\ufffd"))  # which csv cannot hold

    def picture(self):
        """log.csv as loss.png."""
        try:
            if self.first:
                draw([self.run.out / "log.csv"], self.run.out / "loss.png")
        except (UserError, OSError) as e:  # no reason to stop training
            self.say(f"no picture of the losses: {one_line(e)}")
        self.drawn_at = self.clock()

    def picture_when_due(self):
        """Once a minute. Without matplotlib that is said once, at the end."""
        if self.clock() - self.drawn_at > 60 and importlib.util.find_spec("matplotlib"):
            self.picture()

    def end(self):
        """Draw the losses, and say where the run stands and what to do next."""
        run = self.run
        self.picture()
        if not run.finished:
            without = " without --init_from" if run.settings.init_from == "scratch" else ""
            where = f"stopped before iteration {run.iteration} and saved"
            self.say(f"{where}; the same command{without} continues from there")
        elif math.isfinite(run.best_val_loss):
            best = f"the best model, val loss {run.best_val_loss:.4f}, is {run.out / 'ckpt.pt'}"
            self.say(f"{best}; now run: {sample_command(run)}")

    def close(self):
        for log in self.logs:
            log.close()
        if self.logs and self.live:
            with contextlib.suppress(OSError):
                print(CLEAR, end="", flush=True)

    def already_finished(self, run: Run):
        """Called instead of all others, where there is nothing left to do."""
        if run.machine.rank == 0:
            best = f", best val loss {run.best_val_loss:.4f}: {sample_command(run)}"
            print(f"this run is finished{best if math.isfinite(run.best_val_loss) else ''}")
            advice = f"{way_to_start_over(run.settings.init_from)}or another --out_dir"
            print(f"give a larger --max_iters to train it further, {advice}")


def sample_command(run: Run) -> str:
    out_dir = run.settings.out_dir
    return "python sample.py" + (f" --out_dir={out_dir}" if out_dir != "model" else "")
