"""What a run says: its lines, its log, the picture of its losses, and samples on the way."""

import contextlib
import copy
import math
import sys

from drama.program import CLEAR, is_out_of_memory

import torch

from configurator import UserError, one_line
from drama.sampling.generation import Sampling, generate
from drama.sampling.packed import pack
from drama.training.logs import COLUMNS, open_logs
from drama.training.picture import draw
from drama.training.run import Run, way_to_start_over

SAMPLE = 200  # tokens of a sample on the way


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def sample_command(run: Run) -> str:
    out_dir = run.settings.out_dir
    return "python sample.py" + (f" --out_dir={out_dir}" if out_dir != "model" else "")


class Silent:
    """A report that says and logs nothing."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Report:
    """Observes a run, and says, logs and draws what it sees: it changes nothing that is learned or kept.

    Of several processes only the first prints and logs.
    """

    def begin(self, run: Run, set_aside: list[str]):
        """Open the logs and say what lies ahead; set_aside: what an earlier run's files are called now."""
        self.run, self.first = run, run.machine.rank == 0
        self.live = self.first and bool(sys.stdout and sys.stdout.isatty())
        settings, machine, corpus = run.settings, run.machine, run.corpus
        if set_aside:
            self.say(f"the earlier run's files in {run.out} are kept as {', '.join(set_aside)}")
        self.logs = open_logs(settings, run.out, run.iteration) if self.first else []
        flops, source = machine.peak_flops()
        self.peak_flops = flops * machine.world
        counts = f"{len(corpus.train):,} training tokens, {len(corpus.val):,} validation tokens"
        self.say(f"{corpus.source}: {counts}, vocabulary {run.model.config.vocab_size:,}")
        if run.origin:
            self.say(run.origin)
        processes = f"{machine.world} processes with " if machine.world > 1 else ""
        size = f"{run.model.num_params() / 1e6:.2f}M parameters, {run.tokens:,} tokens per iteration"
        self.say(f"{size}, on {processes}{machine.device.type} in {str(machine.dtype)[6:]}")
        self.say(f"mfu is measured against {source}")
        each = run.flops / self.peak_flops  # seconds of an iteration, at best
        seconds = (settings.max_iters + 1 - run.iteration) * each / 0.75
        if machine.world > 1 and machine.device.type == "cuda" and each < 0.004:
            self.say("the model is too small to benefit from several GPUs")
        if machine.device.type == "cpu" and seconds > 3600 and run.length_known:
            time = duration(seconds)
            self.say(f"with no GPU this takes about {time}; Ctrl-C stops it, and there is a run for")
            self.say("such machines: python train_drama.py config/laptop.py --out_dir=model/laptop")
        if run.iteration:
            self.say(f"continuing at iteration {run.iteration}")
        self.no_picture = ""  # why, as last said
        self.pace = 0.0  # seconds per iteration, to tell the time left
        self.line_iteration, self.lines = run.iteration, 0
        self.line_at, self.shown_at, self.drawn_at = run.clock.iterating(), 0.0, run.clock.total()

    def say(self, text: str):
        if self.first:
            print(CLEAR * self.live + text, flush=True)

    def log(self, iteration: int, values: dict):
        for log in self.logs:
            log.row(iter=iteration, **values)

    def evaluation(self, metrics: dict[str, float]):
        """The line of an evaluation; the picture too, once a minute."""
        shown = ", ".join(COLUMNS[name].format(value) for name, value in metrics.items())
        self.log(self.run.iteration, metrics)
        self.say(f"step {self.run.iteration}: {shown}")
        if self.run.clock.total() - self.drawn_at > 60:
            self.picture()

    def iteration(self, metrics: dict[str, float]):
        """The line of the iteration just made; its metrics are train_step's and the learning rate."""
        run, now = self.run, self.run.clock.iterating()
        seconds = (now - self.line_at) / (run.iteration - self.line_iteration)
        self.line_at, self.line_iteration, self.lines = now, run.iteration, self.lines + 1
        # the first line's iteration warms up; later ones are averaged, since other programs come and go
        self.pace = seconds if self.lines <= 2 else 0.7 * self.pace + 0.3 * seconds
        self.peak_flops = max(self.peak_flops, run.flops / seconds)  # measured too low if this beats it
        speeds = dict(time_ms=seconds * 1000, mfu=run.flops / seconds / self.peak_flops)
        values = metrics | speeds | dict(tokens_per_s=run.tokens / seconds)
        shown = [text.format(values[name]) for name, text in COLUMNS.items() if text and name in values]
        shown.insert(4, f"{self.time_left()} left")  # after the speeds
        self.log(run.iteration - 1, values)
        self.say(f"iter {run.iteration - 1}: {', '.join(shown)}")

    def time_left(self) -> str:
        """Of the iterations, evaluations and samples to come."""
        s, done, pauses = self.run.settings, self.run.iteration, self.run.clock.pauses
        if not self.run.length_known:
            return duration(max(0, s.minutes * 60 - self.run.clock.total()))
        seconds = (s.max_iters + 1 - done) * self.pace
        evaluations = s.max_iters // s.eval_interval - (done - 1) // s.eval_interval
        evaluations += s.max_iters % s.eval_interval > 0  # at the end
        seconds += pauses.get("evaluation", 0) * evaluations
        if s.sample_interval:
            samples = s.max_iters // s.sample_interval - (done - 1) // s.sample_interval
            seconds += pauses.get("sample", 0) * samples
        return duration(max(0, seconds) if done <= s.max_iters else 0)

    def progress(self):
        """On a terminal, a line that the next one replaces."""
        now = self.run.clock.total()
        if self.live and self.pace and now - self.shown_at > 0.2:
            of = f" of {self.run.settings.max_iters + 1:,}" * self.run.length_known
            print(f"{CLEAR}{self.run.iteration:,}{of}, {self.time_left()} left", end="", flush=True)
            self.shown_at = now

    def length_chosen(self):
        s = self.run.settings
        minutes = f"{s.minutes:g} minute" + "s" * (s.minutes != 1)
        self.say(f"in {minutes} this computer does about {s.max_iters:,} iterations")

    def sample(self):
        """A short text by the model as it is."""
        if not self.first:
            return
        run = self.run
        try:
            gpt = pack(copy.deepcopy(run.model), run.machine.dtype)
            first, _ = run.corpus.val.windows(torch.tensor([0]), 1)  # what the validation text begins with
            sampling = Sampling(temperature=0.8, seed=run.settings.seed)
            # a graph whose capture fails, for want of memory, would leave CUDA in the middle of it
            ids = generate(gpt, first, SAMPLE, sampling, graph=False)
        except RuntimeError as e:
            if is_out_of_memory(e):
                return self.say(f"no sample: {one_line(e)[:120]}")
            raise
        text = run.corpus.tokenizer.decode(ids[0].tolist()).strip("\n")
        self.say(f"sample {run.iteration}:\n{text}\n---------------")
        self.log(run.iteration, dict(sample=text.replace("\0", "\ufffd")))  # which csv cannot hold

    def picture(self):
        """log.csv as loss.png; what prevents it is said once, and no reason to stop training."""
        try:
            if self.first and self.lines:  # before the first line there is nothing to draw
                draw([self.run.out / "log.csv"], self.run.out / "loss.png")
        except (UserError, OSError) as e:
            if self.no_picture != (reason := one_line(e)):
                self.say(f"no picture of the losses: {reason}")
            self.no_picture = reason
        self.drawn_at = self.run.clock.total()

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
        """Called however the training ends."""
        for log in self.logs:
            log.close()
        if self.live:
            with contextlib.suppress(OSError):
                print(CLEAR, end="", flush=True)

    def already_finished(self, run: Run):
        """Called instead of all others, where there is nothing left to do."""
        if run.machine.rank == 0:
            best = f"; to read it, run {sample_command(run)}" * math.isfinite(run.best_val_loss)
            loss = f", best val loss {run.best_val_loss:.4f}" * math.isfinite(run.best_val_loss)
            print(f"this run is finished{loss}{best}")
            longer = "" if "max_iters" in run.chosen else "a larger --max_iters to train it further, "
            advice = f"{longer}{way_to_start_over(run.settings.init_from)}or another --out_dir"
            print(f"give {advice.removeprefix('or ')}")
