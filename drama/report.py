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
from drama.machine import ProcessorTime
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
        self.clock, self.logs, self.made_at = clock, [], clock()

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
        if run.origin:
            self.say(run.origin)
        size = f"{run.model.num_params() / 1e6:.2f}M parameters"
        self.say(f"{size}, {self.tokens:,} tokens per iteration, on {where}")
        self.say(f"mfu is measured against {source}")
        seconds = (settings.max_iters + 1 - run.iteration) * self.flops / (0.75 * self.peak_flops)
        if machine.world > 1 and machine.device.type == "cuda" and self.arithmetic_ms() < 10:
            self.say("an iteration has too little arithmetic to gain from several GPUs")
        if machine.device.type == "cpu" and seconds > 3600 and run.length_known:
            self.say(
                f"with no GPU this takes about {duration(seconds)}; Ctrl-C stops it, and there is a run for"
            )
            self.say("such machines: python train_drama.py config/laptop.py --out_dir=model/laptop")
        if run.iteration:
            self.say(f"continuing at iteration {run.iteration}")

    def arithmetic_ms(self) -> float:
        """Milliseconds of an iteration's arithmetic, at 40 % of the peak as GPUs usually reach."""
        return 1000 * self.flops / (0.4 * self.peak_flops)

    def start_clock(self):
        """The next iterations' time counts from here."""
        self.line_at = self.shown_at = self.drawn_at = self.clock()
        self.line_iteration, self.lines = self.run.iteration, 0
        self.pace = 0.0  # seconds per iteration, to tell the time left
        self.pauses = {}  # seconds that the last of each kind took
        self.steady_at = None  # when the iterations began that --minutes goes by
        self.processor_at, self.processor, self.busy_said = self.line_at, ProcessorTime.now(), False

    @contextlib.contextmanager
    def paused(self, kind: str):
        """What is done within (an "evaluation", say) is not part of the iterations' time."""
        self.run.machine.wait()
        paused_at = self.clock()
        yield
        now = self.clock()
        self.pauses[kind] = now - paused_at
        self.line_at += self.pauses[kind]
        if self.steady_at is not None:
            self.steady_at += self.pauses[kind]
        self.processor_at, self.processor = now, ProcessorTime.now()

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
        seconds = (now - self.line_at) / (done - self.line_iteration)
        self.line_at, self.line_iteration, self.lines = now, done, self.lines + 1
        # the first line's iteration warms up; later ones are averaged, since other programs come and go
        self.pace = seconds if self.lines <= 2 else 0.7 * self.pace + 0.3 * seconds
        self.peak_flops = max(self.peak_flops, self.flops / seconds)  # measured too low if this beats it
        mfu = self.flops / seconds / self.peak_flops
        speed, milliseconds = self.tokens / seconds, seconds * 1000
        values = dict(loss=loss, time_ms=milliseconds, mfu=mfu, tokens_per_s=speed, lr=learning_rate)
        self.log(iter=done - 1, **values)
        speeds = f"time {milliseconds:.2f}ms, mfu {mfu * 100:.2f}%, {speed:,.0f} tokens/s"
        self.say(f"iter {done - 1}: loss {loss:.4f}, {speeds}, {self.time_left()} left")
        self.tell_when_busy()

    def tell_when_busy(self):
        """Say once that other programs take part of the processor, where they did for a second or more."""
        before, elapsed = self.processor, self.line_at - self.processor_at
        self.processor_at, self.processor = self.line_at, ProcessorTime.now()
        if self.busy_said or before is None or elapsed < 1 or self.run.machine.device.type != "cpu":
            return
        if had := self.processor.shared_since(before, elapsed):
            got = f"this run got {had:.1f} of {torch.get_num_threads()} processors"
            self.say(f"the computer is busy: {got}, so it takes longer")
            self.busy_said = True

    def iterations_in(self, minutes: float) -> int | None:
        """The max_iters of a run of so many minutes, or None while its speed is not known.

        It is known after five seconds of iterations or at the end of the warm-up, the first left out.
        """
        self.run.machine.wait()
        done, now, s = self.run.iteration, self.clock(), self.run.settings
        if self.steady_at is None:
            self.steady_at, self.steady_from = now, done
            return None
        spent = now - self.steady_at
        if spent < 5 and done < s.warmup_iters:
            return None
        evaluation = self.pauses.get("evaluation", 0)
        seconds = spent / (done - self.steady_from) + evaluation / s.eval_interval
        left = minutes * 60 - (now - self.made_at) - evaluation  # one more at the end
        max_iters = done - 1 + max(1, int(left / max(seconds, 1e-9)))
        self.say(f"{minutes:g} minutes are {max_iters:,} iterations here")
        return max_iters

    def time_left(self) -> str:
        """Of the iterations, evaluations and samples to come."""
        s, done = self.run.settings, self.run.iteration
        if not self.run.length_known:
            return duration(max(0, s.minutes * 60 - (self.clock() - self.made_at)))
        seconds = (s.max_iters + 1 - done) * self.pace
        evaluations = s.max_iters // s.eval_interval - (done - 1) // s.eval_interval
        evaluations += s.max_iters % s.eval_interval > 0  # at the end
        seconds += self.pauses.get("evaluation", 0) * evaluations
        if s.sample_interval:
            samples = s.max_iters // s.sample_interval - (done - 1) // s.sample_interval
            seconds += self.pauses.get("sample", 0) * samples
        return duration(max(0, seconds) if done <= s.max_iters else 0)

    def progress(self):
        """On a terminal, a line that the next one replaces."""
        if self.live and self.pace and self.clock() - self.shown_at > 0.2:
            of = f" of {self.run.settings.max_iters + 1:,}" * self.run.length_known
            print(f"{CLEAR}{self.run.iteration:,}{of}, {self.time_left()} left", end="", flush=True)
            self.shown_at = self.clock()

    def sample(self):
        """A short text by the model as it is."""
        if not self.first:
            return
        run, iteration = self.run, self.run.iteration
        try:
            gpt = pack(copy.deepcopy(run.model), run.machine.dtype)  # as in sample.py
            first, _ = run.corpus.val.windows(torch.tensor([0]), 1)  # what the validation text begins with
            # a graph whose capture fails, for want of memory, would leave CUDA in the middle of it
            ids = generate(gpt, first, SAMPLE, temperature=0.8, seed=run.settings.seed, graph=False)
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
            longer = "" if "max_iters" in run.chosen else "a larger --max_iters to train it further, "
            print(f"give {longer}{advice.removeprefix('or ') if not longer else advice}")


def sample_command(run: Run) -> str:
    out_dir = run.settings.out_dir
    return "python sample.py" + (f" --out_dir={out_dir}" if out_dir != "model" else "")
