"""Plain text of plays, from the layouts that people type into the one that a model learns from.

That one is: a name and a colon on a line of their own, then the speech's lines, then an empty line.

Every line is accounted for: a name, speech, a direction, a heading, or doubtful. A text is converted where
names come back and next to nothing is doubtful; otherwise it stays as it is.
"""

import functools
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal

from drama.plays.names import CAPITALS, ENDS, FIRST, MARKED, PARTICLES, TIME, Head, head_of, shape, shouted
from drama.plays.unspoken import BLANKS, CLOSE, OPENING, brackets, titled, unspoken, without

Layout = Literal[
    "auto", "keep", "colon", "dot", "dash", "caps", "indent", "gap", "quotes", "brackets", "markdown",
    "fountain",
]  # fmt: skip
PIECE = 15_000  # characters
START = 300_000  # characters of a long text that are read where no piece of it is a play
NEGLIGIBLE = 0.02  # of the lines may be doubtful
INVISIBLE = re.compile("[\u200b\u200e\u200f\u2060\ufeff\f]+")


@dataclass
class Play:
    """A text as it was read. Lines are counted from 0."""

    text: str
    layout: str = ""  # that it was in; "" where it stays as it is
    speeches: list[tuple[str, str]] = field(default_factory=list)  # (name, what is said)
    kinds: list[str] = field(default_factory=list)  # of each line: name, speech, direction, heading or ""
    doubtful: set[int] = field(default_factory=set)  # lines that are not understood
    reason: str = ""  # why a text stays as it is

    @property
    def cast(self) -> dict[str, tuple[int, str]]:
        """Who speaks: (how many speeches, the first one)."""
        counts = Counter(name for name, _ in self.speeches)
        return {name: (counts[name], said) for name, said in reversed(self.speeches)}


ENDED = ".!?…。！？:;：；—–-\"'”’»›」』）)]~*_"
BEGUN = re.compile(r"[^\s:：]{1,40}(?: [^\s:：]{1,20}){0,2}[:：](?=\s|$)")
GROUPS = re.compile(r"(?:all|both|omnes|alle|beide|tous|toutes|все|оба)(?: \d)?$|\d", re.I)  # they are names


