"""Who may speak in a text while it is written, and when a scene is over."""

import codecs
import math
import re

from configurator import UserError
from drama.speech import LONGEST_NAME, colon
from drama.tokenizer import UnknownCharacters, as_known

MOST_NAMES = 200


def cast_names(cast: str) -> list[str]:
    """The names in a list such as "LUCIO, ISABELLA" or "秀英，林黛". Raises UserError where none is named."""
    names = [name.strip() for name in re.split("[,，、]", cast) if name.strip()]
    if cast.strip() and not names:
        raise UserError(f"{cast!r} names nobody")
    return names


class Cast:
    """Allows only the names of a cast wherever a speech begins.

    The model decides who is next, but nobody answers himself unless `repeat`. With `in_order` the names are
    those of the next speeches, one after another. Raises UserError for a name that the tokenizer cannot
    spell, or too many.
    """

    def __init__(self, names: list[str], tok, repeat: bool = False, in_order: bool = False):
        if len(names) > MOST_NAMES:
            raise UserError(f"cast: {len(names):,} names; {MOST_NAMES} are the most")
        if (longest := max(map(len, names))) > LONGEST_NAME:
            raise UserError(f"cast: a name of {longest:,} characters; {LONGEST_NAME} are the most")
        try:
            self.names = [as_known(name, tok)[0] for name in names]
            headings = [f"{name}{colon(name, tok)}\n" for name in self.names]
            for heading in headings:
                tok.encode(heading)
        except UnknownCharacters as e:
            raise UserError(f"cast: {e}") from None
        self.headings = [heading.encode() for heading in headings]
        self.longest = max(map(len, self.headings))
        self.ids = {token: n for n, token in enumerate(tok.tokens)}
        self.repeat, self.in_order = repeat, in_order

    def whole(self, text: bytearray) -> int:
        """How much of a text there is without its last speech, where its name is not whole yet."""
        before = text.rfind(b"\n\n")
        unfinished = before > 0 and any(h.startswith(text[before + 2 :]) for h in self.headings)
        return before if unfinished else len(text)

    def allowed(self, text: bytearray, n: int = 0) -> list[int] | None:
        """The tokens that may follow a text whose next speech is number n, or None for all."""
        begin = paragraph(text, len(text))
        if len(text) - begin >= self.longest:
            return None
        begun = bytes(text[begin:])
        rests = [heading[len(begun) :] for heading in self.next(text, begin, n) if heading.startswith(begun)]
        starts = {rest[:n] for rest in rests for n in range(1, len(rest) + 1)}
        return [self.ids[start] for start in starts if start in self.ids] or None

    def next(self, text: bytearray, begin: int, n: int) -> list[bytes]:
        """The headings that speech number n, which begins there, may have."""
        if self.in_order:
            return self.headings[n : n + 1]
        if self.repeat or len(self.headings) == 1:
            return self.headings
        end = begin
        while text[end - 1 : end] == b"\n":
            end -= 1
        before = paragraph(text, end)
        last = text[before : text.find(b"\n", before) + 1]
        return [heading for heading in self.headings if heading != last]


def paragraph(text: bytearray, end: int) -> int:
    """Where the paragraph begins that holds what stands before `end`."""
    begin = text.rfind(b"\n\n", 0, end)
    if begin >= 0:
        return begin + 2
    begin = 0
    while text[begin : begin + 1] == b"\n":
        begin += 1
    return min(begin, end)


class Director:
    """Watches the rows of a batch as they are written: limits who speaks, knows when each row is done.

    prompt: what every row starts with. turns: after how many whole speeches a row is done; 0: never. A
    speech that the prompt leaves under way is one; the turns of a cast in order are those that follow it.
    """

    def __init__(self, tok, prompt: str, rows: int, cast: Cast | None = None, turns: int = 0):
        start = prompt.encode("utf-8", "surrogatepass")
        self.tok, self.cast, self.prompt = tok, cast, len(start)
        self.texts = [bytearray(start) for _ in range(rows)]
        self.under_way = bool(start.strip(b"\n")) and not start.endswith(b"\n\n")
        self.turns = len(cast.names) + self.under_way if cast and cast.in_order else turns

    @property
    def confines(self) -> bool:
        """Whether some tokens may be forbidden, so that each has to be seen before the next."""
        return self.cast is not None

    def confine(self, logits):
        """logits (B, V), with -inf for every token that the cast does not let come next."""
        for row, text in enumerate(self.texts):
            allowed = self.cast.allowed(text, text.count(b"\n\n", self.begin(text)) - self.under_way)
            if allowed is not None:
                outside = logits.new_full(logits[row].shape, -math.inf)
                outside[allowed] = 0
                logits[row] += outside
        return logits

    def saw(self, tokens):
        """Take note of the next tokens (B, n) that were picked."""
        for text, row in zip(self.texts, tokens.tolist(), strict=True):
            text += self.tok.decode_bytes(row)

    def written(self, row: int) -> str:
        """A row's text: to the end of its last turn, without half a heading, without half a character."""
        text = self.texts[row]
        end = self.end(text)
        if end is None:
            end = self.cast.whole(text) if self.cast else len(text)
        return codecs.getincrementaldecoder("utf-8")("replace").decode(text[:end])

    def begin(self, text: bytearray) -> int:
        """Where the turns begin: after the prompt, whose end may be the first half of an empty line."""
        at = self.prompt
        if self.under_way:
            return at - (text[at - 1 : at] == b"\n")
        while text[at : at + 1] == b"\n":
            at += 1
        return at

    def end(self, text: bytearray) -> int | None:
        """Where the last turn ends, or None while it has not."""
        at = self.begin(text)
        for _ in range(self.turns):
            at = text.find(b"\n\n", at)
            if at < 0:
                return None
            at += 2
        return at - 1 if self.turns else None

    def done(self) -> bool:
        return self.turns > 0 and all(self.end(text) is not None for text in self.texts)
