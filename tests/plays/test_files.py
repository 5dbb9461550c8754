"""What people bring as plays: encodings, byte-order marks, accents, layouts, folders, names of files."""

import codecs
import hashlib
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers import play

import prepare
from configurator import UserError
from drama.plays import files as texts
from drama.plays import layouts
from drama.speech import speakers
from drama.tokenizer import from_dict

COLON = (
    "ANNA: Where is the well?\nI saw it once.\nBEN: Behind the house.\nANNA: Then come.\nBEN: I come.\n" * 60
)


@pytest.fixture
def prepared(call, folder):
    """prepared(*argv) runs prepare.py: (its output, the text it encoded)."""

    def run(*argv):
        status, out, err = call("prepare.py", *argv, "--dataset=mine")
        assert (status, err) == (0, "")
        return out, encoded(folder)

    return run


def encoded(folder) -> str:
    meta = json.loads((folder / "data/mine/meta.json").read_text(encoding="utf-8"))
    splits = [np.fromfile(folder / f"data/mine/{name}.bin", dtype="<u2") for name in ("train", "val")]
    return "".join(map(from_dict(meta["tokenizer"]).decode, splits))


def refused(call, *argv) -> str:
    status, _, err = call("prepare.py", *argv)
    assert status == 2 and err.count("\n") == 1
    return err


def test_hidden_files_are_no_plays_and_the_ending_s_case_does_not_matter(prepared, folder):
    for name in ("one.txt", "TWO.TXT", ".ipynb_checkpoints/one-checkpoint.txt", ".hidden.txt", "notes.md"):
        path = folder / "plays" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(f"{path.stem}\n" * 1000)
    out, text = prepared("--input=plays")
    assert text == "TWO\n" * 1000 + "\n\n" + "one\n" * 1000
    assert "plays/TWO.TXT: 4,000 bytes" in out and "plays/one.txt: 4,000 bytes" in out and "hidden" not in out