class Reader:
    """A text's lines, and what is read of them in a layout."""

    def __init__(self, text: str, fountain: bool = False):
        if fountain:
            text = without(without(text, "/*", "*/"), "[[", "]]")
        typed = INVISIBLE.sub("", text).split("\n")
        self.raw = [line.rstrip(BLANKS) for line in typed]
        self.lines = [line.strip(BLANKS) for line in self.raw]
        self.pauses = fountain and [len(line) > 1 and not line.strip() for line in typed]
        self.indents = [*map(int.__sub__, map(len, self.raw), map(len, self.lines)), 0]
        self.spans = brackets(self.lines)
        self.kinds = unspoken(self.lines, self.spans)
        self.words, self.found, self.layouts = None, {}, ()
        self.capitals = 2 * sum(map(titled, self.lines)) > sum(map(bool, self.lines))
        self.written = sum(map(bool, self.lines))
        following, self.next = len(self.lines), [0] * len(self.lines)  # the next line that is not empty
        for i in range(len(self.lines) - 1, -1, -1):
            self.next[i] = following
            following = i if self.lines[i] else following

    def heads(self, layout: str) -> dict[int, Head]:
        """All lines that may begin a speech."""
        if layout in self.found:
            return self.found[layout]
        found = self.found[layout] = {}
        seen = {}  # what lines without brackets begin, wherever they stand
        first, alone = FIRST.get(layout), layout in ("caps", "indent", "fountain")
        for i, line in enumerate(self.lines):
            if self.kinds[i] is not None or (first and not first.search(line, 0, 400)):
                continue
            if alone and self.next[i] == len(self.lines):
                continue
            if layout == "caps" and line[-2:].islower() and line[-1] not in CLOSE:
                continue  # most lines of speech, at once
            if layout == "fountain" and ((i and self.lines[i - 1]) or not self.lines[i + 1]):
                continue
            if layout == "indent" and (self.indents[i] or not self.indents[i + 1]):
                continue
            if line not in seen or OPENING.search(line):
                head = head_of(self.lines, self.spans, i, layout)
                if not head or not shape(head.name) or TIME.search(line, 0, head.at[1]):
                    head = None  # a time is of a chat, or of a recording
                elif line.startswith(head.name + ",") and not shouted(head.name):
                    head = head._replace(known=True)  # Anna, aside: or a sentence's beginning
                right = not alone or layout == "indent" or line[0] == "@"
                seen[line] = head if head and (right or shouted(head.name)) else None
            if seen[line]:
                found[i] = seen[line]
        return found

    def habits(self, i: int, head: Head) -> tuple:
        """How the beginning of a speech is typed: None where that says nothing."""
        j = i + head.at[0]
        before = i - 1
        while before >= 0 and self.kinds[before] in ("direction", "heading"):
            before -= 1
        apart = before < i - 1 or not self.lines[before]
        text, close = self.lines[j][head.at[1] :], "close"
        alone = None if self.lines[j][head.at[1] - 1] in CLOSE else "on" if text else "alone"
        if not text:
            j += 1
            close = "close" if j < len(self.lines) and self.lines[j] else "far"
            while j < len(self.lines) and (not self.lines[j] or self.kinds[j]):
                j += 1
            text = self.lines[j] if j < len(self.lines) else ""
        letter = next(filter(str.isalpha, text[:20]), "A")
        return (
            "apart" if apart else "within",
            None if apart else "ended" if self.lines[before][-1] in ENDED else "unended",
            "lower" if letter.islower() else "upper",
            close,
            alone,
            None if head.mark == "(" else head.mark,
            "in" if self.indents[i] else "out",
            "capitals" if shouted(head.name, first=True) else "mixed",
        )

    def ordinary(self, name: str) -> bool:
        """Whether a name reads as a sentence's beginning: its words are frequent, without capitals."""
        words = name.split()
        if shouted(name) and len(name) > 2 and not self.capitals:
            return False
        if sum(word[0].islower() and word not in PARTICLES for word in words) > 1:
            return True
        if self.words is None:
            self.words = Counter(re.findall(r"[^\W\d_]+", "\n".join(self.lines)))
            names = " ".join(head.name for head in self.heads("colon").values())
            self.words.subtract(re.findall(r"[^\W\d_]+", names))
            self.frequent = max(4, self.words.total() / 2_500)
        return all(self.words[word.lower()] >= self.frequent for word in re.findall(r"[^\W\d_]+", name))

    def judged(self, layout: str, named: bool) -> tuple[dict[int, Head], set[int], bool]:
        """The lines that begin speeches in a layout, those that may or may not; whether after empty lines."""
        heads = dict(self.heads(layout))
        counts = Counter(head.name for head in heads.values())
        for i, head in heads.items():
            for other in head.shorter:
                second = head.name[len(other.name) :].strip(" .")  # ANNA. BEN. We.
                both = len(second) > 1 and counts[second] > 1
                if counts[other.name] >= max(2, 3 * counts[head.name]) and not both:
                    heads[i] = head = other
        counts = Counter(head.name for head in heads.values() if not head.known)
        capitals = not named or any(n > 1 and shouted(name) for name, n in counts.items())
        if layout in CAPITALS and capitals and layout != "fountain":
            heads = {i: head for i, head in heads.items() if shouted(head.name)}
        trusted = {name for name, n in counts.items() if n > 1 and shape(name) == 2}
        trusted = [i for i, head in heads.items() if head.name in trusted and not head.known]
        if layout == "fountain" or not trusted:
            known = named or layout == "fountain"
            return {i: head for i, head in heads.items() if known and not head.known}, set(), False
        habits = {i: self.habits(i, head) for i, head in heads.items()}
        usual = []  # what nine in ten of them share
        for values in zip(*(habits[i] for i in trusted), strict=True):
            known = list(filter(None, values))
            value, n = Counter(known or [None]).most_common(1)[0]
            common = n > 0.9 * len(known) and value not in ("within", "unended", "mixed")
            usual.append(value if common else None)
        unended = 1 if layout in ("dash", "caps", "indent") else 0.9  # sentences have no such mark
        weights = 1.5, unended, 1, 1, 1, 1, 1, 0.5  # how odd each is where nine in ten are otherwise

        @functools.cache
        def oddness(habits: tuple) -> float:
            values = zip(habits, usual, weights, strict=True)
            return sum(weight for value, common, weight in values if common and value and value != common)

        odd = {i: oddness(habits[i]) for i in heads}
        by_name = defaultdict(list)
        for i, head in heads.items():
            by_name[head.name].append(odd[i])
        alone = usual[4] == "alone"
        marked = usual[0] == "apart" or layout not in ("colon", "dot")
        if alone and not marked:  # whether few other lines end as names do
            marked = sum(line[-1:] in (":", "：") for line in self.lines) <= (1 + NEGLIGIBLE) * len(trusted)

        @functools.cache
        def sure(name: str) -> bool:
            if layout == "dot" and name.isdigit():
                return marked  # or it is the number of a strophe
            typed = (usual[7] == "capitals" and shouted(name, first=True)) or (alone and " " not in name)
            return marked or typed or bool(GROUPS.match(name)) or not self.ordinary(name)

        names = set()
        for name, odds in by_name.items():
            usually = sum(odds) / len(odds) <= (0.5 if shape(name) == 2 else 0.34)
            if usually and counts[name] > 1 and (not alone or counts[name] > 4 or sure(name)):
                names.add(name)
        begun, doubtful = {}, set()
        for i, head in heads.items():
            strong = shape(head.name) == 2 or layout == "indent"
            most = strong - 0.1 * (layout == "colon" and " " in head.name)  # In Athens: goes on a sentence
            below = i > 0 and self.kinds[i - 1] in ("direction", "heading")
            if head.name in names and (named or odd[i] <= 2 + head.known):
                begun[i] = head
            elif head.name in names:
                doubtful.add(i)
            elif head.known or head.name[0].islower():
                continue
            elif (not odd[i] or odd[i] < most) and (below or sure(head.name)):
                begun[i] = head
            elif odd[i] < 1.5 and strong and (habits[i][3], usual[3]) != ("far", "close"):
                doubtful.add(i)
        return begun, doubtful, usual[0] == "apart"

    def read(self, layout: str, named: bool = False) -> Play:
        """The text in a layout, whether or not it is in it."""
        heads, doubtful, apart = self.judged(layout, named)
        counts = Counter(head.name for head in heads.values())
        doubtful |= {i for i, kind in enumerate(self.kinds) if kind == "doubtful"}
        alone = sum(head.at == (0, len(self.lines[i])) for i, head in heads.items())
        one = layout == "colon" and apart and alone > 0.8 * len(heads)  # the one form
        loose = {i for i, kind in enumerate(self.kinds) if kind is None and i and not self.lines[i - 1]}
        loose -= heads.keys()  # no name begins these paragraphs
        goes_on = not apart or one or named or layout in ("indent", "fountain")
        goes_on = goes_on or len(loose) < self.kinds.count("direction")
        speeches, kinds = [], [kind and kind.replace("doubtful", "direction") for kind in self.kinds]
        speaking, i, column = False, 0, 0
        while i < len(self.lines):
            head = heads.get(i) if not column else None
            if head and speaking and i == speeches[-1][1] + 1 and not speeches[-1][2]:
                if layout not in ("caps", "indent"):
                    head = head if counts[head.name] > 1 else None
                elif counts[head.name] > 1 and counts[speeches[-1][0]] == 1:
                    kinds[speeches.pop()[1]] = "heading"
                else:
                    head = None  # what is said in capitals
            if head:
                speaking = True
                speeches.append((head.name, i, [], head.mark))
                kinds[i : i + head.at[0] + 1] = ["name"] * (head.at[0] + 1)
                i, column = i + head.at[0], head.at[1]
                if column >= len(self.lines[i]):
                    i, column = i + 1, 0
                continue
            kind = self.kinds[i] if not column else None
            lines = speeches[-1][2] if speaking else []
            if kind == "heading":
                speaking = False
            elif kind == "" and layout == "fountain" and lines:
                speaking = self.pauses[i]
                lines.extend([""] * speaking)
            elif kind is None:
                if not column and layout == "indent" and not self.indents[i]:
                    doubtful |= {i} if self.lines[i - 1] and speaking else set()
                    speaking = False
                stray = not self.capitals and not column and self.stray(i, heads, layout)
                if lines and i in loose and not stray:
                    if not goes_on:
                        speaking = False
                        doubtful.add(i)
                    elif one:
                        lines.append("")
                if not speaking:
                    kinds[i] = "direction" if speeches else "heading"
                elif stray and (lines or layout == "caps" or self.lines[i][-1] != "."):
                    kinds[i] = "heading"
                    doubtful.discard(i)
                    if lines and self.lines[i - 1] and self.lines[i - 1][-1] not in ENDED:
                        doubtful.add(i)  # the speech's last line may be shouted
                else:
                    kinds[i] = "name" if column else "speech"
                    lines.append(self.lines[i][column:].strip(BLANKS))
            i, column = i + 1, 0
        play = Play("", layout, [], kinds, doubtful)
        parts = []
        for name, _, lines, mark in speeches:
            while lines and not lines[-1]:
                lines.pop()
            if lines:
                wide = ":" not in mark and unicodedata.east_asian_width(name[0]) in "FW"
                colon = "：" if "：" in mark or wide else ":"
                said = plain("\n".join(lines), layout)
                play.speeches.append((name, said))
                parts.append(f"{name}{colon}\n{said}\n")
        play.text = "\n".join(parts)
        return play

    def stray(self, i: int, heads: dict, layout: str) -> bool:
        """Whether a line in capitals stands where a heading would."""
        line = self.lines[i]
        if layout == "fountain" or not titled(line) or line[-1] in "!?,;…—–-":
            return False
        following = self.next[i]
        for _ in range(4):  # several headings
            if following < len(self.lines) and following not in heads and titled(self.lines[following]):
                following = self.next[following]
        ends = following == len(self.lines) or following in heads
        return ends or self.kinds[following] in ("heading", "direction")

    def foreign(self, play: Play) -> set[int]:
        """Lines that are speech in the play's layout, but begin speeches in another one, or as names do."""
        found = set()
        alike = defaultdict(list)  # what no name may look like, and yet comes back before the mark of names
        for i, line in enumerate(self.lines if play.layout in ("colon", "caps") else ()):
            if play.kinds[i] == "speech" and (begun := BEGUN.match(line)):
                alike[begun[0]].append(i)
        for begun, lines in alike.items():
            different = {self.lines[i] for i in lines}
            refrain = different != {begun} and len(different) <= len(lines) / 2
            if len(lines) > max(3, 0.01 * len(play.speeches)) and not refrain:
                found.update(lines)
        for layout in self.layouts:
            if layout in (play.layout, "indent", "caps"):
                continue
            heads = self.heads(layout).items()
            heads = [(i, h.name) for i, h in heads if play.kinds[i] != "name" and not h.known]
            back = {name for name, n in Counter(name for _, name in heads).items() if n > 2}
            back = {name for name in back if len(name) > 1 or layout == "dot"}  # Q. and A., but no "O — yes"
            back = {n for n in back if shape(n) == 2 and (layout not in CAPITALS or shouted(n))}
            if len(back) > 1:
                found.update(i for i, name in heads if name in back)
        return found


