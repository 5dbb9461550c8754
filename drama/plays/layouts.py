"""Plays in common layouts of plain text, converted to the one that a model learns from.

That one is: a name and a colon on a line of their own, then the speech's lines, then an empty line.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from drama.speech import NEXT_SPEECH

Layout = Literal["auto", "keep", "colon", "dot", "caps", "indent", "gap", "markdown", "fountain"]

BLANK = r"[ \t\u3000\xa0]"
TITLE = (
    r"(?:M[Rr][Ss]?|M[Ss]|M(?:me|ME|lle|LLE)|D[Rr]|S[TtRr]|R[Ee][Vv]|P[Rr][Oo][Ff]|C[Aa][Pp][Tt]|H[Rr]|F[Rr])"
)
NUMBER = r"\d{1,2}(?:ST|ND|RD|TH|st|nd|rd|th|\.)"  # 1ST CITIZEN, 1. BÜRGER
LETTER = r"[^\n\t\u3000:：.?!,;()（）\[\]【】*_\"“”「」<>=]|,(?= [^\W\d_a-z]{2})"  # and ANNA, BEN
NAME = rf"@?(?P<name>(?:{NUMBER} )?(?:{TITLE}\. )?[^\W\d_](?:{LETTER}){{0,39}}?)"
BRACKETED = r"[ \t]*[(（\[【][^()（）\[\]【】\n]*[)）\]】]"
ASIDE = rf"(?:{BRACKETED}){{0,2}}(?:, [a-zà-ÿ][^\n.:：]{{0,40}})?"  # ANNA (aside), HARPAGON, à part
COLON = rf"{BLANK}*(?P<colon>[:：])(?!//)"

# Where a speech begins in each layout, to the end of its name. Names in capitals: see `beginnings`.
BEGINNINGS = {
    "colon": rf"^{BLANK}*{NAME}{ASIDE}{COLON}",  # ANNA: Where is the well?
    "dot": rf"^{BLANK}*{NAME}{ASIDE}\.(?=\s)",  # ANNA. Where is the well?
    "caps": rf"^{BLANK}*{NAME}{ASIDE}[ \t]*$",  # ANNA, and the speech below
    "indent": rf"^{NAME}{ASIDE}[ \t]*\n(?=[ \t]+\S)",  # Anna, and the speech below, indented
    "gap": rf"^{NAME}{ASIDE} *[\t\u3000]\s*(?=\S)",  # Anna, a tab or a wide space, the speech
    "markdown": rf"^[ \t>]*\*\*(?P<name>[^*\n]{{1,60}}?){ASIDE}[.:：]?\*\*{ASIDE}[.:：]?",  # **Anna** Where?
    "fountain": rf"(?<=\n\n)[ \t]*{NAME}{ASIDE}[ \t]*\^?\n(?=[ \t]*\S)",  # ANNA, her speech below
}
BEGINNINGS = {form: re.compile(pattern, re.M) for form, pattern in BEGINNINGS.items()}
IN_CAPITALS = ("dot", "caps", "fountain")
SAID = ("道", "说", "說", "问", "問", "曰")  # as a Chinese novel introduces what is said

# What is never spoken: lines in brackets, which end with their paragraph, headings, rulers.
INSIDE = r"(?:[^()（）\[\]\n]|\n(?!\n)){0,800}"
DIRECTION = re.compile(
    rf"^{BLANK}*(?:\[{INSIDE}\]|\({INSIDE}\)|（{INSIDE}）|【[^】\n]*】|〔[^〕\n]*〕)[.。]?{BLANK}*$", re.M
)
SCENE = re.compile(r"^[ \t]*\.?(?:INT|EXT|EST|I/E)[./ ].*$", re.M)
PART = r"(?:ACT|SCENE|AKT|SZENE|ACTE|SCÈNE|ACTO|ESCENA|ATTO|SCENA) (?:[IVXLC]+|\d+|ONE|TWO|THREE|FOUR|FIVE)"
HEADING = re.compile(
    rf"^{BLANK}*(?:[-=*_]{{3,}}|{PART}\b.{{0,60}}"
    r"|(?:CURTAIN|THE END|FADE (?:IN|OUT)|CUT TO|FINIS|VORHANG|RIDEAU)[.:]?"
    r"|第.{1,4}[幕场場](?:[ \u3000].{0,20})?)$",
    re.M,
)
SAMPLE = 2_000_000  # characters that are looked at to find out a layout
LONGEST = 50_000_000  # characters; ten times all of Shakespeare is no play, and takes much memory to convert


@dataclass
class Play:
    text: str
    layout: str  # that it was in; "" where none was recognised, and where it was in the one form
    speeches: int
    names: list[str]
    left_out: int  # lines outside of speeches


def convert(text: str, layout: Layout = "auto") -> Play:
    """A play's text, lines ended by \\n, in the one form. Text in no form that is known is left as it is."""
    if layout == "keep" or (layout == "auto" and len(text) > LONGEST):
        return Play(text, "", 0, [], 0)
    tidy = "\n".join(line.rstrip(" \t\u3000\xa0") for line in text.split("\n"))
    if layout != "auto":
        return converted(tidy, layout, asked=True)
    if layout := recognised(tidy[:SAMPLE]):
        play = converted(tidy, layout)
        if len(play.names) > 1 and (layout == "fountain" or play.left_out < 0.7 * tidy.count("\n")):
            return play
    names = NEXT_SPEECH.findall("\n\n" + tidy)
    if not is_play(Counter(names), tidy.count("\n")):
        return Play(text, "", 0, [], 0)
    return Play(tidy, "", len(names), list(dict.fromkeys(names)), 0)


