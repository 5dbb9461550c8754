"""Plays in TEI: the words of each speech as they are spoken, and one name for each person.

A speech is an <sp>, wherever it stands, or a prologue or an epilogue without one. Its words are all that is
not a direction, a heading, a note or the edition's own; where an edition offers a choice, what is regular and
corrected.
"""

import re
from collections import Counter

from configurator import UserError
from drama.plays.speakers import cleaned, named

DEEPEST = 1000  # elements within each other; plays have some twenty

DIRECTIONS = ("stage", "move", "view", "camera", "sound", "tech", "caption")
UNSPOKEN = dict.fromkeys(DIRECTIONS, "stage directions") | {"note": "notes", "noteGrp": "notes"}
UNSPOKEN |= {"head": "headings", "trailer": "headings"}
UNSPOKEN |= dict.fromkeys(("fw", "ref", "gap", "figure", "del", "surplus", "index", "desc", "bibl"), "")
PERSONS = ("person", "personGrp", "castItem")
PREFERRED = ("reg", "corr", "expan")

# Marks in the text of a speech until its lines are known: XML itself cannot have these characters.
LINE, BROKEN, TURNED, PAGE, JOINED, RESUMED, WORD, SPACE, SEG, SEG_END = "\1\2\3\4\5\6\7\b\x0e\x0f"
BLOCKS = ("p", "ab", "lg", "list", "item", "row", "opener", "closer", "salute", "signed", "dateline")
STARTS = dict.fromkeys(BLOCKS, LINE)
ENDS = STARTS | {"l": LINE, "s": " ", "cell": " ", "seg": SEG_END}
STARTS |= {"s": " ", "cell": " ", "seg": SEG, "w": WORD, "c": SPACE, "pb": PAGE, "cb": PAGE, "gb": PAGE}
MARKED = re.compile("[\2-\b\x0e\x0f\xad]")
HYPHENS = "-¬⸗‐\xad"
HYPHENATED = re.compile(rf"(?<=\w)[{HYPHENS}]\s*([{BROKEN}{TURNED}{PAGE}])\s*(?=(\w))")


class Speech:
    def __init__(self, who: str, depth: int, prologue: str = ""):
        self.who = [key.rpartition("#")[2] for key in who.split()]
        self.depth, self.prologue = depth, prologue
        self.label, self.pieces = [], []


