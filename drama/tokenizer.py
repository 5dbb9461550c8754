"""Text to token ids and back: characters, or byte-pair encoding.

A tokenizer has `kind` (char or bpe), `vocab_size`, `tokens` (the bytes of each id), `special` (what comes
after them), `encode(text) -> ids`, `decode(ids) -> text`, `decode_bytes(ids) -> UTF-8`, and `to_dict()`,
which is plain JSON; `from_dict` makes it again. It is stored in meta.json and in every checkpoint.
"""

import base64
import contextlib
import re
import unicodedata

from drama.program import optional

import numpy as np

from configurator import UserError

UNKNOWN = 0xFFFF  # never an id: ids are uint16 and at most 65,535 characters are taken


class UnknownCharacters(UserError):
    """Text holds characters that the tokenizer was not made from; `characters` has each of them once."""

    def __init__(self, characters: list[str]):
        self.characters = characters
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in characters[:8])
        more = f" and {len(characters) - 8} more" if len(characters) > 8 else ""
        super().__init__(f"the model never saw these characters in training: {shown}{more}; leave them out")


PLAIN = {  # what may stand for a mark that a model does not know, the better first; page.html uses it too
    **{mark: ["'"] for mark in "\u2018\u2019\u201a\u201b\u2032"},
    **{mark: ['"', "'"] for mark in '"\u201c\u201d\u201e\u201f\u00ab\u00bb'},
    **{mark: ["-"] for mark in "\u2010\u2011\u2013\u2212"},
    **{mark: [" "] for mark in "\u00a0\u202f\u3000"},
    **{a: [b] for a, b in zip(":,!?;：，！？；", "：，！？；:,!?;", strict=True)},
    "\u2014": ["--", "-"], "\u2026": ["...", "."], "。": ["."],
}  # fmt: skip


def with_plain(text: str, tok) -> str:
    """The text, its unknown marks replaced by known ones as far as there are any."""

    def unknown(text: str) -> list[str]:
        try:
            tok.encode(text)
            return []
        except UnknownCharacters as e:
            return e.characters

    for mark in unknown(text):
        text = text.replace(mark, next((p for p in PLAIN.get(mark, ()) if not unknown(p)), mark))
    return text


def as_known(text: str, tok) -> tuple[str, str]:
    """(a prompt in the form that the tokenizer knows, what was changed for that or "").

    Where it is not known as it is: `\\n` and `\\t`, which a shell leaves as they are, become a newline and a
    tab; accents become a part of their letters, or apart from them; punctuation that phones and word
    processors set becomes what a typewriter has. Raises UnknownCharacters.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # as in every prepared text
    for escapes, typed in (("", text), (r"\n and \t", text.replace(r"\n", "\n").replace(r"\t", "\t"))):
        for accents, form in (("", None), ("accents", "NFC"), ("accents", "NFD")):
            known = unicodedata.normalize(form, typed) if form else typed
            for punctuation in ("", "punctuation"):
                written = with_plain(known, tok) if punctuation else known
                with contextlib.suppress(UnknownCharacters):
                    tok.encode(written)
                    return written, " and ".join(filter(None, (escapes, accents, punctuation)))
    tok.encode(text)  # which raises: nothing helps
    return text, ""


LONGEST_WORD = 1 << 24  # characters
WORD_END = re.compile(r"\S(?=\s)")


def whole_words(chunks):
    """Yield a text in pieces that end where white space begins, so that byte pairs encode them as the whole.

    Only a text with no white space in 16 million characters is cut anywhere.
    """
    held = ""
    for chunk in chunks:
        held += chunk
        end = len(held)
        if end < LONGEST_WORD:
            end = max((m.end() for m in WORD_END.finditer(held, max(0, end - 1000))), default=0)
        yield held[:end]
        held = held[end:]
    yield held


def first_text(tok) -> str:
    """What stands before a text when no prompt is given.

    The end of a speech, so that a speaker's name follows; any character where a newline is unknown.
    """
    try:
        tok.encode("\n")
        return "\n\n"
    except UnknownCharacters:
        return tok.decode([0])


class CharTokenizer:
    """One id for each character, in the order of `chars`."""

    kind, special = "char", ()

    def __init__(self, chars: str):
        if not chars or len(set(chars)) != len(chars) or len(chars) > UNKNOWN:
            raise ValueError(f"a vocabulary is 1 to {UNKNOWN:,} different characters")
        self.chars = chars
        self.vocab_size = len(chars)
        self.tokens = [char.encode("utf-8", "surrogatepass") for char in chars]
        self._points = np.array([ord(c) for c in chars], dtype="<u4")
        self._ids = np.full(0x110000, UNKNOWN, dtype=np.uint16)  # one entry per Unicode code point
        self._ids[self._points] = np.arange(len(chars))

    def encode(self, text: str) -> np.ndarray:
        """ids (len(text),) uint16. Raises UnknownCharacters, which names each of them."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._ids[points]
        unknown = ids == UNKNOWN
        if unknown.any():
            raise UnknownCharacters([chr(p) for p in np.unique(points[unknown])])
        return ids

    def decode(self, ids) -> str:
        points = self._points[np.asarray(ids, dtype=np.int64)]
        return points.tobytes().decode("utf-32-le", "surrogatepass")

    def decode_bytes(self, ids) -> bytes:
        return self.decode(ids).encode("utf-8", "surrogatepass")

    def to_dict(self) -> dict:
        return {"kind": self.kind, "chars": self.chars}


