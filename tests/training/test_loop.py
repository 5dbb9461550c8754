"""What a training does, one thing at a time: each test is for a line of the loop that could be lost."""

import collections
import contextlib
import gc
import math
import os
import pty
import shutil
import signal
import sys
import time
import weakref
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    CPU,
    PROGRAMS,
    ROOT,
    SHORT,
    SMALL,
    equal,
    flags,
    loaded,
    losses,
    play,
    rows,
    run_of,
    start,
    weights,
)

import prepare
import train_drama
from configurator import UserError
from drama import checkpoint, cuda_graph
from drama.cuda_graph import CudaGraph
from drama.device import find_dtype
from drama.training import dataset
from drama.training.dataset import Corpus, Split, load_data
from drama.training.machine import Machine
from drama.training.optimizer import learning_rate_at, set_learning_rate
from drama.training.report import Report, Silent
from drama.training.run import Run
from train_drama import Settings


@dataclass(frozen=True)
class Known(Machine):
    """A machine whose speed need not be measured."""

    def peak_flops(self):
        return 1e9, "a guess"


@pytest.fixture
def train(train):
    def run(machine=None, **settings):
        dtype = find_dtype(settings.get("dtype", "auto"), CPU.device)
        return train(machine=machine or Known(CPU.device, dtype), **settings)

    return run


MINI = dict(n_layer=1, n_head=1, n_embd=16, block_size=16, batch_size=2, eval_iters=1)  # float16 is slow


LOSSES = dict(train_loss=0.9, val_loss=1.0, val_bits_per_char=1.4)


def update(step, run: Run, learning_rate: float) -> dict:
    """One iteration, as the loop makes it."""
    set_learning_rate(run.optimizers, learning_rate)
    torch.manual_seed(run.iteration)
    return step(run.corpus.batches(run.settings, run.iteration, run.machine))


