"""What the loop of train_drama.py does, one thing at a time: each test is for a line that could be lost."""

import math
import os
import pty
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SHORT, SMALL, flags
from test_dataset import damage
from test_train import equal, losses, rows, training, weights

import checkpoint
import train_drama
from dataset import load_data
from machine import Machine
from model import GPT
from optimizer import learning_rate_at
from train_drama import Settings

CPU = Machine(torch.device("cpu"), torch.float32)


@pytest.fixture
def steps(train, monkeypatch):
    """steps(name=value, ...) trains: (class, learning rates, gradient norm) of each optimizer step."""

    def run(**how):
        seen, real = [], train_drama.make_optimizers

        def note(optimizer, *_):
            groups = optimizer.param_groups
            gradient = torch.cat([p.grad.flatten() for group in groups for p in group["params"]])
            rates = {group["lr"] for group in groups}
            seen.append((type(optimizer).__name__, rates, gradient.norm().item()))

        def make(*given):
            made = real(*given)
            for optimizer in made:
                optimizer.register_step_pre_hook(note)
            return made

        with monkeypatch.context() as m:
            m.setattr(train_drama, "make_optimizers", make)
            train(**how)
        return seen

    return run


def test_it_learns_from_the_training_split_and_is_judged_on_both(train, monkeypatch):
    drawn, judged = [], []
    draw, evaluate = train_drama.draw_batches, train_drama.evaluate

    def name(split):
        return Path(split.mapped.filename).name

    def watch_draw(split, *others):
        drawn.append(name(split))
        return draw(split, *others)

    def watch_evaluate(model, split, windows, *others):
        judged.append((name(split), sum(len(starts) for starts, _ in windows)))
        return evaluate(model, split, windows, *others)

    monkeypatch.setattr(train_drama, "draw_batches", watch_draw)
    monkeypatch.setattr(train_drama, "evaluate", watch_evaluate)
    train(out_dir="m")
    windows = judged[1][1]
    assert set(drawn) == {"train.bin"} and windows == math.ceil(3019 / 32)  # 3,020 tokens, the last one short
    assert judged == [("train.bin", windows), ("val.bin", windows)] * 3


def test_every_optimizer_steps_at_the_scheduled_rate(steps):
    s = Settings(**{**SMALL, **SHORT})
    found = [(name, rates) for name, rates, _ in steps(out_dir="m", arch="modern", optimizer="muon")]
    assert found == [(name, {learning_rate_at(s, i)}) for i in range(21) for name in ("AdamW", "Muon")]


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_gradients_are_clipped_to_grad_clip_and_0_leaves_them_alone(steps, clip):
    norms = [norm for *_, norm in steps(out_dir="m", max_iters=2, dtype="float32", grad_clip=clip)]
    assert max(norms) == pytest.approx(0.01, rel=1e-3) if clip else max(norms) > 0.3


def test_accumulated_batches_have_one_large_batch_s_gradient_and_loss(steps):
    how = dict(dropout=0.0, dtype="float32", max_iters=1, grad_clip=0)
    one = steps(out_dir="one", batch_size=8, **how)
    two = steps(out_dir="two", batch_size=4, gradient_accumulation_steps=2, **how)
    assert [norm for *_, norm in two] == pytest.approx([norm for *_, norm in one], rel=1e-3)
    for a, b in zip(losses("one"), losses("two"), strict=True):
        assert [float(x) for x in a if x] == pytest.approx([float(x) for x in b if x], rel=1e-3)


def test_the_best_so_far_is_remembered_and_the_untrained_model_is_none(train, monkeypatch):
    given = iter([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])  # train and val loss at 0, 10 and, resumed, 20
    monkeypatch.setattr(train_drama, "evaluate", lambda *_: next(given))
    train(out_dir="m", max_iters=10)
    result = train(out_dir="m")
    best = checkpoint.load("m/ckpt.pt")
    assert (best["iteration"], best["val_loss"]) == (10, 2.0)
    assert (result["best_val_loss"], result["val_loss"]) == (2.0, 3.0)


def test_a_bounded_evaluation_reads_so_many_batches_of_always_the_same_windows(train, monkeypatch):
    read, real = [], train_drama.evaluate
    monkeypatch.setattr(train_drama, "windows_per_batch", lambda *_: 3)
    monkeypatch.setattr(train_drama, "evaluate", lambda *a: read.append(a[2]) or real(*a))
    train(out_dir="m", eval_iters=2)
    starts = [[start for part, _ in windows for start in part.tolist()] for windows in read]
    assert {len(s) for s in starts} == {6} and starts[0::2] == [starts[0]] * 3
    assert starts[1::2] == [starts[1]] * 3


