"""Every speed in the README, measured here and now.

    python bench.py                            all of it: some twenty minutes on 2 cores
    python bench.py sample startup             some of train, eval, sample, prepare, startup, changes
    python bench.py --against=../nanoGPT       beside a checkout of nanoGPT, in turns: some forty
    python bench.py text --out_dir=model/best  how much of what a model writes is words, and how much copied

The programs themselves are run, at their default settings, and timed from outside; a figure is the median
of all rounds. Prints a table, with what the machine's own limits would allow, and the same figures as one
line of JSON. Nothing else should be running.
"""

from configurator import configure, run  # first: see starting() there

# isort: split
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
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
import prepare
from dataset import fixed_windows, load_data
from machine import find_device, find_dtype, peak_flops, training_machine
from model import GPT
from sample import Settings as SampleSettings
from train_drama import Settings as TrainSettings

ROOT = Path(__file__).parent
ITERATIONS = 5  # timed of each process, and one before them that is not
FEW = (
    f"--max_iters={ITERATIONS}",
    "--log_interval=1",
    "--eval_iters=1",
)  # all three mean the same in nanoGPT
ROWS, CHARACTERS = 10, 500  # the default of nanoGPT's sample.py, which knows no top_p


@dataclass(frozen=True)
class Settings:
    """python bench.py [train] [eval] [sample] [prepare] [startup] [changes] [text] [--name=value ...]"""

    against: str = ""  # a checkout of nanoGPT, measured in turns with this project
    rounds: int = 3  # how often each is measured; more on a machine that is not quiet
    out_dir: str = "model"  # the folder with the ckpt.pt that `text` lets write
    top_p: float = SampleSettings.top_p  # of the samples of `text`
    text_mb: int = 2000  # the text that prepare.py encodes; three times that is in data/ for a while

    def __post_init__(self):
        if self.rounds < 1 or self.text_mb < 1:
            raise ValueError("rounds and text_mb are at least 1")
        if self.against and not (Path(self.against) / "config" / "train_shakespeare_char.py").is_file():
            raise ValueError(f"against={self.against!r} is not a checkout of nanoGPT")


# ---------------------------------------------------------------------------- running programs


@dataclass
class Run:
    """A program that ran: seconds in all, its lines with the second of each, peak MB of memory or 0."""

    seconds: float
    lines: list
    peak_mb: float

    def iteration_times(self) -> list[float]:
        """Milliseconds, from lines such as `iter 3: loss 4.0000, time 30.23ms`."""
        return [float(found[1]) for _, line in self.lines if (found := re.search(r"time ([\d.]+)ms", line))]


