"""The speed of train_drama.py and sample.py, and what the machine's own limits would allow.

Each bench_... measures for the n-th time and returns {figure: its values}; nanogpt_... are nanoGPT's.
"""

import contextlib
import itertools
import statistics
import subprocess
import sys
import time
import timeit
from pathlib import Path

from drama.program import ROOT

import torch

from drama import checkpoint
from drama.device import find_device
from drama.sampling.generation import Sampling, generate
from drama.sampling.packed import ready_to_sample, sampling_dtype
from drama.training.dataset import Corpus
from drama.training.machine import Machine
from model import GPT
from tools.bench import programs
from tools.bench.programs import NanoGPT, Settings, in_a_process, python
from train_drama import Settings as TrainSettings

ITERATIONS = 5  # timed of each process, and one before them that is not
FEW = dict(max_iters=ITERATIONS, log_interval=1, eval_iters=1)  # all three mean the same in nanoGPT
QUICK = dict(max_iters=1, eval_interval=1, eval_iters=1, batch_size=1)  # these too
ROWS, CHARACTERS = 10, 500  # the default of nanoGPT's sample.py, which knows no top_p


def bench_train(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """Iterations at the default settings, dropout included, and the process's memory."""
    done = {"": programs.train(folder / "train", dtype=settings.dtype, **FEW)}
    if nano:
        done["nanogpt_"] = nano.train(**FEW)
    times = {f"{name}train_ms": ran.iteration_times()[1:] for name, ran in done.items()}
    return times | {f"{name}train_memory_mb": [ran.peak_mb] for name, ran in done.items()}


def decoding_seconds(path: Path, dtype: str, rows: int, graph: bool) -> float:
    """Seconds of decoding alone, CHARACTERS of each row, after some to warm up."""
    device = find_device("auto")
    gpt, _ = checkpoint.load_model(path)
    ready_to_sample(gpt, device, dtype)
    idx, sampling = torch.zeros(rows, 1, dtype=torch.long, device=device), Sampling(0.8, top_k=200)
    for characters in (50, CHARACTERS):
        start = time.perf_counter()
        generate(gpt, idx, characters, sampling, graph=graph).cpu()
    return time.perf_counter() - start


def decode(folder: Path, dtype: str, rows: int, graph: bool = True, timeout: float | None = None) -> float:
    """decoding_seconds of a model of the default shape, in a process that does nothing else."""
    path = folder / "model" / "ckpt.pt"
    if not path.exists():  # after one step on one sequence: speed does not depend on more
        programs.train(path.parent, **QUICK)
    return in_a_process(decoding_seconds, path, dtype, rows, graph, timeout=timeout)


def bench_sample(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """nanoGPT's default sampling job: decoding alone, one sample alone, and the whole process."""
    jobs = dict(decode_s=ROWS, decode_one_s=1)
    measured = {name: [decode(folder, settings.dtype, rows)] for name, rows in jobs.items()}
    whole = python(ROOT / "sample.py", top_p=1, out_dir=folder / "model", dtype=settings.dtype)
    measured["process_s"] = [whole.seconds]
    if nano:
        if n == 0:
            nano.train(always_save_checkpoint=True, **QUICK)
        theirs = nano.sample()
        ends = [at for at, line in theirs.lines if line.startswith("-----")]
        calls = [b - a for a, b in itertools.pairwise(ends)]  # of generate, all but the first
        measured["nanogpt_decode_one_s"] = calls
        measured["nanogpt_decode_s"] = [ROWS * statistics.mean(calls)]
        measured["nanogpt_process_s"] = [theirs.seconds]
    return measured


@contextlib.contextmanager
def competitor():
    """A program that keeps one processor busy: ten minutes at most, should nobody be left to end it."""
    loop = "import time\nend = time.time() + 600\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", loop]) as process:
        try:
            yield
        finally:
            process.kill()


def bench_busy(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """config/laptop.py's iteration and one text of the default model: alone, then beside another program."""
    measured = {}
    few = dict(FEW, max_iters=12, sample_interval=0, dtype=settings.dtype)
    for name, company in (("", contextlib.nullcontext()), ("busy_", competitor())):
        with company:
            done = programs.train(folder / "laptop", "laptop.py", **few)
            measured[f"{name}laptop_ms"] = done.iteration_times()[1:]
            measured[f"{name}one_s"] = [decode(folder, settings.dtype, 1)]
    return measured


def limits(settings: Settings, machine: Machine, corpus: Corpus) -> dict:
    """What figures would be with nothing but their arithmetic, or their reading of memory, to do."""
    run = TrainSettings()
    gpt = GPT(run.model_config(corpus.val.vocab_size))
    rate, _ = machine.peak_flops()
    tokens = run.batch_size * run.block_size
    block = torch.ones(1 << 28, device=machine.device)  # 1 GB: no cache holds it
    bandwidth = block.nbytes / min(timeit.repeat(lambda: block.sum().item(), number=1, repeat=5))
    weights = gpt.num_params() * sampling_dtype(settings.dtype, machine.device).itemsize
    half = run.block_size // 2  # positions in the cache: 0 to block_size, then half of it to all
    positions = [n if n < 2 * half else half + n % half for n in range(CHARACTERS)]
    cached = statistics.mean(positions) * 2 * run.n_layer * run.n_embd * 4
    return {
        "matmul_tflops": [rate / 1e12],
        "memory_gb_per_s": [bandwidth / 1e9],
        "limit_train_ms": [1000 * tokens * gpt.flops_per_token() / rate],
        "limit_decode_s": [CHARACTERS * (weights + ROWS * cached) / bandwidth],
        "limit_decode_one_s": [CHARACTERS * (weights + cached) / bandwidth],
    }
