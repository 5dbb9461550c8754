"""Prompts and words on the command line, as people and their shells and word processors write them."""

import pytest
from helpers import SHORT, SMALL

import prepare
import train_drama
from configurator import UserError, configure, read_config
from drama.tokenizer import BPETokenizer, CharTokenizer, as_known, first_text
from sample import Settings as SampleSettings
from train_drama import Settings

PAIRS = BPETokenizer([bytes([b]) for b in range(256)])


@pytest.mark.parametrize("prompt, chars, known, changed", [
    (r"A:\nB", "AB:\n", "A:\nB", r"\n and \t"), (r"A:\nB", "AB:\n\\n", r"A:\nB", ""),
    (r"A\tB", "AB\t", "A\tB", r"\n and \t"),
    ("A:\r\nB\r", "AB:\n", "A:\nB\n", ""), ("e\u0301", "\u00e9", "\u00e9", "accents"),
    ("\u00e9", "e\u0301", "e\u0301", "accents"), ("e\u0301", "e\u0301\u00e9", "e\u0301", ""),
    (r"\ne" + "\u0301", "\n\u00e9", "\n\u00e9", r"\n and \t and accents"),
    ("\u201cI don\u2019t \u2014\u2026\u201d", "Idont '\"-.", "\"I don't --...\"", "punctuation"),
    ("\u201cI\u201d", "I'", "'I'", "punctuation"), ("\u2019", "\u2019'", "\u2019", ""),
    ("\u79c0\u82f1:", "\u79c0\u82f1：", "\u79c0\u82f1：", "punctuation"), ("A：", "A:", "A:", "punctuation"),
    ("e\u0301\u2026", "\u00e9.", "\u00e9...", "accents and punctuation"),
])  # fmt: skip
def test_a_prompt_is_taken_in_the_form_that_the_model_knows(prompt, chars, known, changed):
    assert as_known(prompt, CharTokenizer(chars)) == (known, changed)


def test_a_prompt_that_nothing_helps_is_refused():
    with pytest.raises(UserError, match=r"'x'.*leave them out"):
        as_known("ax", CharTokenizer("a"))
    with pytest.raises(UserError, match="'\u2014'"):
        as_known("a\u2014", CharTokenizer("a"))


def test_byte_pairs_can_spell_a_backslash_so_it_stays():
    assert as_known(r"C:\new", PAIRS) == (r"C:\new", "")


def test_a_text_begins_with_something_the_model_knows():
    assert first_text(CharTokenizer("\nab")) == "\n\n" == first_text(PAIRS)
    assert first_text(CharTokenizer("ab")) == "a"


def test_a_text_without_a_newline_can_be_sampled_without_a_prompt(call, folder):
    (folder / "a.txt").write_text("to be or not to be " * 300)
    prepare.prepare(prepare.Settings(input="a.txt"))
    train_drama.train(Settings(**{**SMALL, **SHORT, "max_iters": 2}))
    status, out, err = call("sample.py", "--num_samples=1", "--max_new_tokens=20")
    assert (status, err) == (0, "") and len(out) == 1 + 20 + len("\n---------------\n")
    status, out, err = call("sample.py", r"--start=be\tor", "--num_samples=1")
    assert status == 2 and "'\\\\'" in err  # a tab is as unknown as what was typed


def test_what_was_changed_in_a_prompt_is_said(call, train):
    train(max_iters=2)
    status, out, err = call("sample.py", r"--start=LUCIO:\nMy", "--num_samples=1", "--max_new_tokens=5")
    assert status == 0 and out.startswith("LUCIO:\nMy") and err.count("\n") == 1 and r"\n and \t" in err


@pytest.mark.parametrize("dash", "\u2010\u2011\u2012\u2013\u2014\u2015\u2212")
def test_a_dash_that_a_word_processor_made_is_named(dash):
    for word in (f"{dash}seed=3", f"{dash}{dash}seed=3", f"-{dash}seed=3"):
        with pytest.raises(UserError, match=r"write --seed=3$|two dashes"):
            configure(SampleSettings, [word])


def test_a_word_that_is_no_config_file_is_told_so():
    with pytest.raises(UserError, match=r"^play.txt is not a config file, NAME.py; a setting is written --"):
        configure(Settings, ["play.txt"])


def test_the_home_folder_is_meant_by_its_sign_in_paths_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text("out_dir = '~/there'\n")
    assert configure(Settings, ["--out_dir=~/m"]).out_dir == str(tmp_path / "m")
    assert configure(Settings, ["~/c.py"]).out_dir == str(tmp_path / "there")
    assert configure(SampleSettings, ["--start=~/m"]).start == "~/m"


CONFIG = """
import math
from os.path import basename, dirname
from dataclasses import dataclass
layers = 2  # a helper
n_layer = 2 * layers
n_embd = int(math.sqrt(4096))
out_dir = "model/" + basename(__file__)
def double(x):
    return 2 * x
n_head = double(1)
for power in range(3):
    block_size = 2 ** power
"""


def test_a_config_file_is_plain_python(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG, encoding="utf-8-sig")  # as Windows's Notepad saves it
    s = configure(Settings, [str(path)])
    assert (s.n_layer, s.n_embd, s.n_head, s.block_size, s.out_dir) == (4, 64, 2, 4, "model/mine.py")
    path.write_text("n_layers = 6\n")
    with pytest.raises(UserError, match="did you mean n_layer"):
        configure(Settings, [str(path)])
    fields = dict.fromkeys(["n_layer"])
    path.write_text("helper = 3\nn_layer = helper\n")
    assert read_config(str(path), fields) == {"n_layer": 3}
