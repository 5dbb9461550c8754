"""The state of a run: what is saved, what continues it, what it sets aside, and how long it is."""

import math
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from helpers import CPU, SHORT, SMALL, equal, flags, loaded, play, run_of, weights

import train_drama
from configurator import UserError
from drama import checkpoint
from drama.training.clock import Clock
from drama.training.machine import Machine
from drama.training.report import Report
from drama.training.run import Run, saved_state
from model import GPT
from train_drama import Settings

LOSSES = dict(train_loss=0.9, val_loss=1.0, val_bits_per_char=1.4)
MINI = dict(n_layer=1, n_head=1, n_embd=16, block_size=16, batch_size=2, eval_iters=1)  # float16 is slow


@pytest.fixture
def saved(corpus):
    """saved(settings, name=value, ...) writes a last.pt of those settings, without a training."""
    data = loaded()

    def write(settings, /, **changes):
        os.makedirs(settings.out_dir, exist_ok=True)
        gpt = GPT(settings.model_config(data.tokenizer.vocab_size))
        state = checkpoint.model_state(gpt, data.tokenizer, settings, data.speakers)
        state |= dict(next_iteration=1, best_val_loss=1.0, optimizers=[], scaler={}, launch="")
        state |= {"data_sha256": data.identity, **changes}
        checkpoint.save(Path(settings.out_dir, "last.pt"), state)
        return data.identity

    return write


def test_the_first_process_alone_saves(corpus):
    run = run_of(machine=replace(CPU, rank=1))
    run.iteration = 1
    run.save_last()
    run.keep_best(LOSSES)
    assert run.best_val_loss == 1.0 and not os.path.exists("m")


def test_other_processes_take_what_the_first_has_read(saved):
    settings = Settings(**SMALL, out_dir="m")
    saved(settings)
    state = checkpoint.load("m/last.pt")
    taken = run_of(out_dir="elsewhere")
    state["optimizers"] = [optimizer.state_dict()["state"] for optimizer in taken.optimizers]

    class Second(Machine):
        def broadcast(self, value):
            return state if value is None else pytest.fail("it has read its own")

    run = Run(settings, Second(CPU.device, CPU.dtype, rank=1), loaded(), Clock())
    assert (run.iteration, run.best_val_loss) == (1, 1.0)
    assert equal(run.model.state_dict(), state["model"])


def test_a_run_keeps_the_name_of_the_weights_it_began_with(saved):
    s = Settings(**SMALL, out_dir="m")
    saved(s)
    state = checkpoint.load("m/last.pt")
    state["settings"]["init_from"] = "gpt2"
    state["optimizers"] = [optimizer.state_dict()["state"] for optimizer in run_of(out_dir="n").optimizers]
    checkpoint.save(Path("m/last.pt"), state)
    for asked in ("auto", "resume"):
        run = Run(replace(s, init_from=asked), CPU, loaded(), Clock())
        assert run.settings.init_from == "gpt2"
        with pytest.raises(FloatingPointError, match=r"--learning_rate and another --out_dir; what"):
            run.keep_best(LOSSES | dict(val_loss=math.inf))


def test_the_float16_scale_is_remembered(train):
    class Scaled(Report):
        def begin(self, run, *aside):
            super().begin(run, *aside)
            run.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    how = {**MINI, "dtype": "float16", "out_dir": "m"}
    train(max_iters=7, report=Scaled(), **how)
    train(**how)
    assert checkpoint.load("m/last.pt")["scaler"]["scale"] == 8.0