class Quiet(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


# ---------------------------------------------------------------------------- one update


class Steps(Report):
    """Notes (class, learning rates, gradient norm) of each optimizer step."""

    def begin(self, run, *aside):
        super().begin(run, *aside)
        self.seen = []
        for optimizer in run.optimizers:
            optimizer.register_step_pre_hook(self.note)

    def note(self, optimizer, *_):
        groups = optimizer.param_groups
        gradient = torch.cat([p.grad.flatten() for group in groups for p in group["params"]])
        rates = {group["lr"] for group in groups}
        self.seen.append((type(optimizer).__name__, rates, gradient.norm().item()))


@pytest.fixture
def steps(train):
    def run(**settings):
        report = Steps()
        train(report=report, **settings)
        return report.seen

    return run


def test_every_optimizer_steps_at_the_scheduled_rate(steps):
    s = Settings(**{**SMALL, **SHORT})
    found = [(name, rates) for name, rates, _ in steps(out_dir="m", arch="modern", optimizer="muon")]
    assert found == [(name, {learning_rate_at(s, i)}) for i in range(21) for name in ("AdamW", "Muon")]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_gradients_are_clipped_to_grad_clip_and_0_leaves_them_alone(steps, clip, dtype):
    norms = [norm for *_, norm in steps(out_dir="m", max_iters=2, dtype=dtype, grad_clip=clip, **MINI)]
    assert max(norms) == pytest.approx(0.01, rel=1e-3) if clip else 0.3 < max(norms) < 10


def test_accumulated_batches_have_one_large_batch_s_gradients_losses_and_weights(steps):
    how = dict(dropout=0.0, dtype="float32", max_iters=10, grad_clip=0.5)
    one = steps(out_dir="one", batch_size=8, **how)
    two = steps(out_dir="two", batch_size=4, gradient_accumulation_steps=2, **how)
    assert [norm for *_, norm in two] == pytest.approx([norm for *_, norm in one], rel=1e-3)
    for a, b in zip(losses("one"), losses("two"), strict=True):
        assert [float(x) for x in a if x] == pytest.approx([float(x) for x in b if x], rel=1e-3)
    for name, a in weights("one").items():
        torch.testing.assert_close(a, weights("two")[name], rtol=1e-3, atol=1e-4)


def test_a_batch_read_in_parts_has_the_same_gradients_losses_and_weights(steps, monkeypatch):
    how = dict(dropout=0.0, dtype="float32", max_iters=10, grad_clip=0.5, batch_size=7)
    whole = steps(out_dir="whole", **how)
    monkeypatch.setattr(dataset, "CPU_PART", 3 * 32)  # tokens: three sequences, three and one
    parts = steps(out_dir="parts", **how)
    assert [norm for *_, norm in parts] == pytest.approx([norm for *_, norm in whole], rel=1e-3)
    for name, a in weights("whole").items():
        torch.testing.assert_close(a, weights("parts")[name], rtol=1e-3, atol=1e-4)


def test_what_is_dropped_follows_from_seed_iteration_and_process(train, monkeypatch):
    class Whole(Corpus):
        def batches(self, settings, iteration, machine):
            return super().batches(settings, iteration, CPU)

    seeds, real = [], torch.manual_seed
    with monkeypatch.context() as m:
        m.setattr(torch, "manual_seed", lambda n: seeds.append(n) or real(n))
        train(out_dir="a")
        train(out_dir="b", seed=2)
        train(out_dir="c", machine=replace(CPU, rank=1), corpus=loaded(Whole))
    assert len(seeds) == 3 * (1 + 21) and len(set(seeds)) == 2 + 3 * 21  # a's and c's first weights are alike
    for dropout in (0.0, 0.5):
        train(out_dir=f"{dropout}", dropout=dropout, dtype="float32", max_iters=1)
    assert not equal(weights("0.0"), weights("0.5"))


def test_processes_exchange_gradients_in_the_last_backward_pass_alone(corpus):
    class Shared(torch.nn.Module):
        """As DistributedDataParallel, with nobody to share with."""

        def __init__(self, model):
            super().__init__()
            self.model, self.exchanging, self.passes = model, True, []

        @contextlib.contextmanager
        def no_sync(self):
            self.exchanging = False
            yield
            self.exchanging = True

        def forward(self, *batch):
            self.passes.append(self.exchanging)
            return self.model(*batch)

    run = run_of(gradient_accumulation_steps=3)
    run.machine, model = replace(CPU, world=2), Shared(run.model)
    update(partial(train_drama.train_step, model, run), run, 0.01)
    assert model.passes == [False, False, True]


def test_an_update_leaves_no_gradient_and_a_loss_without_a_graph(corpus):
    run = run_of()
    metrics = update(train_drama.ready_to_train(run, Quiet()), run, 0.01)
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics["loss"].item() == pytest.approx(math.log(43), abs=0.3) and metrics["grad_norm"] > 0.1
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_training_and_evaluation_multiply_in_the_dtype_asked_for(train, monkeypatch, dtype):
    made = []

    class Watched(Report):
        def begin(self, run, *aside):
            super().begin(run, *aside)
            product = run.model.blocks[0].mlp.c_fc
            product.register_forward_hook(lambda fc, _, out: made.append((fc.training, out.dtype)))

    monkeypatch.setattr(torch, "compile", lambda call: call)  # which the first batch is for
    train(out_dir="m", dtype=str(dtype)[6:], max_iters=0, compile=True, report=Watched(), **MINI)
    assert len(made) > 3 and set(made) == {(True, dtype), (False, dtype)}


# ---------------------------------------------------------------------------- ready to train


@pytest.mark.parametrize("device, compile, ms, compiled", [
    ("cpu", None, 999, False), ("cuda", None, 40, True), ("cuda", None, 30, False),
    ("cuda", False, 40, False), ("cpu", True, 1, True), ("cuda", True, 1, True),
])  # fmt: skip
def test_compile_is_for_runs_on_cuda_that_are_long_enough_where_nothing_is_said(
    corpus, monkeypatch, device, compile, ms, compiled
):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call: asked.append(call) or call)
    run = run_of(compile=compile, max_iters=5000)
    peak = run.flops / (0.4 * ms / 1000)
    monkeypatch.setattr(Machine, "peak_flops", lambda self: (peak, "a guess"))
    run.machine, report = Machine(torch.device(device), torch.float32), Quiet()
    monkeypatch.setattr(train_drama, "try_accelerations", lambda *_: None)
    train_drama.ready_to_train(run, report)
    assert len(asked) == compiled * SMALL["n_layer"]  # each block by itself
    said = "compiling the model (about" if compiled else "too short to gain" if ms == 30 else ""
    assert said in "".join(report.said) and bool(said) == bool(report.said)
    assert all(p.grad is None for p in run.model.parameters())  # what was tried is no part of the training


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_blocks_let_gradients_go_while_the_backward_pass_goes_on(corpus, monkeypatch):
    """One compiled graph for all blocks would hand over all gradients at its end."""
    ddp, events = torch.nn.parallel.DistributedDataParallel, []
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", partial(ddp, bucket_cap_mb=0.001))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        run = run_of(compile=True, dropout=0.0)
        run.machine = replace(CPU, world=2)  # of which the other sends nothing
        step = train_drama.ready_to_train(run, Quiet())
        model = step.args[0]

        def gone(state, bucket):
            events.append("sent")
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        def embedded(layer, given, out):
            out.register_hook(lambda gradient: events.append("all blocks are through"))

        model.register_comm_hook(None, gone)
        run.model.wte.register_forward_hook(embedded)
        run.machine = CPU
        for iteration in range(2):  # DistributedDataParallel cuts its buckets after the first
            events.clear()
            step(run.corpus.batches(run.settings, iteration, CPU))
        assert "sent" in events[: events.index("all blocks are through")] and events[-1] == "sent"
    finally:
        torch.distributed.destroy_process_group()
        torch._dynamo.reset()


