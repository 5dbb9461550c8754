"""The files that people bring: which ones are meant, their encodings, and what is tidied in them."""

import codecs
import hashlib
import io
import itertools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from configurator import UserError
from drama.plays import structured
from drama.plays.documents import kind_of, text_of
from drama.plays.layouts import Layout, Play, convert, preview
from drama.speech import SPEECH, speakers

# What a folder is searched for. Documents in it that are no play are left out; plain text is taken as it is.
PLAIN = (".txt", ".fountain")
DOCUMENTS = (
    ".md", ".xml", ".fdx", ".docx", ".doc", ".odt", ".rtf", ".html", ".htm", ".xhtml", ".epub", ".pdf",
)  # fmt: skip


def input_files(value: str) -> list[tuple[Path, bool]]:
    """The files that --input names, folders expanded, and whether each was named itself.

    Several names are separated by commas or newlines; a file may have a comma in its own name. In a folder,
    hidden files and folders are left out; what else is in it besides plays is said. Raises UserError for
    what cannot be read.
    """
    names = [
        part for line in value.split("\n") for part in ([line] if Path(line).exists() else line.split(","))
    ]
    files = []
    for name in filter(None, map(str.strip, names)):
        path = Path(name).expanduser()
        if path.is_dir():
            files += [(file, False) for file in files_in(path)]
        elif path.is_file():
            files.append((path, True))
        else:
            raise UserError(f"{path}: " + ("not a plain file" if path.exists() else "no such file"))
    if not files:
        raise UserError(f"input={value!r} names no file")
    return files


