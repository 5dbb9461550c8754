"""Every speed in docs/, measured here and now.

    python -m tools.bench                            train and sample: some five minutes on 2 cores
    python -m tools.bench train --dtype=float32      one of them, in another number format
    python -m tools.bench --against=../nanoGPT       beside a checkout of nanoGPT, in turns: some forty
    python -m tools.bench busy                       with another program that keeps one processor busy
    python -m tools.bench text --out_dir=model/best  what a model writes: unknown, copied, repeated
    python -m tools.bench formats --out_dir=model/best     the model in each format of tools.export
    python -m tools.bench gpu                        everything about a GPU; --against works here, too

The programs themselves are run, at their default settings, and timed from outside; a figure is the median
of all rounds. Prints a table, with what the machine's own limits would allow, and the same figures as one
line of JSON. Nothing else should be running.
"""

import itertools
import json
import platform
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from drama.program import run_program

import torch

from configurator import UserError, configure
from drama.sampling.packed import sampling_dtype
from drama.training.machine import Machine, training_machine
from tools.bench.formats import WRITERS, bench_formats
from tools.bench.gpu import bench_gpu
from tools.bench.programs import NanoGPT, Settings
from tools.bench.speed import bench_busy, bench_sample, bench_train, limits
from tools.bench.text import COPIED, NEAR, RUN, bench_text
from train_drama import Settings as TrainSettings
from train_drama import find_corpus

BENCHES = {
    "train": bench_train, "sample": bench_sample, "busy": bench_busy, "text": bench_text,
    "formats": bench_formats,
}  # fmt: skip
OF_A_MODEL = {"text", "formats"}  # these read out_dir; the others train on the default corpus
TABLE = (
    ("matmul_tflops", "matrix products, TFLOP/s"),
    ("memory_gb_per_s", "memory read, GB/s"),
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
    ("repeated_percent", f"{RUN} words that stood among {NEAR} before, %"),
    ("val_repeated_percent", "the same in the validation text, %"),
    ("characters_per_s", "sample.py, characters per second"),
    *((f"{name}_ms", f"{name}, ms per character") for name in WRITERS),
    *((f"{name}_mb", f"{name}, MB") for name in WRITERS),
)


def machine_name(machine: Machine, dtype: str) -> str:
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if machine.device.type == "cuda" else ""
    formats = dict(training=machine.dtype, sampling=sampling_dtype(dtype, machine.device))
    kind = ", ".join(f"{what} in {str(format)[6:]}" for what, format in formats.items())
    kind = f"{torch.get_num_threads()} threads, {kind}"
    return f"{name}{gpu}, {kind}, PyTorch {torch.__version__}, {platform.system()}"


def report(measured: dict, machine: str):
    """Print the table, and the JSON line with every median and ratio of nanoGPT's figure to ours."""
    figures = {name: statistics.median(values) for name, values in measured.items() if values}
    for name, _ in TABLE:
        if figures.get(name) and f"nanogpt_{name}" in figures:
            figures[f"ratio_{name}"] = figures[f"nanogpt_{name}"] / figures[name]

    def cell(name: str) -> str:
        return f"{figures[name]:,.{0 if figures[name] >= 100 else 2}f}" if name in figures else ""

    print(f"\n{machine}\n\n{'':42}{'here':>8}{'limit':>10}{'nanoGPT':>10}{'ratio':>8}")
    for name, label in TABLE:
        if name in figures:
            limit, theirs, ratio = (cell(f"{kind}_{name}") for kind in ("limit", "nanogpt", "ratio"))
            print(f"{label:42}{cell(name):>8}{limit:>10}{theirs:>10}{ratio:>8}")
    digits = {name: float(f"{value:.4g}") for name, value in figures.items()}  # the small ones keep theirs
    print(json.dumps({"machine": machine, **digits}))


def main():
    if "gpu" in sys.argv[1:2]:
        options = [word for word in sys.argv[2:] if word.startswith("-")]
        names = [word for word in sys.argv[2:] if word not in options]
        bench_gpu(names, configure(Settings, options).against)
        return
    asked = [word for word in sys.argv[1:] if word in BENCHES] or ["train", "sample"]
    unknown = [word for word in sys.argv[1:] if word.isalpha() and word not in BENCHES]
    if unknown:
        raise UserError(f"{unknown[0]} is none of {', '.join(BENCHES)}, gpu")
    settings = configure(Settings, [word for word in sys.argv[1:] if word not in BENCHES])
    machine, measured = training_machine("auto", settings.dtype), defaultdict(list)
    corpus = None if OF_A_MODEL & set(asked) else find_corpus(TrainSettings(), machine)
    with tempfile.TemporaryDirectory(dir="data", prefix="bench-") as folder:
        folder = Path(folder)
        nano = NanoGPT(Path(settings.against), folder) if settings.against else None
        try:
            for name, n in itertools.product(asked, range(settings.rounds)):
                print(f"{name}, round {n + 1} of {settings.rounds}", flush=True)
                for figure, values in BENCHES[name](settings, folder, nano, n).items():
                    measured[figure] += values
            if corpus:
                measured |= limits(settings, machine, corpus)
        finally:  # what was measured until something failed
            if measured:
                report(measured, machine_name(machine, settings.dtype))


if __name__ == "__main__":
    run_program(main)
