"""The lines of a play that may begin a speech: a name, as each layout shows it."""

import functools
import re
import unicodedata
from typing import NamedTuple

from drama.plays.unspoken import BLANKS, OPEN, OPENING, after_brackets
from drama.speech import LONGEST_NAME

FIRST = {"colon": ":|：", "dot": r"\.|\[|\(", "dash": "[—–-]", "gap": "[\t\u3000]|  ", "quotes": "[「『]"}
# FIRST is what a line has to hold; ENDS what ends a name, searched for in a line's first characters
ENDS = {
    "colon": r"\s*[:：](?!//)",  # ANNA: Where is the well?
    "dot": r"\.(?=\s|$)",  # ANNA. Where is the well?
    "dash": r"\s*\.?\s*(?:[—–]+|--+)(?=\s*\S)|\s+-\s+",  # ANNA — Where is the well?
    "caps": r"\s*[.:]?\s*$",  # ANNA, and the speech below
    "indent": r"\s*[.:]?\s*$",  # Anna, and the speech below, indented
    "gap": r"\s*[\t\u3000]\s*(?=\S)| {2,}(?=\S)",  # Anna, a tab or a wide space, the speech
    "quotes": r"(?=[「『])",  # 太郎「井戸はどこ？」
    "fountain": r"\s*\^?\s*$",  # ANNA, her speech below
}
FIRST, ENDS = ({layout: re.compile(mark) for layout, mark in marks.items()} for marks in (FIRST, ENDS))
MARKED = {
    "markdown": re.compile(
        r"[ >]*(?P<mark>\*\*|__|\*|_)(?P<name>[^*_\s][^*_]{0,100}?)[.:：]?(?P=mark)(?:\s*[.:：])?"
    ),
    "brackets": re.compile(r"(?P<mark>【)(?P<name>[^】]{1,60})】[:：]?"),
}
TITLES = re.compile(
    r"(?:\w{1,2}|M[rR][sS]|M[mM][eE]|Mlle|St[er]|Rev|Prof|Capt|Sgt|Col|Gen|Lt|Lieut|Frl|Hon|Hrn?|Dr)$"
)
ASIDE = re.compile(  # HARPAGON, à part; Anna, aside
    r"(?<=[A-ZÀ-ÝА-Я]{2}),\s*[^\W\dA-ZÀ-ÝА-Я_].*|,\s*[^\W\dA-ZÀ-ÝА-Я_]\S*(?: \S+)?$"
)
CAPITALS = ("dot", "dash", "caps", "fountain")  # layouts where capitals tell a name from a sentence
SAID = ("道", "说", "說", "问", "問", "曰", "言")  # as a Chinese novel introduces what is said
SMALL = (
    "von van zu zum zur und der die das dem den des im in mit of the and a an to with de du des la le les et"
    " à au aux avec seul y e el los las del di da dos do с и в от из"
)
PARTICLES = frozenset(SMALL.split())  # words without a capital that names have
NOT_IN_NAMES = re.compile(
    r"[;,，、:：]$|[?!;…<>=|{}\\@^%，。！？；「」『』]|\w{6,}\. |[^\W\d_]{3}\.[a-z]|://|^[^\w'’\"“„«‘#]"
)
TIME = re.compile(r"\d[:.]\d\d")


@functools.lru_cache(1 << 16)
def shouted(name: str, first: bool = False) -> bool:
    """Whether a name, or its first longer word, is in capitals: ANNA and BEN, or McGREGOR; 王 has none."""
    if first:
        name = next((word for word in name.split() if len(word) > 2), name)
    upper, lower = sum(map(str.isupper, name)), sum(map(str.islower, name))
    return lower == 0 or upper > 1.5 * lower


@functools.lru_cache(1 << 16)
def shape(name: str) -> int:
    """2 for a name, 1 for what may be a name or the beginning of a sentence, 0 for no name."""
    words = name.split()
    if not words or len(name) > LONGEST_NAME or len(words) > 9 or name.endswith(SAID):
        return 0
    if NOT_IN_NAMES.search(name) or name.count('"') % 2:
        return 0
    if not any(map(str.isalpha, name)):
        return name.strip(".").isdigit() and len(name) < 4
    if unicodedata.east_asian_width(name[0]) in "FW" and len(name) > 12:
        return 0
    first = next(c for c in name if c.isalpha())
    lower = [w for w in words if w[0].islower() and w not in PARTICLES]
    return 0 if len(lower) > 3 + 2 * shouted(name, first=True) else 1 if lower or first.islower() else 2


