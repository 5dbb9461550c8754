"""Whatever is given to the programs, they answer in one line and leave the disk as it was."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import PROGRAMS, SHORT, SMALL, flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drama import checkpoint

TRAIN = ("train_drama.py", *flags(**SMALL, **SHORT), "--eval_interval=1")
FIELDS = [(name, field) for name, module in PROGRAMS.items() for field in dataclasses.fields(module.Settings)]
NUMBERS = [(name, field.name) for name, field in FIELDS if field.type in (int, float)]
NUMBERS.remove(("bench.py", "top_p"))  # sample.py checks it, when bench.py has measured what comes before
NAMES = {field.name for _, field in FIELDS}
# JSON that is neither a whole number, nor a tokenizer, nor what one consists of
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)
contents = st.binary(max_size=2000) | st.text(max_size=2000).map(lambda text: text.encode("utf-8", "replace"))
KINDS = ("command lines", "config files", "corpora", "data files", "checkpoints", "prompts", "logs")
# of sample.py, on what may still be refused; a name may hold newlines
tried = dict.fromkeys(KINDS, 0)


def many(**strategies):
    """A property of the whole programs, with one folder for all examples."""

    def decorate(test):
        slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        return settings(max_examples=60, derandomize=True, suppress_health_check=slow)(
            given(**strategies)(test)
        )

    return decorate


@pytest.fixture(scope="module", autouse=True)
def _count(request):
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nwrong input: {sum(tried.values())} tried ({tried}), each answered in one line")


def on_disk():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.name != ".lock"}


@contextlib.contextmanager
def replaced(path, content: bytes):
    """The file has that content within, and its own again afterwards."""
    path = Path(path)
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.fixture
def answered(call, corpus):
    """answered(kind, program, argv...): it works, or is refused in one line with the disk as it was."""

    def check(kind, program, *argv):
        before = on_disk()
        status, _, err = call(program, *argv)
        assert status in (0, 1, 2), (argv, status)
        if status:
            assert err.startswith(f"{program}: ") and err.endswith("\n") and len(err.splitlines()) == 1
            assert on_disk() == before
        tried[kind] += 1
        return status, err

    return check


@pytest.fixture
def refused(answered):
    """The same for what does not work."""

    def check(kind, program, *argv):
        status, err = answered(kind, program, *argv)
        assert status, argv
        return err

    return check


@pytest.fixture
def model(train):
    """A model and a run that could go on, in the folder where answered and refused are."""
    train(max_iters=2, eval_interval=1)


def not_a_number(text):
    try:
        float(text)
    except ValueError:
        return text.lower() != "none" and not text.startswith("--")
    return False


outside = st.floats(max_value=-1e-3) | st.sampled_from([float("nan"), float("inf")])


@many(where=st.sampled_from(NUMBERS), value=st.text(max_size=8).filter(not_a_number) | outside)
def test_settings_that_are_no_numbers_or_out_of_range(refused, where, value):
    program, name = where
    assert name in refused("command lines", program, f"--{name}={value}")


@many(
    program=st.sampled_from(sorted(PROGRAMS)),
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
    "n_layer = '6' * 10**6", "\t\tx = 1", "n_layer: int", "for n_layer in 'abc': pass", "n_layer = 10**5000",
)  # fmt: skip


@many(source=st.sampled_from(SOURCES) | st.text(max_size=30))
def test_config_files(refused, source):
    Path("wrong.py").write_text(source, encoding="utf-8", errors="replace")
    refused("config files", "train_drama.py", "wrong.py", "--max_iters=-1")


@many(content=contents)
def test_corpora(refused, content):
    Path("wrong.txt").write_bytes(content)
    refused("corpora", "prepare.py", "--input=wrong.txt")


NAMELESS = ["/dev/zero", "/dev/stdin", "fifo", ".", "nowhere", ",", "a,b", "loop", "\0", "x" * 5000, "\udcff"]


@pytest.mark.parametrize("name", NAMELESS)
def test_corpora_that_are_no_files(refused, name):
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    Path("play.txt").unlink()  # or the folder would hold one
    refused("corpora", "prepare.py", f"--input={name}")


@many(
    name=st.sampled_from(["train.bin", "val.bin", "meta.json"]), content=st.binary(max_size=4000) | contents
)
def test_data_files_that_are_something_else(refused, name, content):
    path = Path("data/drama") / name
    if name != "meta.json" and len(content) % 2:  # as long as it should be
        content += b"\xff" * (path.stat().st_size - len(content))
    with replaced(path, content):
        refused("data files", *TRAIN)


META = ["train_tokens", "val_tokens", "val_characters", "tokenizer", "source", "speakers"]


@many(key=st.sampled_from(META), value=values)
def test_metadata_with_a_wrong_value(answered, key, value):
    path = Path("data/drama/meta.json")
    with replaced(path, json.dumps({**json.loads(path.read_bytes()), key: value}).encode()):
        status, _ = answered("data files", *TRAIN, "--max_iters=0", "--init_from=scratch")
    if key == "source":
        assert bool(status) != isinstance(value, str)
    elif key == "speakers":
        assert bool(status) != names(value)
    else:
        assert status


def names(value):
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# what each program takes from a checkpoint, and whether a value is of the right kind
COMMON = dict.fromkeys(["config", "tokenizer", "model"], lambda value: False) | {"speakers": names}
LOSS = {
    "train_loss": lambda value: isinstance(value, float),
    "val_loss": lambda value: isinstance(value, float),
}
PARTS = {
    ("sample.py", "--cast=LUCIO", "--max_new_tokens=5"): COMMON,
    ("export.py", "model/ckpt.pt", "--out=exported"): {
        **COMMON, **LOSS,
        "iteration": lambda value: type(value) is int,
        "settings": lambda value: isinstance(value, dict),  # they are only shown
    },
    TRAIN: {**COMMON, "next_iteration": None, "optimizers": None, "best_val_loss": LOSS["val_loss"]},
}  # fmt: skip


@many(
    where=st.sampled_from([(argv, key) for argv, parts in PARTS.items() for key in parts]),
    value=values | st.sampled_from([torch.zeros(3), {"wte.weight": torch.zeros(1)}, -1, [[]], [{0: 1}]]),
)
def test_checkpoints_with_a_wrong_part(refused, model, where, value):
    """Each with a checksum that is right, as one would make it who means ill."""
    argv, key = where
    fits = PARTS[argv][key]
    if fits and fits(value):
        return
    path = Path("model") / ("last.pt" if argv is TRAIN else "ckpt.pt")
    state = checkpoint.load(path)
    state.pop("format")
    with replaced(path, path.read_bytes()):
        checkpoint.save(path, {**state, key: value})
        refused("checkpoints", *argv)


@many(argv=st.sampled_from(list(PARTS)), at=st.integers(0, 10**6), content=st.binary(max_size=300))
def test_checkpoints_that_are_damaged(answered, model, argv, at, content):
    path = Path("model") / ("last.pt" if argv is TRAIN else "ckpt.pt")
    whole = path.read_bytes()
    at %= len(whole)
    content = whole[:at] + content if len(content) < 100 else content
    with replaced(path, content):
        answered("checkpoints", *argv)


plausible = st.text(st.sampled_from("LUCIO:\n, é\0\udcff"), max_size=12) | st.text(max_size=8)


@many(start=plausible, cast=plausible, form=st.sampled_from(["text", "fountain", "json"]))
def test_prompts_and_casts(answered, model, start, cast, form):
    argv = flags(start=start, cast=cast, format=form, num_samples=2, max_new_tokens=3)
    answered("prompts", "sample.py", *argv)


@many(content=contents)
def test_prompt_files(answered, model, content):
    Path("prompt.txt").write_bytes(content)
    answered("prompts", "sample.py", "--start=FILE:prompt.txt", "--num_samples=1", "--max_new_tokens=3")


@many(content=contents)
def test_logs(refused, content):
    pytest.importorskip("matplotlib")
    Path("wrong.csv").write_bytes(content)
    refused("logs", "plot.py", "wrong.csv")
