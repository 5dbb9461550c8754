"""Everything about a GPU, in one command: python -m tools.bench gpu [--against=../nanoGPT]

First the tests that need CUDA, which say what is right or wrong; then short runs, sampling and kernels,
beside what an H200 does; then whole runs, with nanoGPT's where it is asked for. Each in processes of its
own; one that fails does not stop the others. At most ten minutes; the last line is JSON. Needs the
repository, torch, pytest, hypothesis and the default corpus, which may be carried over as data/drama.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drama.program import ROOT

from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.collect_env import get_env_info

import train_drama
from configurator import UserError, one_line
from drama.device import find_device
from drama.training.picture import read_log
from tools.bench import programs, speed

DEVICE = "cuda"
TIME = 570  # seconds for everything; what would begin later is left out
TESTS = 300  # of them for the tests
PROFILED = 5  # iterations, after those that compile
SHORT = dict(max_iters=300, eval_iters=1)
COLUMNS = {"ms": "ms", "mfu_percent": "MFU %", "seconds": "seconds", "loss": "loss", "val_loss": "val loss"}

# Each of these takes a folder to write, the seconds that are left, and settings. It returns {figure: value}:
# those of COLUMNS stand in the table, the lines of "below" beneath it.


def tests(folder: Path, left: float) -> dict:
    command = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=", "-m", "cuda", "tests"]
    how = dict(cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True)  # says why
    try:
        done = subprocess.run(command, **how, timeout=min(left, TESTS))
    except subprocess.TimeoutExpired as e:
        return dict(below=[*said(e.stdout or b""), "stopped for want of time"])
    return dict(status=done.returncode, below=said(done.stdout + done.stderr))


def said(output: bytes) -> list[str]:
    return output.decode(errors="replace").strip().splitlines()[-15:]


def train(folder: Path, left: float, config=(), **settings) -> dict:
    """A run of train_drama.py: medians of its iteration lines but the first, and its last losses."""
    done = programs.train(folder, *config, timeout=left, device=DEVICE, **settings)
    log = {name: values for name, (_, values) in read_log(folder / "log.csv").items()}
    ms, mfu = (statistics.median(log[name][1:]) for name in ("time_ms", "mfu"))
    losses = dict(loss=log["loss"][-1], val_loss=min(log["val_loss"]))
    failed = [line.strip() for _, line in done.lines if "does not work here" in line]
    return dict(ms=ms, mfu_percent=100 * mfu, seconds=done.seconds, **losses, below=failed)


def nanogpt(folder: Path, left: float, checkout: str) -> dict:
    """nanoGPT's own run of the default model on the same text: the same figures, of the same lines."""
    folder.mkdir()
    done = programs.NanoGPT(Path(checkout), folder).train(timeout=left)
    log = "".join(line for _, line in done.lines)

    def numbers(name: str) -> list[float]:
        return [float(number) for number in re.findall(rf"{name} ([\d.]+)", log)]

    figures = dict(ms=statistics.median(numbers("time")[1:]), mfu_percent=statistics.median(numbers("mfu")))
    losses = dict(loss=numbers(r"iter \d+: loss")[-1], val_loss=min(numbers("val loss")))
    return dict(**figures, seconds=done.seconds, **losses)


def sample(folder: Path, left: float, rows: int, graph: bool) -> dict:
    """Milliseconds per token of that many texts together."""
    seconds = speed.decode(folder.parent, "auto", rows, graph, timeout=left)
    return dict(ms=1000 * seconds / speed.CHARACTERS, characters_per_s=rows * speed.CHARACTERS / seconds)


def kernels(folder: Path, left: float) -> dict:
    return programs.in_a_process(profiled, folder, DEVICE, timeout=left)