@pytest.mark.parametrize("error, ends", [
    (RuntimeError("no compiler\nat all"), False), (MemoryError(), True),
    (RuntimeError("CUDA out of memory."), True),
])  # fmt: skip
def test_a_machine_that_cannot_compile_trains_without(train, capsys, monkeypatch, error, ends):
    def broken(model):
        raise error

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(MemoryError) if ends else contextlib.nullcontext():
        assert train(out_dir="m", compile=True)["iteration"] == 21
    said = "torch.compile does not work here (no compiler at all); going on without\n"
    assert ends or said in capsys.readouterr().out


def test_a_step_that_overwrites_the_metrics_it_returned_before_is_logged_anew(train, monkeypatch):
    """As the replay of a CUDA graph does."""
    train(out_dir="plain")
    ready = train_drama.ready_to_train

    def like_a_graph(run, report):
        step, held = ready(run, report), dict(loss=torch.zeros(()), grad_norm=torch.zeros(()))
        returned = dict(held)

        def again(batches):
            for name, value in step(batches).items():
                held[name].copy_(value)
            return returned

        return again

    monkeypatch.setattr(train_drama, "ready_to_train", like_a_graph)
    train(out_dir="graph")
    assert losses("graph") == losses("plain")


def test_a_model_that_was_evaluated_is_trained_in_training_mode(corpus):
    run = run_of()
    run.model.eval()
    train_drama.ready_to_train(run, Quiet())
    assert run.model.training


