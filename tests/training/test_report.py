"""What a run says of time: how long it will take, how fast it is, whether the computer is busy; --minutes."""

import os
import re
import signal
from typing import ClassVar

import pytest
from helpers import SHORT, SMALL, equal, loaded, losses, rows, weights

import train_drama
from configurator import UserError
from drama import checkpoint
from drama.training.dataset import Corpus
from drama.training.machine import Machine
from drama.training.run import Run
from train_drama import Settings


class Clocked(Corpus):
    """Batches of two seconds and evaluations of five, by the clock that the report reads."""

    clock: ClassVar = [0.0]

    def batches(self, *given):
        self.clock[0] += 2
        return super().batches(*given)

    def evaluate(self, *given):
        self.clock[0] += 5
        return super().evaluate(*given)


def timed(train, **settings):
    """Train by the clock of Clocked: what train() returned and the seconds it took."""
    began = Clocked.clock[0]
    result = train(corpus=loaded(Clocked), now=lambda: Clocked.clock[0], **settings)
    return result, Clocked.clock[0] - began


@pytest.mark.parametrize("minutes", [2.0, 5.0])
def test_minutes_choose_the_length_and_the_schedule(train, minutes):
    result, seconds = timed(train, out_dir="m", minutes=minutes)
    saved = checkpoint.load("m/last.pt")
    chosen = saved["chosen"]
    assert 0.9 * 60 * minutes < seconds <= 60 * minutes
    assert result["iteration"] == chosen["max_iters"] + 1 and chosen["lr_decay_iters"] == chosen["max_iters"]
    last = float(rows("m")[-1]["lr"])
    assert last == pytest.approx(Settings(**{**SMALL, **SHORT}).min_lr)


def test_iterations_before_a_cuda_graph_say_nothing_about_the_speed(train, monkeypatch):
    class Recorded(Clocked):
        def batches(self, settings, iteration, machine):
            self.clock[0] += 20 * (iteration < 4)
            return super().batches(settings, iteration, machine)

    monkeypatch.setattr(Run, "into_a_graph", True)
    began = Clocked.clock[0]
    train(corpus=loaded(Recorded), now=lambda: Clocked.clock[0], out_dir="m", minutes=5.0)
    assert 270 < Clocked.clock[0] - began < 310


@pytest.mark.parametrize("settings", [dict(max_iters=1), dict(max_iters=3, warmup_iters=100)])
def test_minutes_decide_whatever_max_iters_says(train, settings):
    result, seconds = timed(train, out_dir="m", minutes=2.0, **settings)
    assert 100 < seconds <= 120 and result["iteration"] > 40


def test_more_minutes_than_a_year_has_are_refused():
    with pytest.raises(UserError, match="more than a year"):
        Settings(minutes=1e300)


def test_a_run_by_minutes_keeps_its_length_when_it_is_continued(train, corpus, capfd):
    class Stopped(Clocked):
        def batches(self, settings, iteration, machine):
            if iteration == 15:
                signal.raise_signal(signal.SIGINT)
            return super().batches(settings, iteration, machine)

    timed(train, out_dir="whole", minutes=2.0)
    assert train(corpus=loaded(Stopped), now=lambda: Clocked.clock[0], out_dir="m", minutes=2.0)["signal"]
    timed(train, out_dir="m", minutes=2.0)
    assert equal(weights("whole"), weights("m")) and losses("whole") == losses("m")
    capfd.readouterr()
    timed(train, out_dir="m", minutes=2.0)
    assert "this run is finished" in (said := capfd.readouterr().out) and "max_iters" not in said
    with pytest.raises(UserError, match=r"minutes \(saved 2.0, asked 3.0\)"):
        timed(train, out_dir="m", minutes=3.0)


def test_the_time_left_counts_evaluations_and_is_right_after_two_lines(train, capfd):
    _, seconds = timed(train, out_dir="m", max_iters=100, lr_decay_iters=100, eval_interval=20)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("iter ")]
    left = [int(re.search(r"([\d]+) (s|min) left", line)[1]) for line in lines]
    assert left[1] * 60 == pytest.approx(seconds - 5 - 2 * 6, rel=0.15) and left[-1] == 0  # after iteration 5


def test_mfu_is_never_above_100_percent(train, monkeypatch):
    monkeypatch.setattr(Machine, "peak_flops", lambda self: (1.0, "a minute when all was busy"))
    train(out_dir="m")
    shares = [float(row["mfu"]) for row in rows("m") if row["mfu"]]
    assert max(shares) == 1 and all(0 < share <= 1 for share in shares)


def test_a_run_learns_and_keeps_the_same_whether_anybody_observes_it(train, corpus):
    train(out_dir="observed", sample_interval=10)
    settings = Settings(**{**SMALL, **SHORT}, out_dir="alone", sample_interval=10)
    result = train_drama.train(settings)
    assert result["iteration"] == 21 and sorted(os.listdir("alone")) == [".lock", "ckpt.pt", "last.pt"]
    for name in ("ckpt.pt", "last.pt"):
        a, b = (checkpoint.load(f"{out_dir}/{name}") for out_dir in ("observed", "alone"))
        assert a["settings"].pop("out_dir") != b["settings"].pop("out_dir")
        assert checkpoint.digest(a) == checkpoint.digest(b)


def test_the_gradient_s_norm_is_logged_with_every_line(train):
    train(out_dir="m", log_interval=1, max_iters=8)
    logged = [row for row in rows("m") if row["loss"]]
    assert len(logged) == 9 and all(float(row["grad_norm"]) > 0 for row in logged)
