"""Text to token ids and back.

A tokenizer has `vocab_size`, `encode(text) -> ids`, `decode(ids) -> text` and `to_dict()`, which is
plain JSON; `from_dict` makes it again. It is stored in meta.json and in every checkpoint.
"""

import numpy as np

UNKNOWN = 0xFFFF  # never an id: ids are uint16 and at most 65,535 characters are taken


class UnknownCharacters(ValueError):
    """Text holds characters that the tokenizer was not made from; `characters` has each of them once."""

    def __init__(self, characters: list[str]):
        self.characters = characters
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in characters[:8])
        more = f" and {len(characters) - 8} more" if len(characters) > 8 else ""
        super().__init__(f"the model never saw these characters in training: {shown}{more}")


class CharTokenizer:
    """One id a character, in the order of `chars`."""

    def __init__(self, chars: str):
        if not chars or len(set(chars)) != len(chars) or len(chars) > UNKNOWN:
            raise ValueError(f"a vocabulary is 1 to {UNKNOWN:,} different characters")
        self.chars = chars
        self.vocab_size = len(chars)
        self._points = np.array([ord(c) for c in chars], dtype="<u4")
        self._ids = np.full(0x110000, UNKNOWN, dtype=np.uint16)  # one entry a Unicode code point
        self._ids[self._points] = np.arange(len(chars))
        ascii_ids = self._ids[:128]
        self._ascii = None  # ids of ASCII characters as bytes, where they fit; 255 is unknown
        if (ascii_ids[ascii_ids != UNKNOWN] < 255).all():
            self._ascii = np.minimum(ascii_ids, 255).astype(np.uint8).tobytes() + b"\xff" * 128

    def encode(self, text: str) -> np.ndarray:
        """ids (len(text),) uint16. Raises UnknownCharacters, which names each of them."""
        if self._ascii and text.isascii():  # three times faster than what follows
            ids = np.frombuffer(text.encode().translate(self._ascii), dtype=np.uint8)
            if 255 not in ids:
                return ids.astype(np.uint16)
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._ids[points]
        unknown = ids == UNKNOWN
        if unknown.any():
            raise UnknownCharacters([chr(p) for p in np.unique(points[unknown])])
        return ids

    def decode(self, ids) -> str:
        points = self._points[np.asarray(ids, dtype=np.int64)]
        return points.tobytes().decode("utf-32-le", "surrogatepass")

    def to_dict(self) -> dict:
        return {"kind": "char", "chars": self.chars}


def from_dict(d: dict) -> CharTokenizer:
    """The tokenizer that `to_dict` described. Raises ValueError for anything else."""
    if not isinstance(d, dict) or d.get("kind") != "char" or not isinstance(d.get("chars"), str):
        raise ValueError("not a tokenizer that this version knows")
    return CharTokenizer(d["chars"])
