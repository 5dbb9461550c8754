from dataclasses import dataclass, fields
from typing import Literal

import pytest
from helpers import PROGRAMS, ROOT
from hypothesis import given
from hypothesis import strategies as st

import train_drama
from configurator import UserError, check, configure, help_text, one_line, split_files


@dataclass(frozen=True)
class Example:
    """An example."""

    # Numbers
    n_layer: int = 6  # blocks
    learning_rate: float = 1e-3  # steps
    # Others
    compile: bool | None = None  # fuse
    bias: bool = False  # biases
    start: str = "\n"  # text
    tone: Literal["calm", "wild"] = "calm"  # tone of voice

    def __post_init__(self):
        check(self, at_least={})


def test_later_sources_win(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("import math\n_tmp = 3\nn_layer = _tmp + 1\nlearning_rate = math.sqrt(4)\n")
    b.write_text("n_layer = 5\n")
    assert configure(Example, []) == Example()
    assert configure(Example, [str(a)]) == Example(n_layer=4, learning_rate=2.0)
    assert configure(Example, [str(a), str(b)]).n_layer == 5
    assert configure(Example, ["--n_layer=7", str(a), str(b)]).n_layer == 7  # wherever it stands


@pytest.mark.parametrize(
    "argument, name, value",
    [
        ("--learning_rate=1", "learning_rate", 1.0),
        ("--n_layer=1e3", "n_layer", 1000),
        ("--n_layer=1_000", "n_layer", 1000),
        ("--bias=TRUE", "bias", True),
        ("--bias=0", "bias", False),
        ("--compile=false", "compile", False),
        ("--compile=none", "compile", None),
        ("--start=a=b=c", "start", "a=b=c"),
        ("--start=", "start", ""),
        ("--start=罗密欧：", "start", "罗密欧："),
        ("--tone=wild", "tone", "wild"),
    ],
)
def test_values_are_read_as_the_field_s_type(argument, name, value):
    found = getattr(configure(Example, [argument]), name)
    assert found == value and type(found) is type(value)
    name_only, _, rest = argument.partition("=")
    if rest:
        assert getattr(configure(Example, [name_only, rest]), name) == value


@given(
    st.builds(
        Example,
        n_layer=st.integers(-(2**63) + 1, 2**63 - 1),
        learning_rate=st.floats(allow_nan=False, allow_infinity=False),
        compile=st.none() | st.booleans(),
        bias=st.booleans(),
        start=st.text(st.characters(exclude_characters="\0")),
        tone=st.sampled_from(["calm", "wild"]),
    )
)
def test_any_settings_can_be_given_on_the_command_line(wanted):
    argv = [f"--{f.name}={getattr(wanted, f.name)}" for f in fields(wanted)]
    assert configure(Example, argv) == wanted


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--n_layers=3"], "did you mean n_layer?"),
        (["--xyzzy=3"], "--help"),
        (["--n_layer=3.5"], "n_layer='3.5' is not a whole number"),
        (["--n_layer=true"], "whole number"),
        (["--n_layer=nan"], "whole number"),
        (["--n_layer="], "whole number"),
        (["--n_layer=9223372036854775808"], "whole number"),
        (["--n_layer=1e300"], "whole number"),
        (["--n_layer"], "no value"),
        (["--n_layer", "--bias=1"], "no value"),
        (["--learning_rate=inf"], "not a number"),
        (["--learning_rate=fast"], "not a number"),
        (["--bias=maybe"], "true or false"),
        (["--start=a\0b"], "text"),
        (["--tone=loud"], "tone='loud' is none of calm, wild"),
        (["-n_layer=3"], "two dashes"),
        (["no_such.py"], "no_such.py"),
        (["."], ". is not a config file"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_helps(argv, words):
    with pytest.raises(UserError) as refused:
        configure(Example, argv)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name, near", [
    ("batchsize", "batch_size"), ("n_layers", "n_layer"), ("max_iter", "max_iters"), ("num_heads", "n_head"),
    ("warmup", "warmup_iters"), ("max_steps", "max_iters"), ("lr", None), ("epochs", None), ("foo", None),
    ("vocab_size", None), ("steps", None), ("bs", None), ("wd", None), ("hidden_size", None),
])  # fmt: skip
def test_only_a_close_name_is_suggested_for_an_unknown_one(name, near):
    with pytest.raises(UserError) as refused:
        configure(train_drama.Settings, [f"--{name}=3"])
    hint = f"did you mean {near}?" if near else "--help lists them all"
    assert str(refused.value) == f"there is no setting {name!r}; {hint}"


