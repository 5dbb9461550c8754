"""Speeches: who may speak, when a scene is over, and the forms it can be printed in.

A play is speeches, each a name, a colon and lines, with an empty line between two of them.
"""

import json
import re
import unicodedata

import torch

from tokenizer import UnknownCharacters

SPEECH = re.compile(r"([^\n:：]{1,60})[:：]\n")


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


def cast_names(cast: str) -> list[str]:
    """The names in a list such as "LUCIO, ISABELLA"."""
    return [name.strip() for name in cast.split(",") if name.strip()]


class Cast:
    """Confines decoding to the names of a cast wherever a speech is to begin.

    The model's own probabilities choose among the names, token by token. Raises ValueError for a name that
    the tokenizer cannot spell.
    """

    def __init__(self, names: list[str], tok):
        try:
            headings = [f"{name}{colon(name, tok)}\n" for name in names]
            for heading in headings:
                tok.encode(heading)
        except UnknownCharacters as e:
            raise ValueError(f"cast: {e}") from None
        self.headings = [heading.encode() for heading in headings]
        self.ids = {tok.decode_bytes([n]): n for n in range(tok.vocab_size)}

    def whole(self, text: str) -> str:
        """A text without a speech at its end of which no more than a part of the name is there."""
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
    """The colon behind a name: the wide one where the name is in wide letters and the text has it.

    Byte pairs can spell it in any case; what is frequent in a text is one token there.
    """
    if not any(unicodedata.east_asian_width(letter) in "FW" for letter in name):
        return ":"
    try:
        return "：" if len(tok.encode("：")) == 1 else ":"
    except UnknownCharacters:
        return ":"


class Director:
    """Watches the rows of a batch being written: confines who speaks and knows when each row is done.

    prompt: what every row starts with. turns: how many speeches each row may end; 0 for no end.
    """

    def __init__(self, tok, prompt: str, rows: int, cast: Cast | None = None, turns: int = 0):
        self.tok, self.cast, self.turns = tok, cast, turns
        self.prompt = len(prompt.encode("utf-8", "surrogatepass"))
        self.texts = [bytearray(prompt.encode("utf-8", "surrogatepass")) for _ in range(rows)]

    def confine(self, logits):
        """logits (B, V), with -inf for every token that may not come next."""
        if self.cast:
            for row, text in enumerate(self.texts):
                allowed = self.cast.allowed(bytes(text[-400:]))
                if allowed is not None:
                    outside = torch.full_like(logits[row], -torch.inf)
                    outside[allowed] = 0
                    logits[row] += outside
        return logits

    def saw(self, token):
        """Take note of the tokens (B, 1) that were picked."""
        for text, n in zip(self.texts, token[:, 0].tolist(), strict=True):
            text += self.tok.decode_bytes([n])

    def written(self, row: int) -> str:
        """A row's text: to the end of its last turn, where there is one."""
        text = self.texts[row]
        return text[: self.end(text)].decode("utf-8", "ignore")  # of a character cut in two nothing is shown

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
            # @ makes any name a character's; an empty line within a speech is two spaces there
            spoken = re.sub(r"\n(?=\n|$)", "\n  ", lines.strip("\n"))
            blocks.append(f"@{name}\n{spoken or '...'}" if name else f"!{spoken}")
        pages.append("\n\n".join(blocks))
    return "\n\n===\n\n".join(pages)


def as_json(texts: list[str]) -> str:
    """Texts as a JSON list of lists of speeches, {"speaker", "text"}; no speaker for what stands before."""
    scenes = [
        [{"speaker": name or None, "text": lines.strip("\n")} for name, lines in speeches(text)]
        for text in texts
    ]
    return json.dumps(scenes, ensure_ascii=False, indent=1)
