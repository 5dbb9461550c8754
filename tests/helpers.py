"""What the tests share: a small play, small models, programs run as a person runs them, and their files."""

import csv
import random
import subprocess
import sys
from pathlib import Path

import torch

import prepare
import sample
import train_drama
from drama import checkpoint
from drama.training.clock import Clock
from drama.training.dataset import Corpus, load_data
from drama.training.machine import Machine
from drama.training.run import Run
from model import GPT, GPTConfig
from tools import app, plot
from tools.bench import __main__ as bench
from tools.evaluate import __main__ as evaluate
from tools.export import __main__ as export

ROOT = Path(__file__).parent.parent
PROGRAMS = {
    "prepare.py": prepare, "train_drama.py": train_drama, "sample.py": sample,
    "app.py": app, "bench.py": bench, "evaluate.py": evaluate, "export.py": export, "plot.py": plot,
}  # fmt: skip
CPU = Machine(torch.device("cpu"), torch.float32)

# A model that trains in a second, and the settings of a run that is over in ten.
SMALL = dict(n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=8, learning_rate=1e-2, warmup_iters=5)
SHORT = dict(max_iters=20, lr_decay_iters=20, eval_interval=10, log_interval=5)

# ---------------------------------------------------------------------------- a play

WORDS = ("the", "a", "king", "love", "death", "night", "sword", "crown", "my", "thy", "speak", "come", "hear")


def play(n_speeches: int = 300, seed: int = 0) -> str:
    """A play of nonsense in the corpus's form, always the same one."""
    draw = random.Random(seed)
    speeches = []
    for _ in range(n_speeches):
        lines = [" ".join(draw.choices(WORDS, k=6)).capitalize() + draw.choice(".,;!?") for _ in range(3)]
        speeches.append(f"{draw.choice(['LUCIO', 'ISABELLA', 'First Lord'])}:\n" + "\n".join(lines) + "\n")
    return "\n".join(speeches)


# ---------------------------------------------------------------------------- models

TINY = GPTConfig(block_size=16, vocab_size=11, n_layer=2, n_head=2, n_embd=16, dropout=0.0)
ARCHITECTURES = [dict(bias=False), dict(bias=True), dict(arch="modern")]
ARCHITECTURES += [dict(n_ensemble=2), dict(arch="modern", match=3, n_ensemble=3)]


def tiny_model(seed=0, **changes) -> GPT:
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig(**{**TINY.__dict__, **changes}))
    for p in gpt.parameters():  # far from the initialisation, where every path matters
        p.data += 0.3 * torch.randn_like(p)
    return gpt.eval()


def tokens(*shape, seed=1) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def loaded(cls=Corpus, **changes) -> Corpus:
    """The prepared small play as a Corpus of that class."""
    return cls(**{**vars(load_data("drama", SMALL["block_size"], CPU)), **changes})


def run_of(machine=CPU, corpus=None, **settings) -> Run:
    """A run of a small model in the folder m, not begun."""
    settings = train_drama.Settings(**{**SMALL, "out_dir": "m", **settings})
    return Run(settings, machine, corpus or loaded(), Clock())


# ---------------------------------------------------------------------------- programs

STARTED = []  # ended after each test, by conftest
DTYPE = []  # --dtype, for the programs that have it


def start(folder, *command, **kwargs) -> subprocess.Popen:
    """Start `python COMMAND` in a folder, its output captured as text. It ends with the test."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, *map(str, command)]
    if any(word.endswith(("train_drama.py", "sample.py")) for word in command):
        command += [flag for flag in DTYPE if not any(word.startswith("--dtype") for word in command)]
    STARTED.append(subprocess.Popen(command, cwd=folder, **{**pipes, **kwargs}))
    return STARTED[-1]


def flags(**settings) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


# ---------------------------------------------------------------------------- what a training left


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def weights(out_dir, name="last.pt") -> dict:
    return checkpoint.load(f"{out_dir}/{name}")["model"]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(out_dir) -> list[dict]:
    with open(f"{out_dir}/log.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def losses(out_dir) -> list[tuple]:
    return [(r["iter"], r["loss"], r["train_loss"], r["val_loss"]) for r in rows(out_dir)]
