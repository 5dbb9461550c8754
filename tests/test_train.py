"""What a training does for the person who starts it: what it says and writes, how it stops and continues."""

import io
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU, ROOT, SHORT, SMALL, equal, flags, loaded, losses, rows, start, weights

import train_drama
from configurator import UserError
from drama import checkpoint
from drama.device import find_dtype
from drama.sampling.generation import Sampling, generate
from drama.sampling.packed import pack
from drama.training import report
from drama.training.dataset import Corpus, evaluate, fixed_windows, load_data
from drama.training.optimizer import learning_rate_at
from drama.training.report import SAMPLE, Report
from train_drama import Settings

ITER = re.compile(
    r"iter (\d+): loss (\d+\.\d{4}), time (\d+\.\d{2})ms, mfu (\d+\.\d{2})%, ([\d,]+) tokens/s, .+ left, "
    r"grad norm (\d+\.\d{2})"
)
STEP = re.compile(r"step (\d+): train loss (\d+\.\d{4}), val loss (\d+\.\d{4})")


# ---------------------------------------------------------------------------- what it says and writes


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
    for number, loss, ms, mfu, speed, norm in iters:
        row = next(r for r in logged if r["iter"] == number and r["loss"])
        shown = [
            f"{float(row['loss']):.4f}",
            f"{float(row['time_ms']):.2f}",
            f"{float(row['mfu']) * 100:.2f}",
        ]
        assert [*shown, f"{float(row['tokens_per_s']):,.0f}"] == [loss, ms, mfu, speed]
        assert f"{float(row['grad_norm']):.2f}" == norm and float(norm) > 0
        assert float(row["lr"]) == learning_rate_at(Settings(**{**SMALL, **SHORT}), int(number))
    for number, train_loss, val_loss in steps:
        row = next(r for r in logged if r["iter"] == number and r["val_loss"])
        assert [f"{float(row[k]):.4f}" for k in ("train_loss", "val_loss")] == [train_loss, val_loss]
    assert len(logged) == len(iters) + len(steps)


def test_samples_on_the_way_are_written_without_a_cuda_graph(train, monkeypatch):
    """One whose capture fails for want of memory would leave the training in the middle of it."""
    asked, real = [], report.generate
    monkeypatch.setattr(report, "generate", lambda *a, graph, **kw: asked.append(graph) or real(*a, **kw))
    train(sample_interval=10)
    assert asked == [False, False]


def test_samples_on_the_way_are_the_model_s_and_change_nothing(train, capsys):
    plain = train(out_dir="plain", device="cpu")
    capsys.readouterr()
    sampled = train(out_dir="sampled", device="cpu", sample_interval=10)
    out = capsys.readouterr().out
    assert sampled["val_loss"] == plain["val_loss"] and equal(weights("plain"), weights("sampled"))
    logged = {row["iter"]: row["sample"] for row in rows("sampled") if row["sample"]}
    assert list(logged) == ["10", "20"]
    assert all(f"sample {n}:\n{text}\n---------------\n" in out for n, text in logged.items())
    best = checkpoint.load("sampled/ckpt.pt")
    gpt, tok = checkpoint.build_model(best, "sampled/ckpt.pt")
    first, _ = load_data("drama", 32, CPU).val.windows(torch.tensor([0]), 1)
    written = generate(
        pack(gpt, find_dtype("auto", CPU.device)), first, SAMPLE, Sampling(0.8, seed=Settings.seed)
    )
    assert best["iteration"] == 20 and tok.decode(written[0].tolist()).strip("\n") == logged["20"]


