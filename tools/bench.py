"""Every speed in docs/, measured here and now.

    python -m tools.bench                            train and sample: some five minutes on 2 cores
    python -m tools.bench train --dtype=float32      one of them, in another number format
    python -m tools.bench --against=../nanoGPT       beside a checkout of nanoGPT, in turns: some forty
    python -m tools.bench busy                       with another program that keeps one processor busy
    python -m tools.bench gpu                        all that is to be known of a GPU: see tools/gpu.py
    python -m tools.bench text --out_dir=model/best  what a model writes: shares of words, and of copied text
    python -m tools.bench formats --out_dir=model/best     the model in each format of tools.export

The programs themselves are run, at their default settings, and timed from outside; a figure is the median
of all rounds. Prints a table, with what the machine's own limits would allow, and the same figures as one
line of JSON. Nothing else should be running.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pickle
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from drama.program import ROOT, run_program

import torch

from configurator import FilePath, UserError, check, configure
from drama import checkpoint
from drama.dataset import Corpus, load_data
from drama.generation import generate, pack
from drama.llamacpp import write_gguf
from drama.machine import Dtype, Machine, find_device, find_dtype, training_machine
from model import GPT
from sample import Settings as SampleSettings
from tools import gpu
from tools.formats import FORMATS, by_llamacpp, measure_formats
from train_drama import Settings as TrainSettings
from train_drama import find_corpus

ITERATIONS = 5  # timed of each process, and one before them that is not
FEW = dict(max_iters=ITERATIONS, log_interval=1, eval_iters=1)  # all three mean the same in nanoGPT
QUICK = dict(max_iters=1, eval_interval=1, eval_iters=1, batch_size=1)  # these too
ROWS, CHARACTERS = 10, 500  # the default of nanoGPT's sample.py, which knows no top_p
COPIED = 50  # characters in a row that count as copied


@dataclass(frozen=True)
class Settings:
    """python -m tools.bench [train] [sample] [busy] [text] [--name=value ...]"""

    against: FilePath = ""  # a checkout of nanoGPT, measured in turns with this project
    rounds: int = 3  # how often each is measured; more on a machine that is not quiet
    dtype: Dtype = "auto"  # this project's number format; nanoGPT's on a CPU is float32
    out_dir: FilePath = "model"  # the folder with the ckpt.pt that `text` lets write
    top_p: float = SampleSettings.top_p  # of the samples of `text`

    def __post_init__(self):
        check(self, dict(rounds=1))
        if self.against and not (Path(self.against) / "config" / "train_shakespeare_char.py").is_file():
            raise UserError(f"against={self.against!r} is not a checkout of nanoGPT")


# ---------------------------------------------------------------------------- running programs


@dataclass
class Done:
    """A program that ran: seconds in all, its lines with the second of each, peak MB of memory or 0."""

    seconds: float
    lines: list
    peak_mb: float

    def iteration_times(self) -> list[float]:
        """Milliseconds, from lines such as `iter 3: loss 4.0000, time 30.23ms`."""
        return [float(found[1]) for _, line in self.lines if (found := re.search(r"time ([\d.]+)ms", line))]


def python(*command, folder: Path | str = ".", env: dict | None = None, **settings) -> Done:
    """Run `python COMMAND --name=value ...` in a folder. Raises OSError with its last words when it fails."""
    command = [*map(str, command), *(f"--{name}={value}" for name, value in settings.items())]
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        pipes = dict(stdout=subprocess.PIPE, stderr=errors, text=True)
        process = subprocess.Popen([sys.executable, "-u", *command], cwd=folder, env=env, **pipes)
        try:
            lines, peak = [], 0
            for line in process.stdout:
                lines.append((time.perf_counter() - start, line))
                peak = peak_memory(process.pid) or peak
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["without a word"])[-1]
            raise OSError(0, f"{' '.join(command)[:200]} failed: {last}")
        return Done(time.perf_counter() - start, lines, peak / 1e6)


def peak_memory(pid: int) -> int:
    """The most bytes of memory that a running process has held; 0 where the system is not Linux."""
    try:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    except (OSError, TypeError):
        return 0


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


def train(out_dir: Path, *config, **settings) -> Done:
    return python(ROOT / "train_drama.py", *config, init_from="scratch", out_dir=out_dir, **settings)


def corpus() -> Corpus:
    """The default corpus on the CPU, fetched when it is not there."""
    return find_corpus(TrainSettings(), training_machine("cpu", "float32"))


# ---------------------------------------------------------------------------- what is measured

# Each of these measures for the n-th time, and returns {figure: its values}; nanogpt_... are nanoGPT's.


def bench_train(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """Iterations at the default settings, dropout included, and the process's memory."""
    done = {"": train(folder / "train", dtype=settings.dtype, **FEW)}
    if nano:
        done["nanogpt_"] = nano.train(**FEW)
    times = {f"{name}train_ms": ran.iteration_times()[1:] for name, ran in done.items()}
    return times | {f"{name}train_memory_mb": [ran.peak_mb] for name, ran in done.items()}