def test_the_same_text_twice_is_refused_whatever_its_name_and_newlines(call, folder):
    (folder / "a.txt").write_text(play())
    (folder / "b.txt").write_bytes(codecs.BOM_UTF8 + play().replace("\n", "\r\n").encode())
    err = refused(call, "--input=a.txt,b.txt")
    assert "a.txt and b.txt hold the same text" in err and not list(folder.glob("data/*"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused_with_its_name_and_read_with_it(call, prepared, folder, encoding):
    (folder / "a.txt").write_bytes(play().encode(encoding))
    assert f"--encoding={encoding}" in refused(call, "--input=a.txt")
    assert prepared("--input=a.txt", f"--encoding={encoding}")[1] == play()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_byte_order_mark_tells_the_encoding(prepared, folder, encoding):
    (folder / "a.txt").write_bytes(play().encode(encoding))
    assert prepared("--input=a.txt")[1] == play()


@pytest.mark.parametrize("beginning,words", [
    (b"PK\x03\x04\x14\x00", "damaged zip archive"), (b"\xd0\xcf\x11\xe0", "older Word"),
    (b"\x1f\x8b", "compressed; unpack it"), (b"<?xml version='1.0'?><FinalDraft>", "not well-formed"),
    (b"<?xml version='1.0'?><score-partwise/>", "XML of another kind (<score-partwise>)"),
])  # fmt: skip
def test_what_is_no_plain_text_is_refused_by_its_name(call, folder, beginning, words):
    (folder / "play.txt").write_bytes(beginning + play().encode())
    err = refused(call, "--input=play.txt")
    assert "play.txt" in err and words in err


def test_a_folder_names_what_it_skips(prepared, folder):
    (folder / "plays").mkdir()
    (folder / "plays/a.txt").write_text(play())
    (folder / "plays/cover.jpg").write_bytes(b"picture")
    (folder / "plays/README.md").write_text("What this folder holds.\n" * 300)
    (folder / "plays/header.xml").write_text("<?xml version='1.0'?><catalogue/>")
    (folder / "plays/old.doc").write_bytes(b"\xd0\xcf\x11\xe0")
    out, text = prepared("--input=plays")
    assert text == play() and "plays: skipped, of kinds that are not read: cover.jpg" in out
    for name in (
        "README.md shows no play",
        "header.xml is XML of another kind",
        "old.doc is a file of an older",
    ):
        assert f"skipped: plays/{name}" in out


def test_chinese_text_in_gb18030_is_refused_with_the_way_out(call, prepared, folder):
    text = "安娜：\n井在哪里？\n\n" * 300
    (folder / "a.txt").write_text(text, encoding="gb18030")
    assert "gb18030" in refused(call, "--input=a.txt")
    assert prepared("--input=a.txt", "--encoding=gb18030")[1] == text


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_text_in_another_encoding_is_refused_with_the_way_out(call, prepared, folder, encoding):
    text = "ZOÉ:\nÀ bientôt\n\n" * 200
    (folder / "a.txt").write_bytes(text.encode(encoding))
    err = refused(call, "--input=a.txt")
    assert "byte 0xc9 in line 1" in err and "--encoding" in err and encoding in err
    assert prepared("--input=a.txt", f"--encoding={encoding}")[1] == text
    for unknown in ("klingon", "undefined", "rot13"):
        assert f"encoding='{unknown}' is unknown" in refused(call, "--input=a.txt", f"--encoding={unknown}")


@pytest.mark.parametrize("encoding, data", [
    ("utf-7", b"+2AA-"), ("unicode_escape", b"\\ud800"), ("raw_unicode_escape", b"\\udfff"),
])  # fmt: skip
def test_an_encoding_that_spells_half_a_character_is_refused(call, folder, encoding, data):
    (folder / "a.txt").write_bytes(b"ANNA:\nWell.\n\n" * 300 + data)
    assert f"a.txt is not text in {encoding}" in refused(call, "--input=a.txt", f"--encoding={encoding}")


def test_a_text_too_long_for_one_play_keeps_its_form(prepared, folder, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST", len(COLON) - 1)
    (folder / "a.txt").write_text(COLON)
    out, text = prepared("--input=a.txt")
    assert text == COLON and "too long for one play" in out
    assert prepared("--input=a.txt", "--layout=colon")[1] == layouts.convert(COLON, "colon").text


def read_in_pieces(folder, monkeypatch, data: bytes, size: int, encoding="utf-8") -> str:
    """What is made of a long text, read so many bytes at a time."""
    monkeypatch.setattr(texts, "LONGEST", 0)
    monkeypatch.setattr(texts, "CHUNK", size)
    (folder / "long.txt").write_bytes(data)
    return "".join(texts.clean(folder / "long.txt", encoding, "auto", True))


@pytest.mark.parametrize("size", [2, 3, 1000])
def test_a_long_text_is_read_in_pieces_as_if_it_were_one(folder, monkeypatch, capsys, size):
    text = "ZOE\u0301:\r\nJ\u2019e\u0301t\u00e9 \U0001f600\ufeff, \u1100\u1161\u11a8\r\u0301\n\n" * 50
    tidy = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", ""))
    data = codecs.BOM_UTF8 + text.encode()
    assert read_in_pieces(folder, monkeypatch, data, size) == tidy
    out = capsys.readouterr().out
    assert "removed: 50" in out and "accents made one character" in out and "too long" in out
    assert read_in_pieces(folder, monkeypatch, text.encode("utf-16"), max(size, 2)) == tidy
    assert read_in_pieces(folder, monkeypatch, text.encode("gb18030"), size, "gb18030") == tidy
    with pytest.raises(UserError, match="byte 0xff in line 151"):
        read_in_pieces(folder, monkeypatch, data + b"\xff", size)
    with pytest.raises(UserError, match="NUL"):
        read_in_pieces(folder, monkeypatch, data + b"\0", size)


@pytest.mark.parametrize("size", [1, 5, 1 << 22])
def test_a_text_is_cut_and_read_where_its_characters_are(folder, monkeypatch, size):
    monkeypatch.setattr(texts, "CHUNK", size)
    whole = "\n" + play(20).replace("I", "\u6211") + "\U0001f600"
    text, sha = texts.written(folder / "a.txt", "a", [whole[:100], whole[100:]])
    assert sha == hashlib.sha256(whole.encode()).digest() and text.speakers == speakers([whole])
    for n in (1, 50, len(whole) - 1):
        train, val = texts.cut([text], n)
        assert "".join(train[0].pieces()) == whole[:n] and "".join(val[0].pieces()) == whole[n:]
        assert (train[0].characters, val[0].characters) == (n, len(whole) - n)
        assert val[0].speakers == speakers([whole[n:]])


@pytest.mark.parametrize("marks", ["\u0301\u0327", "\u0327\u0301\u0301"])
@pytest.mark.parametrize("letter", ["a", "a!", "!"])
def test_letters_with_more_accents_than_any_script_has_are_left_as_they_are(letter, marks):
    """Sorting so many takes time that grows with their square: minutes for a megabyte."""
    text = "e\u0301 " + letter + marks * 300_000 + " e\u0301\n"
    assert texts.normalized(text) == text.replace("e\u0301", "\u00e9")
    few = "a" + "\u0301\u0327" * 15 + "."
    assert texts.normalized(few) == unicodedata.normalize("NFC", few) != few


def test_marks_within_a_text_are_removed_and_said(prepared, folder):
    mark = codecs.BOM_UTF8
    (folder / "a.txt").write_bytes(mark + mark + play(200).encode() + mark + play(200, seed=1).encode())
    out, text = prepared("--input=a.txt")
    assert text == play(200) + "\n" + play(200, seed=1) and "byte-order marks within it removed: 2" in out
    (folder / "a.txt").write_bytes(mark + play(200).encode())
    assert "marks" not in prepared("--input=a.txt")[0]  # as usual


def test_characters_that_cannot_be_seen_are_named(prepared, folder):
    (folder / "a.txt").write_text("a\u200bb\x07c\n" * 600, encoding="utf-8")
    out, _ = prepared("--input=a.txt")
    assert "U+0007 CONTROL CHARACTER, U+200B ZERO WIDTH SPACE" in out


def test_accents_become_one_form_unless_they_are_to_be_left(prepared, folder):
    mixed = "ZOE\u0301:\ne\u0301 \u00e9\n\n" * 300
    (folder / "a.txt").write_text(mixed, encoding="utf-8")
    out, text = prepared("--input=a.txt")
    assert (
        text == mixed.replace("e\u0301", "\u00e9").replace("E\u0301", "\u00c9") and "--normalize=false" in out
    )
    out, text = prepared("--input=a.txt", "--normalize=false")
    assert text == mixed and "accents" not in out
    (folder / "a.txt").write_text(text.replace("\u0301", ""), encoding="utf-8")
    assert "accents" not in prepared("--input=a.txt")[0]  # nothing to say where nothing changed


@pytest.mark.parametrize("argv", [
    ["a.txt", "b.txt"], ["--input", "a.txt", "b.txt"], ["--input=a.txt,b.txt"], ["--input=a.txt", "b.txt"],
    ["."], ["--val_fraction", "0.1", "a.txt", "b.txt"],
])  # fmt: skip
def test_files_are_named_as_people_and_shells_name_them(prepared, folder, argv):
    for name, letter in (("a.txt", "a"), ("b.txt", "b")):
        (folder / name).write_text(letter * 3000)
    assert prepared(*argv)[1] == "a" * 3000 + "\n\n" + "b" * 3000


def test_a_comma_in_a_name_and_a_home_folder_are_understood(prepared, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "Romeo, Juliet.txt").write_text(play())
    for argv in (["--input=Romeo, Juliet.txt"], ["Romeo, Juliet.txt"], ["--input=~/Romeo, Juliet.txt"]):
        assert prepared(*argv)[1] == play()


def test_the_default_plays_are_not_touched(folder, monkeypatch):
    """Their text is checked by its SHA-256; what reads other people's files has no part in it."""
    (folder / "drama.txt").write_text(COLON)
    monkeypatch.setattr(prepare, "fetch", lambda source, place: (folder / "drama.txt", "a wheel", 0))
    prepare.prepare(prepare.Settings(dataset="mine"))
    assert encoded(folder) == COLON


# ---------------------------------------------------------------------------- what is held out


def many(folder, sizes):
    (folder / "plays").mkdir()
    for n, size in enumerate(sizes):
        (folder / f"plays/{n:02}.txt").write_text(play(size, seed=n))


@pytest.mark.parametrize("sizes", [[30] * 10, [20] * 40, [100, *[10] * 30], range(5, 60, 3)])
def test_of_many_files_whole_ones_are_held_out_spread_over_all(prepared, folder, sizes):
    many(folder, sizes)
    out, _ = prepared("--input=plays")
    meta = json.loads((folder / "data/mine/meta.json").read_text())
    held = [each for each in meta["plays"] if each["split"] == "val"]
    kept = [each for each in meta["plays"] if each["split"] == "train"]
    assert (
        len(held) + len(kept) == len(sizes)
        and f"held out for validation: {len(held)} of {len(sizes)} files" in out
    )
    share = sum(each["characters"] for each in held) / sum(each["characters"] for each in meta["plays"])
    assert 0.05 < share < 0.16
    numbers = [int(Path(each["source"]).stem) for each in held]
    assert len(held) < 2 or max(b - a for a, b in itertools.pairwise(numbers)) < 0.7 * len(sizes)
    texts = {each["source"]: Path(each["source"]).read_text() for each in meta["plays"]}
    ids = {name: np.fromfile(folder / f"data/mine/{name}.bin", "<u2") for name in ("train", "val")}
    chars = meta["tokenizer"]["chars"]
    for name, part in (("train", kept), ("val", held)):
        assert "".join(chars[n] for n in ids[name]) == "\n\n".join(texts[each["source"]] for each in part)
    assert meta["val_characters"] == len(ids["val"])


def test_few_files_are_cut_where_their_text_ends(prepared, folder):
    many(folder, [40] * 9)
    out, text = prepared("--input=plays")
    meta = json.loads((folder / "data/mine/meta.json").read_text())
    assert [each["split"] for each in meta["plays"]] == ["train"] * 9 + ["val"] and "held out" not in out
    assert text == "\n\n".join(play(40, seed=n) for n in range(9))
    assert meta["val_characters"] / meta["characters"] == pytest.approx(0.1, abs=0.002)


def test_named_files_are_held_out_instead_wherever_they_lie(call, prepared, folder):
    many(folder, [40] * 4)
    (folder / "other.txt").write_text(play(40, seed=99))
    out, _ = prepared("--input=plays", "--validation=plays/02.txt,other.txt")
    meta = json.loads((folder / "data/mine/meta.json").read_text())
    held = [Path(each["source"]).name for each in meta["plays"] if each["split"] == "val"]
    assert (
        held == ["02.txt", "other.txt"] and "held out for validation: 2 of 5 files (02.txt, other.txt)" in out
    )
    assert "leave some to train on" in refused(call, "--input=other.txt", "--validation=other.txt")


def test_the_meta_data_know_who_speaks_in_each_play_how_often(prepared, folder):
    (folder / "a.txt").write_text("ANNA:\nYes.\n\nBEN:\nNo.\n\n" * 200)
    (folder / "b.txt").write_text("CLEO:\nWell.\n\nANNA:\nSo.\n\n" * 20)
    prepared("--input=a.txt,b.txt", "--validation=b.txt")
    meta = json.loads((folder / "data/mine/meta.json").read_text())
    assert [each["speakers"] for each in meta["plays"]] == [
        {"ANNA": 200, "BEN": 200},
        {"CLEO": 20, "ANNA": 20},
    ]
    assert meta["speakers"] == ["ANNA", "BEN"]  # of what is trained on


def test_a_short_play_in_the_one_form_is_not_called_unrecognised(call, folder):
    (folder / "play.txt").write_text("HAMLET:\nTo be.\n\nOPHELIA:\nGood my lord.\n\nHAMLET:\nOr not.\n")
    status, out, err = call("prepare.py", "--input=play.txt", "--preview=true")
    assert (status, err) == (0, "") and "no layout" not in out
    (folder / "notes.txt").write_text("Milk.\n\nNote:\nbread.\n\nEggs, and\n\nmore of it.\n")
    assert "the text is taken as it is" in call("prepare.py", "--input=notes.txt", "--preview=true")[1]