def python(folder: Path, *command) -> Run:
    """Run a python command in a folder. Raises OSError with its last words when it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", *map(str, command)],
            cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
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
            raise OSError(0, f"{' '.join(map(str, command))[:200]} failed: {last}")
        return Run(time.perf_counter() - start, lines, peak / 1e6)


def peak_memory(pid: int) -> int:
    """The most bytes of memory that a running process has held; 0 where the system is not Linux."""
    try:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    except (OSError, TypeError):
        return 0


class NanoGPT:
    """A copy of nanoGPT beside ours, with the same text in its own format."""

    def __init__(self, checkout: Path, folder: Path):
        self.place, self.bf16, self.data = folder / "nanogpt", folder / "nanogpt_bf16", folder / "shakespeare"
        for copy in (self.place, self.bf16):
            shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "*.bin", "*.ipynb"))
        script = self.bf16 / "train.py"
        text = script.read_text(encoding="utf-8")
        given = text.replace("ctx = nullcontext() if device_type == 'cpu' else torch.", "ctx = torch.")
        if given == text:
            raise ValueError(f"{checkout / 'train.py'} has no line where bfloat16 could be given to a CPU")
        script.write_text(given, encoding="utf-8")
        self.data.mkdir()
        for split in ("train.bin", "val.bin"):
            shutil.copy(prepare.DATA / "drama" / split, self.data)
        chars = json.loads((prepare.DATA / "drama" / "meta.json").read_text("utf-8"))["tokenizer"]["chars"]
        meta = {"itos": dict(enumerate(chars)), "stoi": {c: i for i, c in enumerate(chars)}}
        (self.data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(chars), **meta}))
        self.device = find_device("auto").type

    def train(self, place: Path, *flags) -> Run:
        flags = (
            f"--device={self.device}",
            f"--compile={self.device == 'cuda'}",
            *flags,
        )  # as its README says
        config = "config/train_shakespeare_char.py"
        return python(place, "train.py", config, f"--dataset={self.data}", "--out_dir=out", *flags)

    def sample(self, *flags) -> Run:
        return python(self.place, "sample.py", "--out_dir=out", f"--device={self.device}", *flags)


def train(folder: Path, *flags) -> Run:
    return python(ROOT, "train_drama.py", "--init_from=scratch", f"--out_dir={folder}", *flags)


def make_models(folder: Path, nano: NanoGPT | None):
    """A checkpoint each after one step on one sequence: speed does not depend on what was learnt."""
    if not (folder / "model").exists():
        quick = ("--max_iters=1", "--eval_interval=1", "--eval_iters=1", "--batch_size=1")
        train(folder / "model", *quick)
        if nano:
            nano.train(nano.place, "--always_save_checkpoint=True", *quick)


# ---------------------------------------------------------------------------- what is measured


def bench_train(found: dict, folder: Path, nano: NanoGPT | None, settings: Settings):
    """Iterations at the default settings, dropout included, and the process's memory."""
    ours = train(folder / "train", *FEW)
    found["train_ms"] += ours.iteration_times()[1:]
    found["train_memory_mb"].append(ours.peak_mb)
    if nano:
        theirs = nano.train(nano.place, *FEW)
        found["nanogpt_train_ms"] += theirs.iteration_times()[1:]
        found["nanogpt_train_memory_mb"].append(theirs.peak_mb)
        theirs = nano.train(nano.bf16, "--dtype=bfloat16", *FEW)
        found["nanogpt_train_bf16_ms"] += theirs.iteration_times()[1:]


def bench_eval(found: dict, folder: Path, nano: NanoGPT | None, settings: Settings):
    """Two exact evaluations, and the iterations between them; compiling would be timed with the first."""
    flags = ("--max_iters=3", "--eval_interval=5000", "--log_interval=1", "--compile=false")
    ours = train(folder / "eval", *flags)
    seconds = [
        at - before for (before, _), (at, line) in itertools.pairwise(ours.lines) if line.startswith("step")
    ]
    found["eval_s"] += seconds
    iteration = statistics.median(ours.iteration_times()[1:]) / 1000
    found["eval_iterations"] += [s / iteration for s in seconds]


DECODE = """
import sys, time, torch, checkpoint, generation, machine
device = machine.find_device("auto")
for dtype in "auto", "float32":
    model, _ = checkpoint.build_model(checkpoint.load(sys.argv[1]), sys.argv[1])
    generation.pack(model.to(device), machine.find_dtype(dtype, device))
    for rows, characters in (10, 50), (10, 500), (1, 500):
        start = time.perf_counter()
        idx = torch.zeros(rows, 1, dtype=torch.long, device=device)
        generation.generate(model, idx, characters, temperature=0.8, top_k=200).cpu()
        print(time.perf_counter() - start)
"""


def bench_sample(found: dict, folder: Path, nano: NanoGPT | None, settings: Settings):
    """nanoGPT's default sampling job: decoding alone, one sample alone, and the whole process."""
    make_models(folder, nano)
    lines = python(ROOT, "-c", DECODE, folder / "model" / "ckpt.pt").lines
    names = (None, "decode_s", "decode_one_s", None, "decode_float32_s", "decode_one_float32_s")
    for name, (_, seconds) in zip(names, lines, strict=True):
        if name:  # the others are to warm up
            found[name].append(float(seconds))
    found["process_s"].append(python(ROOT, "sample.py", "--top_p=1", f"--out_dir={folder / 'model'}").seconds)
    if nano:
        theirs = nano.sample()
        ends = [at for at, line in theirs.lines if line.startswith("-----")]
        calls = [b - a for a, b in itertools.pairwise(ends)]  # of generate, all but the first
        found["nanogpt_decode_one_s"] += calls
        found["nanogpt_decode_s"].append(ROWS * statistics.mean(calls))
        found["nanogpt_process_s"].append(theirs.seconds)