def converted(tidy: str, layout: str, asked: bool = False) -> Play:
    """A text without spaces at the ends of its lines, from that layout; asked: the person named it."""
    plain = without_markup(tidy, layout)
    begun = beginnings(plain, layout, asked)
    ends = [match.start() for match in begun[1:]] + [len(plain)]
    parts, names, kept = [], [], 0
    for match, end in zip(begun, ends, strict=False):
        spoken = plain[match.end() : end]
        if layout == "fountain":
            spoken = spoken.partition("\n\n")[0]  # what follows an empty line is action
        lines = [line.strip() for line in spoken.split("\n") if line.strip()]
        if lines:
            names.append(" ".join(match["name"].split()))
            wide = unicodedata.east_asian_width(names[-1][0]) in "FW"
            colon = match.groupdict().get("colon") or ("：" if wide else ":")
            parts.append("\n".join([names[-1] + colon, *lines]) + "\n")
            alone = match[0].endswith("\n") or not spoken.partition("\n")[0].strip()
            kept += len(lines) + alone
    written = sum(bool(line.strip()) for line in tidy.split("\n"))
    return Play("\n".join(parts), layout, len(parts), list(dict.fromkeys(names)), written - kept)


def recognised(text: str) -> str:
    """The layout that most speeches of a text are in; "" where it is the one form, or no play.

    A play has two speakers or more who come back, and they begin a fair part of the lines.
    """
    lines = text.count("\n") + 1
    found = {}
    for layout in BEGINNINGS:
        if layout == "fountain" and not SCENE.search(text):
            continue  # without its headings it is told by its file's name
        counts = Counter(match["name"] for match in beginnings(without_markup(text, layout), layout))
        if is_play(counts, lines):
            found[layout] = counts.total()
    if "fountain" in found:
        return "fountain"
    best = max(found, key=found.get, default="")
    already = len(NEXT_SPEECH.findall("\n\n" + text))
    return best if already < 0.8 * found.get(best, 0) else ""


def is_play(counts: Counter, lines: int) -> bool:
    back = [n for name, n in counts.items() if n > 1 and not name[0].islower()]
    return len(back) > 1 and sum(back) > max(3, counts.total() / 2) and 30 * counts.total() > lines


def shouted(name: str) -> bool:
    """Whether a name is in capitals, as in ANNA and BEN, or McGREGOR."""
    letters = [c for c in name if c.isalpha()]
    return sum(c.isupper() for c in letters) > 0.6 * len(letters)


def beginnings(text: str, layout: str, asked: bool = False) -> list[re.Match]:
    """Where the speeches of a text without markup begin."""
    found = [match for match in BEGINNINGS[layout].finditer(text) if not match["name"].endswith(SAID)]
    counts = Counter(match["name"] for match in found)
    shouting = [match for match in found if shouted(match["name"]) or "@" in match[0]]
    if layout in IN_CAPITALS and (shouting or not asked):
        close = [match for match in shouting if not text.startswith("\n\n", match.end())]
        return close if len(close) > 0.8 * len(shouting) else shouting  # a title stands above an empty line
    apart = [match for match in found if text[max(0, match.start() - 2) : match.start()] in ("", "\n\n")]
    if len(apart) > 0.8 * len(found):
        return apart

    def is_name(name: str) -> bool:  # and not the beginning of a sentence that has a colon
        words = name.split()
        titled = not any(word[0].islower() for word in words)
        if 2 * len(shouting) > len(found):
            return shouted(name) or (titled and len(words) > 1)
        return titled or counts[name] > 1

    return [match for match in found if is_name(match["name"])]


def without_markup(text: str, layout: str) -> str:
    """Text without stage directions in brackets, headings, and what a layout marks besides names."""
    if layout == "fountain":
        text = re.sub(r"/\*(?:[^*]|\*(?!/)){0,5000}\*/|\[\[[^\[\]]{0,5000}\]\]", "", text)
        text = re.sub(r"^[ \t]*>.*$|^[ \t]*[A-Z ]+TO:$|^#.*$", "", text, flags=re.M)
        text = "\n\n" + re.sub(r"^[ \t]*[(\[][^()\[\]\n]*[)\]][ \t]*\n", "", SCENE.sub("", text), flags=re.M)
    if layout == "markdown":
        text = re.sub(r"^#.*$", "", text, flags=re.M)
        text = re.sub(r"^[ \t]*([*_])(?!\1)(?:[^*_\n]|\n(?!\n)){1,800}\1[ \t]*$", "", text, flags=re.M)
    text = HEADING.sub("", DIRECTION.sub("", text))
    if layout in ("fountain", "markdown"):  # *words*, _words_
        for mark in ("\\*", "_"):
            text = re.sub(rf"(?<![\\*\w]){mark}(?![\s*])([^*_\n]+?)(?<![\s\\]){mark}(?![*\w])", r"\1", text)
        text = re.sub(r"\\([^\w\s]|_)", r"\1", text)
    return text