def plain(said: str, layout: str) -> str:
    """What is said, without the layout's own marks: *words*, _words_, 「words」."""
    if layout == "quotes" and said[0] in "「『" and said[-1] in "」』":
        return said[1:-1].strip()
    if layout in ("fountain", "markdown"):
        if layout == "fountain":
            said = re.sub(r"^~[ \t]*", "", said, flags=re.M)
        for mark in ("\\*{1,3}", "_"):
            emphasis = rf"(?<![\\*\w])({mark})(?![\s*])([^*_\n]{{1,800}}?)(?<![\s\\])\1(?![*\w])"
            said = re.sub(emphasis, r"\2", said)
        return re.sub(r"\\([^\w\s]|_)", r"\1", said)
    return said


# ----------------------------------------------------------------------------- whether it is a play


FIELDS = re.compile(  # what names a part of a text, a day or a kind of message, and no person
    r"(?:[QA]|question|answer|frage|antwort|hint|note|tip|caution|important|warning|error|info|debug|todo|done"
    r"|wait|example|verse|strophe|refrain|bridge|ingredient|method|zutaten|zubereitung|ingrédient|préparation|step"
    r"|added|changed|fixed|removed|deprecated|security|feature|bug ?fixe|from|to|cc|subject|date|sent|von|an"
    r"|betreff|datum|de|à|objet|author|commit|merge|title|name|type|statu|version|return|arg|raise|parameter"
    r"|usage|option|synopsi|description|bug|history|file|environment|copyright|see also|source|chapter|figure"
    r"|table|(?:mon|tues|wednes|thurs|fri|satur|sun)day)s?\W*$",
    re.I,
)
NO_LAYOUT = "no layout of a play recognised"


