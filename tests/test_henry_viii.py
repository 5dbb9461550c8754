"""docs/henry_viii.py: texts made alike, letter trigrams, and two groups of scenes."""

import importlib.util
from collections import Counter

import pytest
from helpers import ROOT

spec = importlib.util.spec_from_file_location("henry_viii", ROOT / "docs/henry_viii.py")
henry_viii = importlib.util.module_from_spec(spec)
spec.loader.exec_module(henry_viii)

PLAY = """<TEI xmlns="http://www.tei-c.org/ns/1.0"><text><body>
<div type="prologue"><sp><speaker>PROLOGUE </speaker><l>I come no more</l></sp></div>
<div type="act" n="1"><head>ACT 1</head><div type="scene" n="1"><stage>Enter.</stage>
<sp><speaker>KING </speaker><l>’Tis well, I <stage>aside</stage>think;</l><l>he lov’d on ’t.</l></sp></div>
<div type="scene" n="2"><head>2</head></div></div></body></text></TEI>"""


def test_a_play_is_read_by_scenes_without_what_nobody_speaks(tmp_path):
    (tmp_path / "play.xml").write_text(PLAY, encoding="utf-8")
    assert henry_viii.scenes(tmp_path / "play.xml") == {
        "prologue": [["i", "come", "no", "more"]],
        "1.1": [["tis", "well", "i", "think", "he", "loved", "ont"]],
    }


@pytest.mark.parametrize("old, new", [
    ("'T is i'th' morning", "’Tis i’ th’ morning"), ("for't, o'th' sea", "for ’t, o’ th’ sea"),
    ("Lov'd well-born", "loved well born"),
])  # fmt: skip
def test_what_is_printed_in_two_ways_is_one(old, new):
    assert henry_viii.words(old) == henry_viii.words(new)


def test_old_spellings_become_the_modern_edition_s_words():
    new = Counter(dict(soldier=50, fair=90, lusty=9, have=900, honor=70, king=400, ye=1, rare=30))
    old = Counter(
        dict(souldier=50, faire=90, lustie=9, haue=300, honour=70, king=300, ye=700, rare=20, caratach=9)
    )
    found = henry_viii.modern(old, new)
    assert {word: found.get(word, word) for word in old} == dict(
        souldier="soldier", faire="fair", lustie="lusty", haue="have", honour="honor", king="king", ye="ye",
        rare="rare", caratach="caratach",
    )  # fmt: skip


def test_trigrams_are_probabilities_and_know_their_text_best():
    text = "to be or not to be that is the question\n" * 20
    model, letters = henry_viii.Trigrams(text), sorted(set(text))
    model_of_letters = [model.probability("th" + letter) for letter in letters]
    assert sum(model_of_letters) == pytest.approx(1, abs=0.05) and max(model_of_letters) > 0.4
    assert model.bits(text) < 1.5 < model.bits("xylophones quack jazz")


def test_values_are_split_into_the_two_groups_of_least_variance():
    assert henry_viii.two_groups([5.0, 1.0, 1.2, 5.2, 0.9]) == pytest.approx(3.1)
