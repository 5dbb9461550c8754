"""Plays in the usual forms, made into the one that a model learns from.

That one is: a name and a colon on a line of their own, then the speech's lines, then an empty line.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Literal

Form = Literal["auto", "keep", "colon", "dot", "caps", "indent", "gap", "markdown", "fountain"]

NAME = r"@?(?P<name>[^\W\d_](?:[^\n\t\u3000:：.?!,;()（）\[\]*_\"“”「」<>=]|(?<=[SDM][tr])\.){0,39}?)"
ASIDE = r"(?:[ \t]*[(（\[][^()（）\[\]\n]*[)）\]])?"  # ANNA (aside), 安娜（旁白）
COLON = r"[ \t]*(?P<colon>[:：])"

# Where a speech begins in each form, to the end of its name. Names in capitals: see `accepted`.
BEGINNINGS = {
    "colon": rf"^[ \t\u3000]*{NAME}{ASIDE}{COLON}",  # ANNA: Where is the well?
    "dot": rf"^[ \t\u3000]*{NAME}{ASIDE}\.(?=\s)",  # ANNA. Where is the well?
    "caps": rf"^[ \t]*{NAME}{ASIDE}[ \t]*$",  # ANNA, and the speech below
    "indent": rf"^{NAME}{ASIDE}[ \t]*\n(?=[ \t]+\S)",  # Anna, and the speech below, indented
    "gap": rf"^{NAME}{ASIDE} *[\t\u3000]\s*(?=\S)",  # Anna, a tab or a wide space, the speech
    "markdown": rf"^[ \t>]*\*\*(?P<name>[^*\n]{{1,60}}?){ASIDE}[.:：]?\*\*{ASIDE}[.:：]?",  # **Anna** Where?
    "fountain": rf"(?<=\n\n)[ \t]*{NAME}{ASIDE}[ \t]*\^?\n(?=[ \t]*\S)",  # ANNA, her speech below
}
BEGINNINGS = {form: re.compile(pattern, re.M) for form, pattern in BEGINNINGS.items()}
IN_CAPITALS = ("dot", "caps", "fountain")
ONE_FORM = re.compile(rf"(?<=\n\n){NAME}[:：]\n")

# What is never spoken: lines in brackets, headings of acts and scenes, rulers.
DIRECTION = re.compile(r"^[ \t]*(?:\[[^\]]{0,800}\]|\([^)]{0,800}\)|（[^）]{0,800}）)[.。]?[ \t]*$", re.M)
SCENE = re.compile(r"^[ \t]*\.?(?:INT|EXT|EST|I/E)[./ ].*$", re.M)
HEADING = re.compile(
    r"^[ \t]*(?:#.*|[-=*_]{3,}|(?:ACT|SCENE|AKT|SZENE|ACTE|SCÈNE|ACTO|ESCENA|ATTO|SCENA)\b.{0,60}"
    r"|(?:CURTAIN|THE END|END OF|FADE|CUT TO|FINIS|VORHANG|RIDEAU)\b.{0,30}|第.{1,4}[幕场場].{0,30})$",
    re.M,
)
SAMPLE = 2_000_000  # characters that are looked at to find out a form
LONGEST = 50_000_000  # characters; ten times all of Shakespeare is no play, and takes much memory to convert


@dataclass
class Play:
    text: str
    form: str  # that it was in; "" where none was recognised, or where it was in the one form
    speeches: int
    names: list[str]
    left_out: int  # lines outside of speeches


def convert(text: str, form: Form = "auto") -> Play:
    """A play's text, lines ended by \\n, in the one form. Text in no form that is known is left as it is."""
    if form == "keep" or (form == "auto" and len(text) > LONGEST):
        return Play(text, "", 0, [], 0)
    tidy = re.sub(r"[ \t\u3000]+$", "", text, flags=re.M)
    if form == "auto":
        form = recognised(tidy[:SAMPLE])
    if not form:
        names = [match["name"] for match in ONE_FORM.finditer("\n\n" + tidy)]
        kept = tidy if is_play(Counter(names), tidy.count("\n")) else text
        return Play(kept, "", len(names), list(dict.fromkeys(names)), 0)
    plain = without_markup(tidy, form)
    begun = beginnings(plain, form)
    ends = [match.start() for match in begun[1:]] + [len(plain)]
    parts, names, kept = [], [], 0
    for match, end in zip(begun, ends, strict=False):
        spoken = plain[match.end() : end]
        if form == "fountain":
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
    return Play("\n".join(parts), form, len(parts), list(dict.fromkeys(names)), written - kept)