def refusal(reader: Reader, play: Play) -> str:
    """Why a text as it was read is no play for certain; "" where it is one."""
    total = len(play.speeches)
    counts = Counter(name for name, _ in play.speeches)
    back = {a: n for a, n in counts.items() if n > 1 and a[0].upper() == a[0] and not a.isdigit()}
    often = sum(back.values())
    if len(back) < 2 or often < max(4, 0.7 * total) or 30 * total < reader.written:
        return NO_LAYOUT
    turns, after = Counter(itertools.pairwise(name for name, _ in play.speeches)), defaultdict(list)
    for (name, _), n in turns.items():
        after[name].append(n)
    after = [numbers for numbers in after.values() if sum(numbers) > 2]
    fixed = sum(map(max, after)) > 0.95 * sum(map(sum, after))
    if sum(back[name] for name in back if FIELDS.match(name)) >= often / 2 or (
        fixed and sum(n > total / 10 for n in back.values()) > 2
    ):
        return "names come back, but as the fields of a form do"
    ends = sum(said[-1] in ENDED for _, said in play.speeches)
    asked = sum(bool(re.search("[?!？！¿¡;؟]", said)) for _, said in play.speeches)
    again = sum(n for (a, b), n in turns.items() if a == b)
    quoted = sum(said[0] in "\"“„«»‚'‘「『" and not said.startswith("'t") for _, said in play.speeches)
    untold = ends < 0.3 * total or ends + 2 * asked < 0.6 * total or asked < 0.03 * total
    if untold or again > total / 2 or (quoted > total / 2 and play.layout != "quotes"):
        return "names come back, but what follows them does not read as talk"
    play.doubtful |= reader.foreign(play)
    if play.kinds.count("heading") + play.kinds.count("direction") > 0.7 * reader.written:
        return "most of its lines are no speech"
    if len(play.doubtful) > max(3, NEGLIGIBLE * reader.written):
        return f"{len(play.doubtful):,} lines are not understood"
    return ""