class Head(NamedTuple):
    """What a line that may begin a speech begins."""

    name: str
    mark: str  # what stands after the name
    at: tuple[int, int]  # where the speech goes on: (lines below, column)
    known: bool = False  # whether it is one only where the name is known from elsewhere
    shorter: tuple = ()  # other heads that the line may be, the longest name first


def head_of(lines: list[str], spans: dict, i: int, layout: str) -> Head | None:
    """What line i begins in a layout."""
    line, start, known = lines[i], 0, False
    if layout in MARKED:
        match = MARKED[layout].match(line)
        if not match:
            return None
        name = match["name"]
        if opened := OPENING.search(name, 1):
            name = name[: opened.start()]
        at = 0, match.end()
        if line[at[1] :].lstrip()[:1] in tuple(OPEN):
            at = skip(lines, spans, i, at[1])
        return Head(tidy(name), match["mark"], at)
    if line[0] in "*_" or (line[-1] in ",，" and layout in ("caps", "indent", "fountain")):
        return None
    if line[0] in OPEN:  # (laughing) CLEO. Yes.
        at = after_brackets(lines, spans, (i, 0))
        if not at or at[0] != i or layout in ("caps", "indent", "fountain"):
            return None
        start, known = at[1], True
    limit = min(len(line), start + LONGEST_NAME + 4)
    if limit < len(line) and layout in ("caps", "indent", "fountain") and not OPENING.search(line, 0, limit):
        return None
    end = ENDS[layout].search(line, start + 1, limit if limit < len(line) else len(line))
    opened = OPENING.search(line, start + 1, limit)
    beside, before = None, line[start : opened.start()].rstrip() if opened else ""
    titled = layout == "dot" and shape(before) and shouted(before) and before[-1] != "."  # MRS. LI [rising] I
    if opened and (not end or opened.start() <= end.start() or titled):
        at = after_brackets(lines, spans, (i, opened.start()))
        if not at:
            return None
        name, rest = before, lines[at[0]][at[1] :]
        mark = ENDS[layout].match(rest[:8]) if rest else None
        if rest and not mark and layout not in ("colon", "dot", "dash"):
            return None
        known |= not mark if rest else layout not in ("caps", "indent", "fountain")  # LIZA [rising] I am.
        at = at[0] - i, at[1] + (mark.end() if mark else 0)
        beside = Head(tidy(name), mark[0].strip() if mark else "(", at, known)
        if not end or opened.start() <= end.start():
            return beside
        known = start > 0
    if not end or (layout == "dot" and end.end() == len(line)):
        return None
    shorter = []
    if layout in ("dot", "dash"):
        while True:  # MR. SMITH. Where? and ANNA. I. You.
            name = line[start : end.start()]
            last = re.split(r"[\s.]", name)[-1]
            more = ENDS[layout].search(line, end.end(), limit) if layout == "dot" else None
            if shorter and not shape(tidy(name)):
                break
            shorter.append(Head(tidy(name), end[0].strip(), skip(lines, spans, i, end.end()), known))
            word = line[end.end() : more.start()].strip() if more else ""
            again = shouted(word) if shouted(name) else TITLES.match(last)
            if not word or not again or OPENING.search(word):
                break
            end = more
        first, *shorter = [beside, *shorter[::-1]] if beside else shorter[::-1]
        return first._replace(shorter=tuple(shorter))
    name = line[start : end.start()]
    return Head(tidy(name), end[0].strip(BLANKS) or end[0][:1], skip(lines, spans, i, end.end()), known)


def skip(lines: list[str], spans: dict, i: int, column: int) -> tuple[int, int]:
    """Where the speech goes on, (lines below, column), after brackets that follow a name."""
    line = lines[i]
    while column < len(line) and line[column] in BLANKS:
        column += 1
    end = after_brackets(lines, spans, (i, column))
    if not end:
        return 0, column
    below, column = end
    while column < len(lines[below]) and lines[below][column] in BLANKS + ".:：,":
        column += 1
    return below - i, column


def tidy(name: str) -> str:
    name = (ASIDE.sub("", name) if "," in name else name).strip(BLANKS + "*_,，")
    return " ".join(name.removeprefix("@").split())
