"""The fixtures: a place to train in, and programs run as a person runs them."""

import os
import shutil
import signal
import subprocess
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # of the programs too: for small models, threads cost more than they do

import pytest
import torch
from helpers import DTYPE, PROGRAMS, ROOT, SHORT, SMALL, STARTED, play
from hypothesis import settings as hypothesis_settings

import prepare
import train_drama
from drama import program
from drama.training import machine
from drama.training.report import Report

hypothesis_settings.register_profile("any machine", deadline=None)  # its time says how busy a machine is
hypothesis_settings.load_profile("any machine")
machine.MEASURED_FOR = 0.02  # no test needs an exact MFU


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="run more random cases")
    choices = ("auto", "float32", "bfloat16")
    parser.addoption("--dtype", default="auto", choices=choices, help="of a CPU, where a test does not say")


def pytest_configure(config):
    """--dtype stands for another kind of processor: one with bfloat16 products, or without."""
    dtype = config.getoption("--dtype")
    if dtype != "auto":
        torch.cpu._is_avx512_bf16_supported = lambda: dtype == "bfloat16"
        DTYPE.append(f"--dtype={dtype}")


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in, where programs make data/ and model/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def corpus(folder):
    """The same, with data/drama made from the small play."""
    (folder / "play.txt").write_text(play(), encoding="utf-8")
    prepare.prepare(prepare.Settings(input="play.txt"))
    return folder


@pytest.fixture
def train(corpus):
    """train(name=value, ...) runs a short training in this process and returns what train() returns.

    machine, corpus, report and now go to train() as they are; without a report, everything is said.
    """

    def run(machine=None, corpus=None, report=None, now=time.perf_counter, **settings):
        settings = train_drama.Settings(**{**SMALL, **SHORT, **settings})
        return train_drama.train(settings, machine, corpus, report or Report(), now)

    return run


@pytest.fixture
def call(folder, monkeypatch, capfd):
    """call("sample.py", "--seed=1") runs a program in this process: (exit status, stdout, stderr)."""

    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        capfd.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                program.run_program(PROGRAMS[name].main)
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, where the machine has one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("there is no Chromium")
    how = dict(executable_path=chromium, args=["--no-sandbox"])
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(**how) as running:
        yield running


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
