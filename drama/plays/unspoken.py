"""The lines of a play that nobody speaks: directions, headings, cast lists, page numbers, a licence."""

import re
from collections import defaultdict
from itertools import pairwise

BLANKS = " \t\u3000\xa0"
WIDTH = 120  # characters within which a line's name and what stands beside it end

NUMERAL = r"(?:(?-i:[IVXLC]+)\b|\d+|[一二三四五六七八九十百]+)"
ORDINAL = (  # one, first, erster, premier, primera, первое ...
    r"(?:(?:one|two|three|four|five|six|seven|eight|nine|ten|first|second|third|fourth|fifth|sixth)\b"
    r"|(?:prim|secund|tert|quart|quint|prem|deuxi|second|troisi|quatri|cinqui|sixi|septi|huiti|neuvi|dixi|derni"
    r"|erst|zwe[iy]t|dritt|viert|fünft|sechst|sieb|acht|neunt|zehnt|e[iy]?lft|zwölft|letzt|segund|tercer|tercio"
    r"|cuart|sext|terz|[uú]ltim|únic|перв|втор|трет|четв[её]рт|пят|шест|седьм|восьм|девят|десят|последн)\w*"
    r"|\w*(?:zehnte|ßigste|zigste|надцат|дцать перв)\w*)"
)
PART = (
    r"(?:act(?:e|us|s|o)?|akt|aufzug|atto|jornada|[cq]uadro|s[ck]e?n?|s[ck][eèée]n[ae]|szene|auftritt|bild|escena"
    r"|tableau|действие|акт|явление|сцена|картина)"
)
HEADING = re.compile(
    rf"(?:the )?{PART}[ .:,]{{1,3}}(?:the )?(?:{NUMERAL}(?:$|\W+$|[.,:;—–-]+ ?\S| (?-i:[^\Wa-zà-ÿа-я]|[(\[]))"
    rf"|{ORDINAL}(?:\W*$|[.:—–-]+ ?\S))"
    rf"|(?:the )?(?=(?:[^ ]{{1,30}} ){{1,2}}{PART})(?:{ORDINAL}|{NUMERAL})\.? (?!sc\b){PART}"
    r"(?:\W*$|[.:—–-]+ ?\S)"
    r"|第.{1,5}[幕场場景回折出集章](?:$|\W)|[一二三四五六七八九十]+、?[场場幕]$"
    r"|\d+-\d+[ \u3000]+[日夜晨昏早晚]"
    r"|(?-i:(?:\d+[A-Z]? +)?(?:INT|EXT|I/E|EST(?=\W+[^\Wa-z]{2}))[./ ])"
    r"|(?-i:(?:THE END|FINIS|CURTAIN|VORHANG|RIDEAU|TEL[ÓO]N|SIPARIO|ЗАНАВЕС|КОНЕЦ|FADE (?:IN|OUT)|CUT TO"
    r"|The End|Finis|Curtain|Vorhang|Rideau|Telón|Sipario|Занавес|Конец|全?剧终|幕落|[完终終])\W*$)"
    r"|([-=*_~#•])(?: ?\1){2,}$|#{1,6} \S",
    re.I,
)
CAST = re.compile(
    r"(?:dramatis person\w+|(?:the |die |les )?(?:persons|characters|cast|personen|personnages|acteurs)"
    r"(?: (?:in|of|du|de|der|des) .{1,40})?|personajes|personaggi|personagens|действующие лица|лица"
    r"|(?:主要)?(?:人物表?|登場人物|登场人物|出场人物|角色))\W*(?:[:：] *(?P<rest>\S)|$)",
    re.I,
)
FRONT = re.compile(  # what stands before a play, or a scene, with a colon
    r"(?:时间|時間|地点|場所|时|地|布景|人物|time|place|setting|scene|zeit|ort|title|author|credit|source|contact"
    r"|draft date|cast|characters)\s*[:：]",
    re.I,
)
LICENCE = re.compile(
    r"\*{3} ?START OF.{0,20}PROJECT GUTENBERG|(?P<end>\*{0,3} ?END OF.{0,20}PROJECT GUTENBERG)", re.I
)
STAGED = re.compile(r"[△▲]|(?:Enter|Re-enter|Exit|Exeunt|Manet)\b(?!.*[?!])")
OPEN, CLOSE = "([{（【〔［", ")]}）】〕］"
BRACKET = re.compile("[" + re.escape(OPEN + CLOSE) + "]")
OPENING = re.compile("[" + re.escape(OPEN) + "]")
PAGE = re.compile(r"(?P<a>\d{1,4})\D{0,60}$|\D{0,60}?(?P<b>\d{1,4})\W{0,4}$")
FAR = 12  # lines that a direction has at most


def without(text: str, begin: str, end: str) -> str:
    """Text without what stands between two marks; the lines keep their numbers."""
    parts, at = [], 0
    while (start := text.find(begin, at)) >= 0 and (stop := text.find(end, start)) >= 0:
        parts += [text[at:start], "\n" * text.count("\n", start, stop)]
        at = stop + len(end)
    return "".join(parts) + text[at:]