SCREEN = re.compile(r"(?m)^ {0,40}\.?(?:\d+[A-Z]? +)?(?:INT|EXT|EST|I/E)[./ ]")


def likely(text: str) -> tuple[list[str], list[str]]:
    """Layouts in which two names come back, in pieces of a text; those to read it in, the likeliest first.

    Of a long text those are the ones that a piece, read by itself, is in.
    """
    places = range(0, len(text), max(PIECE, len(text) // 4))
    pieces, found = [Reader(text[place : place + PIECE]) for place in places], Counter()
    for layout in (*ENDS, *MARKED):
        for piece in pieces if layout != "fountain" else ():
            back = [n for n in Counter(h.name for h in piece.heads(layout).values()).values() if n > 1]
            found[layout] += sum(back) * (len(back) > 1) * (1.1 if layout == "indent" else 1)
    layouts = worth = [layout for layout, n in found.most_common() if n]
    for piece in pieces:
        piece.layouts = layouts
    if len(text) > 2 * PIECE * len(pieces):
        worth = [a for a in worth if not all(refusal(piece, piece.read(a)) for piece in pieces)]
    return layouts, worth


MANY = 50_000  # lines: of fewer, short ones are soon read


def convert(text: str, layout: Layout = "auto") -> Play:
    """A play's text, lines ended by \\n, in the one form.

    Text that is not for certain in a layout is left as it is, and `reason` says why. A layout that is named
    is taken in any case.
    """
    if layout == "keep":
        return Play(text)
    if layout != "auto":
        return Reader(text, layout == "fountain").read(layout, named=True)
    lines = text.count("\n")
    if lines > MANY and len(text.encode("utf-8", "surrogatepass")) < 5 * lines:  # Chinese has three a letter
        return Play(text, reason="no play has lines as short as these")
    (layouts, worth), scenes = likely(text), SCREEN.search(text)
    if not layouts and not scenes:
        return Play(text, reason=NO_LAYOUT)
    if not worth and not scenes and len(text) > 2 * START and (begun := convert(text[:START])).reason:
        return Play(text, "", [], begun.kinds, begun.doubtful, begun.reason)
    reader = Reader(text)
    reader.layouts = layouts
    if scenes:
        screen = Reader(text, fountain=True)
        play = screen.read("fountain")
        if not refusal(screen, play):
            return play
    best = Play(text, reason=NO_LAYOUT)
    for name in worth or layouts[:1]:
        play = reader.read(name)
        play.reason = refusal(reader, play)
        if not play.reason:
            play.layout *= play.text != "\n".join(reader.raw)
            return play
        best = play if best.reason == NO_LAYOUT else best
    if len(text) > START:
        reader = Reader(text[:START])
        reader.layouts = layouts
    for name in CAPITALS:  # names in title case are taken where they are asked for
        asked = best.reason == NO_LAYOUT and name in layouts
        if asked and not refusal(reader, reader.read(name, named=True)):
            best.reason = f"names may be meant, though not in capitals: try --layout={name}"
    return Play(text, "", [], best.kinds, best.doubtful, best.reason)


def preview(text: str, play: Play) -> str:
    """What a text was read as, for a person to look over: the cast, what is left out, doubtful lines."""
    lines = text.split("\n")

    def shown(numbers, n: int) -> list[str]:
        return [f"    line {i + 1}: {lines[i].strip()[:70]}" for i in sorted(numbers)[:n]]

    out = [f"  layout: {play.layout or 'as it is' + (f' ({play.reason})' if play.reason else '')}"]
    for name, (n, said) in sorted(play.cast.items(), key=lambda item: -item[1][0]):
        out.append(f"  {n:6,} {name}: {' '.join(said.split())[:60]}")
    for kind in ("direction", "heading") if play.speeches else ():
        numbers = [i for i, k in enumerate(play.kinds) if k == kind and lines[i].strip()]
        if numbers:
            out += [f"  left out, {len(numbers):,} lines of {kind}s:", *shown(numbers, 3)]
    if play.doubtful:
        out += [f"  doubtful, {len(play.doubtful):,} lines:", *shown(play.doubtful, 20)]
    return "\n".join(out)