def test_tensorboard_gets_what_the_log_gets(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(out_dir="m", tensorboard=True, sample_interval=10, max_iters=12)
    train(out_dir="m", tensorboard=True, sample_interval=10)
    events = EventAccumulator("m/tensorboard")
    events.Reload()
    shown = {s.step: s.value for s in events.Scalars("val_loss")}
    logged = {int(r["iter"]): float(r["val_loss"]) for r in rows("m") if r["val_loss"]}
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
    logged = {int(r["iter"]): float(r["val_loss"]) for r in rows("m") if r["val_loss"]}
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


def test_on_a_terminal_a_line_tells_how_far_it_is_and_is_gone_with_the_next(train, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    class Slow(Corpus):
        def batches(self, *given):
            clock[0] += 1
            return super().batches(*given)

    clock, shown = [0.0], Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    train(out_dir="m", corpus=loaded(Slow), report=Report(), now=lambda: clock[0])
    lines = shown.getvalue().split("\n")
    assert any(
        line.startswith("\r\x1b[K1 of 21, 20 s left\r\x1b[K2 of 21, 19 s left\r\x1b[K") for line in lines
    )
    left = [line.rpartition("\x1b[K")[2] for line in lines]
    assert any(line.startswith("iter 5:") for line in left) and not any(" of 21" in line for line in left)


def test_the_validation_loss_is_the_mean_over_the_whole_split(train, corpus):
    train(out_dir="m", dtype="float32")
    state = checkpoint.load("m/ckpt.pt")
    model, _ = checkpoint.build_model(state, "m/ckpt.pt")
    val = load_data("drama", 32, CPU).val
    tokens = torch.from_numpy(np.concatenate(list(val.pieces())).astype(np.int64))
    total = 0.0
    for at in range(0, len(tokens) - 1, 32):  # one window at a time, the last one shorter
        x = tokens[at : at + 32][: len(tokens) - 1 - at]
        logits, _ = model.eval()(x[None], x[None])
        total += F.cross_entropy(logits[0], tokens[at + 1 : at + 1 + len(x)], reduction="sum").item()
    assert state["val_loss"] == pytest.approx(total / (len(tokens) - 1), rel=1e-6)
    model.train()  # and dropout has no part in it
    windows = fixed_windows(len(val), 32, 64)
    assert evaluate(model, val, windows, CPU) == state["val_loss"] and model.training


# ---------------------------------------------------------------------------- stopping and continuing


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


@pytest.fixture
def heard():
    """Ctrl-C is not ignored, as it is where pytest runs in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_iteration_saves_and_says_how_to_go_on(train, heard, capsys, signum):
    class Signalled(Corpus):
        def batches(self, settings, iteration, machine):
            if iteration == 13:
                os.kill(os.getpid(), signum)
            return super().batches(settings, iteration, machine)

    train(out_dir="whole")
    result = train(out_dir="broken", corpus=loaded(Signalled))
    assert result["signal"] == signum and result["iteration"] == 14
    assert "stopped before iteration 14 and saved" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(out_dir="broken")
    assert equal(weights("whole"), weights("broken")) and losses("whole") == losses("broken")


def test_a_signal_during_an_evaluation_is_heard_there(train, heard):
    class Signalled(Corpus):
        def evaluate(self, *given):
            os.kill(os.getpid(), signal.SIGINT)
            return super().evaluate(*given)

    assert train(out_dir="m", corpus=loaded(Signalled))["iteration"] == 0
    train(out_dir="m")
    assert not any("-1." in name for name in os.listdir("m"))  # it went on, as was promised
    train(out_dir="whole")
    assert equal(weights("whole"), weights("m"))


def training(corpus, **settings):
    """Start a training in a process of its own, whose sums are rounded as in this one."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = ROOT / "train_drama.py", *flags(**settings)
    return start(corpus, *command, env=environ, stdout=subprocess.DEVNULL)


def saved_iteration():
    try:
        return checkpoint.load("killed/last.pt")["next_iteration"]
    except UserError:
        return -1


def wait_for_a_save(process, after: int):
    until = time.monotonic() + 300  # on a machine that does other things as well
    while process.poll() is None and saved_iteration() <= after and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None and saved_iteration() > after


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(call, corpus):
    settings = dict(**SMALL, eval_interval=10, log_interval=1, save_minutes=0, out_dir="killed")
    first = training(corpus, **settings, max_iters=1_000_000)
    wait_for_a_save(first, after=0)
    status, _, err = call("train_drama.py", *flags(**settings, max_iters=20))
    assert status == 2 and err.count("\n") == 1 and "another training is writing to killed" in err
    assert first.poll() is None
    first.kill()
    first.wait()
    end = saved_iteration() + 3
    status, out, err = call("train_drama.py", *flags(**settings, max_iters=end))
    assert (status, err) == (0, "") and "continuing at iteration" in out


def test_a_killed_run_goes_on_to_the_unbroken_run_s_weights(train, corpus):
    settings = {**SMALL, **SHORT, "lr_decay_iters": 200, "save_minutes": 0, "log_interval": 1}
    for wait in (0, 0.3):
        process = training(corpus, **{**settings, "max_iters": 1_000_000}, out_dir="killed")
        wait_for_a_save(process, after=saved_iteration())
        time.sleep(wait)
        process.kill()
        process.wait()
        checkpoint.load("killed/last.pt")
    end = saved_iteration() + 3
    for out_dir in ("whole", "killed"):
        train(**{**settings, "max_iters": end, "out_dir": out_dir})
    assert equal(weights("whole"), weights("killed")) and losses("whole") == losses("killed")
    assert equal(weights("whole", "ckpt.pt"), weights("killed", "ckpt.pt"))
    assert sorted(os.listdir("killed")) == [".lock", "ckpt.pt", "last.pt", "log.csv", "loss.png"]


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


# ---------------------------------------------------------------------------- numbers out of range


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(call, corpus):
    settings = {**SMALL, **SHORT, "learning_rate": 1e30, "min_lr": 0, "warmup_iters": 0, "eval_interval": 1}
    status, _, err = call("train_drama.py", *flags(**settings, out_dir="m", grad_clip=0))
    wrong = r"train_drama.py: validation loss is (nan|inf) at iteration 1; start over with a lower "
    assert status == 1 and re.match(wrong + "--learning_rate and --init_from=scratch", err)
    assert len(err.splitlines()) == 1
    assert not os.path.exists("m/last.pt")  # nothing good was there to save


@pytest.mark.parametrize("found_by, wrong, saved", [
    (dict(log_interval=1), "loss is nan at iteration 12", 10),
    (dict(eval_interval=3), "loss is nan at iteration 12", 12),
    (dict(save_minutes=0.0), "loss is nan at iteration 12", 12),
])  # fmt: skip
def test_weights_that_are_not_finite_are_not_saved_whatever_finds_them(train, found_by, wrong, saved):
    report = Report()

    class Spoiling(Corpus):
        def batches(self, settings, iteration, machine):
            if iteration == 12:
                report.run.model.blocks[0].mlp.c_fc.weight.data[0] = math.nan
            return super().batches(settings, iteration, machine)

    with pytest.raises(FloatingPointError, match=wrong):
        train(out_dir="m", corpus=loaded(Spoiling), report=report, **{"log_interval": 1000, **found_by})
    assert checkpoint.load("m/last.pt")["next_iteration"] == saved
    assert all(p.isfinite().all() for name in ("ckpt.pt", "last.pt") for p in weights("m", name).values())


MINI = dict(n_layer=1, n_embd=16, n_head=1, block_size=16, eval_iters=1)  # float16 is slow on a CPU


def test_float16_recovers_from_an_overflow(train):
    class Scaled(Report):
        def begin(self, run, *aside):
            super().begin(run, *aside)
            run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows for a while

    how = dict(dtype="float16", device="cpu", max_iters=80, lr_decay_iters=80, **MINI)
    result = train(out_dir="m", report=Scaled(), **how)
    assert 0 < checkpoint.load("m/last.pt")["scaler"]["scale"] < 2**40
    start, end = (float(rows("m")[i]["val_loss"]) for i in (0, -2))
    assert end < start - 0.3 and end == result["best_val_loss"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_when_float16_overflows_for_one_optimizer_none_takes_a_step(train, dtype):
    class Overflowing(Report):
        def begin(self, run, *aside):
            super().begin(run, *aside)
            calls = []
            matrix = run.model.blocks[0].mlp.c_fc.weight  # Muon's
            matrix.register_hook(lambda g: g * math.nan if calls.append(0) or len(calls) == 3 else g)

    how = dict(optimizer="muon", max_iters=6, eval_interval=6, device="cpu", dtype=dtype, **MINI)
    if dtype == "float32":  # whose overflow is the end
        with pytest.raises(FloatingPointError):
            train(out_dir="m", report=Overflowing(), **how)
        return
    train(out_dir="m", report=Overflowing(), **how)
    assert all(p.isfinite().all() for p in weights("m").values())
    steps = [o[0] for o in checkpoint.load("m/last.pt")["optimizers"]]
    assert steps[0]["step"] == 6  # of 7 iterations


# ---------------------------------------------------------------------------- several processes


def test_a_batch_that_processes_cannot_share_is_refused(train):
    with pytest.raises(UserError, match="batch_size=8 cannot be split among 3 processes; try --batch_size=9"):
        train(out_dir="m", machine=replace(CPU, world=3))


def torchrun(corpus, processes, *command, **settings):
    return start(
        corpus, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *command,
        *flags(**{**SMALL, **SHORT, "dropout": 0.0, "dtype": "float32", **settings}),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def close(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_several_processes_train_as_one(train, corpus):
    process = torchrun(corpus, 2, ROOT / "train_drama.py", gradient_accumulation_steps=2, out_dir="two")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert [s[0] for s in STEP.findall(out)] == ["0", "10", "20"]  # printed once, by one of them
    assert "2 processes" in out
    train(out_dir="one", dropout=0.0, dtype="float32", gradient_accumulation_steps=2)
    close(weights("one"), weights("two"))
    for a, b in zip(losses("one"), losses("two"), strict=True):
        assert [float(x) for x in a if x] == pytest.approx([float(x) for x in b if x], rel=1e-4)


# A run of 12 iterations, and one of 5 that is continued to 12, by the same processes.
CONTINUED = """
import sys
from dataclasses import replace
from pathlib import Path
import torch.distributed as dist
from configurator import configure
from drama.training.machine import training_machine
from train_drama import Settings, train

settings = configure(Settings, sys.argv[1:])
machine = training_machine(settings.device, settings.dtype)
for out_dir, max_iters in (("whole", 12), ("broken", 5), ("broken", 12)):
    train(replace(settings, out_dir=out_dir, max_iters=max_iters), machine)
dist.barrier()
dist.destroy_process_group()  # gloo's threads may abort a process at whose end they still run
threads = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]  # none but on Linux
assert not [name for name in threads if "gloo" in name], threads
"""


def test_three_processes_that_go_on_end_as_if_they_had_not_stopped(corpus):
    """With two, the order of a sum is no question."""
    (corpus / "run.py").write_text(CONTINUED)
    process = torchrun(corpus, 3, "run.py", lr_decay_iters=12, batch_size=9, eval_interval=5)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert equal(weights("whole"), weights("broken"))


def test_a_wrong_request_to_several_processes_gets_one_line(corpus):
    process = torchrun(corpus, 3, ROOT / "train_drama.py", batch_size=9, dataset="other")
    _, err = process.communicate(timeout=300)
    assert process.returncode and err.count("train_drama.py: ") == 1 and "is not prepared" in err
    assert "this is a bug" not in err and "terminate called" not in err


def test_an_error_leaves_gloo_s_group_whose_threads_may_abort_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_drama.py", "--batch_size=none"])
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match="batch_size"):
            train_drama.main()
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# train_drama.py; the second process gets a signal and stands in a folder of its own, as on another computer.
SIGNALLED = """
import os, signal, sys
from drama.program import run_program
import train_drama
from drama.training.dataset import Corpus

place, second = sys.argv.pop(1), os.environ["RANK"] == "1"
find_corpus, train = train_drama.find_corpus, train_drama.train

class Signalled(Corpus):
    made = 0

    def batches(self, settings, iteration, machine):
        self.made = iteration + 1
        if second and place == "batches" and iteration == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batches(settings, iteration, machine)

    def evaluate(self, *given):
        if second and place == "evaluate" and self.made == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(*given)

def find_signalled(*given):
    corpus = Signalled(**vars(find_corpus(*given)))
    if second:
        os.mkdir("elsewhere")
        os.chdir("elsewhere")
    return corpus

def train_and_tell(*given, **more):
    result = train(*given, **more)
    print(f"ended by {result['signal']}", flush=True)
    return result

train_drama.find_corpus, train_drama.train = find_signalled, train_and_tell
run_program(train_drama.main)
"""


@pytest.mark.parametrize("place, reached", [("batches", 14), ("evaluate", 10)])
def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_iteration(train, corpus, place, reached):
    (corpus / "run.py").write_text(SIGNALLED)
    out, err = torchrun(corpus, 2, "run.py", place, out_dir="two").communicate(timeout=300)
    assert f"stopped before iteration {reached} and saved" in out, err
    assert out.count(f"ended by {signal.SIGTERM:d}") == 2
    assert checkpoint.load("two/last.pt")["next_iteration"] == reached and not os.listdir("elsewhere/two")
    for out_dir in ("two", "one"):  # and one process can go on where two left off
        train(out_dir=out_dir, dropout=0.0, dtype="float32")
    close(weights("one"), weights("two"))


def test_torchrun_lets_the_first_process_finish_what_it_says_when_another_ends_by_a_signal(corpus):
    settings = dict(max_iters=1_000_000, eval_interval=1_000_000, log_interval=1)
    job = torchrun(corpus, 2, ROOT / "train_drama.py", out_dir="two", **settings)
    assert any(line.startswith("iter 5:") for line in job.stdout)
    found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGTERM)
    out, err = job.communicate(timeout=300)
    reached = checkpoint.load("two/last.pt")["next_iteration"]
    assert f"stopped before iteration {reached} and saved; the same command continues" in out, err


# ---------------------------------------------------------------------------- compiling


@pytest.mark.parametrize("arch, optimizer", [("gpt2", "adamw"), ("modern", "muon")])
def test_compiling_changes_nothing_or_is_given_up_in_one_line(train, capsys, arch, optimizer):
    how = dict(dropout=0.0, dtype="float32", max_iters=3, eval_interval=2, sample_interval=1)
    how |= dict(arch=arch, optimizer=optimizer, n_ensemble=2, batch_size=8)
    plain = train(out_dir="plain", **how)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    result = train(out_dir="compiled", compile=True, **how)
    out = capsys.readouterr().out
    assert "compiling" in out and (bool(shutil.which("g++")) != ("does not work" in out))
    if shutil.which("g++"):
        # one graph serves all blocks, and one the first of each stack, which starts from the embeddings;
        # evaluations and samples compile none of their own
        assert counters["stats"]["unique_graphs"] == (2 if arch == "modern" else 1)
        assert not counters["graph_break"]
    assert result["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3)


# ---------------------------------------------------------------------------- what goes wrong


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
    done = start(
        corpus, ROOT / "train_drama.py", *flags(**SMALL, **SHORT, out_dir="m"),
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    _, err = done.communicate(timeout=300)
    assert done.returncode == 1 and len(err.splitlines()) == 1, err
    assert "too large" in err or "could not be written" in err
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