def brackets(lines: list[str]) -> dict:
    """(line, column) after the bracket that closes the one at (line, column), within a paragraph."""
    spans, opened = {}, []
    for i, line in enumerate(lines):
        if not line:
            opened = []
        for match in BRACKET.finditer(line) if BRACKET.search(line) else ():
            kind = OPEN.find(match[0])
            if kind >= 0:
                opened.append((kind, i, match.start()))
                continue
            kind = CLOSE.find(match[0])
            while opened and opened[-1][0] != kind and any(o[0] == kind for o in opened[-3:]):
                opened.pop()
            if opened and opened[-1][0] == kind:
                _, start, column = opened.pop()
                if column < WIDTH and i - start < FAR:
                    spans[start, column] = i, match.end()
    return spans


def after_brackets(lines: list[str], spans: dict, at: tuple[int, int]) -> tuple[int, int] | None:
    """Where a line goes on after the brackets that begin there; None where one is not closed."""
    while end := spans.get(at):
        i, column = end
        while column < len(lines[i]) and lines[i][column] in BLANKS:
            column += 1
        if column == len(lines[i]) or lines[i][column] not in OPEN:
            return i, column
        at = i, column
    return None


def page_numbers(lines: list[str]) -> set[int]:
    """Lines that are the same but for a number at an edge, which grows: of pages, with what runs along."""
    found = defaultdict(list)
    for i, line in enumerate(lines):
        if line and len(line) < 70 and line[-1] not in ":：" and (match := PAGE.match(line)):
            text = (line[match.end("a") :] if match["a"] else line[: match.start("b")]).strip()
            found[text].append((int(match["a"] or match["b"]), i))
    pages = set()
    for text, numbers in found.items():
        grow = all(a < b and i + 8 < j for (a, i), (b, j) in pairwise(numbers))
        if grow and len(numbers) > (4 if any(map(str.isalpha, text)) else 1):
            pages.update(i for _, i in numbers)
    return pages


def unspoken(lines: list[str], spans: dict) -> list[str | None]:
    """Of each line "direction", "heading", "doubtful", "" for an empty one, or None for any other."""
    kinds = [None if line else "" for line in lines]
    pages, licensed = page_numbers(lines), "GUTENBERG" in "\n".join(lines).upper()
    casts = sum(line[:1] in "Cc" and CAST.match(line) is not None for line in lines if line)
    listed, shut = None, -1  # names of a cast list; the last line of an emphasised direction
    for i, line in enumerate(lines):
        before = kinds[i - 1] if i else ""
        if kinds[i] is not None:
            continue
        if i in pages:
            kinds[i] = "heading"
        elif line[0] in OPEN:
            at = after_brackets(lines, spans, (i, 0))
            verse = line[0] == "(" and at and at[0] > i and before is None and lines[i + 1][0].isupper()
            if verse and (lines[i - 1][-1] == "," or lines[i - 1][-1].isalnum()):
                continue  # said within a sentence
            if at and not lines[at[0]][at[1] :].strip(" .:。"):
                kinds[i : at[0] + 1] = ["direction"] * (at[0] + 1 - i)
            elif not at and (i, 0) not in spans:
                kinds[i] = "direction" if line[0] in "[［" else "doubtful"
        elif len(line) < 3 and line.isascii() and listed is None:
            continue
        elif licensed and (match := LICENCE.search(line, 0, 200)):
            span = range(i, len(lines)) if match["end"] else range(i + 1)
            for k in span:
                kinds[k] = "heading" if lines[k] else ""
        elif HEADING.match(line):
            kinds[i], listed = "heading", None
        elif casts < 4 and before in ("", "heading") and (match := CAST.match(line)):
            kinds[i], listed = "heading", None if match["rest"] else set()
        elif FRONT.match(line) and line[0].lower() not in (casts > 3) * "c" + (before is None) * "t":
            kinds[i] = "heading"  # Castruccio may be short, and Time a person
        elif STAGED.match(line) and (before == "" or line[0] in "△▲"):
            kinds[i] = "direction"
        elif line[0] in "_*" and i > shut and (end := emphasised(lines, i)) is not None:
            shut = end
            if before != "" or (end + 1 < len(lines) and lines[end + 1]):
                continue  # within a speech
            kinds[i : end + 1] = ["direction"] * (end + 1 - i)
        if listed is not None and kinds[i] is None:
            name = re.split(r"[.,:;，：、—(（\t]| {2}", line, maxsplit=1)[0].strip().upper()
            if name in listed or len(listed) > 200:
                listed = None  # who was listed begins to speak
            else:
                listed.add(name)
                kinds[i] = "heading"
    return kinds


def emphasised(lines: list[str], i: int) -> int | None:
    """The last line of a paragraph, or a line, that is emphasised as a whole: _Exit._"""
    mark = lines[i][0]
    if lines[i][1:2] == mark:
        return None
    for k in range(i, min(i + FAR, len(lines))):
        at = lines[k].find(mark, k == i)
        if at >= 0:
            return k if not lines[k][at + 1 :].strip(" .") and lines[k][:at].strip() else None
        if not lines[k]:
            return None
    return None


def titled(line: str) -> bool:
    """Whether a line is in capitals as a heading is."""
    return line[:200].upper() == line[:200] and line[:200].lower() != line[:200]