def recognised(text: str) -> str:
    """The form that most speeches of a text are in; "" where it is the one form, or no play.

    A play has two speakers or more who come back, and they begin a fair part of the lines.
    """
    lines = text.count("\n") + 1
    found = {}
    for form in BEGINNINGS:
        if form == "fountain" and not SCENE.search(text):
            continue  # without its headings it is told by its file's name
        counts = Counter(match["name"] for match in beginnings(without_markup(text, form), form))
        if is_play(counts, lines):
            found[form] = counts.total()
    if "fountain" in found:
        return "fountain"
    best = max(found, key=found.get, default="")
    already = Counter(match["name"] for match in ONE_FORM.finditer("\n\n" + text)).total()
    return best if already < 0.8 * found.get(best, 0) else ""


def is_play(counts: Counter, lines: int) -> bool:
    back = [n for name, n in counts.items() if n > 1 and not name[0].islower()]
    return len(back) > 1 and sum(back) > max(3, counts.total() / 2) and 30 * counts.total() > lines


def beginnings(text: str, form: str) -> list[re.Match]:
    """Where the speeches of a text without markup begin."""
    found = list(BEGINNINGS[form].finditer(text))
    if form in IN_CAPITALS:
        found = [match for match in found if match["name"].isupper() or "@" in match[0]]
        close = [match for match in found if not text.startswith("\n\n", match.end())]
        return close if len(close) > 0.8 * len(found) else found  # a title stands above an empty line
    apart = [match for match in found if text[max(0, match.start() - 2) : match.start()] in ("", "\n\n")]
    if len(apart) > 0.8 * len(found):
        return apart
    counts = Counter(match["name"] for match in found)
    capitals = sum(n for name, n in counts.items() if name.isupper()) > 0.5 * counts.total()

    def is_name(name: str) -> bool:  # and not the beginning of a sentence that has a colon
        words = name.split()
        titled = not any(word[0].islower() for word in words)
        return name.isupper() or (titled and len(words) > 1) if capitals else titled or counts[name] > 1

    return [match for match in found if is_name(match["name"])]


def without_markup(text: str, form: str) -> str:
    """Text without stage directions in brackets, headings, and what a form marks besides names."""
    if form == "fountain":
        text = re.sub(r"/\*.*?\*/|\[\[.*?\]\]", "", text, flags=re.S)
        text = re.sub(r"^[ \t]*>.*$|^[ \t]*[A-Z ]+TO:$", "", text, flags=re.M)
        text = "\n\n" + re.sub(r"^[ \t]*[(\[][^)\]]*[)\]][ \t]*\n", "", text, flags=re.M)
    if form == "markdown":
        text = re.sub(r"^[ \t]*([*_])(?!\1)(?:[^*_\n]|\n(?!\n)){1,800}\1[ \t]*$", "", text, flags=re.M)
        text = re.sub(r"(?<![\\*])\*(?!\*)|(?<!\\)_", "", text)
    text = HEADING.sub("", SCENE.sub("", DIRECTION.sub("", text)))
    if form == "fountain":
        text = re.sub(r"(?<!\\)[*_]", "", text)
    if form in ("fountain", "markdown"):
        text = re.sub(r"\\([^\w\s]|_)", r"\1", text)
    return text