# How GPT-2 cuts text before pairs are merged: contractions, words, numbers, signs, white space.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LARGEST = 65_536  # ids are uint16


LONGEST_SPACE = re.compile(r"\s{50000}")


def checked(text: str) -> str:
    """The text. Raises UserError where the regular expressions of tiktoken and rustbpe may run out of stack.

    They do on a run of white space of some hundred thousand characters.
    """
    if any(LONGEST_SPACE.match(text, place) for place in range(0, len(text), 50_000)):
        raise UserError("the text has a run of white space that is too long for byte pairs")
    return text


class BPETokenizer:
    """Byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909), run by tiktoken; it can spell any text.

    tokens: the bytes of each id, in the order of merging; every single byte is one of them.
    special: tokens that no text is encoded to, such as GPT-2's end of text; they have the last ids.
    """

    kind = "bpe"

    def __init__(self, tokens: list[bytes], special: tuple[str, ...] = ()):
        tiktoken = optional("tiktoken")  # takes a tenth of a second, and characters do not need it

        if len(set(tokens)) != len(tokens) or not {bytes([b]) for b in range(256)} <= set(tokens):
            raise ValueError("a byte-pair vocabulary has every byte, and no token twice")
        self.tokens, self.special = tokens, tuple(special)
        self.vocab_size = len(tokens) + len(self.special)
        if self.vocab_size > LARGEST:
            raise ValueError(f"a vocabulary is at most {LARGEST:,} tokens")
        self._encoding = tiktoken.Encoding(
            "drama",
            pat_str=GPT2_PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={name: len(tokens) + n for n, name in enumerate(self.special)},
        )

    @classmethod
    def learn(cls, chunks, vocab_size: int) -> "BPETokenizer":
        """A vocabulary of vocab_size tokens, or as many as there are to find, from text in pieces.

        Raises UserError where rustbpe is not installed.
        """
        trainer = optional("rustbpe").Tokenizer()
        trainer.train_from_iterator(map(checked, chunks), vocab_size=vocab_size, pattern=GPT2_PATTERN)
        return cls([bytes(token) for token, _ in trainer.get_mergeable_ranks()])

    @classmethod
    def gpt2(cls) -> "BPETokenizer":
        """GPT-2's own, from tiktoken. Raises OSError where its files cannot be fetched."""
        tiktoken = optional("tiktoken")

        try:
            encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as e:  # ValueError: what came is not what was published
            advice = "try again with a network, or set TIKTOKEN_CACHE_DIR to where it was fetched before"
            message = f"GPT-2's vocabulary could not be fetched ({type(e).__name__}); {advice}"
            raise OSError(0, message) from None
        tokens = [encoding.decode_single_token_bytes(n) for n in range(encoding.n_vocab - 1)]
        return cls(tokens, ("<|endoftext|>",))

    def encode(self, text: str) -> np.ndarray:
        """ids, uint16, at most one for each UTF-8 byte."""
        return np.array(self._encoding.encode_ordinary(checked(text)), dtype=np.uint16)

    def decode(self, ids) -> str:
        """The text, with U+FFFD for bytes that are not UTF-8, such as half a character."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids) -> bytes:
        return self._encoding.decode_bytes(np.asarray(ids, dtype=np.int64).tolist())

    def to_dict(self) -> dict:
        tokens = [base64.b64encode(token).decode() for token in self.tokens]
        return {"kind": self.kind, "tokens": " ".join(tokens), "special": list(self.special)}


def from_dict(d: dict):
    """The tokenizer that `to_dict` described. Raises ValueError for anything else."""
    kind = d.get("kind") if isinstance(d, dict) else None
    if kind == "char" and isinstance(d.get("chars"), str):
        return CharTokenizer(d["chars"])
    if kind == "bpe" and isinstance(d.get("tokens"), str) and isinstance(d.get("special"), list):
        tokens = [base64.b64decode(token) for token in d["tokens"].split()]
        return BPETokenizer(tokens, tuple(map(str, d["special"])))
    raise ValueError("not a tokenizer that this version knows")