def files_in(folder: Path) -> list[Path]:
    """The plays in a folder, in order; prints what it passes over. Raises UserError where there are none."""
    seen = [path for path in folder.rglob("*") if path.is_file()]
    seen = [p for p in seen if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files = sorted(path for path in seen if path.suffix.lower() in PLAIN + DOCUMENTS)
    if not files:
        raise UserError(f"{folder} holds no .txt or .fountain file, and none of " + ", ".join(DOCUMENTS))
    if others := sorted(str(path.relative_to(folder)) for path in set(seen) - set(files)):
        names = ", ".join(others[:4]) + f" and {len(others) - 4:,} more" * (len(others) > 4)
        print(f"{folder}: skipped, of kinds that are not read: {names}")
    return files


LONGEST = 20_000_000  # bytes; four times all of Shakespeare is no play, and takes much memory to convert
LONGEST_LINE = 1 << 22  # characters
CHUNK = 1 << 22  # bytes read at a time: memory stays small however long a text is


def text_pieces(path: Path, encoding: str):
    """Yield a file's text in pieces, newlines as \\n, without a mark at its start.

    Raises UserError where it is not text in that encoding.
    """
    with open(path, "rb") as file:
        data = file.read(CHUNK)
        if encoding == "utf-8" and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            encoding = "utf-16"
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
        lines, mark = 1, "\ufeff"
        while True:
            try:
                text = decoder.decode(data, final=not data)
                text.encode()
            except UnicodeEncodeError:  # some encodings can spell half a character
                raise UserError(f"{path} is not text in {encoding}; name another --encoding") from None
            except UnicodeError as e:
                wrong, at = getattr(e, "object", data), getattr(e, "start", 0)
                line = lines + wrong.count(b"\n", 0, at)
                advice = "save it as UTF-8, or name its own --encoding (cp1252, latin-1, gb18030, utf-16)"
                where = f"byte 0x{wrong[at]:02x} in line {line:,}"
                raise UserError(f"{path} is not {encoding} ({where}); {advice}") from None
            if "\0" in text:
                likely = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
                advice = f"if it is text, try --encoding={likely}"
                raise UserError(f"{path} holds NUL, which no text in {encoding} has; {advice}")
            if text:
                yield text.removeprefix(mark)
                mark = ""
            if not data:
                return
            lines += data.count(b"\n")
            data = file.read(CHUNK)


MARKS_ON_A_LETTER = 30  # as Unicode's Stream-Safe Text Format allows (UAX 15); sorting more is quadratic
SIGNS = re.compile(rf"[^\w\s]{{{MARKS_ON_A_LETTER + 1},}}")


def normalized(text: str) -> str:
    """A text with each letter and its accents as one character (NFC); more marks than any script has stay."""
    parts, end = [], 0
    for signs in SIGNS.finditer(text):
        runs = itertools.groupby(signs[0], lambda sign: unicodedata.combining(sign) > 0)
        if any(marks and len(list(run)) > MARKS_ON_A_LETTER for marks, run in runs):
            parts += [unicodedata.normalize("NFC", text[end : signs.start()]), signs[0]]
            end = signs.end()
    return "".join([*parts, unicodedata.normalize("NFC", text[end:])])


class Tidy:
    """Takes marks out of a text that comes in pieces, and notes what was changed."""

    def __init__(self, normalize: bool):
        self.normalize, self.marks, self.composed = normalize, 0, False

    def __call__(self, text: str) -> str:
        self.marks += text.count("\ufeff")
        text = text.replace("\ufeff", "")
        if not self.normalize or text.isascii():
            return text
        tidy = normalized(text)
        self.composed |= tidy != text
        return tidy

    def lines(self, pieces):
        """Yield the tidied pieces, each ended by a whole line where lines are not too long for that."""
        held = ""
        for piece in pieces:
            held += piece
            end = held.rfind("\n") + 1 or (len(held) if len(held) > LONGEST_LINE else 0)
            yield self(held[:end])
            held = held[end:]
        yield self(held)

    def notes(self) -> list[str]:
        notes = []
        if self.marks:  # as where files were joined
            notes.append(f"byte-order marks within it removed: {self.marks}")
        if self.composed:
            notes.append("letters and their accents made one character (--normalize=false leaves them)")
        return notes


def clean(path: Path, encoding: str, layout: Layout, normalize: bool, named: bool = True, show: bool = False):
    """Yield a file's text, in pieces, in the form that a model learns from; prints what was changed for that.

    A document that was found in a folder, and not named, has to be a play. show: also who speaks, what is
    left out and what is doubtful.
    """
    kind, notes, tidy = kind_of(path), [], Tidy(normalize)
    beginning = f"{path}: {path.stat().st_size:,} bytes"
    if not kind and layout in ("auto", "keep") and path.stat().st_size > LONGEST:
        yield from tidy.lines(text_pieces(path, encoding))
        too_long = "too long for one play: its layout was not looked for, but --layout names it"
        print("; ".join([beginning, *tidy.notes(), too_long]))
        return
    if kind == "xml":
        play = structured.read(path)
        text, cast = play.text, play.cast
        notes.append(play.kind)
    else:
        text = text_of(path, kind) if kind else "".join(text_pieces(path, encoding))
    text = tidy(text)
    notes += tidy.notes()
    if kind == "xml":
        if left_out := ", ".join(f"{n:,} {what}" for what, n in play.left_out.items()):
            notes.append(f"left out: {left_out}")
        most = sorted(cast.items(), key=lambda item: -item[1]) if show else ()
        details = "\n".join(f"  {n:6,} {name}" for name, n in most)
    else:
        play, converted = convert_plain(path, text, layout)
        notes += converted
        details, text = preview(text, play) if show else "", play.text
        cast = {name: n for name, (n, _) in play.cast.items()}
        if not named and not cast and path.suffix.lower() in DOCUMENTS:
            raise UserError(f"{path} shows no play; name it itself to have it taken as it is")
    if cast:
        names = ", ".join(list(cast)[:4]) + ", ..." * (len(cast) > 4)
        notes.append(f"{sum(cast.values()):,} speeches by {len(cast):,} speakers ({names})")
    print("; ".join([beginning, *notes]))
    if show:
        print(details)
    yield text


def in_one_form(text: str) -> bool:
    """Whether nearly every paragraph begins as a speech does in the one form, by one of several speakers."""
    paragraphs = [paragraph + "\n" for paragraph in re.split("\n\n+", text.strip("\n"))]
    names = Counter(found[1] for found in map(SPEECH.match, paragraphs) if found)
    return 1 < len(names) < names.total() and names.total() > 0.9 * len(paragraphs)


def convert_plain(path: Path, text: str, layout: Layout) -> tuple[Play, list[str]]:
    """Plain text in the one form, and what to say of it. Raises UserError for a layout that it is not in."""
    notes = []
    if layout == "auto" and path.suffix.lower() == ".fountain":
        layout = "fountain"
    play = convert(text, layout)
    if play.reason and in_one_form(text):
        play.reason = ""  # nothing has to be converted
    if layout not in ("auto", "keep") and text and not play.speeches:
        raise UserError(f"{path}: no speech in the layout {layout}; try another --layout, or auto")
    if play.layout:
        notes.append(f"from the layout {play.layout} (--layout=keep takes it as it is)")
        headings, directions = play.kinds.count("heading"), play.kinds.count("direction")
        if left_out := headings + directions:
            what = f"headings {headings:,}, stage directions {directions:,}"
            notes.append(f"{left_out:,} lines left out ({what})")
    elif play.text != text:
        notes.append("spaces at the ends of lines removed")
    elif not text.strip():
        notes.append("empty")
    elif play.reason:
        notes.append(f"the text is taken as it is: {play.reason} (--layout names one that is sure)")
    if play.doubtful and (play.layout or play.reason):
        lines = text.split("\n")
        first = "; ".join(f"line {i + 1}: {lines[i].strip()[:40]!r}" for i in sorted(play.doubtful)[:3])
        notes.append(f"doubtful lines: {len(play.doubtful):,} ({first}; --preview=true shows more)")
    return play, notes


@dataclass
class Text:
    """A text as it will be encoded: a part of a file in UTF-8, where it is from, and who speaks how often."""

    path: Path
    source: str
    start: int  # bytes
    stop: int
    characters: int
    speakers: dict[str, int]

    def pieces(self):
        """Yield it in pieces."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        with open(self.path, "rb") as file:
            file.seek(self.start)
            left = self.stop - self.start
            while data := file.read(min(left, CHUNK)):
                left -= len(data)
                yield decoder.decode(data)

    def part(self, start: int, stop: int) -> "Text":
        """The part between two bytes of its file."""
        part = replace(self, start=start, stop=stop)
        part.count(part.pieces())
        return part

    def count(self, pieces):
        """Note the length and the speakers of this text, which comes in pieces."""
        self.characters = 0

        def passing():
            for piece in pieces:
                self.characters += len(piece)
                yield piece

        self.speakers = speakers(passing())

    def place(self, character: int) -> int:
        """The byte of its file where a character begins."""
        place = self.start
        for piece in self.pieces():
            place += len(piece[:character].encode())
            character -= min(character, len(piece))
        return place


def written(path: Path, source: str, pieces) -> tuple[Text, bytes]:
    """(a text, its SHA-256), written to path piece by piece."""
    text, sha = Text(path, source, 0, 0, 0, {}), hashlib.sha256()

    def stored():
        for piece in pieces:
            data = piece.encode()
            sha.update(data)
            text.stop += file.write(data)
            yield piece

    with open(path, "wb") as file:
        text.count(stored())
    return text, sha.digest()


def cleaned_files(files: list[tuple[Path, bool]], folder: Path, **kwargs) -> list[Text]:
    """The cleaned texts of files, written into folder; kwargs as `clean` takes them.

    What a folder holds that is no play is said and left out. Raises UserError where two hold the same text.
    """
    cleaned, seen = [], {}
    for number, (file, named) in enumerate(files):
        try:
            text, sha = written(folder / f"{number}.txt", str(file), clean(file, named=named, **kwargs))
        except UserError as e:
            if named or file.suffix.lower() in PLAIN:
                raise
            print(f"skipped: {e}")
            continue
        other = seen.setdefault(sha, file)
        if other is not file and text.characters:
            raise UserError(f"{other} and {file} hold the same text; leave one of them out")
        cleaned.append(text)
    if not any(piece.strip() for text in cleaned for piece in text.pieces()):
        raise UserError(f"{files[0][0]} is empty" if len(files) == 1 else "no file holds a play")
    return cleaned


MANY = 10  # files from which on whole ones are held out


def split(texts: list[Text], val_fraction: float, n_val: int = 0) -> tuple[list[Text], list[Text]]:
    """The texts to train on, and those to validate on: about val_fraction of them, or n_val characters.

    Of many files, whole ones, spread evenly, since the last tenth of a sorted folder is authors W to Z. Of
    fewer, the end of their text.
    """
    total = sum(text.characters for text in texts)
    if len(texts) < MANY:
        return cut(texts, total - n_val if n_val else int(total * (1 - val_fraction)))
    train, val = [], []
    for n, text in enumerate(texts, start=1):
        due = round(n * val_fraction) > round((n - 1) * val_fraction)
        (val if due else train).append(text)
    return (train, val) if train and val else cut(texts, int(total * (1 - val_fraction)))


def cut(texts: list[Text], n_train: int) -> tuple[list[Text], list[Text]]:
    """The first n_train characters of texts, and the others."""
    train, val = [], []
    for text in texts:
        left = n_train - sum(text.characters for text in train)
        if 0 < left < text.characters:
            at = text.place(left)
            train.append(text.part(text.start, at))
            val.append(text.part(at, text.stop))
        else:
            (train if left else val).append(text)
    return train, val
