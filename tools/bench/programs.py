"""What is to be measured, and how it is run: programs and functions in processes of their own."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from drama.program import ROOT

from configurator import FilePath, UserError, check
from drama.device import Dtype, find_device
from sample import Settings as SampleSettings


@dataclass(frozen=True)
class Settings:
    """python -m tools.bench [train] [sample] [busy] [text] [formats] [--name=value ...]"""

    against: FilePath = ""  # a checkout of nanoGPT, measured in turns with this project
    rounds: int = 3  # how often each is measured; more on a machine that is not quiet
    dtype: Dtype = "auto"  # ours: auto, bfloat16, float16 or float32; nanoGPT's on a CPU is float32
    out_dir: FilePath = "model"  # the folder with the ckpt.pt that `text` and `formats` measure
    top_p: float = SampleSettings.top_p  # of the samples of `text`

    def __post_init__(self):
        check(self, dict(rounds=1))
        if self.against and not (Path(self.against) / "config" / "train_shakespeare_char.py").is_file():
            raise UserError(f"against={self.against!r} is not a checkout of nanoGPT")


@dataclass
class Done:
    """A program that ran: seconds in all, its lines with the second of each, peak MB of memory or 0."""

    seconds: float
    lines: list
    peak_mb: float

    def iteration_times(self) -> list[float]:
        """Milliseconds, from lines such as `iter 3: loss 4.0000, time 30.23ms`."""
        times = (re.search(r"time ([\d.]+)ms", line) for _, line in self.lines)
        return [float(time[1]) for time in times if time]


def python(*command, folder=".", env=None, timeout=threading.TIMEOUT_MAX, **settings) -> Done:
    """Run `python COMMAND --name=value ...` in a folder; it is killed after timeout seconds.

    Raises OSError with its last words when it fails.
    """
    command = [*map(str, command), *(f"--{name}={value}" for name, value in settings.items())]
    with tempfile.TemporaryFile("w+") as errors:
        start, lines, peak = time.perf_counter(), [], 0
        pipes = dict(stdout=subprocess.PIPE, stderr=errors, text=True)
        process = subprocess.Popen([sys.executable, "-u", *command], cwd=folder, env=env, **pipes)
        alarm = threading.Timer(timeout, process.kill)
        alarm.start()
        try:
            for line in process.stdout:
                lines.append((time.perf_counter() - start, line))
                peak = peak_memory(process.pid) or peak
            status = process.wait()
        finally:
            alarm.cancel()
            process.kill()
            process.wait()
        if status:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["without a word"])[-1]
            raise OSError(0, f"{' '.join(command)[:200]} failed: {last}")
        return Done(time.perf_counter() - start, lines, peak / 1e6)


def in_a_process(function, *args, timeout: float | None = None):
    """function(*args) in a process that does nothing else, killed after timeout seconds."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result(timeout)
        except BaseException:
            for process in list((pool._processes or {}).values()):  # leaving `with` waits for it
                process.kill()
            raise


def peak_memory(pid: int) -> int:
    """The most bytes of memory that a running process has held; 0 where the system is not Linux."""
    try:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    except (OSError, TypeError):
        return 0


def train(out_dir: Path, *config, **settings) -> Done:
    """Run train_drama.py with files of config/ by their names."""
    files = [ROOT / "config" / name for name in config]
    return python(ROOT / "train_drama.py", *files, init_from="scratch", out_dir=out_dir, **settings)


class NanoGPT:
    """A copy of nanoGPT in a folder, with the default corpus in its own format."""

    def __init__(self, checkout: Path, folder: Path):
        self.folder, self.data = folder / "nanogpt", folder / "shakespeare"
        shutil.copytree(checkout, self.folder, ignore=shutil.ignore_patterns(".git", "*.bin", "*.ipynb"))
        self.data.mkdir()
        for split in ("train.bin", "val.bin"):
            shutil.copy(Path("data/drama", split), self.data)
        chars = json.loads(Path("data/drama/meta.json").read_text("utf-8"))["tokenizer"]["chars"]
        meta = {"itos": dict(enumerate(chars)), "stoi": {c: i for i, c in enumerate(chars)}}
        (self.data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(chars), **meta}))
        self.device = find_device("auto").type
        self.env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}  # ours

    def train(self, **settings) -> Done:
        settings |= dict(device=self.device, compile=self.device == "cuda")  # as its README says
        settings |= dict(dataset=self.data.resolve(), out_dir="out")
        config = "config/train_shakespeare_char.py"
        return python("train.py", config, folder=self.folder, env=self.env, **settings)

    def sample(self) -> Done:
        return python("sample.py", folder=self.folder, env=self.env, out_dir="out", device=self.device)