def decoding_seconds(path: Path, dtype: Dtype, jobs: dict) -> dict:
    """Seconds of decoding alone, by name, for jobs {name: (rows, characters)}, after one to warm up."""
    device, seconds = find_device("auto"), {}
    gpt, _ = checkpoint.build_model(checkpoint.load(path), path)
    pack(gpt.to(device), find_dtype(dtype, device))
    for name, (rows, characters) in {"": (ROWS, 50), **jobs}.items():
        idx = torch.zeros(rows, 1, dtype=torch.long, device=device)
        start = time.perf_counter()
        generate(gpt, idx, characters, temperature=0.8, top_k=200).cpu()
        seconds[name] = [time.perf_counter() - start]
    del seconds[""]
    return seconds


def decode(settings: Settings, folder: Path, **jobs) -> dict:
    """decoding_seconds of a model of the default shape, in a process that does nothing else."""
    path = folder / "model" / "ckpt.pt"
    if not path.exists():  # after one step on one sequence: speed does not depend on more
        train(path.parent, **QUICK)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(decoding_seconds, path, settings.dtype, jobs).result()


def llamacpp_seconds(path: Path) -> float:
    """Seconds of llama.cpp for CHARACTERS of one text on one thread, in float32, from its speed for 200."""
    model, tok = checkpoint.build_model(checkpoint.load(path), path)
    write_gguf(path.with_name("model.gguf"), model, tok)
    return CHARACTERS / 200 * by_llamacpp(path.parent, path, 200)