class Tei:
    """What the parser calls as it reads a file; `speeches` then has (name, text) of each."""

    kind = "TEI"

    def __init__(self, parser):
        self.parser, self.stack, self.skip = parser, [], 0  # open elements; how many within an unspoken one
        self.pieces = None  # the list that text goes to, if any
        self.choices = []  # of each open <choice>: the list, where in it, the best text so far and its rank
        self.speech, self.outer = None, []  # the speech that is open, and those around it
        self.said, self.speeches = [], []  # (who, label, text) of this play; (name, text) of those before it
        self.person, self.naming, self.cast, self.groups = "", 0, {}, set()
        self.in_text, self.in_part, self.left_out = False, False, Counter()

    def listen(self, pieces: list | None):
        self.pieces = pieces
        self.parser.CharacterDataHandler = None if pieces is None else pieces.append

    def start(self, name: str, attributes: dict):
        stack, above = self.stack, self.stack[-1] if self.stack else ""
        if len(stack) + self.skip == DEEPEST:
            raise UserError(f"has more than {DEEPEST:,} elements within each other")
        if self.skip:
            self.skip += 1
        elif name in UNSPOKEN or above == "taken":
            self.skip = 1
            self.left_out[UNSPOKEN.get(name, "")] += self.in_text
            self.parser.CharacterDataHandler = None
            if name == "head" and self.speech and self.speech.prologue:
                self.parser.CharacterDataHandler = self.speech.label.append
        else:
            if above in ("app", "rdgGrp"):
                stack[-1] = "taken"  # its first reading, the lemma; the others are left out
            elif above == "choice":
                del self.choices[-1][0][self.choices[-1][1] :]
            stack.append(name)
            if name in ACTIONS:
                ACTIONS[name](self, attributes, name)
            elif self.pieces is not None:
                if name in STARTS:
                    self.pieces.append(JOINED if attributes.get("break") == "no" else STARTS[name])
            elif self.in_text and name in ("p", "ab"):
                self.left_out["lines outside speeches"] += 1

    def end(self, name: str):
        stack = self.stack
        if self.skip:
            self.skip -= 1
            if not self.skip:
                self.listen(self.pieces)
            return
        if self.pieces is not None:
            if name in ENDS:
                self.pieces.append(ENDS[name])
            elif name == "speaker" and self.speech:
                self.listen(self.speech.pieces)
            elif len(stack) == self.naming:
                self.naming = self.listen(None) or 0
        elif name in PERSONS:
            self.person = ""
        if name == "choice":
            pieces, at, best, _ = self.choices.pop()
            pieces[at:] = best
        if self.speech and len(stack) == self.speech.depth:
            self.flush()
            self.speech = self.outer.pop() if self.outer else None
            self.listen(self.speech and self.speech.pieces)
        stack.pop()
        if stack and stack[-1] == "choice":
            choice, rank = self.choices[-1], name in PREFERRED
            if rank > choice[3]:
                choice[2:] = choice[0][choice[1] :], rank
        if name in ("TEI", "TEI.2"):
            cast = {key: cleaned(joined(pieces)) for key, pieces in self.cast.items()}
            self.speeches += named(self.said, cast, self.groups)
            self.said, self.cast, self.groups, self.in_text = [], {}, set(), False

    def flush(self):
        """Take down what the open speech has said so far."""
        if text := spoken(self.speech.pieces or ()):
            label = cleaned(joined(self.speech.label))
            if self.speech.prologue:
                found = re.search(r"\w*(?:pro|epi)log\w*", label, re.I)
                label = found[0] if found else self.speech.prologue.capitalize()
            self.said.append((self.speech.who, label, text))
        del (self.speech.pieces or [])[:]

    def start_sp(self, attributes: dict, _):
        if self.speech and self.speech.prologue:  # one with speeches of its own
            self.speech.pieces = None
        elif self.speech:
            self.flush()
        if self.speech:
            self.outer.append(self.speech)
        self.speech = Speech(attributes.get("who", ""), len(self.stack))
        self.in_part, self.naming = False, 0
        self.listen(self.speech.pieces)

    def start_div(self, attributes: dict, name: str):
        kind = attributes.get("type", name).lower()
        if kind in ("prologue", "epilogue") and not self.speech and self.in_text:
            self.speech = Speech("", len(self.stack), kind)
            self.listen(self.speech.pieces)

    def start_speaker(self, *_):
        if self.speech and not self.speech.prologue:
            self.speech.label.append(" ")
            self.listen(self.speech.label)

    def start_line(self, attributes: dict, _):
        part = attributes.get("part")
        if self.pieces is not None:
            self.pieces.append(RESUMED if self.in_part and part in ("M", "F") else LINE)
        elif self.in_text:
            self.left_out["lines outside speeches"] += 1
        self.in_part = part in ("I", "M")

    def start_break(self, attributes: dict, _):
        if self.pieces is not None:  # where a line of verse is too long for the page, it is still one
            mark = TURNED if "l" in self.stack else BROKEN
            self.pieces.append(JOINED if attributes.get("break") == "no" else mark)

    def start_choice(self, *_):
        pieces = [] if self.pieces is None else self.pieces
        self.choices.append([pieces, len(pieces), [], -1])

    def start_person(self, attributes: dict, name: str):
        self.person = attributes.get("xml:id") or attributes.get("id", "")
        if name == "personGrp":
            self.groups.add(self.person)

    def start_name(self, attributes: dict, _):
        key = attributes.get("xml:id") or attributes.get("id") or self.person
        if key and key not in self.cast and self.pieces is None:
            self.cast[key], self.naming = [], len(self.stack)
            self.listen(self.cast[key])

    def start_text(self, _, name: str):
        self.in_text, self.person = name == "text", ""


ACTIONS = dict(sp=Tei.start_sp, speaker=Tei.start_speaker, l=Tei.start_line, lb=Tei.start_break)
ACTIONS |= dict(choice=Tei.start_choice, text=Tei.start_text, teiHeader=Tei.start_text)
ACTIONS |= dict.fromkeys(PERSONS, Tei.start_person)
ACTIONS |= dict.fromkeys(("persName", "name", "role"), Tei.start_name)
ACTIONS |= dict.fromkeys(("div", "div1", "div2", "prologue", "epilogue"), Tei.start_div)


def joined(pieces: list[str]) -> str:
    return " ".join(spoken(pieces).split())


def spoken(pieces) -> str:
    """The lines of a speech's text, its marks carried out."""
    text = "".join(pieces)
    if MARKED.search(text):
        text = HYPHENATED.sub(lambda m: "" if m[2].islower() else "-", text).replace("\xad", "")
        parts = text.split(JOINED)
        text = "".join([unhyphenated(part).lstrip() for part in parts[:-1]] + [parts[-1].lstrip()])
        text = " ".join(part.rstrip(f" \t\n{LINE}") for part in text.split(RESUMED))
        text = text.replace(BROKEN, LINE).replace(TURNED, " ").replace(SEG_END + SEG, " ")
        text = re.sub(f"[{PAGE}{SEG}{SEG_END}]", "", text)
        text = LINE.join(map(words, text.split(LINE)))
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.split(LINE))))


def unhyphenated(part: str) -> str:
    part = part.rstrip()
    return part[:-1] if part.endswith(tuple(HYPHENS)) else part


def words(line: str) -> str:
    """A line in which each word may be an element: with spaces between them, and no others."""
    if re.search(rf"{SPACE}\s", line):  # spaces are elements as well
        line = re.sub(rf"(?<!{SPACE})\s+", "", line)
    elif line.count(WORD) > 1 and not re.search(r"\s", line.strip()):  # there are none at all
        line = re.sub(rf"(?<![\u2e80-\uffef])([(\[{{„«‘“¿¡]?){WORD}", r" \1", line)
    return line.replace(WORD, "").replace(SPACE, "")
