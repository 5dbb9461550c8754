"""tools/gpu.py, with the CPU in the GPU's place: what its checks do, and how failures are told."""

import json

import pytest
import torch
from helpers import SMALL

from tools import gpu

NO_GPU = dict(compile=False, cuda_graph=False, sample_interval=10)
MEMORY = ("reset_peak_memory_stats", "max_memory_allocated", "memory_reserved", "synchronize", "device_count")


@pytest.fixture
def on_cpu(corpus, monkeypatch):
    """The checks in this process, on small models."""
    real = gpu.run

    def run(folder, *config, **settings):
        few = {**settings, "max_iters": min(settings.get("max_iters", 20), 20)}
        return real(folder, *config, **{**SMALL, **few, **NO_GPU})

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "run", run)
    for name in MEMORY:
        monkeypatch.setattr(torch.cuda, name, lambda *given: 0)
    monkeypatch.setattr(gpu, "in_a_process", lambda name, folder, until: gpu.one_check(name, folder))
    monkeypatch.setattr(gpu, "report_gpu", lambda: {"gpu": "a processor"})
    return corpus


CHECKS = {
    "eager": "loss", "captured": "fast_graph_loss", "sampling": "10_graph",
    "graph_equals_eager": "difference_10", "like_the_cpu": "auto",
    "float16": "muon_float16", "memory_of_many_texts": "after_50", "out_of_memory_in_a_sample": "failures",
    "a_graph_is_dropped_beside_another": "equal_tokens",
    "two_writers_while_a_third_loads": "errors", "two_processes": "left_out", "best": "val_loss",
}  # fmt: skip


@pytest.mark.parametrize("name, figure", CHECKS.items())
def test_a_check_gives_its_figures(call, on_cpu, monkeypatch, name, figure):
    if name == "out_of_memory_in_a_sample":  # a GPU raises a RuntimeError of its own for it
        monkeypatch.setattr(torch, "empty", out_of_memory(torch.empty))
    status, out, err = call("bench.py", "gpu", name)
    assert (status, err) == (0, "")
    assert f"{name}: expected: {getattr(gpu, name).__doc__}" in out
    found = json.loads(out.splitlines()[-1])[name]
    assert figure in found and "failed" not in found
    if name == "graph_equals_eager":
        assert found == {"difference_1": 0, "difference_10": 0}
    if name == "like_the_cpu":
        assert found["cpu"] == pytest.approx(found["auto"], rel=0.01)
    if name == "a_graph_is_dropped_beside_another":
        assert found == {"equal_tokens": 301, "of": 301}
    if name == "two_writers_while_a_third_loads":
        assert found["errors"] == []
    if name == "out_of_memory_in_a_sample":
        assert found["failures"] == 2 and found["loss"] < 4


def out_of_memory(real):
    def empty(*size, **kwargs):
        if size == (1 << 50,):
            raise RuntimeError("CUDA out of memory.")
        return real(*size, **kwargs)

    return empty


def test_a_check_that_fails_is_told_and_the_others_go_on(monkeypatch, capsys):
    def eager(folder):
        """it fails"""

    def sampling(folder):
        """it is well"""

    def answers(name, folder, until):
        return dict(failed="RuntimeError: no") if name == "eager" else dict(ms=3.0)

    monkeypatch.setattr(gpu, "CHECKS", (eager, sampling))
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "report_gpu", dict)
    monkeypatch.setattr(gpu, "in_a_process", answers)
    assert gpu.bench_gpu() == {"eager": {"failed": "RuntimeError: no"}, "sampling": {"ms": 3.0}}
    monkeypatch.setattr(gpu, "TIME", -1)
    assert gpu.bench_gpu()["sampling"] == {"left_out": "no time left"}
    assert "expected: it is well" in capsys.readouterr().out


def test_what_a_process_raises_is_its_finding(monkeypatch):
    found = gpu.in_a_process("no_such_check", "", 1e9)
    assert found["failed"].startswith("KeyError")


@pytest.mark.parametrize("argv, words", [
    (["gpu", "fly"], "fly is none of eager, compiled"), (["gpu"], "device='cuda' cannot be used here"),
])  # fmt: skip
def test_a_wrong_request_gets_one_line(call, folder, monkeypatch, argv, words):
    monkeypatch.setattr(gpu, "DEVICE", "cuda")
    if torch.cuda.is_available():
        pytest.skip("this is about machines without one")
    status, _, err = call("bench.py", *argv)
    assert status == 2 and words in err and err.count("\n") == 1