@pytest.mark.parametrize("how", [{}, dict(optimizer="muon", arch="modern", gradient_accumulation_steps=2)])
def test_a_step_whose_tensors_stay_in_place_as_a_graph_needs_makes_the_same_model(corpus, how):
    """A CUDA graph replays what it once recorded: all that changes must be in tensors, rewritten in place."""
    runs = [run_of(cuda_graph=graph, dropout=0.1, **how) for graph in (False, True)]
    steps = [train_drama.ready_to_train(run, Quiet()) for run in runs]
    rates = {id(group["lr"]) for optimizer in runs[1].optimizers for group in optimizer.param_groups}
    for iteration in range(5):
        losses = []
        for run, step in zip(runs, steps, strict=True):
            run.iteration = iteration
            losses.append(update(step, run, 0.01 / (iteration + 1))["loss"].item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(rates) == 1  # one tensor, still the same
    assert {id(group["lr"]) for optimizer in runs[1].optimizers for group in optimizer.param_groups} == rates


@pytest.fixture
def recording(monkeypatch):
    """A CUDA graph whose replay is the recorded step, called again: recording(wrong) makes run.step one."""

    def graphed(run, wrong: bool, report):
        made = []

        class Graph:
            def replay(self):
                for name, value in made[0].function(*made[0].inputs).items():
                    made[0].result[name].copy_(value + wrong)

        @contextlib.contextmanager
        def record(graph, **how):  # computes nothing
            before, numbers = [tensor.clone() for tensor in run.tensors()], torch.get_rng_state()
            yield
            torch.set_rng_state(numbers)
            with torch.no_grad():
                for tensor, value in zip(run.tensors(), before, strict=True):
                    tensor.copy_(value)

        def on_cuda(step, changes, device, *rest, **how):
            made.append(CudaGraph(step, changes, torch.device("cuda"), *rest, **how))
            return made[0]

        stands_in = dict(
            CUDAGraph=Graph, graph=record, Stream=lambda device: "a stream", empty_cache=lambda: None,
            device=lambda device: contextlib.nullcontext(), memory_reserved=lambda device: 0,
            mem_get_info=lambda device: (0, 0), get_rng_state=lambda device: torch.get_rng_state(),
            set_rng_state=lambda numbers, device: torch.set_rng_state(numbers),
        )  # fmt: skip
        for name, value in stands_in.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(cuda_graph, "on", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(cuda_graph, "idle", collections.defaultdict(list))
        monkeypatch.setattr(train_drama, "CudaGraph", on_cuda)
        return train_drama.ready_to_train(run, report), made[0]

    return graphed


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("how", [{}, dict(optimizer="muon", arch="modern", gradient_accumulation_steps=2)])
def test_a_graph_s_first_replay_is_compared_and_made_again_dropout_and_all(corpus, recording, how, wrong):
    class Lines(Quiet):
        def say(self, text):
            said.append(text)

    said, runs = [], [run_of(cuda_graph=True, dropout=0.1, dtype="float32", **how) for _ in range(2)]
    plain = train_drama.ready_to_train(runs[0], Quiet())
    step, graph = recording(runs[1], wrong, Lines())
    for iteration in range(7):
        losses = []
        for run, each in zip(runs, (plain, step), strict=True):
            run.iteration = iteration
            losses.append(update(each, run, 0.01)["loss"].item())
        assert losses[0] == losses[1]
    assert all(a.equal(b) for a, b in zip(*(run.tensors() for run in runs), strict=True))
    assert bool(graph.recorded) != wrong and len(said) == wrong


def test_what_failed_before_is_freed_before_a_graph_is_recorded(corpus, recording, monkeypatch):
    held = []

    def fails(*args):
        held.append(weakref.ref(activations := args[0] + 0))
        raise RuntimeError(f"no compiler for {activations.shape}")

    monkeypatch.setattr(torch, "compile", lambda call: fails)
    gc.disable()  # which might do it by chance
    try:
        recording(run_of(cuda_graph=True, compile=True, dtype="float32"), False, Quiet())
    finally:
        gc.enable()
    assert held and held[0]() is None


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gradient_that_is_not_finite_ends_a_run_at_its_line_but_in_float16(train, monkeypatch, scaled):
    """In a CUDA graph nobody looks before; float16 leaves such an iteration out."""

    def ready(run, report):
        run.scaler = SimpleNamespace(is_enabled=lambda: scaled, state_dict=dict)
        return lambda batches: dict(loss=torch.tensor(4.0), grad_norm=torch.tensor(math.nan))

    monkeypatch.setattr(train_drama, "ready_to_train", ready)
    ends = pytest.raises(FloatingPointError, match="grad norm is nan at iteration 0")
    with contextlib.nullcontext() if scaled else ends:
        train(max_iters=3)


GPU = Machine(torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("machine, asked, recorded", [
    (GPU, None, True), (GPU, False, False), (replace(GPU, world=2), None, False), (CPU, None, False),
    (replace(GPU, dtype=torch.float16), None, False), (replace(GPU, dtype=torch.float32), None, True),
])  # fmt: skip
def test_iterations_become_a_graph_on_one_gpu_unless_asked_otherwise(machine, asked, recorded):
    assert machine.records(asked) == recorded


@pytest.mark.parametrize("machine, said", [
    (CPU, "needs one GPU"), (Machine(torch.device("cuda"), torch.bfloat16, world=2), "needs one GPU"),
    (Machine(torch.device("cuda"), torch.float16), "float16's overflows"),
])  # fmt: skip
def test_a_graph_is_refused_where_it_cannot_be(corpus, machine, said):
    with pytest.raises(UserError, match=said):
        train_drama.train(train_drama.Settings(cuda_graph=True), machine, loaded())


# ---------------------------------------------------------------------------- the loop


class Watched(Split):
    """Notes the windows that are read, in `seen`."""

    def windows(self, starts, length):
        self.seen.append((Path(self.file.name).stem, starts.tolist()))
        return super().windows(starts, length)


def watched(read: list) -> Corpus:
    data = load_data("drama", 32, CPU)
    for name, split in (("train", data.train), ("val", data.val)):
        setattr(data, name, Watched(split.file, split.vocab_size, CPU.device))
        getattr(data, name).seen = read
    return data


def test_it_learns_from_the_training_split_and_is_judged_on_both(train, corpus):
    read = []
    train(out_dir="m", corpus=watched(read))
    drawn = [("train", 8)]
    judged = [("train", 95), ("val", 94), ("val", 1)]  # of 3,020 tokens, the last window a short one
    found = [(name, len(starts)) for name, starts in read]
    assert found == 2 * (judged + 10 * drawn) + judged + drawn


def test_a_bounded_evaluation_reads_so_many_batches_of_always_the_same_windows(train, corpus, monkeypatch):
    monkeypatch.setattr(dataset, "EVAL_TOKENS", 3 * 32)
    read = []
    train(out_dir="m", corpus=watched(read), eval_iters=2)
    judged = [(name, starts) for name, starts in read if len(starts) == 3]
    assert [name for name, _ in judged] == 3 * ["train", "train", "val", "val"]
    assert judged == 3 * judged[:4] and all(judged[n][1] != judged[n + 1][1] for n in (0, 2))


def test_the_best_so_far_is_remembered_and_the_untrained_model_is_none(train, corpus):
    given = iter([LOSSES, LOSSES | dict(train_loss=1.9, val_loss=2.0), LOSSES | dict(val_loss=3.0)])

    class Given(Corpus):
        def evaluate(self, *_):
            return next(given)

    data = loaded(Given)
    train(out_dir="m", max_iters=10, corpus=data)
    result = train(out_dir="m", corpus=data)
    best = checkpoint.load("m/ckpt.pt")
    assert (best["iteration"], best["train_loss"], best["val_loss"]) == (10, 1.9, 2.0)
    assert best["speakers"] == data.speakers and set(data.speakers) == {"LUCIO", "ISABELLA", "First Lord"}
    assert result == {"iteration": 21, "val_loss": 3.0, "best_val_loss": 2.0, "signal": 0}
    result = train(out_dir="m", corpus=data)  # nothing was left to do
    assert result == {"iteration": 21, "val_loss": 2.0, "best_val_loss": 2.0, "signal": 0}


def test_speeds_are_of_the_iterations_alone_and_bits_of_characters(train, corpus, monkeypatch):
    clock = [0.0]

    def slow(seconds, real):
        def slowed(*given):
            clock[0] += seconds
            return real(*given)

        return slowed

    class Slow(Corpus):
        batches, evaluate = slow(2.0, Corpus.batches), slow(100.0, Corpus.evaluate)

    class Sampling(Report):
        sample = slow(50.0, Report.sample)

    monkeypatch.setattr(os, "fsync", slow(10.0, os.fsync))  # saving
    monkeypatch.setattr(torch, "compile", slow(1000.0, lambda call: call))
    train(
        out_dir="m", sample_interval=8, gradient_accumulation_steps=2, compile=True, save_minutes=0.1,
        report=Sampling(), now=lambda: clock[0], corpus=loaded(Slow, val_characters=6040),  # twice the tokens
    )  # fmt: skip
    gpt, _ = checkpoint.load_model("m/ckpt.pt")
    tokens = 2 * 8 * 32
    for row in rows("m"):
        if row["loss"]:
            assert float(row["time_ms"]) == pytest.approx(2000)
            assert float(row["tokens_per_s"]) == pytest.approx(tokens / 2)
            assert float(row["mfu"]) == pytest.approx(gpt.flops_per_token() * tokens / 2 / 1e9)
        if row["val_loss"]:
            assert float(row["val_bits_per_char"]) == pytest.approx(float(row["val_loss"]) / math.log(2) / 2)


def test_it_is_saved_every_so_many_minutes_and_nothing_before_the_first_iteration(
    train, corpus, monkeypatch
):  # fmt: skip
    clock, saved, rename = [0.0], [], os.replace

    class Slow(Corpus):
        def batches(self, *given):
            clock[0] += 40
            return super().batches(*given)

    def watch(source, target):
        rename(source, target)
        if target.suffix == ".pt":
            saved.append(checkpoint.load(target).get("next_iteration", target.name))

    def save(**settings):
        saved.clear()
        train(corpus=loaded(Slow), now=lambda: clock[0], **settings)
        return saved

    monkeypatch.setattr(os, "replace", watch)
    expected = [4, 8, "ckpt.pt", 10, 14, 18, "ckpt.pt", 20, 21]  # an evaluation's save counts as well
    assert save(out_dir="m", save_minutes=2.5) == expected
    save(out_dir="n", max_iters=9)
    assert [n for n in save(out_dir="n", max_iters=10) if n != "ckpt.pt"] == [11]  # and not 10 once more


def test_the_losses_are_drawn_on_the_way_once_a_minute(train, corpus):
    pytest.importorskip("matplotlib")
    clock, drawn = [0.0], []

    class Slow(Corpus):
        def batches(self, *given):
            clock[0] += 7
            drawn.append(os.path.exists("m/loss.png"))
            return super().batches(*given)

    train(out_dir="m", corpus=loaded(Slow), now=lambda: clock[0])
    assert drawn == 10 * [False] + 11 * [True]


class Evaluated(Corpus):
    """Each evaluation takes more than a minute."""

    minutes, stopped = [0], False

    def evaluate(self, *args):
        self.minutes[0] += 1.1
        return None if self.stopped else super().evaluate(*args)

    @classmethod
    def now(cls):
        return time.perf_counter() + 60 * cls.minutes[0]


class Stopped(Evaluated):
    """The same, stopped in the first one."""

    stopped = True


@pytest.mark.parametrize("kind", [Evaluated, Stopped])
def test_before_the_first_iteration_there_is_no_picture_and_no_word_of_it(train, corpus, capfd, kind):
    pytest.importorskip("matplotlib")
    train(out_dir="m", corpus=loaded(kind), now=kind.now, max_iters=0)
    out, err = capfd.readouterr()
    assert "picture" not in out + err
    assert ("iter 0" in out) == (kind is Evaluated) == os.path.exists("m/loss.png")


def test_what_prevents_the_picture_is_said_once(train, corpus, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train(out_dir="m", corpus=loaded(Evaluated), now=Evaluated.now)
    out, _ = capfd.readouterr()
    assert out.count("step ") == 3 and out.count("no picture of the losses") == 1


class Died(BaseException):
    pass


@pytest.mark.parametrize("name", ["ckpt.pt", "last.pt"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_dies_at_an_evaluation_s_save_loses_nothing(train, monkeypatch, name, when):
    report, rename = Report(), os.replace

    def dying(source, target):
        at = target.name == name and report.run.iteration == 10
        if at and when == "before":
            raise Died
        rename(source, target)
        if at:
            raise Died

    train(out_dir="whole", max_iters=10)
    with monkeypatch.context() as m:
        m.setattr(os, "replace", dying)
        with pytest.raises(Died):
            train(out_dir="m", max_iters=10, report=report)
    train(out_dir="m", max_iters=10)
    for file in ("ckpt.pt", "last.pt"):
        assert equal(weights("whole", file), weights("m", file))


def test_a_run_whose_last_iteration_is_left_is_not_finished(train):
    assert train(out_dir="m", max_iters=9)["iteration"] == 10
    assert train(out_dir="m", max_iters=10)["iteration"] == 11


def signalled_at(iteration: int) -> Corpus:
    class Signalled(Corpus):
        def batches(self, settings, i, machine):
            if i == iteration:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batches(settings, i, machine)

    return loaded(Signalled)


class GPUs(Machine):
    any_rank_is_cheap = False


@pytest.mark.parametrize("cls, reached", [(Machine, 13), (GPUs, 16)])
def test_a_signal_ends_the_iteration_and_among_several_gpus_the_stretch_to_the_next_line(train, cls, reached):
    machine = cls(CPU.device, CPU.dtype)
    result = train(out_dir="m", machine=machine, corpus=signalled_at(12))
    assert result["iteration"] == checkpoint.load("m/last.pt")["next_iteration"] == reached
    assert result["signal"] == signal.SIGTERM


def test_a_signal_that_another_process_has_got_ends_this_one_as_sigterm_does(train):
    class Two(Machine):
        def any_rank(self, flag):
            return True

    result = train(out_dir="m", machine=Two(CPU.device, CPU.dtype))
    assert (result["iteration"], result["signal"]) == (0, signal.SIGTERM)


# ---------------------------------------------------------------------------- the corpus


@pytest.fixture
def fetched(folder, monkeypatch):
    """What was fetched so far, in an empty folder, from a network that has the small play."""
    sources = []

    def fetch(source, place):
        sources.append(source)
        (folder / "play.txt").write_text(play(), encoding="utf-8")
        return folder / "play.txt", "the network", 0

    monkeypatch.setattr(prepare, "fetch", fetch)
    return sources


def test_the_default_corpus_is_fetched_where_it_is_missing(fetched):
    for _ in range(2):
        assert train_drama.find_corpus(Settings(block_size=32), CPU).source == "the network"
    assert fetched == ["drama"]


def test_one_process_of_a_computer_fetches_and_the_others_wait_for_it(fetched, monkeypatch):
    def barrier():
        assert not fetched
        prepare.prepare(prepare.Settings())  # as the first does meanwhile

    monkeypatch.setattr(torch.distributed, "barrier", barrier)
    second = replace(CPU, rank=1, local_rank=1, world=2)
    assert train_drama.find_corpus(Settings(block_size=32), second).source == "the network"


def test_another_corpus_that_is_missing_is_not_fetched(fetched, call):
    status, _, err = call("train_drama.py", "--dataset=mine")
    assert status == 2 and "data/mine is not prepared; python prepare.py --dataset=mine" in err
    assert err.count("\n") == 1 and not fetched and os.listdir() == []


# ---------------------------------------------------------------------------- ending


def test_logs_are_closed_however_a_training_ends(train, corpus):
    closed = []

    class Closing(Report):
        def close(self):
            closed.append(self.run.iteration)
            super().close()

    class Failing(Corpus):
        def batches(self, settings, iteration, machine):
            return [] if iteration < 3 else 1 / 0

    train(out_dir="m", max_iters=1, report=Closing())
    with pytest.raises(ZeroDivisionError):
        train(out_dir="n", report=Closing(), corpus=loaded(Failing))
    assert closed == [2, 3]


class Full(Report):
    """A disk that is full, from the first line on."""

    def iteration(self, *_):
        raise OSError(28, "No space left on device")


class FullBefore(Report):
    def evaluation(self, *_):
        raise OSError(28, "No space left on device")


def test_a_log_that_cannot_be_written_loses_nothing(train, monkeypatch):
    with pytest.raises(OSError, match="No space left"):
        train(out_dir="m", report=Full())
    assert checkpoint.load("m/last.pt")["next_iteration"] == 1
    with pytest.raises(OSError, match="No space left"):
        train(out_dir="n", report=FullBefore())
    assert not os.path.exists("n/last.pt")  # there was nothing to lose
    with monkeypatch.context() as m, pytest.raises(OSError, match="No space left"):
        m.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        train(out_dir="m", report=Full())
    assert train(out_dir="m")["iteration"] == 21


def test_a_reader_that_goes_away_or_a_terminal_that_closes_loses_nothing(train, corpus):
    how = {**SMALL, **SHORT, "log_interval": 1, "eval_interval": 10**6, "lr_decay_iters": 100}
    program = [ROOT / "train_drama.py", *flags(**{**how, "max_iters": 10**6}, out_dir="m")]
    environ = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are rounded alike

    def reached():
        return checkpoint.load("m/last.pt")["next_iteration"]

    piped = start(corpus, *program, env=environ)
    assert any(line.startswith("iter 5:") for line in piped.stdout)
    piped.stdout.close()  # as `| head` does
    assert piped.wait(120) == 1 and reached() > 5
    mine, theirs = pty.openpty()
    before, gone = reached(), start(corpus, *program, env=environ, stdout=theirs)
    os.close(theirs)
    with open(mine, "rb") as terminal:
        assert any(line.count(b"iter ") for line in terminal)
    assert gone.wait(120) == 1 and reached() > before
    before, closed = reached(), start(corpus, *program, env=environ)
    assert any(line.startswith("iter") for line in closed.stdout)
    closed.send_signal(signal.SIGHUP)
    out = closed.communicate(timeout=120)[0]
    assert closed.returncode == 128 + signal.SIGHUP and "saved; the same command continues" in out
    assert reached() > before
    end = reached() + 2
    for out_dir in ("m", "whole"):
        train(**{**how, "out_dir": out_dir, "max_iters": end})
    assert equal(weights("whole"), weights("m"))
    assert [int(row["iter"]) for row in rows("m") if row["loss"]] == list(range(end + 1))


def test_a_text_that_becomes_shorter_ends_the_run_with_its_name_and_what_was_learned_is_kept(train, corpus):
    class Cut(Corpus):
        def batches(self, settings, iteration, machine):
            if iteration == 13:
                os.truncate("data/drama/train.bin", 100)
            return super().batches(settings, iteration, machine)

    with pytest.raises(OSError, match="shorter") as ended:
        train(out_dir="m", corpus=loaded(Cut))
    assert ended.value.filename == "data/drama/train.bin"
    assert checkpoint.load("m/last.pt")["next_iteration"] == 13


@pytest.mark.parametrize("error, batch_size, words", [
    (lambda: torch.empty(2**50), 8, "train_drama.py: out of memory; lower --batch_size and raise"),
    (lambda: torch.empty(2**50), 1, "train_drama.py: out of memory; give a smaller --n_embd"),
    (lambda: torch.empty(2) @ torch.empty(3), 8, "RuntimeError"),
])  # fmt: skip
def test_out_of_memory_says_which_settings_to_lower(call, corpus, monkeypatch, error, batch_size, words):
    class TooLarge(Corpus):
        def evaluate(self, *_):
            error()

    def main():
        settings = {**SMALL, **SHORT, "batch_size": batch_size}
        train_drama.train(Settings(**settings, out_dir="m"), corpus=loaded(TooLarge))

    monkeypatch.setitem(PROGRAMS, "train_drama.py", SimpleNamespace(main=main))
    found, _, err = call("train_drama.py")
    assert found == 1 and words in err
    assert (err.count("\n") == 1) == err.startswith("train_drama.py: out of memory")