def test_a_job_from_scratch_that_restarts_goes_on_with_its_own_run_alone(saved, monkeypatch):
    s = Settings(**SMALL, out_dir="m", init_from="scratch")
    identity = saved(s, launch="one")
    assert saved_state(s, identity) is None  # the job's first start
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for job in ("one", "two"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        assert (saved_state(s, identity) is not None) == (job == "one")
    assert saved_state(replace(s, out_dir="n"), identity) is None


def test_what_is_saved_names_the_job(corpus, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    os.mkdir("m")
    run_of().save_last()
    assert checkpoint.load("m/last.pt")["launch"] == "one"


OTHER = dict(
    arch="modern", optimizer="muon", dtype="float32", device="cpu", init_from="resume", dataset="other",
    compile=True, learning_rate=0.5, min_lr=1e-5, n_head=1,
)  # fmt: skip
FREE = ("init_from", "save_minutes", "max_iters", "eval_interval", "log_interval", "sample_interval")
FREE += ("tensorboard", "wandb", "device", "dtype", "compile", "cuda_graph")


@pytest.mark.parametrize("name", [f.name for f in fields(Settings) if f.name != "out_dir"])
def test_a_run_goes_on_with_another_value_of_what_changes_neither_text_nor_losses_alone(saved, name):
    s = {**SMALL, "out_dir": "m", "arch": "modern" if name == "match" else "gpt2"}
    identity = saved(Settings(**s))
    old = getattr(Settings(**s), name)
    new = OTHER.get(name, not old if isinstance(old, bool) else old * 2 or 1 if isinstance(old, int) else 0.5)
    changed = Settings(**{**s, name: new})
    if name in FREE:
        assert saved_state(changed, identity)
    else:
        with pytest.raises(UserError, match=f"{name} \\(saved"):
            saved_state(changed, identity)


def test_a_folder_that_is_moved_is_the_same_run(saved):
    identity = saved(Settings(**SMALL, out_dir="m"))
    os.rename("m", "n")
    assert saved_state(Settings(**SMALL, out_dir="n"), identity) and {*FREE, "out_dir"} == set(
        Settings.FREE_TO_CHANGE
    )


def test_the_same_text_cut_elsewhere_is_another_run(call, corpus):
    how = flags(**SMALL, **SHORT, out_dir="m")
    assert call("train_drama.py", *how)[0] == 0
    assert call("prepare.py", "--input=play.txt", "--val_fraction=0.2")[0] == 0
    status, _, err = call("train_drama.py", *how, "--max_iters=25")
    assert status == 2 and "the text in data/drama" in err


@pytest.mark.parametrize("damage", [
    dict(next_iteration=1.0), dict(next_iteration=-1), dict(best_val_loss=1), dict(optimizers={}),
    dict(scaler=[]), dict(settings=None),
])  # fmt: skip
def test_a_last_pt_that_holds_no_state_is_refused(saved, damage):
    s = Settings(**SMALL, out_dir="m")
    identity = saved(s, **damage)
    with pytest.raises(UserError, match=r"last\.pt holds no state to continue; --init_from=scratch"):
        saved_state(s, identity)


@pytest.mark.parametrize("optimizers", [[], [{}, {}], [{0: {"step": torch.ones(())}}], [{0: 1}], [3]])
def test_an_optimizer_s_state_that_does_not_fit_is_refused(saved, optimizers):
    s = Settings(**SMALL, out_dir="m")
    saved(s, optimizers=optimizers)
    with pytest.raises(UserError, match=r"last\.pt does not fit its settings; --init_from=scratch"):
        Run(s, CPU, loaded(), Clock())


@pytest.mark.parametrize("corruption", [0.0, 0.05])
def test_a_setting_that_is_no_more_is_refused_by_name_where_it_was_in_use(call, train, corruption):
    train(out_dir="m", max_iters=3)
    state = checkpoint.load("m/last.pt")
    state["settings"]["corruption"] = corruption
    checkpoint.save(Path("m/last.pt"), state)
    before = weights("m")
    status, out, err = call("train_drama.py", *flags(**{**SMALL, **SHORT, "max_iters": 5}, out_dir="m"))
    if corruption:
        assert status == 2 and "corruption (saved 0.05, and there is no such setting now)" in err
        assert err.count("\n") == 1 and equal(before, weights("m"))
    else:
        assert (status, err) == (0, "") and "continuing at iteration 4" in out
        assert checkpoint.load("m/last.pt")["next_iteration"] == 6


# What the last version before the folder drama/ wrote, recorded from a run of it with SMALL and SHORT.
OLD_CONFIG = dict(
    block_size=32, vocab_size=43, n_layer=2, n_ensemble=1, n_head=2, n_embd=32, dropout=0.2, bias=False,
    arch="gpt2", gelu="none",
)  # fmt: skip
OLD_SETTINGS = dict(
    out_dir="m", dataset="drama", init_from="auto", save_minutes=5.0, arch="gpt2", n_layer=2, n_ensemble=1,
    n_head=2, n_embd=32, block_size=32, dropout=0.2, bias=False, batch_size=8, gradient_accumulation_steps=1,
    max_iters=20, learning_rate=1e-4, min_lr=1e-4, warmup_iters=5, lr_decay_iters=20, optimizer="adamw",
    corruption=0.0, weight_decay=0.1, beta1=0.9, beta2=0.99, grad_clip=1.0, seed=1337, eval_interval=10,
    eval_iters=0, log_interval=5, sample_interval=0, tensorboard=False, wandb=False, device="auto",
    dtype="auto", compile=None,
)  # fmt: skip
OLD_SHAPES = {"wte.weight": (43, 32), "wpe.weight": (32, 32)}
for n in (0, 1):
    OLD_SHAPES |= {f"blocks.{n}.ln_1.weight": (32,), f"blocks.{n}.attn.c_attn.weight": (96, 32)}
    OLD_SHAPES |= {f"blocks.{n}.attn.c_proj.weight": (32, 32), f"blocks.{n}.ln_2.weight": (32,)}
    OLD_SHAPES |= {f"blocks.{n}.mlp.c_fc.weight": (128, 32), f"blocks.{n}.mlp.c_proj.weight": (32, 128)}
OLD_SHAPES |= {"ln_f.weight": (32,)}
OLD_IDENTITY = "4db987c4a33e5e952e3a931bacf84e5253a7e31a089bf379c2bbaa7c1a5e6f72"  # of helpers.play()


def test_a_run_that_an_earlier_version_saved_loads_samples_and_continues(call, corpus):
    torch.manual_seed(0)
    model = {name: torch.full(shape, 1.0) for name, shape in OLD_SHAPES.items()}
    model = {name: w if "ln_" in name else 0.02 * torch.randn(w.shape) for name, w in model.items()}
    tok = {"kind": "char", "chars": "".join(sorted(set(play())))}
    common = dict(format=2, config=OLD_CONFIG, tokenizer=tok, settings=OLD_SETTINGS, model=model)
    # each weight has gathered a momentum of its own, matrices first
    names = sorted(model, key=lambda name: model[name].dim() == 1)
    gathered = {
        n: dict(
            step=torch.tensor(21.0),
            exp_avg=torch.full_like(model[name], 100.0 + n),
            exp_avg_sq=torch.ones_like(model[name]),
        )
        for n, name in enumerate(names)
    }
    os.mkdir("m")
    for name, values in {
        "ckpt.pt": dict(iteration=20, train_loss=3.7, val_loss=3.8),
        "last.pt": dict(
            next_iteration=21, best_val_loss=3.8, data_sha256=OLD_IDENTITY, optimizers=[gathered], scaler={},
            launch="",
        ),
    }.items():  # fmt: skip
        state = {**common, **values}
        torch.save({**state, "sha256": checkpoint.digest(state)}, f"m/{name}")
    status, out, err = call("sample.py", "--out_dir=m", "--cast=CLAUDIUS", "--max_new_tokens=50")
    assert (status, err) == (0, "") and "---" in out  # and nobody knows whether CLAUDIUS spoke
    how = {**SMALL, **SHORT, "max_iters": 21, "learning_rate": 1e-4, "dtype": "float32"}
    status, out, err = call("train_drama.py", *flags(**how, out_dir="m"))
    assert (status, err) == (0, "") and "continuing at iteration 21" in out
    assert checkpoint.load("m/last.pt")["next_iteration"] == 22
    for name, new in weights("m").items():  # each has gone where its own momentum took it
        step = 1e-4 * 0.9 * (100 + names.index(name)) / (1 - 0.9**22) / math.sqrt(0.99 / (1 - 0.99**22))
        decay = 1e-4 * 0.1 if model[name].dim() > 1 else 0.0
        moved = model[name] * (1 - decay) - new
        torch.testing.assert_close(moved, torch.full_like(new, step), rtol=4e-3, atol=0)


def test_every_setting_of_the_model_s_shape_reaches_it():
    given = dict(
        arch="modern", n_ensemble=2, n_layer=3, n_head=2, n_embd=8, bias=True, block_size=7, dropout=0.4
    )
    made = Settings(**given).model_config(9)
    assert {name: getattr(made, name) for name in given} == given and made.vocab_size == 9


# ---------------------------------------------------------------------------- what is set aside


def test_a_run_that_starts_over_sets_earlier_files_aside_and_one_that_goes_on_does_not(saved):
    assert run_of(out_dir="empty").set_aside() == []
    s = Settings(**SMALL, out_dir="m")
    saved(s, next_iteration=0, optimizers=[o.state_dict()["state"] for o in run_of(out_dir="n").optimizers])
    assert Run(s, CPU, loaded(), Clock()).set_aside() == []  # stopped in its first evaluation
    for name in ("ckpt.pt", "log.csv"):
        Path("m", name).write_text("first")
    scratch = replace(s, init_from="scratch")
    assert Run(scratch, replace(CPU, rank=1), loaded(), Clock()).set_aside() == []
    assert Run(scratch, CPU, loaded(), Clock()).set_aside() == ["ckpt-1.pt", "last-1.pt", "log-1.csv"]
    Path("m/last.pt").write_text("second")
    assert Run(scratch, CPU, loaded(), Clock()).set_aside() == ["last-2.pt"]
    assert sorted(os.listdir("m")) == ["ckpt-1.pt", "last-1.pt", "last-2.pt", "log-1.csv"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_kill_between_two_files_that_are_set_aside_keeps_them_together(saved, monkeypatch, n):
    saved(Settings(**SMALL, out_dir="m"))
    for name in ("ckpt.pt", "log.csv"):
        Path("m", name).write_text("first")
    rename, renamed = os.rename, []

    def dying(*names):
        renamed.append(names)
        if len(renamed) == n:
            raise KeyboardInterrupt
        rename(*names)

    scratch = Settings(**SMALL, out_dir="m", init_from="scratch")
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(os, "rename", dying)
        Run(scratch, CPU, loaded(), Clock()).set_aside()
    Run(scratch, CPU, loaded(), Clock()).set_aside()
    assert sorted(os.listdir("m")) == ["ckpt-1.pt", "last-1.pt", "log-1.csv"]


@pytest.mark.parametrize("report", [None, "deaf"])
def test_starting_over_loses_nothing_whatever_the_report_does(train, corpus, report):
    class Deaf(Report):
        def begin(self, run, aside):
            self.run, self.first, self.live, self.logs = run, False, False, []
            self.pace, self.line_at, self.line_iteration, self.lines, self.peak_flops = 0.0, 0.0, 0, 0, 1.0
            self.drawn_at = math.inf

    train(out_dir="m")
    good = weights("m", "ckpt.pt")
    settings = Settings(**{**SMALL, **SHORT}, out_dir="m", init_from="scratch", seed=9)
    train_drama.train(settings, report=report and Deaf())
    assert equal(weights("m", "ckpt-1.pt"), good) and not equal(weights("m", "ckpt.pt"), good)


# ---------------------------------------------------------------------------- several computers


def test_only_the_first_process_needs_the_weights_that_a_run_begins_with(train, corpus):
    train(out_dir="first")
    trained = checkpoint.load("first/ckpt.pt")

    class Second(Machine):
        def broadcast(self, value):
            assert value is None  # it has read nothing
            return None if self.told.append(0) or len(self.told) == 1 else trained

    Second.told = []
    machine = Second(CPU.device, CPU.dtype, rank=1)
    settings = Settings(**{**SMALL, **SHORT}, out_dir="m", init_from="not/here")
    train_drama.check_request(settings, machine)
    run = Run(settings, machine, loaded(), Clock())
    assert equal(run.model.state_dict(), trained["model"])
    with pytest.raises(UserError, match="'not/here' is none of"):
        train_drama.check_request(settings, CPU)
