"""The same plays with other names (prepare.py --renamed)."""

import re
from random import Random

import pytest

from drama.plays import renamed as module
from drama.plays.files import written
from drama.plays.renamed import own_names, renamed, stretches

PLAY = """ROMEO:
Good even, citizen. McDuff, is Juliet's light yonder?

JULIET:
O Romeo, Romeo! A king is come; the lady waits, and
Julietta with her.

First Citizen:
ROMEO! He is gone.

KING McDUFF:
Where?

"""


@pytest.fixture
def text(folder):
    def make(content, name="a.txt"):
        return written(folder / name, name, [content])[0]

    return make


LETTERS = "".join(map(chr, range(0x500)))


def other(text, seed=0, chars=LETTERS):
    return "".join(renamed(text, own_names([text])[0], Random(seed), chars))


def test_a_name_is_a_word_of_a_speaker_that_is_never_written_small(text):
    assert own_names([text(PLAY)])[0] == {"romeo", "juliet", "mcduff", "first"}  # not citizen, nor king
    assert own_names([text("ÉLOÏSE:\nOui.\n\nСТАРУХА:\nстаруха?\n\n老人：\n来。\n")])[0] == {"éloïse"}


def test_of_many_plays_a_name_is_in_few(text):
    """In German, all nouns have capitals."""
    names = ["Ada", "Bert", "Cäsar", "Dora", "Emil", "Fritz", "Gerda", "Hans", "Ida", "Jakob"]
    plays = [text(f"MANN:\nMein Freund {n}!\n\n{n.upper()}:\nJa, Mann.\n\n", n) for n in names]
    assert own_names(plays)[2] == {"cäsar"} and own_names(plays[2:3])[0] == {"mann", "cäsar"}
    assert own_names([*plays, text("ida:\nIch bin ida.\n\n")])[8] == set()


def test_a_name_is_exchanged_wherever_it_stands_and_nothing_else_is(text, monkeypatch):
    monkeypatch.setattr(module, "SHARE", 1.0)
    new = other(text(PLAY))
    names = re.compile(r"\b(ROMEO|Romeo|JULIET|Juliet|McDUFF|McDuff|First)\b")
    found = re.fullmatch(r"(\w+)".join(map(re.escape, names.split(PLAY)[::2])), new)
    where = {}
    for before, after in zip(names.findall(PLAY), found.groups(), strict=True):
        assert after.isupper() == before.isupper() and after[0].isupper()
        where.setdefault(before.lower(), set()).add(after.lower())
    assert where.keys() == own_names([text(PLAY)])[0] and all(len(names) == 1 for names in where.values())
    assert not set.union(*where.values()) & where.keys()
    assert len(set.union(*where.values())) == 4  # nobody has another's name


def test_names_last_for_a_stretch_that_ends_with_a_speech(text, monkeypatch):
    monkeypatch.setattr(module, "SHARE", 0.5)
    monkeypatch.setattr(module, "STRETCH", 250)
    long = text(PLAY * 100)
    pieces = list(stretches(long))
    assert "".join(pieces) == PLAY * 100 and len(pieces) > 50
    assert all(piece.startswith("\n\n") and len(piece) < 250 + len(PLAY) for piece in pieces[1:])
    romeos = []
    for piece in renamed(long, own_names([long])[0], Random(0), LETTERS):
        romeo = re.search(r"O (\w+), (\w+)!", piece)
        if romeo:
            assert romeo[1] == romeo[2]
            romeos.append(romeo[1])
    assert 0.3 < romeos.count("Romeo") / len(romeos) < 0.7 and len(set(romeos)) > 10


def test_the_same_draw_gives_the_same_names_and_another_one_others(text):
    play = text(PLAY * 20)
    assert other(play, 1) == other(play, 1) != other(play, 2)


def test_new_names_are_made_of_the_text_s_characters(text, monkeypatch):
    monkeypatch.setattr(module, "SHARE", 1.0)
    content = "ANNA:\nHanna, hall!\n\nHANNA:\nAnna, nah!\n\n" * 30  # too few for capitals of all letters
    assert set(other(text(content), chars="".join(set(content)))) <= set(content)
    assert other(text(content), chars="") == content
    assert other(text(PLAY), chars="") == PLAY  # McDuff as well