def bench_sample(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """nanoGPT's default sampling job: decoding alone, one sample alone, and the whole process."""
    measured = decode(settings, folder, decode_s=(ROWS, CHARACTERS), decode_one_s=(1, CHARACTERS))
    whole = python(ROOT / "sample.py", top_p=1, out_dir=folder / "model", dtype=settings.dtype)
    measured["process_s"] = [whole.seconds]
    if all(map(importlib.util.find_spec, ("gguf", "xllamacpp"))):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            path = folder / "model" / "ckpt.pt"
            measured["llamacpp_decode_one_s"] = [pool.submit(llamacpp_seconds, path).result()]
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
    process = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def bench_busy(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """config/laptop.py's iteration and one text of the default model: alone, then beside another program."""
    measured = {}
    for name, company in (("", contextlib.nullcontext()), ("busy_", competitor())):
        with company:
            few = dict(FEW, max_iters=12, sample_interval=0, dtype=settings.dtype)
            done = train(folder / "laptop", ROOT / "config" / "laptop.py", **few)
            measured[f"{name}laptop_ms"] = done.iteration_times()[1:]
            measured |= decode(settings, folder, **{f"{name}one_s": (1, CHARACTERS)})
    return measured


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.casefold())


def bench_text(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """20,000 tokens at temperature 0.8: speed, words that the corpus lacks, stretches copied from it."""
    path = Path(settings.out_dir) / "ckpt.pt"
    plays = load_data(checkpoint.load(path)["settings"]["dataset"], 1, training_machine("cpu", "float32"))
    learned, unseen = (plays.tokenizer.decode(split.mapped) for split in (plays.train, plays.val))
    known = set(words(learned + unseen))
    job = dict(
        num_samples=10, max_new_tokens=2000, temperature=0.8, top_k=0, top_p=settings.top_p, seed=1337 + n
    )
    done = python(ROOT / "sample.py", out_dir=path.parent, dtype=settings.dtype, **job)
    samples = "".join(line for _, line in done.lines).split("\n---------------\n")[:-1]
    written = [word for text in samples for word in words(text.rpartition(" ")[0])]  # the last may be cut off
    if not written:
        raise UserError(f"{path} writes no words between spaces, which could be counted")
    stretches = [text[i : i + COPIED] for text in samples for i in range(len(text) - COPIED + 1)]
    originals = {learned[i : i + COPIED] for i in range(len(learned) - COPIED + 1)}
    return {
        "unknown_words_percent": [100 * statistics.mean(word not in known for word in written)],
        "copied_percent": [100 * statistics.mean(stretch in originals for stretch in stretches)],
        "characters_per_s": [sum(map(len, samples)) / done.seconds],
    }


def bench_formats(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """See tools/formats.py."""
    if not (path := Path(settings.out_dir) / "ckpt.pt").is_file():
        raise UserError(f"{path} is missing; --out_dir names the folder of a trained model")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        figures = measure_formats(path, Path(place), quiet=n > 0)
    return {name: [value] for name, value in figures.items()}


BENCHES = {
    "train": bench_train, "sample": bench_sample, "busy": bench_busy, "text": bench_text,
    "formats": bench_formats,
}  # fmt: skip


def limits(here: Machine) -> dict:
    """What figures would be with nothing but their arithmetic, or their reading of memory, to do."""
    settings = TrainSettings()
    gpt = GPT(settings.model_config(corpus().val.vocab_size))
    rate, _ = here.peak_flops()
    tokens = settings.batch_size * settings.block_size
    block = torch.ones(1 << 28, device=here.device)  # 1 GB: no cache holds it
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        block.sum().item()
        seconds.append(time.perf_counter() - start)
    bandwidth = block.nbytes / min(seconds)
    weights = gpt.num_params() * here.dtype.itemsize
    half = settings.block_size // 2  # positions in the cache: 0 to block_size, then half of it to all
    positions = [n if n < 2 * half else half + n % half for n in range(CHARACTERS)]
    cached = statistics.mean(positions) * 2 * settings.n_layer * settings.n_embd * 4
    return {
        "matmul_tflops": [rate / 1e12],
        "memory_gb_per_s": [bandwidth / 1e9],
        "limit_train_ms": [1000 * tokens * gpt.flops_per_token() / rate],
        "limit_decode_s": [CHARACTERS * (weights + ROWS * cached) / bandwidth],
        "limit_decode_one_s": [CHARACTERS * (weights + cached) / bandwidth],
    }


def machine_name(here: Machine) -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if here.device.type == "cuda" else ""
    kind = f"{torch.get_num_threads()} threads, {str(here.dtype)[6:]}"
    return f"{name}{gpu}, {kind}, PyTorch {torch.__version__}, {platform.system()}"


LIMITS = (("matmul_tflops", "matrix products, TFLOP/s"), ("memory_gb_per_s", "memory read, GB/s"))
TABLE = (
    ("train_ms", "training iteration, ms"),
    ("train_memory_mb", "training, peak memory, MB"),
    ("decode_s", "decoding 10 x 500 characters, s"),
    ("decode_one_s", "decoding 1 x 500 characters, s"),
    ("process_s", "sample.py, the whole process, s"),
    ("laptop_ms", "config/laptop.py, iteration, ms"),
    ("busy_laptop_ms", "the same beside a busy program, ms"),
    ("one_s", "decoding 1 x 500 characters, s"),
    ("busy_one_s", "the same beside a busy program, s"),
    ("unknown_words_percent", "sampled words that the corpus lacks, %"),
    ("copied_percent", f"sampled stretches of {COPIED} copied from it, %"),
    ("characters_per_s", "sample.py, characters per second"),
    *((f"{name}_ms", f"{name}, ms for a character") for name in FORMATS),
    *((f"{name}_mb", f"{name}, MB") for name in FORMATS),
)


def report(measured: dict, machine: str):
    """Print the table, and the JSON line with every median and ratio of nanoGPT's figure to ours."""
    figures = {name: statistics.median(values) for name, values in measured.items() if values}
    for name, _ in TABLE:
        if figures.get(name) and f"nanogpt_{name}" in figures:
            figures[f"ratio_{name}"] = figures[f"nanogpt_{name}"] / figures[name]

    def cell(name: str) -> str:
        return f"{figures[name]:,.{0 if figures[name] >= 100 else 2}f}" if name in figures else ""

    print(f"\n{machine}")
    for name, label in LIMITS:
        if name in figures:
            print(f"{label}: {cell(name)}")
    print(f"\n{'':42}{'here':>8}{'limit':>10}{'nanoGPT':>10}{'ratio':>8}{'llama.cpp':>11}")
    for name, label in TABLE:
        if name in figures:
            limit, theirs, ratio = (cell(f"{kind}_{name}") for kind in ("limit", "nanogpt", "ratio"))
            llamacpp = cell(f"llamacpp_{name}")
            print(f"{label:42}{cell(name):>8}{limit:>10}{theirs:>10}{ratio:>8}{llamacpp:>11}")
    digits = {name: float(f"{value:.4g}") for name, value in figures.items()}  # the small ones keep theirs
    print(json.dumps({"machine": machine, **digits}))


def main():
    if "gpu" in sys.argv[1:2]:
        gpu.bench_gpu(sys.argv[2:])
        return
    parts = [word for word in sys.argv[1:] if word in BENCHES] or ["train", "sample"]
    unknown = [word for word in sys.argv[1:] if word.isalpha() and word not in BENCHES]
    if unknown:
        raise UserError(f"{unknown[0]} is none of {', '.join(BENCHES)}")
    settings = configure(Settings, [word for word in sys.argv[1:] if word not in BENCHES])
    speeds = not {"text", "formats"} & set(parts)
    if speeds:
        corpus()
    here, measured = training_machine("auto", settings.dtype), defaultdict(list)
    with tempfile.TemporaryDirectory(dir="data", prefix="bench-") as folder:
        folder = Path(folder)
        nano = NanoGPT(Path(settings.against), folder) if settings.against else None
        try:
            for part, n in itertools.product(parts, range(settings.rounds)):
                print(f"{part}, round {n + 1} of {settings.rounds}", flush=True)
                for name, values in BENCHES[part](settings, folder, nano, n).items():
                    measured[name] += values
            if speeds:
                measured |= limits(here)
        finally:  # what was measured until something failed
            if measured:
                report(measured, machine_name(here))


if __name__ == "__main__":
    run_program(main)
