"""Speeches: who may speak, when a scene is over, and the forms it can be printed in.

A play is speeches, each a name, a colon and lines, with an empty line between two of them.
"""

import json
import math
import re
import unicodedata

from configurator import UserError
from drama.tokenizer import UnknownCharacters, as_known

SPEECH = re.compile(r"([^\n:：]{1,60})[:：]\n")
NEXT_NAME = re.compile(r"\n\n([^\n:：]{1,60})[:：](?=\n)")


def speeches(text: str) -> list[tuple[str, str]]:
    """(name, lines) of each speech; the name is empty for what stands before the first."""
    found = []
    for part in re.split(r"\n\n+", text.strip("\n")):
        heading = SPEECH.match(part + "\n")
        if heading:
            found.append((heading[1].strip(), part[heading.end() :]))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n\n{part}")
        elif part:
            found.append(("", part))
    return found


class Speakers:
    """Who speaks in a text that is read in pieces: `names`, in the order in which they first do."""

    LONGEST = 10_000_000  # characters; of a longer text no names are kept, since it may have too many

    def __init__(self):
        self.names, self.length, self.tail = [], 0, "\n\n"

    def read(self, piece: str):
        self.length += len(piece)
        text = self.tail + piece
        self.tail = text[-64:]  # a speech's first line may end in the next piece
        found = [name.strip() for name in NEXT_NAME.findall(text) if name.strip()]
        self.names = list(dict.fromkeys(self.names + found)) if self.length <= self.LONGEST else []


def cast_names(cast: str) -> list[str]:
    """The names in a list such as "LUCIO, ISABELLA"."""
    return [name.strip() for name in cast.split(",") if name.strip()]


class Cast:
    """Allows only the names of a cast wherever a speech begins.

    The model's own probabilities choose among the names, token by token. Raises UserError for a name that
    the tokenizer cannot spell.
    """

    def __init__(self, names: list[str], tok):
        try:
            self.names = [as_known(name, tok)[0] for name in names]
            headings = [f"{name}{colon(name, tok)}\n" for name in self.names]
            for heading in headings:
                tok.encode(heading)
        except UnknownCharacters as e:
            raise UserError(f"cast: {e}") from None
        self.headings = [heading.encode() for heading in headings]
        self.ids = {tok.decode_bytes([n]): n for n in range(tok.vocab_size)}

    def whole(self, text: str) -> str:
        """A text without its last speech, where no more than a part of the name was written."""
        before, _, end = text.rpartition("\n\n")
        begun = end.encode("utf-8", "surrogatepass")
        return before if before and any(h.startswith(begun) for h in self.headings) else text

    def allowed(self, text: bytes) -> list[int] | None:
        """The tokens that may follow a text, or None for all."""
        begun = text[text.rfind(b"\n\n") + 2 :] if b"\n\n" in text else text.lstrip(b"\n")
        rests = [heading[len(begun) :] for heading in self.headings if heading.startswith(begun)]
        starts = {rest[:n] for rest in rests for n in range(1, len(rest) + 1)}
        return [self.ids[start] for start in starts if start in self.ids] or None


def colon(name: str, tok) -> str:
    """The colon after a name: the wide one where the name has wide letters and the text uses it.

    Byte pairs can spell any colon; the one that is frequent in the text is a token of its own.
    """
    if not any(unicodedata.east_asian_width(letter) in "FW" for letter in name):
        return ":"
    try:
        return "：" if len(tok.encode("：")) == 1 else ":"
    except UnknownCharacters:
        return ":"


class Director:
    """Watches the rows of a batch as they are written: limits who speaks, knows when each row is done.

    prompt: what every row starts with. turns: after how many whole speeches a row is done; 0: never.
    """

    def __init__(self, tok, prompt: str, rows: int, cast: Cast | None = None, turns: int = 0):
        self.tok, self.cast, self.turns = tok, cast, turns
        self.prompt = len(prompt.encode("utf-8", "surrogatepass"))
        self.texts = [bytearray(prompt.encode("utf-8", "surrogatepass")) for _ in range(rows)]

    @property
    def confines(self) -> bool:
        """Whether some tokens may be forbidden, so that each has to be seen before the next."""
        return self.cast is not None

    def confine(self, logits):
        """logits (B, V), with -inf for every token that the cast does not let come next."""
        for row, text in enumerate(self.texts):
            allowed = self.cast.allowed(bytes(text[-400:]))
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
        """A row's text: to the end of its last turn, where there is one."""
        text = self.texts[row]
        return text[: self.end(text)].decode("utf-8", "ignore")  # half a character is left out

    def end(self, text: bytearray) -> int | None:
        """Where the last turn ends, or None while it has not."""
        at = self.prompt
        # a prompt that ends with an empty line, or with nothing, has no speech under way
        if not text[:at].strip(b"\n"):
            at = len(text) - len(text.lstrip(b"\n"))
        elif text[at - 1 : at] == b"\n" and text[at - 2 : at] != b"\n\n":
            at -= 1  # the first half of the empty line may be the prompt's
        for _ in range(self.turns):
            at = text.find(b"\n\n", at)
            if at < 0:
                return None
            at += 2
        return at - 1 if self.turns else None

    def done(self) -> bool:
        return self.turns > 0 and all(self.end(text) is not None for text in self.texts)


def fountain(texts: list[str]) -> str:
    """Texts as a screenplay (fountain.io), a page break between two of them."""
    pages = []
    for text in texts:
        blocks = []
        for name, lines in speeches(text):
            # an empty line within a speech is two spaces there
            spoken = re.sub(r"\n(?=\n|$)", "\n  ", plain_fountain(lines.strip("\n")))
            # @ makes any name a character's, and ^ at its end would put it beside the one before
            blocks.append(
                f"@{plain_fountain(name.rstrip('^ '))}\n{spoken or '...'}" if name else f"!{spoken}"
            )
        pages.append("\n\n".join(blocks))
    return "\n\n===\n\n".join(pages)


def plain_fountain(text: str) -> str:
    """Text without what Fountain takes for emphasis, notes and comments."""
    return re.sub(r"([*_])", r"\\\1", text).replace("[[", "[ [").replace("]]", "] ]")


def as_json(texts: list[str]) -> str:
    """Texts as JSON: lists of speeches, {"speaker", "text"}; what comes before the first has no speaker."""
    scenes = [speeches(text) for text in texts]
    scenes = [[{"speaker": name or None, "text": lines.strip("\n")} for name, lines in s] for s in scenes]
    return json.dumps(scenes, ensure_ascii=False, indent=1)
