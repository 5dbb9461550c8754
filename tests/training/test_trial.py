"""What is fast on a GPU and fails there, or computes something else: with stand-ins, on the CPU."""

import re
from dataclasses import replace

import pytest
import torch
from helpers import CPU, run_of, start

import train_drama
from drama.device import find_dtype, multiplies
from drama.training import dataset
from drama.training.machine import Machine
from drama.training.trial import try_accelerations
from model import CausalSelfAttention


class Lines:
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.fixture(autouse=True)
def restored():
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    for backend in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{backend}_sdp")(True)


@pytest.fixture
def tried(corpus):
    """tried(dtype) is a run after its accelerations were tried, and what was said of them."""

    def make(dtype=torch.float32, **settings):
        run, report = run_of(replace(CPU, dtype=dtype), **{"dropout": 0.2, **settings}), Lines()
        before = {name: p.clone() for name, p in run.model.named_parameters()}
        try_accelerations(run, report)
        assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
        assert run.model.training and all(p.grad is None for p in run.model.parameters())
        step = train_drama.train_step(run.model, run, run.corpus.batches(run.settings, 0, run.machine))
        assert step["loss"].isfinite()
        return run, report.said

    return make


def attention(monkeypatch, wrong):
    """wrong(q, y) makes another result of attention, where plain attention is not asked for."""
    right = CausalSelfAttention.attend_cpu

    def attend(self, q, k, v):
        y = right(self, q, k, v)
        return wrong(q, y) if torch.backends.cuda.flash_sdp_enabled() else y

    monkeypatch.setattr(CausalSelfAttention, "attend_cpu", attend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{}, dict(arch="modern", optimizer="muon")])
def test_nothing_is_said_or_changed_where_all_is_right(tried, dtype, how):
    run, said = tried(dtype, **how)
    assert said == [] and run.machine.dtype == dtype and torch.backends.cuda.flash_sdp_enabled()
    assert run.optimizers[0].param_groups[0]["fused"]


def raises(q, y):
    raise RuntimeError("no kernel image\nat all")


@pytest.mark.parametrize("wrong, why", [
    (raises, "no kernel image at all"),
    (lambda q, y: 3 * y, r"(loss|gradient norm) [\d.]+, without it [\d.]+"),
    (lambda q, y: y * float("nan"), "loss nan, without it .*"),
])  # fmt: skip
def test_fused_attention_that_fails_or_is_wrong_is_turned_off(tried, monkeypatch, wrong, why):
    attention(monkeypatch, wrong)
    _, (line,) = tried()
    assert re.fullmatch(rf"fused attention does not work here \({why}\); going on without", line)
    assert not torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.mem_efficient_sdp_enabled()


def test_an_attention_that_fails_only_where_it_drops_is_turned_off_too(tried, monkeypatch):
    right = CausalSelfAttention.attend_cpu

    def attend(self, q, k, v):
        if self.training and torch.backends.cuda.flash_sdp_enabled():
            raise RuntimeError("no kernel with dropout")
        return right(self, q, k, v)

    monkeypatch.setattr(CausalSelfAttention, "attend_cpu", attend)
    assert tried()[1] == ["fused attention does not work here (no kernel with dropout); going on without"]


def test_what_is_wrong_shows_in_a_model_that_begins_with_zeros_too(tried, monkeypatch):
    attention(monkeypatch, lambda q, y: 3 * y)
    _, (line,) = tried(arch="modern")
    assert line.startswith("fused attention does not work here")


def test_a_number_format_that_computes_something_else_gives_way_to_float32(tried, monkeypatch):
    right = CausalSelfAttention.attend_cpu
    wrong = lambda self, q, k, v: right(self, q, k, v) * (3 if q.dtype == torch.bfloat16 else 1)  # noqa: E731
    monkeypatch.setattr(CausalSelfAttention, "attend_cpu", wrong)
    run, said = tried(torch.bfloat16, optimizer="muon")
    assert [line.partition(" does")[0] for line in said] == ["bfloat16"]
    assert torch.backends.cuda.flash_sdp_enabled()  # tried without, to no avail
    assert run.machine.dtype == torch.float32 and run.optimizers[1].dtype == torch.float32