def bench_startup(found: dict, folder: Path, nano: NanoGPT | None, settings: Settings):
    """One sample of one character, beside python that only imports torch."""
    make_models(folder, nano)
    one = ("--num_samples=1", "--max_new_tokens=1")
    found["import_torch_s"].append(python(ROOT, "-c", "import torch").seconds)
    found["startup_s"].append(python(ROOT, "sample.py", f"--out_dir={folder / 'model'}", *one).seconds)
    if nano:
        found["nanogpt_startup_s"].append(nano.sample(*one).seconds)


ENCODE = """
import sys, pathlib, prepare
prepare.prepare(prepare.Settings(input=sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def bench_prepare(found: dict, folder: Path, nano: NanoGPT | None, settings: Settings):
    """Encoding a long text of characters, as a whole process."""
    text = folder / "long.txt"
    if not text.exists():
        train_split, val_split, meta = load_data("drama", 1, training_machine("cpu", "float32"))
        plays = b"".join(meta["tokenizer"].decode(s.mapped).encode() for s in (train_split, val_split))
        with open(text, "wb") as f:
            for _ in range(max(1, round(settings.text_mb * 1e6 / len(plays)))):
                f.write(plays)
    ours = python(ROOT, "-c", ENCODE, text, folder)
    found["encode_mb_per_s"].append(text.stat().st_size / 1e6 / ours.seconds)
    found["encode_memory_mb"].append(ours.peak_mb)
    shutil.rmtree(folder / "drama")
    # the same bytes written, and nothing else done
    start = time.perf_counter()
    with open(folder / "written", "wb") as f:
        block, size = bytes(1 << 23), 2 * text.stat().st_size
        for at in range(0, size, len(block)):
            f.write(block[: size - at])
        f.flush()
        os.fsync(f.fileno())
    found["limit_encode_mb_per_s"].append(text.stat().st_size / 1e6 / (time.perf_counter() - start))
    (folder / "written").unlink()


# what makes it fast, and how to do without it
CHANGES = {
    "masks_of_bytes": "model.Dropout.forward = torch.nn.Dropout.forward",
    "spelled_out_attention": "sdpa = torch.nn.functional.scaled_dot_product_attention; "
    "model.CausalSelfAttention.attend_cpu = lambda self, q, k, v: "
    "sdpa(q, k, v, None, self.attn_dropout.p * self.training, True)",
    "freed_memory_kept": "machine.keep_freed_memory = lambda: None",
    "bfloat16": "sys.argv.append('--dtype=float32')",
}


def bench_changes(found: dict, folder: Path, nano: NanoGPT | None, settings: Settings):
    """Training iterations on a CPU without each of the changes that make them fast, one at a time."""
    for name, undo in CHANGES.items():
        code = f"import sys, torch, machine, model, train_drama; {undo}; train_drama.run(train_drama.main)"
        flags = ("--device=cpu", "--init_from=scratch", f"--out_dir={folder / 'changes'}", *FEW)
        found[f"without_{name}_ms"] += python(ROOT, "-c", code, *flags).iteration_times()[1:]


COPIED = 50  # characters in a row that count as copied


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.casefold())


def bench_text(found: dict, folder: Path, nano: NanoGPT | None, settings: Settings):
    """20,000 tokens at temperature 0.8: speed, words that the corpus lacks, stretches copied from it."""
    seed = 1337 + len(found["unknown_words_percent"])  # another text each round
    path = Path(settings.out_dir) / "ckpt.pt"
    dataset = checkpoint.load(path)["settings"]["dataset"]
    train_split, val_split, meta = load_data(dataset, 1, training_machine("cpu", "float32"))
    learnt, unseen = (meta["tokenizer"].decode(split.mapped) for split in (train_split, val_split))
    known = set(words(learnt + unseen))
    flags = ("--num_samples=10", "--max_new_tokens=2000", "--temperature=0.8", "--top_k=0", f"--seed={seed}")
    flags += (f"--top_p={settings.top_p}", f"--out_dir={path.parent.resolve()}")
    done = python(ROOT, "sample.py", *flags)
    samples = "".join(line for _, line in done.lines).split("\n---------------\n")[:-1]
    found["characters_per_s"].append(sum(map(len, samples)) / done.seconds)
    written = [word for text in samples for word in words(text.rpartition(" ")[0])]  # the last may be cut off
    if not written:
        raise ValueError(f"{path} writes no words between spaces, which could be counted")
    found["unknown_words_percent"].append(100 * statistics.mean(word not in known for word in written))
    stretches = [text[i : i + COPIED] for text in samples for i in range(len(text) - COPIED + 1)]
    stood = {learnt[i : i + COPIED] for i in range(len(learnt) - COPIED + 1)}
    found["copied_percent"].append(100 * statistics.mean(stretch in stood for stretch in stretches))


BENCHES = {
    "train": bench_train,
    "eval": bench_eval,
    "sample": bench_sample,
    "prepare": bench_prepare,
    "startup": bench_startup,
    "changes": bench_changes,
    "text": bench_text,
}
SPEEDS = [name for name in BENCHES if name != "text"]


# ---------------------------------------------------------------------------- what the machine allows


def limits(found: dict):
    """Add what each figure would be with nothing but its arithmetic, or its reading of memory, to do."""
    here = training_machine("auto", "auto")
    _, val_split, meta = load_data("drama", 256, here)
    settings = TrainSettings()
    model = GPT(settings.model_config(meta["tokenizer"].vocab_size))
    rate, _ = peak_flops(here)
    found["matmul_tflops"].append(rate / 1e12)
    tokens = settings.batch_size * settings.block_size
    found["limit_train_ms"].append(1000 * tokens * model.flops_per_token() / rate)
    windows = fixed_windows(len(val_split), settings.block_size, meta["tokenizer"].vocab_size)
    evaluated = 2 * sum(len(starts) * length for starts, length in windows)
    found["limit_eval_s"].append(evaluated * model.flops_per_token() / 3 / rate)  # forward only

    block = torch.ones(1 << 28, device=here.device)  # 1 GB: no cache holds it
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        block.sum().item()
        seconds.append(time.perf_counter() - start)
    bandwidth = block.nbytes / min(seconds)
    found["memory_gb_per_s"].append(bandwidth / 1e9)
    weights = model.num_params() * find_dtype("auto", here.device).itemsize
    half = settings.block_size // 2  # positions in the cache: 0 to block_size, then half of it to all
    positions = [n if n < 2 * half else half + n % half for n in range(CHARACTERS)]
    cached = statistics.mean(positions) * 2 * settings.n_layer * settings.n_embd * 4
    for figure, rows in (("limit_decode_s", ROWS), ("limit_decode_one_s", 1)):
        found[figure].append(CHARACTERS * (weights + rows * cached) / bandwidth)


def machine_name() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    kind = str(find_dtype("auto", torch.device("cuda" if gpu else "cpu")))[6:]
    return f"{name}{gpu}, {threads} threads, {kind}, PyTorch {torch.__version__}, {platform.system()}"


# figure (its limit and nanoGPT's are limit_... and nanogpt_...), its name in the table, unit, ratio
TABLE = (
    ("train_ms", "training iteration", "ms", "train_ratio"),
    ("train_bf16_ms", "  nanoGPT given bfloat16", "ms", "train_ratio_bf16"),
    ("eval_s", "evaluation", "s", ""),
    ("eval_iterations", "  in iterations", "", ""),
    ("decode_s", "decoding 10 x 500 characters", "s", "decode_ratio"),
    ("decode_one_s", "decoding 1 x 500 characters", "s", "decode_one_ratio"),
    ("decode_float32_s", "  in float32", "s", ""),
    ("decode_one_float32_s", "  one in float32", "s", ""),
    ("process_s", "sample.py, the whole process", "s", "process_ratio"),
    ("startup_s", "sample.py, one character", "s", ""),
    ("import_torch_s", "  import torch alone", "s", ""),
    ("encode_mb_per_s", "prepare.py, characters", "MB/s", ""),
    ("encode_memory_mb", "  its peak memory", "MB", ""),
    ("train_memory_mb", "training, peak memory", "MB", "memory_ratio"),
    ("unknown_words_percent", "sampled words that the corpus lacks", "%", ""),
    ("copied_percent", f"sampled stretches of {COPIED} copied from it", "%", ""),
    ("characters_per_s", "sample.py, characters a second", "", ""),
    *((f"without_{name}_ms", f"iteration, not {name.replace('_', ' ')}", "ms", "") for name in CHANGES),
)


def report(found: dict):
    """Print the table, and the JSON line with every median and ratio."""
    measured = {name: values for name, values in found.items() if values}
    figures = {
        name: statistics.median(values)
        for name, values in measured.items()
        if any(values) or name.endswith("_percent")
    }
    if "train_ms" in figures and "nanogpt_train_bf16_ms" in figures:
        figures["train_bf16_ms"] = figures["train_ms"]
    for name, _, _, ratio in TABLE:
        if ratio and name in figures and f"nanogpt_{name}" in figures:
            figures[ratio] = figures[f"nanogpt_{name}"] / figures[name]
    if "startup_s" in figures:
        figures["startup_ratio"] = figures["startup_s"] / figures["import_torch_s"]
        figures["limit_startup_s"] = figures["import_torch_s"]

    def cell(name: str) -> str:
        return f"{figures[name]:,.{0 if figures[name] >= 100 else 2}f}" if name in figures else ""

    print(f"\n{machine_name()}")
    if "matmul_tflops" in figures:
        print(
            f"matrix products at {cell('matmul_tflops')} TFLOP/s, "
            f"memory read at {cell('memory_gb_per_s')} GB/s; medians of all rounds\n"
        )
    print(f"{'':40}{'here':>10}{'limit':>10}{'nanoGPT':>10}{'ratio':>8}")
    for name, label, unit, ratio in TABLE:
        if name in figures:
            label = f"{label}{', ' if unit else ''}{unit}"
            print(
                f"{label:42}{cell(name):>8}{cell(f'limit_{name}'):>10}"
                f"{cell(f'nanogpt_{name}'):>10}{cell(ratio):>8}"
            )
    print(json.dumps({"machine": machine_name(), **{name: round(v, 4) for name, v in figures.items()}}))


def main():
    wanted = [name for name in sys.argv[1:] if name in BENCHES]
    unknown = [word for word in sys.argv[1:] if word.isalpha() and word not in BENCHES]
    if unknown:
        raise ValueError(f"{unknown[0]} is none of {', '.join(BENCHES)}")
    settings = configure(Settings, [word for word in sys.argv[1:] if word not in BENCHES])
    if wanted != ["text"]:
        load_data("drama", 256, training_machine("cpu", "float32"))  # fetched when it is not there
    found = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=prepare.DATA, prefix="bench-") as folder:
        folder = Path(folder)
        nano = NanoGPT(Path(settings.against), folder) if settings.against else None
        try:
            for name in wanted or SPEEDS:
                for n in range(settings.rounds):
                    print(f"{name}, round {n + 1} of {settings.rounds}", flush=True)
                    BENCHES[name](found, folder, nano, settings)
            if wanted != ["text"]:
                limits(found)
        finally:  # what was measured until something failed
            if found:
                report(found)


if __name__ == "__main__":
    run(main)
