"""What a speech is, who speaks in a text, and plays as Fountain and JSON."""

import json

import pytest
from helpers import play
from hypothesis import example, given
from hypothesis import strategies as st

from drama.speech import Speakers, as_json, fountain, speeches

TEXT = "LUCIO:\nGood day.\nSpeak.\n\nFirst Lord:\nNo:\nnever.\n\n"


def test_speeches_are_told_apart():
    assert speeches(TEXT) == [("LUCIO", "Good day.\nSpeak."), ("First Lord", "No:\nnever.")]
    assert speeches("罗密欧：\n我爱你\n\n朱丽叶：\n") == [("罗密欧", "我爱你"), ("朱丽叶", "")]
    assert speeches("of the king\n\n" + TEXT)[0] == ("", "of the king") and speeches("\n\n") == []
    assert speeches("A:\none\n\ntwo") == [("A", "one\n\ntwo")]


# ---------------------------------------------------------------------------- who speaks in a text


def found_in(pieces, longest=Speakers.LONGEST):
    class Bounded(Speakers):
        LONGEST = longest

    speakers = Bounded()
    for piece in pieces:
        speakers.read(piece)
    return speakers.names


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


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join), st.lists(st.integers(0, 70), max_size=40))
@example("LUCIO:\n\nISABELLA:\nNo.", [])  # who is there and says nothing
@example("\n\n" + "A" * 60 + ":\n\nISABELLA:\nNo.", [65])
@example("LUCIO:\nNo.\n\nLUCIO :\nYes.", [])
def test_speakers_are_those_of_the_speeches_whatever_the_pieces(text, sizes):
    text, pieces, at = text + "\n", [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    names = dict.fromkeys(name for name, _ in speeches(text) if name)  # in the order of their first speeches
    assert found_in([*pieces, text[at:]]) == list(names)


def test_speakers_of_a_play_read_character_by_character_are_in_the_order_of_their_first_speech():
    text = play()
    order = sorted(["LUCIO", "ISABELLA", "First Lord"], key=lambda name: text.index(f"{name}:"))
    assert found_in(text) == found_in([text]) == order


@pytest.mark.parametrize("pieces", [[TEXT], [TEXT[:20], TEXT[20:]], list(TEXT)])
def test_no_speakers_are_kept_of_a_text_beyond_the_longest(pieces):
    assert found_in(pieces, longest=len(TEXT)) == ["LUCIO", "First Lord"]
    assert found_in(pieces, longest=len(TEXT) - 1) == [] == found_in([*pieces, "."], longest=len(TEXT))


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
