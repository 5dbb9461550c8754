"""A page that shows where in a text the models are surprised; page.html is what it looks like."""

import json
import math
import tempfile
import zlib
from base64 import b64encode
from pathlib import Path

import numpy as np

from configurator import UserError
from drama.disk import write_atomically


def columns(tok, ids: np.ndarray, nats: np.ndarray, chances: np.ndarray, likeliest: np.ndarray) -> np.ndarray:
    """What the page is told of each of n tokens, uint16 (2 + 2k, n).

    How many UTF-16 units, in which JavaScript counts, begin in it; its surprise in hundredths of a bit; the k
    likeliest tokens, and their probabilities in percent. Of the first token, which is given, only the units.
    """
    units = np.array([sum((b & 0xC0 != 0x80) + (b >= 0xF0) for b in token) for token in tok.tokens])
    bits = np.minimum(np.rint(nats / math.log(2) * 100), 65_535)  # what 16 bits hold
    said = np.vstack([bits, likeliest.T, np.rint(chances.T * 100)])
    return np.vstack([units[ids], np.pad(said, ((0, 0), (1, 0)))]).astype("<u2")


def check_page(path: Path):
    """Raise UserError where no page can be written."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"html={str(path)!r} is in a folder that does not exist")
    if path.exists():
        raise UserError(f"html={str(path)!r} is there already; give another name")
    try:  # now, since predicting a long text takes long
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as e:
        raise UserError(f"html={str(path)!r} cannot be written there: {e.strerror}") from None


def write_page(path: Path, texts: list[tuple[str, str]], models: list, told: list, groups: list, note: str):
    """Fill page.html: names and texts, what each model says of each text, the rows of the table."""
    described = [
        dict(
            name=one.name,
            tokens=[token.decode("utf-8", "backslashreplace") for token in one.tok.tokens]
            + [*one.tok.special],
            columns=b64encode(zlib.compress(np.hstack(parts).tobytes())).decode(),
        )
        for one, parts in zip(models, told, strict=True)
    ]
    header = dict(
        text="".join(text for _, text in texts),
        plays=[(name, len(text.encode("utf-16-le")) // 2) for name, text in texts],
        models=described,
        note=note,
        rows=[[(row.name, row.characters, row.bits.tolist()) for row in group] for group in groups],
    )
    # nothing in it, which may hold anything, ends the script that it stands in
    header = json.dumps(header, ensure_ascii=False).replace("<", "\\u003c")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    whole = template.replace("{{header}}", header, 1).encode("utf-8", "backslashreplace")  # odd file names
    write_atomically(path, lambda file: file.write(whole))
    print(f"{path}: {len(whole):,} bytes")
