import contextlib
import csv
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SHORT, SMALL, flags, start

import checkpoint
import train_drama
from dataset import evaluate, load_data
from machine import Machine
from optimizer import learning_rate_at
from train_drama import Settings

ITER = re.compile(
    r"iter (\d+): loss (\d+\.\d{4}), time (\d+\.\d{2})ms, mfu (\d+\.\d{2})%, ([\d,]+) tokens/s, .+ left"
)
STEP = re.compile(r"step (\d+): train loss (\d+\.\d{4}), val loss (\d+\.\d{4})")


def weights(out_dir, name="last.pt"):
    return checkpoint.load(f"{out_dir}/{name}")["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(out_dir):
    with open(f"{out_dir}/log.csv") as f:
        return list(csv.DictReader(f))


def losses(out_dir):
    return [(r["iter"], r["loss"], r["train_loss"], r["val_loss"]) for r in rows(out_dir)]


def test_a_training_learns_and_writes_its_three_files(train, corpus):
    result = train(out_dir="m", max_iters=60, lr_decay_iters=60)
    assert result["iteration"] == 61 and result["signal"] == 0
    assert result["best_val_loss"] < 2.5  # 3.22 is how often each letter comes
    assert sorted(os.listdir("m")) == [".lock", "ckpt.pt", "last.pt", "log.csv", "loss.png"]
    best = checkpoint.load("m/ckpt.pt")
    assert best["val_loss"] == result["best_val_loss"] and best["settings"]["n_embd"] == 32
    assert checkpoint.load("m/last.pt")["next_iteration"] == 61


def test_the_lines_have_their_form_and_the_log_has_every_number(train, capsys):
    train(out_dir="m", max_iters=21)
    out = capsys.readouterr().out
    iters, steps = ITER.findall(out), STEP.findall(out)
    assert [int(i[0]) for i in iters] == [0, 5, 10, 15, 20, 21]
    assert [int(s[0]) for s in steps] == [0, 10, 20, 21]
    assert "parameters" in out and "measured just now" in out and "vocabulary" in out
    logged = rows("m")
    for number, loss, ms, mfu, speed in iters:
        row = next(r for r in logged if r["iter"] == number and r["loss"])
        shown = [
            f"{float(row['loss']):.4f}",
            f"{float(row['time_ms']):.2f}",
            f"{float(row['mfu']) * 100:.2f}",
        ]
        assert [*shown, f"{float(row['tokens_per_s']):,.0f}"] == [loss, ms, mfu, speed]
        assert float(row["lr"]) == learning_rate_at(Settings(**{**SMALL, **SHORT}), int(number))
    for number, train_loss, val_loss in steps:
        row = next(r for r in logged if r["iter"] == number and r["val_loss"])
        assert [f"{float(row[k]):.4f}" for k in ("train_loss", "val_loss")] == [train_loss, val_loss]
    assert len(logged) == len(iters) + len(steps)


def test_samples_on_the_way_are_printed_and_logged_and_change_nothing(train, capsys):
    plain = train(out_dir="plain")
    capsys.readouterr()
    sampled = train(out_dir="sampled", sample_interval=8)
    out = capsys.readouterr().out
    assert sampled["val_loss"] == plain["val_loss"] and equal(weights("plain"), weights("sampled"))
    with open("sampled/log.csv", newline="", encoding="utf-8") as f:
        logged = {row["iter"]: row["sample"] for row in csv.DictReader(f) if row["sample"]}
    assert list(logged) == ["8", "16"] and len(logged["16"]) > 150
    assert all(f"sample {n}:\n{text}\n---------------\n" in out for n, text in logged.items())


def test_tensorboard_gets_what_the_log_gets(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(out_dir="m", tensorboard=True, sample_interval=10, max_iters=12)
    train(out_dir="m", tensorboard=True, sample_interval=10)
    events = EventAccumulator("m/tensorboard")
    events.Reload()
    shown = {s.step: s.value for s in events.Scalars("val_loss")}
    with open("m/log.csv", newline="", encoding="utf-8") as f:
        logged = {int(r["iter"]): float(r["val_loss"]) for r in csv.DictReader(f) if r["val_loss"]}
    assert shown == pytest.approx(logged) and len(events.Tensors("sample/text_summary")) == 2
    assert b"n_layer = 2" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


def test_wandb_gets_what_the_log_gets_and_a_continued_run_is_the_same_there(train, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent, init = [], wandb.init

    def watched(**how):
        run = init(**how)
        log = run.log
        monkeypatch.setattr(run, "log", lambda row, step: (sent.append((run.id, step, row)), log(row, step)))
        return run

    monkeypatch.setattr(wandb, "init", watched)
    train(out_dir="m", wandb=True, max_iters=12)
    train(out_dir="m", wandb=True)
    assert len({run for run, _, _ in sent}) == 1
    with open("m/log.csv", newline="", encoding="utf-8") as f:
        logged = {int(r["iter"]): float(r["val_loss"]) for r in csv.DictReader(f) if r["val_loss"]}
    assert {step: row["val_loss"] for _, step, row in sent if "val_loss" in row} == pytest.approx(logged)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "matplotlib"])
def test_a_package_that_is_not_there_is_named(call, corpus, monkeypatch, name):
    for module in [m for m in sys.modules if m.partition(".")[0] == name or m == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    wanted = {} if name == "matplotlib" else {name: True}
    status, out, err = call("train_drama.py", *flags(**SMALL, **SHORT, out_dir="m", **wanted))
    assert f"pip install {name}" in out + err and len(err.splitlines()) <= 1
    assert status == (0 if name == "matplotlib" else 2)


def test_on_a_terminal_a_line_tells_how_far_it_is(corpus):
    mine, theirs = pty.openpty()
    settings = dict(**SMALL, max_iters=400, log_interval=100, eval_interval=400, out_dir="m")
    process = training(corpus, stdout=theirs, **settings)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(mine, 4096):
            shown += piece
    assert process.wait() == 0
    assert re.search(rb"\r\x1b\[K\d+ of 400, \d+ s left\r\x1b\[Kiter [1-4]00: loss", shown)


def test_the_validation_loss_is_the_mean_over_the_whole_split(train, corpus):
    train(out_dir="m", dtype="float32")
    state = checkpoint.load("m/ckpt.pt")
    model, _ = checkpoint.build_model(state, "m/ckpt.pt")
    machine = Machine(torch.device("cpu"), torch.float32)
    _, val, _ = load_data("drama", 32, machine)
    tokens = torch.from_numpy(np.array(val.mapped).astype(np.int64))
    total = 0.0
    for at in range(0, len(tokens) - 1, 32):  # one window at a time, the last one shorter
        x = tokens[at : at + 32][: len(tokens) - 1 - at]
        logits, _ = model.eval()(x[None], x[None])
        total += F.cross_entropy(logits[0], tokens[at + 1 : at + 1 + len(x)], reduction="sum").item()
    assert state["val_loss"] == pytest.approx(total / (len(tokens) - 1), rel=1e-6)
    model.train()  # and dropout has no part in it
    windows = train_drama.fixed_windows(len(val), 32, 64)
    assert evaluate(model, val, windows, machine) == state["val_loss"] and model.training


@pytest.mark.parametrize("dtype, arch, optimizer", [
    ("float32", "gpt2", "adamw"), ("bfloat16", "modern", "muon"), ("float16", "gpt2", "muon"),
])  # fmt: skip
def test_resumed_run_equals_unbroken_run(train, dtype, arch, optimizer):
    how = dict(dtype=dtype, arch=arch, optimizer=optimizer, dropout=0.2, gradient_accumulation_steps=2)
    if dtype == "float16":  # slow on a CPU
        how |= dict(n_layer=1, n_embd=16, block_size=16, batch_size=2, eval_iters=1, n_head=1)
    train(out_dir="whole", **how)
    for end in (7, 10, 20):  # between evaluations, at one, and to the end
        train(out_dir="parts", **{**how, "max_iters": end})
    assert equal(weights("whole"), weights("parts"))
    assert losses("whole")[-2:] == losses("parts")[-2:]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_iteration_saves_and_says_how_to_go_on(train, monkeypatch, capsys, signum):
    train(out_dir="whole")
    real = train_drama.draw_batches

    def draw(split, settings, iteration, machine):
        if iteration == 13:
            os.kill(os.getpid(), signum)
        return real(split, settings, iteration, machine)

    with monkeypatch.context() as m:
        m.setattr(train_drama, "draw_batches", draw)
        result = train(out_dir="broken")
    assert result["signal"] == signum and result["iteration"] == 14
    assert "stopped before iteration 14 and saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(out_dir="broken")
    assert equal(weights("whole"), weights("broken")) and losses("whole") == losses("broken")


def test_a_signal_during_an_evaluation_is_heard_there(train, corpus, monkeypatch):
    real = train_drama.evaluate

    def interrupted(*arguments):
        if not arguments[-1]:  # the Stop, before the first signal
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    with monkeypatch.context() as m:
        m.setattr(train_drama, "evaluate", interrupted)
        assert train(out_dir="m")["iteration"] == 0
    train(out_dir="m")
    train(out_dir="whole")
    assert equal(weights("whole"), weights("m"))


def training(corpus, stdout=subprocess.DEVNULL, **settings):
    """Start a training on the small corpus in a process of its own."""
    script = "import pathlib, prepare, train_drama as t; prepare.DATA = pathlib.Path('data'); t.run(t.main)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return start(corpus, "-c", script, *flags(**settings), env=environ, stdout=stdout)


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(call, corpus):
    settings = dict(**SMALL, eval_interval=10, log_interval=1, save_minutes=0, out_dir="killed")
    first = training(corpus, **settings, max_iters=1_000_000)
    while first.poll() is None and saved_iteration() < 1:
        time.sleep(0.01)
    status, _, err = call("train_drama.py", *flags(**settings, max_iters=20))
    assert status == 2 and err.count("\n") == 1 and "another training is writing to killed" in err
    assert first.poll() is None
    first.kill()
    first.wait()
    end = saved_iteration() + 3
    status, out, err = call("train_drama.py", *flags(**settings, max_iters=end))
    assert (status, err) == (0, "") and "continuing at iteration" in out


def test_a_killed_run_goes_on_to_the_unbroken_run_s_weights(train, corpus):
    settings = {
        **SMALL,
        **SHORT,
        "max_iters": 200,
        "lr_decay_iters": 200,
        "save_minutes": 0,
        "log_interval": 1,
    }
    train(**{**settings, "out_dir": "whole"})
    kills = 0
    for wait in (0, 0.2, 0.5):
        process = training(corpus, **settings, out_dir="killed")
        before = saved_iteration()
        while process.poll() is None and saved_iteration() <= before:
            time.sleep(0.01)
        time.sleep(wait)
        kills += process.poll() is None
        process.kill()
        process.wait()
        checkpoint.load("killed/last.pt")
    assert kills
    train(**{**settings, "out_dir": "killed"})
    assert equal(weights("whole"), weights("killed")) and losses("whole") == losses("killed")
    assert equal(weights("whole", "ckpt.pt"), weights("killed", "ckpt.pt"))
    assert sorted(os.listdir("killed")) == [".lock", "ckpt.pt", "last.pt", "log.csv", "loss.png"]


def saved_iteration():
    try:
        return checkpoint.load("killed/last.pt")["next_iteration"]
    except ValueError:
        return -1


def test_a_finished_run_says_so_and_can_be_taken_further(call, corpus):
    settings = flags(**SMALL, **SHORT, out_dir="m")
    assert call("train_drama.py", *settings)[0] == 0
    before = weights("m")
    status, out, _ = call("train_drama.py", *settings)
    assert status == 0 and "finished" in out and "--max_iters" in out and equal(weights("m"), before)
    status, out, _ = call("train_drama.py", *settings, "--max_iters=25")
    assert status == 0 and "continuing at iteration 21" in out and "iter 25:" in out


def test_settings_that_contradict_the_saved_run_are_named(call, corpus):
    settings = flags(**SMALL, **SHORT, out_dir="m")
    call("train_drama.py", *settings)
    before = {name: Path("m", name).read_bytes() for name in os.listdir("m")}
    status, _, err = call("train_drama.py", *settings, "--n_layer=3", "--seed=2", "--log_interval=1")
    assert status == 2 and len(err.splitlines()) == 1
    assert "n_layer (saved 2, asked 3)" in err and "seed" in err and "log_interval" not in err
    assert "--init_from=scratch" in err and "--out_dir" in err
    (corpus / "play.txt").write_text("something else entirely\n" * 200)
    call("prepare.py", "--input=play.txt")
    status, _, err = call("train_drama.py", *settings)
    assert status == 2 and "the text in data/drama" in err
    assert {name: Path("m", name).read_bytes() for name in os.listdir("m")} == before


def test_starting_over_keeps_the_earlier_run(call, corpus):
    settings = flags(**SMALL, **SHORT, out_dir="m")
    call("train_drama.py", *settings)
    good = weights("m", "ckpt.pt")
    status, out, _ = call("train_drama.py", *settings, "--init_from=scratch", "--seed=9")
    assert status == 0 and "kept as ckpt-1.pt, last-1.pt, log-1.csv" in out
    assert equal(weights("m", "ckpt-1.pt"), good) and not equal(weights("m", "ckpt.pt"), good)


def test_a_missing_package_is_found_out_before_the_earlier_run_is_moved(call, corpus, monkeypatch):
    assert call("train_drama.py", *flags(**SMALL, **SHORT, out_dir="m"))[0] == 0
    before = sorted(os.listdir("m"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = flags(**SMALL, **SHORT, out_dir="m", init_from="scratch", wandb=True)
    assert call("train_drama.py", *settings)[0] == 2 and sorted(os.listdir("m")) == before


def test_resuming_nothing_is_refused(call, corpus):
    status, _, err = call("train_drama.py", "--init_from=resume", "--out_dir=m")
    assert status == 2 and "nothing to resume" in err and not Path("m").exists()


def test_a_damaged_last_pt_is_refused_and_left_alone(call, corpus):
    settings = flags(**SMALL, **SHORT, out_dir="m")
    call("train_drama.py", *settings)
    data = Path("m/last.pt").read_bytes()[:-500]
    Path("m/last.pt").write_bytes(data)
    status, _, err = call("train_drama.py", *settings)
    assert status == 2 and "damaged" in err and len(err.splitlines()) == 1
    assert Path("m/last.pt").read_bytes() == data


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(call, corpus):
    settings = {**SMALL, **SHORT, "learning_rate": 1e30, "min_lr": 0, "warmup_iters": 0, "eval_interval": 1}
    status, _, err = call("train_drama.py", *flags(**settings, out_dir="m", grad_clip=0))
    assert status == 1 and err.startswith(
        "train_drama.py: the validation loss is nan at iteration 1; start over"
    )
    assert len(err.splitlines()) == 1 and "lower --learning_rate and --init_from=scratch" in err
    assert not os.path.exists("m/last.pt")  # nothing good was there to save


@pytest.mark.parametrize("finds, saved", [
    (dict(log_interval=1), 10), (dict(eval_interval=3), 12), (dict(save_minutes=0.0), 12),
])  # fmt: skip
def test_weights_that_are_not_finite_are_not_saved_whatever_finds_them(train, monkeypatch, finds, saved):
    models = []
    draw, make = train_drama.draw_batches, train_drama.make_optimizers

    def spoil(split, settings, i, machine):
        if i == 12:
            models[0].blocks[0].mlp.c_fc.weight.data[0] = math.nan
        return draw(split, settings, i, machine)

    monkeypatch.setattr(train_drama, "draw_batches", spoil)
    monkeypatch.setattr(train_drama, "make_optimizers", lambda m, *how: models.append(m) or make(m, *how))
    with pytest.raises(FloatingPointError, match=r"is nan|no longer finite"):
        train(out_dir="m", **{"log_interval": 1000, **finds})
    assert checkpoint.load("m/last.pt")["next_iteration"] == saved
    assert all(p.isfinite().all() for name in ("ckpt.pt", "last.pt") for p in weights("m", name).values())


def test_a_batch_that_processes_cannot_share_is_refused(train, monkeypatch):
    three = Machine(torch.device("cpu"), torch.float32, world=3)
    monkeypatch.setattr(train_drama, "training_machine", lambda *how: three)
    with pytest.raises(ValueError, match="batch_size=8 cannot be split among 3 processes"):
        train(out_dir="m")


def test_two_accumulated_batches_give_one_large_batch_s_weights(train):
    how = dict(dropout=0.0, dtype="float32", max_iters=10, grad_clip=0.5)
    train(out_dir="one", batch_size=8, **how)
    train(out_dir="two", batch_size=4, gradient_accumulation_steps=2, **how)
    for name, a in weights("one").items():
        torch.testing.assert_close(a, weights("two")[name], rtol=1e-3, atol=1e-4)


def test_float16_recovers_from_an_overflow(train, monkeypatch):
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        lambda *a, **k: real(*a, init_scale=2.0**40, **k),  # overflows for a while
    )
    small = dict(n_layer=1, n_embd=16, n_head=1, block_size=16, eval_iters=1)  # float16 is slow on a CPU
    result = train(out_dir="m", dtype="float16", max_iters=80, lr_decay_iters=80, **small)
    state = checkpoint.load("m/last.pt")
    assert 0 < state["scaler"]["scale"] < 2**40
    start, end = (float(rows("m")[i]["val_loss"]) for i in (0, -2))
    assert end < start - 0.3 and end == result["best_val_loss"]


def test_when_float16_overflows_for_one_optimizer_none_takes_a_step(train, monkeypatch):
    real = train_drama.make_optimizers

    def with_a_gradient_that_overflows_once(model, *how):
        calls = []
        matrix = model.blocks[0].mlp.c_fc.weight  # Muon's
        matrix.register_hook(lambda g: g * math.nan if calls.append(0) or len(calls) == 3 else g)
        return real(model, *how)

    monkeypatch.setattr(train_drama, "make_optimizers", with_a_gradient_that_overflows_once)
    small = dict(n_layer=1, n_embd=16, n_head=1, block_size=16, eval_iters=1)
    train(out_dir="m", dtype="float16", optimizer="muon", max_iters=6, eval_interval=6, **small)
    assert all(p.isfinite().all() for p in weights("m").values())
    steps = [o[0] for o in checkpoint.load("m/last.pt")["optimizers"]]
    assert steps[0]["step"] == 6  # of 7 iterations


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one(train, corpus, processes):
    how = dict(dropout=0.0, dtype="float32", gradient_accumulation_steps=2)
    train(out_dir="one", **how)
    script = corpus / "run.py"
    script.write_text(
        "import pathlib, prepare, train_drama as t\nprepare.DATA = pathlib.Path('data')\nt.run(t.main)"
    )
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", script]
    process = start(
        corpus, *command, *flags(**{**SMALL, **SHORT, **how}, out_dir="two"),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [s[0] for s in STEP.findall(out)] == ["0", "10", "20"]  # printed once, by one of them
    assert f"{processes} processes" in out
    for name, a in weights("one").items():
        torch.testing.assert_close(a, weights("two")[name], rtol=1e-3, atol=1e-4)
    for a, b in zip(losses("one"), losses("two"), strict=True):
        assert [float(x) for x in a if x] == pytest.approx([float(x) for x in b if x], rel=1e-4)


@pytest.mark.parametrize("place, reached", [("draw_batches", 14), ("evaluate", 10)])
def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_iteration(train, corpus, place, reached):
    script = corpus / "run.py"
    script.write_text(
        "import os, pathlib, prepare, signal, train_drama as t\n"
        "prepare.DATA = pathlib.Path('data')\n"
        f"real, calls = t.{place}, []\n"
        "def signalled(*given):\n"
        "    calls.append(given)\n"
        f"    at = given[2] == 13 if '{place}' == 'draw_batches' else len(calls) == 3\n"  # at iteration 10
        "    if at and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(*given)\n"
        f"t.{place} = signalled\n"
        "t.run(t.main)"
    )
    how = dict(dropout=0.0, dtype="float32")
    process = start(
        corpus, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script,
        *flags(**{**SMALL, **SHORT, **how}, out_dir="two"),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    out, _ = process.communicate(timeout=120)
    assert f"stopped before iteration {reached} and saved" in out
    assert checkpoint.load("two/last.pt")["next_iteration"] == reached
    train(out_dir="two", **how)  # and one process can go on where two left off
    train(out_dir="one", **how)
    for name, a in weights("one").items():
        torch.testing.assert_close(a, weights("two")[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch, optimizer", [("gpt2", "adamw"), ("modern", "muon")])
def test_compiling_changes_nothing_or_is_given_up_in_one_line(train, capsys, monkeypatch, arch, optimizer):
    how = dict(corruption=0.1, dropout=0.0, dtype="float32", max_iters=3, n_layer=1)
    how |= dict(arch=arch, optimizer=optimizer)
    plain = train(out_dir="plain", **how)
    runs, real = [], torch.compile

    def watched(model):
        faster = real(model)
        return lambda *batch: runs.append(batch[0].stride()) or faster(*batch)

    monkeypatch.setattr(torch, "compile", watched)
    result = train(out_dir="compiled", compile=True, **how)
    out = capsys.readouterr().out
    assert "compiling" in out and (len(runs) == 1 + 4 if shutil.which("g++") else "does not work" in out)
    assert len(set(runs)) == 1  # laid out the same from the first on, or it would be compiled again
    assert result["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3)


def test_a_machine_that_cannot_compile_trains_without(train, capsys, monkeypatch):
    def broken(model):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    assert train(out_dir="m", compile=True)["iteration"] == 21
    assert (
        "torch.compile does not work here (no compiler at all); going on without" in capsys.readouterr().out
    )


@pytest.mark.parametrize("settings, words", [
    (dict(batch_size=0), "batch_size=0"), (dict(n_head=5), "n_head=5; try n_embd=385"),
    (dict(dropout=1.5), "dropout=1.5"), (dict(max_iters=-1), "max_iters"), (dict(beta1=1), "beta1"),
    (dict(init_from="gpt5"), "init_from='gpt5'"), (dict(dtype="int8"), "dtype='int8'"),
    (dict(device="cuda:99"), "--device=auto"), (dict(device="toaster"), "--device=auto"),
    (dict(device="meta"), "none of cuda, mps, cpu"), (dict(learning_rate=-1), "learning_rate"),
    (dict(learning_rate=5e-5), "--min_lr=5e-06"),
    (dict(log_interval=0), "log_interval"), (dict(seed=-1), "seed"), (dict(block_size=0), "block_size"),
    (dict(bach_size=1), "did you mean batch_size?"),
])  # fmt: skip
def test_impossible_settings_are_refused_in_one_line(corpus, call, settings, words):
    status, _, err = call("train_drama.py", *flags(**settings))
    assert status == 2 and words in err and len(err.splitlines()) == 1
    assert not os.path.exists("model")


def test_a_folder_that_cannot_be_written_ends_in_one_line(call, corpus):
    (corpus / "m").write_text("a file")
    status, _, err = call("train_drama.py", *flags(**SMALL, **SHORT, out_dir="m"))
    assert status == 1 and len(err.splitlines()) == 1 and "m" in err


def test_a_full_disk_keeps_the_earlier_state_and_can_be_made_good(train, corpus):
    train(out_dir="m", max_iters=7)
    before = Path("m/last.pt").read_bytes()
    script = (
        "import pathlib, prepare, resource, train_drama as t; prepare.DATA = pathlib.Path('data')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\nt.run(t.main)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *flags(**SMALL, **SHORT, out_dir="m")],
        cwd=corpus, env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "too large" in done.stderr or "could not be written" in done.stderr
    assert Path("m/last.pt").read_bytes() == before
    assert not [name for name in os.listdir("m") if name.endswith(".tmp")]
    train(out_dir="m")
    train(out_dir="whole")
    assert equal(weights("whole"), weights("m"))


def test_a_disk_that_fills_keeps_the_earlier_state_and_can_be_made_good(call, corpus, train):
    small = corpus / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk of its own cannot be mounted here")
    how = flags(**{**SMALL, **SHORT}, out_dir="small/m")
    try:
        assert call("train_drama.py", *how, "--max_iters=7")[0] == 0
        before = Path("small/m/last.pt").read_bytes()
        room = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        Path("small/else").write_bytes(bytes(room - len(before) // 2))
        status, _, err = call("train_drama.py", *how)
        assert status == 1 and "No space left" in err and len(err.splitlines()) == 1
        assert Path("small/m/last.pt").read_bytes() == before
        assert not [name for name in os.listdir("small/m") if name.endswith(".tmp")]
        Path("small/else").unlink()
        assert call("train_drama.py", *how)[0] == 0
        train(out_dir="whole")
        assert equal(weights("whole"), weights("small/m"))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_trains_and_resumes(train, compile):
    how = dict(device="cuda", compile=compile)
    whole = train(out_dir="whole", **how)
    train(out_dir="parts", **{**how, "max_iters": 7})
    parts = train(out_dir="parts", **how)
    assert parts["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-2) and whole["val_loss"] < 3.4