def test_dropout_and_initial_weights_are_drawn_anew_for_each_iteration_and_seed(train, monkeypatch):
    seeds, real = [], torch.manual_seed
    with monkeypatch.context() as m:
        m.setattr(torch, "manual_seed", lambda n: seeds.append(n) or real(n))
        train(out_dir="a")
        train(out_dir="b", seed=2)
    assert len(set(seeds)) == 2 * (1 + 21)
    for dropout in (0.0, 0.5):
        train(out_dir=f"{dropout}", dropout=dropout, dtype="float32", max_iters=1)
    assert not equal(weights("0.0"), weights("0.5"))


def test_speeds_are_of_the_iterations_alone_and_bits_of_characters(train, corpus, monkeypatch):
    clock = [0.0]

    def slowed(seconds, real):
        def slow(*given, **how):
            clock[0] += seconds
            return real(*given, **how)

        return slow

    for name, seconds in dict(draw_batches=2.0, evaluate=100.0, generate=50.0).items():
        monkeypatch.setattr(train_drama, name, slowed(seconds, getattr(train_drama, name)))
    monkeypatch.setattr(train_drama, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(train_drama, "peak_flops", lambda machine: (1e9, "a guess"))
    damage(corpus, val_characters=6040)  # twice as many as tokens
    train(out_dir="m", sample_interval=8, gradient_accumulation_steps=2)
    gpt, _ = checkpoint.build_model(checkpoint.load("m/ckpt.pt"), "m/ckpt.pt")
    tokens = 2 * 8 * 32
    for row in rows("m"):
        if row["loss"]:
            assert float(row["time_ms"]) == pytest.approx(2000)
            assert float(row["tokens_per_s"]) == pytest.approx(tokens / 2)
            assert float(row["mfu"]) == pytest.approx(gpt.flops_per_token() * tokens / 2 / 1e9)
        if row["val_loss"]:
            assert float(row["val_bits_per_char"]) == pytest.approx(float(row["val_loss"]) / math.log(2) / 2)


def test_it_is_saved_every_so_many_minutes_and_nothing_before_the_first_iteration(train, monkeypatch):
    clock, saved, draw, save = [0.0], [], train_drama.draw_batches, checkpoint.save

    def slow(*given):
        clock[0] += 40
        return draw(*given)

    def watched(path, state):
        saved.append(state.get("next_iteration", path.name))
        save(path, state)

    monkeypatch.setattr(train_drama, "draw_batches", slow)
    monkeypatch.setattr(train_drama, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(checkpoint, "save", watched)
    train(out_dir="m", save_minutes=2.5, eval_interval=100)
    assert saved == [4, 8, 12, 16, 20, "ckpt.pt", 20, 21]


@pytest.mark.parametrize("name", ["ckpt.pt", "last.pt"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_dies_at_an_evaluation_s_save_loses_nothing(train, monkeypatch, name, when):
    class Died(BaseException):
        pass

    def dying(path, state, real=checkpoint.save):
        at = path.name == name and 10 in (state.get("iteration"), state.get("next_iteration"))
        if at and when == "before":
            raise Died
        real(path, state)
        if at:
            raise Died

    train(out_dir="whole", max_iters=10)
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "save", dying)
        with pytest.raises(Died):
            train(out_dir="m", max_iters=10)
    train(out_dir="m", max_iters=10)
    for file in ("ckpt.pt", "last.pt"):
        assert equal(weights("whole", file), weights("m", file))


def test_a_run_whose_last_iteration_is_left_is_not_finished(train):
    assert train(out_dir="m", max_iters=9)["iteration"] == 10
    assert train(out_dir="m", max_iters=10)["iteration"] == 11


def test_the_float16_scale_is_remembered(train, monkeypatch):
    small = dict(n_layer=1, n_embd=16, n_head=1, block_size=16, dtype="float16", out_dir="m")
    real = torch.amp.GradScaler
    with monkeypatch.context() as m:
        m.setattr(torch.amp, "GradScaler", lambda *a, **k: real(*a, init_scale=8.0, **k))
        train(max_iters=7, **small)
    train(**small)
    assert checkpoint.load("m/last.pt")["scaler"]["scale"] == 8.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_training_and_evaluation_multiply_in_the_dtype_asked_for(train, monkeypatch, dtype):
    made, real = [], GPT.head

    def head(self, x):
        logits = real(self, x)
        made.append((self.training, logits.dtype))
        return logits

    monkeypatch.setattr(GPT, "head", head)
    train(out_dir="m", dtype=str(dtype)[6:], max_iters=0, n_layer=1, n_embd=16, n_head=1)
    assert set(made) == {(True, dtype), (False, dtype)}


# ---------------------------------------------------------------------------- going on


@pytest.fixture
def saved(corpus):
    """saved(settings, launch="") writes a last.pt of those settings, without a training: its meta."""
    _, _, meta = load_data("drama", 32, CPU)

    def write(settings, launch=""):
        os.makedirs(settings.out_dir, exist_ok=True)
        gpt = GPT(settings.model_config(meta["tokenizer"].vocab_size))
        state = checkpoint.model_state(gpt, meta["tokenizer"], settings)
        state |= dict(next_iteration=1, best_val_loss=1.0, optimizers=[], scaler={}, launch=launch)
        checkpoint.save(Path(settings.out_dir, "last.pt"), {**state, "data_sha256": meta["sha256"]})
        return meta

    return write


def test_a_job_from_scratch_that_restarts_goes_on_with_its_own_run_alone(saved, monkeypatch):
    s = Settings(**SMALL, out_dir="m", init_from="scratch")
    meta = saved(s, launch="one")
    assert train_drama.saved_run(s, meta) is None  # the job's first start
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for job in ("one", "two"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        assert (train_drama.saved_run(s, meta) is not None) == (job == "one")


OTHER = dict(
    arch="modern", optimizer="muon", dtype="float32", device="cpu", init_from="resume", dataset="other",
    compile=True, learning_rate=0.5, min_lr=1e-5, n_head=1,
)  # fmt: skip
FREE = ("init_from", "save_minutes", "max_iters", "eval_interval", "log_interval", "sample_interval")
FREE += ("tensorboard", "wandb", "device", "dtype", "compile")


@pytest.mark.parametrize("name", [name for name in Settings.__dataclass_fields__ if name != "out_dir"])
def test_a_run_goes_on_with_another_value_of_what_changes_neither_text_nor_losses_alone(saved, name):
    s = {**SMALL, "out_dir": "m"}
    meta = saved(Settings(**s))
    old = getattr(Settings(**s), name)
    new = OTHER.get(name, not old if isinstance(old, bool) else old * 2 or 1 if isinstance(old, int) else 0.5)
    changed = Settings(**{**s, name: new})
    if name in FREE:
        assert train_drama.saved_run(changed, meta)
    else:
        with pytest.raises(ValueError, match=f"{name} \\(saved"):
            train_drama.saved_run(changed, meta)


def test_the_same_text_cut_elsewhere_is_another_run(call, corpus):
    how = flags(**SMALL, **SHORT, out_dir="m")
    assert call("train_drama.py", *how)[0] == 0
    assert call("prepare.py", "--input=play.txt", "--val_fraction=0.2")[0] == 0
    status, _, err = call("train_drama.py", *how, "--max_iters=25")
    assert status == 2 and "the text in data/drama" in err


def test_every_setting_of_the_model_s_shape_reaches_it():
    given = dict(
        arch="modern", n_ensemble=2, n_layer=3, n_head=2, n_embd=8, bias=True, block_size=7, dropout=0.4
    )
    made = Settings(**given).model_config(9)
    assert {name: getattr(made, name) for name in given} == given and made.vocab_size == 9


# ---------------------------------------------------------------------------- ending


def test_a_reader_that_goes_away_or_a_terminal_that_closes_loses_nothing(train, corpus):
    train(out_dir="whole", max_iters=400, lr_decay_iters=400)
    how = {**SMALL, **SHORT, "max_iters": 400, "lr_decay_iters": 400, "log_interval": 1, "eval_interval": 400}
    piped = training(corpus, stdout=-1, **how, out_dir="m")
    assert any(line.startswith("iter 5:") for line in piped.stdout)
    piped.stdout.close()  # as `| head` does
    assert piped.wait(60) == 1
    reached = checkpoint.load("m/last.pt")["next_iteration"]
    assert reached > 5
    mine, theirs = pty.openpty()
    gone = training(corpus, stdout=theirs, **how, out_dir="m")
    os.close(theirs)
    with open(mine, "rb") as terminal:
        assert any(line.count(b"iter ") for line in terminal)
    assert gone.wait(60) == 1
    last, reached = reached, checkpoint.load("m/last.pt")["next_iteration"]
    assert reached > last
    closed = training(corpus, stdout=-1, **how, out_dir="m")
    assert any(line.startswith("iter") for line in closed.stdout)
    closed.send_signal(signal.SIGHUP)
    out = closed.communicate(timeout=60)[0]
    assert closed.returncode == 128 + signal.SIGHUP and "saved; the same command continues" in out
    assert checkpoint.load("m/last.pt")["next_iteration"] > reached
    train(**{**how, "out_dir": "m"})
    assert equal(weights("whole"), weights("m"))
    assert [int(row["iter"]) for row in rows("m") if row["loss"]] == list(range(401))


def test_out_of_memory_says_which_settings_to_lower(call, corpus, monkeypatch):
    def too_large(*_):
        torch.empty(2**50)

    monkeypatch.setattr(train_drama, "evaluate", too_large)
    status, _, err = call("train_drama.py", *flags(**SMALL, **SHORT, out_dir="m"))
    assert status == 1 and err.count("\n") == 1
    assert re.match(r"train_drama.py: out of memory; lower --batch_size", err)