@pytest.mark.parametrize("fails", [True, False])
def test_a_fused_optimizer_that_fails_or_is_wrong_is_not_used(tried, monkeypatch, fails):
    step = torch.optim.AdamW.step

    def broken(self, *args):
        if self.param_groups[0]["fused"]:
            if fails:
                raise RuntimeError("no such kernel")
            self.param_groups[0]["lr"] *= 2
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    run, (line,) = tried()
    assert line.startswith("the fused optimizer does not work here")
    assert not any(group["fused"] for group in run.optimizers[0].param_groups)


def test_out_of_memory_stays_out_of_memory(tried, monkeypatch):
    def full(q, y):
        raise RuntimeError("CUDA out of memory.")

    attention(monkeypatch, full)
    with pytest.raises(RuntimeError, match="out of memory"):
        tried()


def test_too_little_memory_for_plain_code_alone_is_no_error(tried, monkeypatch):
    right = CausalSelfAttention.attend_cpu

    def attend(self, q, k, v):
        if not torch.backends.cuda.flash_sdp_enabled():
            raise RuntimeError("CUDA out of memory.")
        return right(self, q, k, v)

    monkeypatch.setattr(CausalSelfAttention, "attend_cpu", attend)
    assert tried()[1] == ["too little memory to compare what is fast with plain code; going on"]


def test_it_is_tried_on_cuda_before_anything_is_compiled(corpus, monkeypatch):
    tried = []
    monkeypatch.setattr(train_drama, "try_accelerations", lambda *args: tried.append(args))
    run = run_of(compile=False)
    train_drama.ready_to_train(run, Lines())
    assert not tried
    run.machine = Machine(torch.device("cuda"), torch.float32)
    train_drama.ready_to_train(run, report := Lines())
    assert tried == [(run, report)]


def test_a_compiled_model_with_another_loss_is_not_used(corpus, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call: lambda *args: call(*args) * float("nan"))
    run, report = run_of(compile=True), Lines()
    train_drama.ready_to_train(run, report)
    assert re.match(
        r"torch.compile does not work here \(loss nan, without it .*going on without", report.said[-1]
    )
    assert all(block._compiled_call_impl is None for block in run.model.blocks)


# ---------------------------------------------------------------------------- formats, memory, processes


def test_a_format_that_a_card_claims_and_does_not_multiply_in_is_not_taken(monkeypatch):
    cpu = torch.device("cpu")
    assert multiplies(cpu, torch.bfloat16) and multiplies(cpu, torch.float32)
    eye = torch.eye
    monkeypatch.setattr(torch, "eye", lambda n, dtype, device: eye(n, dtype=dtype) * (dtype == torch.float32))
    assert not multiplies(cpu, torch.bfloat16) and multiplies(cpu, torch.float32)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    for works in (torch.bfloat16, torch.float16, torch.float32):
        monkeypatch.setattr("drama.device.multiplies", lambda device, dtype, works=works: dtype == works)
        assert find_dtype("auto", torch.device("cuda")) == works


def test_a_text_that_cannot_lie_on_the_gpu_is_read_from_its_file(corpus, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("no such call")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fails)
    split = dataset.Split(open("data/drama/val.bin", "rb", buffering=0), 43, torch.device("cuda"))  # noqa: SIM115
    assert split.resident is None and "stays in its file" in capsys.readouterr().out
    split.device = torch.device("cpu")
    monkeypatch.setattr(torch.Tensor, "pin_memory", fails)
    for said in ("batches go to the GPU without pinned memory (no such call)\n", ""):
        x, y = split.windows(torch.tensor([0, 5]), 8)
        assert torch.equal(x[:, 1:], y[:, :-1]) and capsys.readouterr().out == said


JOIN = """
import sys, torch, torch.distributed as dist
from drama.training.machine import join
def broken(store, rank, world, timeout):
    raise RuntimeError("no peer")
dist.Backend.register_backend("peers", broken, devices=["cpu"])
rank = int(sys.argv[1])
store = dist.FileStore("store", 2)
join(store, rank, 2, torch.device("cpu"), ("peers", "gloo"))
total = torch.ones(1) * (rank + 1)
dist.all_reduce(total)
print(dist.get_backend(), total.item())
dist.destroy_process_group()
"""


def test_processes_that_cannot_join_by_one_backend_all_join_by_the_next(clone):
    (clone / "join.py").write_text(JOIN)
    processes = [start(clone, "join.py", rank) for rank in (0, 1)]
    (first, _), (second, _) = (process.communicate(timeout=300) for process in processes)
    assert "process 0: peers does not work here (no peer); going on without\n" in first
    assert first.endswith("gloo 3.0\n") and second.endswith("gloo 3.0\n")
