"""Whatever is given to the programs, they answer in one line and leave the disk as it was."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import SHORT, SMALL, flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app
import checkpoint
import export
import prepare
import sample
import train_drama

TRAIN = flags(**SMALL, **SHORT)
SETTINGS = {
    "prepare.py": prepare.Settings,
    "train_drama.py": train_drama.Settings,
    "sample.py": sample.Settings,
    "app.py": app.Settings,
    "export.py": export.Settings,
}
NUMBERS = [
    (program, field.name)
    for program, cls in SETTINGS.items()
    for field in dataclasses.fields(cls)
    if field.type in (int, float)
]
NAMES = {field.name for cls in SETTINGS.values() for field in dataclasses.fields(cls)}
# JSON that is neither a whole number, nor a tokenizer, nor what one consists of
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)
tried = dict.fromkeys(("command lines", "config files", "corpora", "binaries", "meta.json", "checkpoints"), 0)


def many(**strategies):
    """A property of the whole programs, with one folder for all examples."""

    def decorate(test):
        bounds = settings(
            max_examples=60,
            derandomize=True,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        return bounds(given(**strategies)(test))

    return decorate


@pytest.fixture(scope="module", autouse=True)
def _count(request):
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nwrong input: {sum(tried.values())} tried ({tried}), each answered in one line")


def on_disk():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def refused(call, corpus):
    """refused(kind, program, argv...): it is, with the disk as it was."""

    def check(kind, program, *argv):
        before, began = on_disk(), time.monotonic()
        status, _, err = call(program, *argv)
        assert time.monotonic() - began < 5
        assert status in (1, 2), (argv, status)
        assert err.startswith(f"{program}: ") and err.endswith("\n") and len(err.splitlines()) == 1
        assert on_disk() == before
        tried[kind] += 1
        return err

    return check


@pytest.fixture
def trained(refused, train):
    """refused, in a folder that has a model and a run that could go on."""
    train(max_iters=2, eval_interval=1)
    return refused


def not_a_number(text):
    try:
        float(text)
    except ValueError:
        return text.lower() != "none" and not text.startswith("--")
    return False


@many(where=st.sampled_from(NUMBERS), value=st.text(max_size=8).filter(not_a_number))
def test_settings_that_are_no_numbers(refused, where, value):
    program, name = where
    assert name in refused("command lines", program, f"--{name}={value}")


@many(
    where=st.sampled_from(NUMBERS),
    value=st.floats(max_value=-1e-3) | st.sampled_from([float("nan"), float("inf")]),
)
def test_settings_that_are_out_of_range(refused, where, value):
    program, name = where
    assert name in refused("command lines", program, f"--{name}={value}")


@many(
    program=st.sampled_from(sorted(SETTINGS)),
    words=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_words_that_are_no_settings(refused, program, words):
    words = [f"--{word}" if n % 2 else word for n, word in enumerate(words)]
    if not {word.lstrip("-").partition("=")[0] for word in words} & (NAMES | {"h", "help"}):
        refused("command lines", program, *(word.replace("\0", "0") for word in words))


SOURCES = (
    "import nowhere", "x =", "raise SystemExit(0)", "raise SystemExit", "n_layer = 'six'", "n_layer = []",
    "n_layers = 6", "1 / 0", "open('/nowhere')", "n_layer = lambda: 6", "n_layer = None", "dropout = 10**400",
    "n_layer = float('nan')", "batch_size = True", "def n_layer(): pass", "class dropout: pass", "\0",
    "n_layer = '6' * 10**6", "\t\tx = 1", "n_layer: int", "for n_layer in 'abc': pass",
)  # fmt: skip


@many(source=st.sampled_from(SOURCES) | st.text(max_size=30))
def test_config_files(refused, source):
    Path("wrong.py").write_text(source, encoding="utf-8", errors="replace")
    refused("config files", "train_drama.py", "wrong.py", "--max_iters=-1")


@many(
    content=st.binary(max_size=2000)
    | st.text(max_size=2000).map(lambda text: text.encode("utf-8", "replace"))
)
def test_corpora(refused, content):
    Path("wrong.txt").write_bytes(content)
    refused("corpora", "prepare.py", "--input=wrong.txt")


@pytest.mark.parametrize(
    "name", ["/dev/zero", "/dev/stdin", "fifo", ".", "nowhere", "", ",", "a,b", "loop", "\0", "x" * 5000]
)
def test_corpora_that_are_no_files(refused, name):
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    Path("play.txt").unlink()  # or the folder would hold one
    before = on_disk()
    if name:
        refused("corpora", "prepare.py", f"--input={name}")
    assert on_disk() == before


@many(name=st.sampled_from(["train.bin", "val.bin"]), content=st.binary(max_size=4000))
def test_binaries(refused, name, content):
    path = Path("data/drama") / name
    whole = path.read_bytes()
    path.write_bytes(content + b"\xff" * (len(whole) - len(content)) if len(content) % 2 else content)
    refused("binaries", "train_drama.py", *TRAIN)
    path.write_bytes(whole)


@many(key=st.sampled_from(["train_tokens", "val_tokens", "tokenizer"]), value=values)
def test_metadata(refused, key, value):
    path = Path("data/drama/meta.json")
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), key: value}))
    refused("meta.json", "train_drama.py", *TRAIN)
    path.write_text(whole)


@many(
    content=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))
)
def test_metadata_that_is_no_json(refused, content):
    path = Path("data/drama/meta.json")
    whole = path.read_text()
    path.write_bytes(content)
    refused("meta.json", "train_drama.py", *TRAIN)
    path.write_text(whole)


@many(
    name=st.sampled_from(["ckpt.pt", "last.pt"]),
    key=st.sampled_from(["config", "tokenizer", "model", "next_iteration", "optimizers", "best_val_loss"]),
    value=values | st.sampled_from([torch.zeros(3), {"wte.weight": torch.zeros(1)}, -1, [[]], [{0: 1}]]),
)
def test_checkpoints_with_a_wrong_part(trained, name, key, value):
    """Each with a checksum that is right, as one would make it who means ill."""
    path = Path("model") / name
    whole = path.read_bytes()
    state = checkpoint.load(path)
    state.pop("format")
    fits = (key == "best_val_loss" and isinstance(value, float)) or (name == "ckpt.pt" and key not in state)
    if not fits:
        checkpoint.save(path, {**state, key: value})
        argv = ("sample.py",) if name == "ckpt.pt" else ("train_drama.py", *TRAIN, "--eval_interval=1")
        trained("checkpoints", *argv)
    path.write_bytes(whole)


@many(name=st.sampled_from(["ckpt.pt", "last.pt"]), at=st.integers(0, 10**6), content=st.binary(max_size=300))
def test_checkpoints_that_are_damaged(trained, name, at, content):
    path = Path("model") / name
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + content if len(content) < 100 else content)
    argv = ("sample.py",) if name == "ckpt.pt" else ("train_drama.py", *TRAIN, "--eval_interval=1")
    trained("checkpoints", *argv)
    path.write_bytes(whole)
