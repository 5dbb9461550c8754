"""What a speech is, who speaks in a text, and plays as Fountain and JSON."""

import json
from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from drama.speech import as_json, fountain, speakers, speeches

TEXT = "LUCIO:\nGood day.\nSpeak.\n\nFirst Lord:\nNo:\nnever.\n\n"


def test_speeches_are_told_apart():
    assert speeches(TEXT) == [("LUCIO", "Good day.\nSpeak."), ("First Lord", "No:\nnever.")]
    assert speeches("罗密欧：\n我爱你\n\n朱丽叶：\n") == [("罗密欧", "我爱你"), ("朱丽叶", "")]
    assert speeches("of the king\n\n" + TEXT)[0] == ("", "of the king") and speeches("\n\n") == []
    assert speeches("A:\none\n\ntwo") == [("A", "one\n\ntwo")]


# ---------------------------------------------------------------------------- who speaks in a text


# What headings are made of, and what only looks like one.
PARTS = [
    "LUCIO",
    "First Lord",
    "罗密欧",
    "A" * 60,
    "B" * 61,
    ":",
    "：",
    ":\n",
    ":\n\n",
    "\n",
    "\n\n",
    " ",
    "I go.",
]


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join))
@example("LUCIO:\n\nISABELLA:\nNo.")  # who is there and says nothing
@example("\n\n" + "A" * 60 + ":\n\nISABELLA:\nNo.")
@example("LUCIO:\nNo.\n\nLUCIO :\nYes.")
def test_speakers_are_those_of_the_speeches_in_the_order_of_their_first(text):
    names = [name for name, _ in speeches(text + "\n") if name]
    assert speakers(text + "\n") == dict(Counter(names)) and list(speakers(text + "\n")) == [
        *dict.fromkeys(names)
    ]


# ---------------------------------------------------------------------------- forms


def test_a_screenplay_gives_back_its_speeches():
    text = fountain([TEXT, "LUCIO:\n\n\n"])
    assert text == "@LUCIO\nGood day.\nSpeak.\n\n@First Lord\nNo:\nnever.\n\n===\n\n@LUCIO\n..."


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=4))
def test_any_text_can_be_printed_in_every_form(texts):
    assert len(json.loads(as_json(texts))) == len(texts)
    fountain(texts)


def test_json_has_speakers_and_their_words():
    assert json.loads(as_json(["so\n\n" + TEXT])) == [[
        {"speaker": None, "text": "so"},
        {"speaker": "LUCIO", "text": "Good day.\nSpeak."},
        {"speaker": "First Lord", "text": "No:\nnever."},
    ]]  # fmt: skip


def test_what_fountain_would_take_for_markup_is_written_plainly():
    text = fountain(["ANNA ^:\nA *bold* _word_ [[and a note]] /* not a comment\n\nB*N:\nYes.\n"])
    assert text == "@ANNA\nA \\*bold\\* \\_word\\_ [ [and a note] ] /\\* not a comment\n\n@B\\*N\nYes."
