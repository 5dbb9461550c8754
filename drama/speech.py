"""What a speech is, and plays as Fountain and as JSON.

A play is speeches, each a name, a colon and lines, with an empty line between two of them.
"""

import itertools
import json
import re
import unicodedata
from collections import Counter

from drama.tokenizer import UnknownCharacters, first_text

LONGEST_NAME = 60  # characters
SPEECH = re.compile(rf"([^\n:：]{{1,{LONGEST_NAME}}})[:：]\n")  # where one begins; page.html uses it too
NEXT_SPEECH = re.compile(rf"(?<=\n\n){SPEECH.pattern}")


def speeches(text: str) -> list[tuple[str, str]]:
    """(name, lines) of each speech; the name is empty for what stands before the first."""
    spoken = []
    for paragraph in re.split(r"\n\n+", text.strip("\n")):
        heading = SPEECH.match(paragraph + "\n")
        if heading:
            spoken.append((heading[1].strip(), paragraph[heading.end() :]))
        elif spoken:
            spoken[-1] = (spoken[-1][0], f"{spoken[-1][1]}\n\n{paragraph}")
        elif paragraph:
            spoken.append(("", paragraph))
    return spoken


def speakers(pieces) -> dict[str, int]:
    """How many speeches each name has, in the order in which they first speak, of a text in pieces."""
    counts, held = Counter(), "\n\n"
    for piece in itertools.chain(pieces, ["\n\n"]):
        held += piece
        end = held.rfind("\n\n")
        counts.update(name.strip() for name in NEXT_SPEECH.findall(held, 0, end + 1))
        held = held[end:]
        if len(held) > 400:  # only at its beginning can a paragraph have a name
            held = held[:200] + " " + held[-200:]
    counts.pop("", None)
    return dict(counts)


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


def first_prompt(speakers: list[str], tok) -> str:
    """What a text may begin with: the name of the first speaker that is known, or nothing in particular."""
    return f"{speakers[0]}{colon(speakers[0], tok)}" if speakers else first_text(tok)


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
