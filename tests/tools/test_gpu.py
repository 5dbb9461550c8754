"""python -m tools.bench gpu, with the CPU in the GPU's stead: what it measures, and how failures are told."""

import dataclasses
import json
import os
import time

import pytest
import torch
from helpers import SMALL

import train_drama
from tools.bench import gpu, programs, speed

NO_GPU = dict(compile=False, cuda_graph=False)
FIGURES = {
    "eager": {"ms", "mfu_percent", "seconds", "loss", "val_loss", "below"},
    "default": {"ms", "mfu_percent", "seconds", "loss", "val_loss", "below"},
    "best": {"ms", "mfu_percent", "seconds", "loss", "val_loss", "below"},
    "sample-10": {"ms", "characters_per_s"},
    "kernels": {"ms", "below"},
}


@pytest.fixture
def on_cpu(corpus, monkeypatch):
    """All of it on small models, and the functions in this process."""
    run_program, run = programs.train, train_drama.train

    def program(folder, *config, max_iters=20, timeout=60, **settings):
        return run_program(
            folder, *config, **{**settings, **SMALL, **NO_GPU, "max_iters": min(max_iters, 20)}
        )

    def in_this_process(function, *args, timeout):
        assert 0 < timeout < gpu.TIME
        return function(*args)

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(speed, "CHARACTERS", 20)
    monkeypatch.setattr(programs, "train", program)
    monkeypatch.setattr(train_drama, "train", lambda settings: run(dataclasses.replace(settings, **SMALL)))
    for module in (programs, speed):
        monkeypatch.setattr(module, "in_a_process", in_this_process)


@pytest.mark.parametrize("name", FIGURES)
def test_a_measurement_gives_its_figures_beside_what_is_expected(call, on_cpu, name):
    status, out, err = call("bench.py", "gpu", name)
    assert status == 0 and (name == "kernels" or not err)  # PyTorch's profiler has words of its own
    (row,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
    figures = json.loads(out.splitlines()[-1])[name]
    assert figures.keys() == FIGURES[name], out
    assert row.endswith(gpu.MEASURED[name][-1]) and f"{figures['ms']:.4g}" in row
    assert all(figures[figure] > 0 for figure in FIGURES[name] - {"below"}) or name == "kernels"


def test_the_kernels_are_those_of_whole_iterations_after_the_first_ones(on_cpu, monkeypatch):
    asked = []

    class Profiler:
        def __init__(self, activities, schedule):
            self.schedule, self.steps = schedule, 0

        def __enter__(self):
            return self

        def step(self):
            self.steps += 1

        def __exit__(self, *exception):
            asked.append([self.schedule(n).name for n in range(self.steps)])

        def key_averages(self):
            return [
                event("gemm", 3000.0),
                event("flash_fwd", 10.0),
                event("AdamW", 7.0, is_user_annotation=True),
            ]

    def event(key, microseconds, **changes):
        on_gpu = torch.autograd.DeviceType.CUDA
        values = dict(key=key, device_type=on_gpu, is_user_annotation=False)
        return type("Event", (), {**values, "self_device_time_total": microseconds * gpu.PROFILED, **changes})

    monkeypatch.setattr(gpu, "profile", Profiler)
    figures = gpu.profiled("m", "cpu")
    (states,) = asked
    recorded = [name for name in states if name.startswith("RECORD")]
    assert len(states) == 21 and len(recorded) == gpu.PROFILED and states[-1] == "NONE"
    assert figures == {"ms": pytest.approx(3.01), "below": ["3.000 ms gemm", "0.010 ms flash_fwd"]}


SAID = """\
step 0: train loss 4.3000, val loss 4.2900
iter 0: loss 4.2800, time 9000.00ms, mfu -100.00%
iter 10: loss 3.1000, time 8.00ms, mfu 12.00%
step 20: train loss 2.5000, val loss 2.4000
iter 20: loss 2.4500, time 6.00ms, mfu 14.00%
step 30: train loss 1.5000, val loss 2.6000
iter 30: loss 2.3000, time 7.00ms, mfu 16.00%
"""


def test_what_was_left_out_of_a_run_stands_beneath_its_figures(on_cpu, corpus, monkeypatch):
    run = programs.train

    def program(*args, **settings):
        done = run(*args, **settings)
        return dataclasses.replace(
            done, lines=[*done.lines, (1.0, "fast attention does not work here (no)\n")]
        )

    monkeypatch.setattr(programs, "train", program)
    figures = gpu.train(corpus / "m", 60)
    assert figures["below"] == ["fast attention does not work here (no)"]


def test_nanogpt_is_measured_beside_it_where_a_checkout_is_given(call, on_cpu, corpus):
    for name, code in {"config/train_shakespeare_char.py": "", "train.py": f"print({SAID!r})"}.items():
        (corpus / "nano" / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / "nano" / name).write_text(code)
    status, out, _ = call("bench.py", "gpu", "nanogpt", "--against=nano")
    figures = json.loads(out.splitlines()[-1])["nanogpt"]
    assert status == 0 and figures.pop("seconds") > 0, out
    assert figures == dict(ms=7, mfu_percent=14, loss=2.3, val_loss=2.4)
    status, out, _ = call("bench.py", "gpu", "nanogpt")
    assert status == 0 and "nanogpt" not in json.loads(out.splitlines()[-1])


def test_the_tests_that_need_cuda_are_run_and_their_last_lines_shown(folder):
    figures = gpu.tests(folder, 200)
    assert figures["status"] == 0, figures
    assert torch.cuda.is_available() or "skipped" in figures["below"][-1]
    cut = gpu.tests(folder, 0.01)  # before Python has begun
    assert cut["below"][-1] == "stopped for want of time" and "status" not in cut


def test_what_fails_is_told_and_the_others_go_on(monkeypatch, capsys):
    def fails(folder, left):
        raise RuntimeError("no\nluck")

    def sleeps(folder, left):
        return programs.python("-c", "import time; time.sleep(600)", timeout=1)

    def well(folder, left, ms):
        return dict(ms=ms)

    measured = {"fails": (fails, {}, "1"), "sleeps": (sleeps, {}, "2"), "well": (well, dict(ms=3.0), "3")}
    monkeypatch.setattr(gpu, "MEASURED", measured)
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    figures = gpu.bench_gpu()
    assert figures["well"] == {"ms": 3.0}
    out = capsys.readouterr().out
    assert "    failed: RuntimeError: no luck\n" in out and "    failed: OSError" in out
    monkeypatch.setattr(gpu, "TIME", -1)
    assert gpu.bench_gpu()["well"] == {"below": ["failed: TimeoutError: no time left"]}


def test_a_function_that_takes_too_long_is_ended_and_one_that_crashes_is_told():
    with pytest.raises(TimeoutError):
        programs.in_a_process(time.sleep, 600, timeout=1)
    with pytest.raises(Exception, match="terminated abruptly"):
        programs.in_a_process(os.abort)
    assert programs.in_a_process(abs, -3) == 3


@pytest.mark.parametrize("argv, words", [
    (["gpu", "fly"], "fly is none of tests, eager"), (["gpu"], "device='cuda' cannot be used here"),
])  # fmt: skip
def test_a_wrong_request_gets_one_line(call, folder, argv, words):
    if torch.cuda.is_available():
        pytest.skip("this is about machines without one")
    status, _, err = call("bench.py", *argv)
    assert status == 2 and words in err and err.count("\n") == 1