@pytest.mark.parametrize(
    "source, words",
    [
        (b"n_layer = \n", "line 1"),
        (b"n_layer = 1 / 0\n", "ZeroDivisionError"),
        (b"n_layers = 3\n", "did you mean n_layer?"),
        (b"n_layer = True\n", "whole number"),
        (b"n_layer = [3]\n", "whole number"),
        (b"start = 3\n", "text"),
        (b"\xff\xfe", "UTF-8"),
        (b"n_layer = 3\x00\n", "config file"),
    ],
)
def test_a_wrong_config_file_is_refused(tmp_path, source, words):
    path = tmp_path / "c.py"
    path.write_bytes(source)
    with pytest.raises(UserError) as refused:
        configure(Example, [str(path)])
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("values, words", [
    (dict(n_layer=0), "n_layer=0 is below 1"), (dict(n_layer=-(10**9)), "n_layer=-1000000000 is below 1"),
    (dict(learning_rate=0.4999), "learning_rate=0.4999 is below 0.5"),
    (dict(n_layer=1, learning_rate=0.5), None),
])  # fmt: skip
def test_a_value_below_its_bound_is_refused_by_name(values, words):
    settings, at_least = Example(**{"learning_rate": 1.0, **values}), {"n_layer": 1, "learning_rate": 0.5}
    if words is None:
        check(settings, at_least)
        return
    with pytest.raises(UserError) as refused:
        check(settings, at_least)
    assert str(refused.value) == words


@pytest.mark.parametrize("tone", ["loud", "", "Calm", "calm, wild"])
def test_a_value_that_is_none_of_its_choices_is_refused_with_them(tone):
    with pytest.raises(UserError) as refused:
        Example(tone=tone)
    assert str(refused.value) == f"tone={tone!r} is none of calm, wild"


def test_files_are_told_from_settings_by_their_ending():
    argv = ["a.csv", "--out=b.csv", "config.py", "-x.csv", "c.csv", "--seed=1"]
    assert split_files(argv, ".csv") == (
        ["a.csv", "c.csv"],
        ["--out=b.csv", "config.py", "-x.csv", "--seed=1"],
    )


@given(st.text())
def test_any_message_is_one_line(text):
    assert len(one_line(text).splitlines()) <= 1 and len(one_line(text)) <= 500


CLASSES = [Example, *(program.Settings for program in PROGRAMS.values())]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__module__)
def test_help_shows_each_setting_with_its_default_and_its_meaning(cls):
    text = help_text(cls)
    for field in fields(cls):
        at = text.index(f"--{field.name}=")
        meaning = text[at:].split("\n  --")[0].split("  ")[-1].strip()
        assert len(meaning) > 3, field.name
        assert repr(field.default).strip("'") in text[at : at + 60], field.name


def test_help_aligns_what_goes_on_in_a_second_line():
    lines = help_text(train_drama.Settings).splitlines()
    (at,) = [n for n, line in enumerate(lines) if "--init_from=" in line]
    assert lines[at + 1].startswith(" " * 34) and lines[at + 2].startswith(" " * 34)


def test_every_config_file_of_the_project_can_be_used():
    configs = sorted((ROOT / "config").glob("*.py"))
    assert configs
    for path in configs:
        configure(train_drama.Settings, [str(path)])


def test_the_defaults_are_the_ones_that_were_agreed():
    s = train_drama.Settings()
    agreed = dict(
        n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=64, dropout=0.2, learning_rate=1e-3,
        max_iters=5000, gradient_accumulation_steps=1, lr_decay_iters=5000, min_lr=1e-4, warmup_iters=100,
        beta2=0.99, weight_decay=0.1, grad_clip=1.0, eval_interval=250, log_interval=10, bias=False,
    )  # fmt: skip
    assert {name: getattr(s, name) for name in agreed} == agreed