def profiled(folder: Path, device: str) -> dict:
    """A compiled iteration's milliseconds on the GPU, and the kernels that take most of them."""
    # without a graph, whose replays have no steps to count
    how = dict(device=device, compile=device == "cuda", cuda_graph=False, max_iters=20, eval_iters=1)
    settings = train_drama.Settings(out_dir=str(folder), init_from="scratch", **how)
    iterations = schedule(wait=10, warmup=3, active=PROFILED, repeat=1)
    # the CPU's activities too: without them some versions miss the GPU's
    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], schedule=iterations)
    with profiler, register_optimizer_step_post_hook(lambda *_: profiler.step()):
        train_drama.train(settings)
    events = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
    ms = {e.key: e.self_device_time_total / 1000 / PROFILED for e in events if not e.is_user_annotation}
    longest = sorted(ms, key=ms.get, reverse=True)
    attention = [name for name in longest if any(word in name.lower() for word in ("flash", "fmha", "cudnn"))]
    shown = dict.fromkeys(longest[:10] + attention)
    return dict(ms=sum(ms.values()), below=[f"{ms[name]:.3f} ms {name[:90]}" for name in shown])


MEASURED = {  # name: (how, with these settings, what is expected)
    "tests": (tests, {}, "all pass"),
    "eager": (train, dict(SHORT, compile=False, cuda_graph=False), "H200 14.7 ms, val loss 2.05"),
    "compiled": (train, dict(SHORT, compile=True, cuda_graph=False), "H200 16.2 ms"),
    "captured": (train, dict(SHORT, compile=False), "H200 7.7 ms"),
    "both": (train, dict(SHORT, compile=True), "H200 5.6 ms"),
    "sample-1-eager": (sample, dict(rows=1, graph=False), "a few ms"),
    "sample-1": (sample, dict(rows=1, graph=True), "H200 0.61 ms"),
    "sample-10-eager": (sample, dict(rows=10, graph=False), "a few ms"),
    "sample-10": (sample, dict(rows=10, graph=True), "H200 0.56 ms"),
    "kernels": (kernels, {}, "H200 5.3 ms; flash or cuDNN attention below"),
    "default": (train, {}, "all of its 5,000 iterations, each as fast as captured"),
    "fast": (train, dict(config=["fast.py"]), "val loss below 1.49; H200 1.479"),
    "nanogpt": (nanogpt, {}, "takes longer than default (asked for with --against)"),
    "best": (train, dict(config=["best.py"]), "val loss below 1.40; H200 1.373"),
}


def bench_gpu(names=(), against: str = "") -> dict:
    """Measure what has these names, or all; prints each beside what is expected, then all as JSON.

    against is a checkout of nanoGPT, without which that is not measured.
    """
    if unknown := set(names) - MEASURED.keys():
        raise UserError(f"{unknown.pop()} is none of {', '.join(MEASURED)}")
    find_device(DEVICE)
    until, computer = time.monotonic() + TIME, get_env_info()._asdict()
    about = ("nvidia_gpu_models", "nvidia_driver_version", "torch_version", "cudnn_version")
    figures = {name: computer[name] for name in about}
    print(figures)
    print(f"{'':16}" + "".join(f"{title:>10}" for title in COLUMNS.values()) + "  expected", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names or MEASURED:
            measure, settings, expected = MEASURED[name]
            if measure is nanogpt:
                if not against:
                    continue
                settings = dict(checkout=against)
            try:
                if (left := until - time.monotonic()) < 0:
                    raise TimeoutError("no time left")
                measured = measure(Path(folder, name), left, **settings)
            except Exception as e:  # whatever it is, it is the result
                measured = dict(below=[f"failed: {type(e).__name__}: {one_line(e)[:300]}"])
            cells = [f"{measured[column]:.4g}" if column in measured else "" for column in COLUMNS]
            print(f"{name:16}" + "".join(f"{cell:>10}" for cell in cells) + f"  {expected}")
            print("".join(f"    {line}\n" for line in measured.get("below", [])), end="", flush=True)
            figures[name] = measured
    print(json.dumps(figures))
    return figures
