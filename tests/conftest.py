"""What the tests share: a small play, a place to train on it, and programs run as a person runs them."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings as hypothesis_settings

import app
import bench
import configurator
import export
import plot
import prepare
import sample
import train_drama

hypothesis_settings.register_profile("any machine", deadline=None)  # its time says how busy a machine is
hypothesis_settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent
PROGRAMS = {f"{m.__name__}.py": m for m in (app, bench, export, plot, prepare, sample, train_drama)}

# A model that trains in a second, and the settings of a run that is over in ten.
SMALL = dict(n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=8, learning_rate=1e-2, warmup_iters=5)
SHORT = dict(max_iters=20, lr_decay_iters=20, eval_interval=10, log_interval=5)


def play(n_speeches: int = 300, seed: int = 0) -> str:
    """A play of nonsense in the corpus's form, always the same one."""
    draw = random.Random(seed)
    words = [
        "the",
        "a",
        "king",
        "love",
        "death",
        "night",
        "sword",
        "crown",
        "my",
        "thy",
        "speak",
        "come",
        "hear",
    ]
    speeches = []
    for _ in range(n_speeches):
        lines = [" ".join(draw.choices(words, k=6)).capitalize() + draw.choice(".,;!?") for _ in range(3)]
        speeches.append(f"{draw.choice(['LUCIO', 'ISABELLA', 'First Lord'])}:\n" + "\n".join(lines) + "\n")
    return "\n".join(speeches)


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="try more often what is tried at random")


@pytest.fixture
def thorough(request) -> bool:
    return request.config.getoption("--thorough")


@pytest.fixture
def figures(capfd):
    """figures("...") prints a line that reaches the terminal."""

    def show(text):
        with capfd.disabled():
            print(f"\n{text}")

    return show


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in, with data/ and model/ of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "DATA", tmp_path / "data")
    return tmp_path


@pytest.fixture
def corpus(folder):
    """The same, with data/drama made from the small play."""
    (folder / "play.txt").write_text(play(), encoding="utf-8")
    prepare.prepare(prepare.Settings(input="play.txt"))
    return folder


@pytest.fixture
def train(corpus):
    """train(name=value, ...) runs a short training in this process and returns what train() returns."""

    def run(**settings):
        return train_drama.train(train_drama.Settings(**{**SMALL, **SHORT, **settings}))

    return run


@pytest.fixture
def call(folder, monkeypatch, capfd):
    """call("sample.py", "--seed=1") runs a program in this process: (exit status, stdout, stderr)."""

    def run(program, *argv):
        module = PROGRAMS[program]
        monkeypatch.setattr(sys, "argv", [program, *map(str, argv)])
        capfd.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                configurator.run(module.main)
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """The project as a person has it after cloning it: its files, and nothing that was written since."""
    place = tmp_path_factory.mktemp("clone") / "drama"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.bin", "*.pt", "meta.json", "log.csv", "*.png")
    shutil.copytree(ROOT, place, ignore=ignore)
    for leftover in [*place.glob("data/*/"), *place.glob("model/*.csv")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    (place / "play.txt").write_text(play(), encoding="utf-8")
    return place


STARTED = []


def start(place, *command, **how):
    """Start a program in a folder, its output captured as text. It ends with the test."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    STARTED.append(subprocess.Popen([sys.executable, *map(str, command)], cwd=place, **{**pipes, **how}))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def _nothing_goes_on_behind_a_test():
    shared = len(STARTED)  # with others of its file
    yield
    while len(STARTED) > shared:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()  # torchrun ends its processes then
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


def flags(**settings) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]
