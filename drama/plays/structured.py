"""Plays with structure, TEI and Final Draft, in the one form: who says what stands there, nothing is guessed.

They are read piece by piece, without entities and without a network: time grows with a file's length, and
memory with what is spoken in it.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from html.entities import html5
from pathlib import Path
from xml.parsers import expat

from configurator import UserError, one_line
from drama.plays.speakers import cleaned
from drama.plays.tei import Tei

CHUNK = 1 << 20  # bytes read at a time


@dataclass
class Play:
    kind: str  # "TEI" or "Final Draft"
    text: str  # in the one form
    cast: dict[str, int]  # how many speeches each name has, in the order in which they first speak
    left_out: dict[str, int]  # what is not spoken, by kind


class FinalDraft:
    """What the parser calls as it reads a screenplay; `speeches` then has (name, text) of each."""

    kind = "Final Draft"
    SPOKEN = ("Dialogue", "Lyrics", "Singing")

    def __init__(self, parser):
        self.parser, self.skip, self.pieces = parser, 0, None
        self.paragraphs = []  # those that are open: their kinds and texts
        self.speeches, self.name, self.left_out = [], "", Counter()

    def start(self, name: str, attributes: dict):
        if self.skip or name not in ("FinalDraft", "Content", "Paragraph", "DualDialogue", "Text"):
            self.skip += 1  # title page, notes, settings
        elif name == "Paragraph":
            self.paragraphs.append((attributes.get("Type", ""), []))
        elif name == "Text" and self.paragraphs:
            self.pieces = self.paragraphs[-1][1]
            self.parser.CharacterDataHandler = self.pieces.append

    def end(self, name: str):
        if self.skip:
            self.skip -= 1
            return
        self.pieces = self.parser.CharacterDataHandler = None
        if name == "Paragraph":
            kind, pieces = self.paragraphs.pop()
            lines = [" ".join(line.split()) for line in "".join(pieces).split("\n")]
            self.paragraph(kind, "\n".join(filter(None, lines)))

    def paragraph(self, kind: str, text: str):
        if not text or kind == "Parenthetical":
            self.left_out["parentheticals"] += bool(text)
        elif kind == "Character":
            self.name = cleaned(text)
            self.speeches.append((self.name, ""))
        elif kind in self.SPOKEN and self.name:
            before = self.speeches[-1][1]
            self.speeches[-1] = self.name, f"{before}\n{text}" if before else text
        else:
            self.name = ""
            self.left_out["lines outside speeches" if kind in self.SPOKEN else kind.lower() or "others"] += 1


ROOTS = {"TEI": Tei, "TEI.2": Tei, "teiCorpus": Tei, "teiCorpus.2": Tei, "FinalDraft": FinalDraft}


def local(name: str) -> str:
    return name.rpartition(":")[2]


def read(path: Path) -> Play:
    """The play in an XML file.

    Raises UserError for XML that is neither TEI nor Final Draft, has no speeches or cannot be read safely.
    """
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, 1 << 16
    reader = None

    def root(name: str, attributes: dict):
        nonlocal reader
        prefix, _, kind = name.rpartition(":")
        if kind not in ROOTS:
            advice = "TEI and Final Draft (.fdx) are read; save it as one of them, or as plain text"
            raise UserError(f"is XML of another kind (<{name[:40]}>); {advice}")
        reader = ROOTS[kind](parser)
        parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
        if prefix:  # as in <tei:TEI>
            parser.StartElementHandler = lambda name, attributes: reader.start(local(name), attributes)
            parser.EndElementHandler = lambda name: reader.end(local(name))
        reader.start(kind, attributes)

    def declared(name: str, is_parameter: bool, value: str | None, *_):
        if not is_parameter or value not in ("INCLUDE", "IGNORE"):  # the switches of older TEI
            advice = "write the text itself where they stand"
            raise UserError(f"declares an entity ({name[:40]}); entities are never read, so {advice}")

    def undeclared(name: str, is_parameter: bool):
        """One of a DTD, which is not fetched: those for letters have the same names in HTML."""
        if is_parameter:
            return
        if (letter := html5.get(f"{name};")) is None:
            raise UserError(f"has an entity of its DTD (&{name[:40]};); write the text itself in its place")
        if parser.CharacterDataHandler:
            parser.CharacterDataHandler(letter)

    parser.StartElementHandler, parser.EntityDeclHandler = root, declared
    parser.SkippedEntityHandler = undeclared
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                parser.Parse(chunk)
        parser.Parse(b"", True)
        play = one_form(
            reader.kind, [(name, text) for name, text in reader.speeches if text], reader.left_out
        )
        if not play.cast:
            raise UserError(f"is {play.kind} without a speech whose speaker is named; leave it out")
    except expat.ExpatError as e:
        raise UserError(f"{path} is not well-formed XML ({one_line(e)}); a browser shows the place") from None
    except UserError as e:
        raise UserError(f"{path} {e}") from None
    except (ValueError, LookupError) as e:  # an encoding that expat does not know
        raise UserError(
            f"{path} is XML in an encoding that is not read ({one_line(e)}); save it in UTF-8"
        ) from None
    return play


def one_form(kind: str, speeches: list[tuple[str, str]], left_out: Counter) -> Play:
    """Speeches (name, text) in the one form; those without a name are left out."""
    parts, cast = [], Counter()
    for name, text in speeches:
        if name:
            colon = "：" if unicodedata.east_asian_width(name[0]) in "FW" else ":"
            parts.append(f"{name}{colon}\n{text}\n")
            cast[name] += 1
        else:
            left_out["speeches without a name"] += 1
    return Play(kind, "\n".join(parts), dict(cast), {what: n for what, n in left_out.items() if what and n})
