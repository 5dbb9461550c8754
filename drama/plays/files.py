"""The files that people bring: which ones are meant, their encodings, and what is tidied in them."""

import codecs
import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from configurator import UserError
from drama.plays import structured
from drama.plays.documents import kind_of, text_of
from drama.plays.layouts import LONGEST, Layout, Play, convert, preview
from drama.speech import speakers

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


def read_text(path: Path, encoding: str) -> str:
    """A file's text, newlines as \\n, without a mark at its start. Raises UserError where it is not one."""
    data = path.read_bytes()
    if encoding == "utf-8" and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    try:
        text = data.decode(encoding)
        text.encode()
    except UnicodeEncodeError:  # some encodings can spell half a character
        raise UserError(f"{path} is not text in {encoding}; name another --encoding") from None
    except UnicodeError as e:
        at = getattr(e, "start", 0)
        line = data.count(b"\n", 0, at) + 1
        where = f"byte 0x{data[at]:02x} in line {line:,}"
        advice = "save it as UTF-8, or name its own with --encoding (cp1252, latin-1, gb18030, utf-16)"
        raise UserError(f"{path} is not {encoding} ({where}); {advice}") from None
    if "\0" in text:
        likely = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
        advice = f"if it is text, try --encoding={likely}"
        raise UserError(f"{path} holds NUL, which no text in {encoding} has; {advice}")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def clean(
    path: Path, encoding: str, layout: Layout, normalize: bool, named: bool = True, show: bool = False
) -> str:
    """A file's text in the form that a model learns from; prints what it was and what was changed.

    A document that was found in a folder, and not named, has to be a play. show: also who speaks, what is
    left out and what is doubtful.
    """
    kind, notes = kind_of(path), []
    if kind == "xml":
        play = structured.read(path)
        text, cast = play.text, play.cast
        notes.append(play.kind)
    else:
        text = text_of(path, kind) if kind else read_text(path, encoding)
    if marks := text.count("\ufeff"):
        text = text.replace("\ufeff", "")
        notes.append(f"byte-order marks within it removed: {marks}")  # as where files were joined
    if normalize and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        notes.append("letters and their accents made one character (--normalize=false leaves them)")
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
    print(f"{path}: {path.stat().st_size:,} bytes" + "".join(f"; {note}" for note in notes))
    if show:
        print(details)
    return text


def convert_plain(path: Path, text: str, layout: Layout) -> tuple[Play, list[str]]:
    """Plain text in the one form, and what to say of it. Raises UserError for a layout that it is not in."""
    notes = []
    if layout == "auto" and path.suffix.lower() == ".fountain":
        layout = "fountain"
    play = convert(text, layout)
    if layout not in ("auto", "keep") and text and not play.speeches:
        raise UserError(f"{path}: no speech in the layout {layout}; try another --layout, or auto")
    if layout == "auto" and len(text) > LONGEST:
        notes.append("too long for one play, so its layout was not looked for (--layout names it)")
    elif play.layout:
        notes.append(f"from the layout {play.layout} (--layout=keep takes it as it is)")
        headings, directions = play.kinds.count("heading"), play.kinds.count("direction")
        if left_out := headings + directions:
            what = f"headings {headings:,}, stage directions {directions:,}"
            notes.append(f"{left_out:,} lines left out ({what})")
    elif play.text != text:
        notes.append("spaces at the ends of lines removed")
    elif play.reason:
        notes.append(f"the text is learned as it is: {play.reason}")
    if play.doubtful and (play.layout or play.reason):
        lines = text.split("\n")
        first = "; ".join(f"line {i + 1}: {lines[i].strip()[:40]!r}" for i in sorted(play.doubtful)[:3])
        notes.append(f"doubtful lines: {len(play.doubtful):,} ({first}; --preview=true shows more)")
    return play, notes


@dataclass
class Text:
    """A text as it will be encoded: its own file, where it is from, and who speaks in it how often."""

    path: Path
    source: str
    characters: int
    speakers: dict[str, int]


def written(path: Path, source: str, text: str) -> Text:
    path.write_text(text, encoding="utf-8", newline="")
    return Text(path, source, len(text), speakers(text))


def cleaned_files(files: list[tuple[Path, bool]], folder: Path, **kwargs) -> list[Text]:
    """The cleaned texts of files, written into folder; kwargs as `clean` takes them.

    What a folder holds that is no play is said and left out. Raises UserError where two hold the same text.
    """
    cleaned, seen, empty = [], {}, True
    for number, (file, named) in enumerate(files):
        try:
            text = clean(file, named=named, **kwargs)
        except UserError as e:
            if named or file.suffix.lower() in PLAIN:
                raise
            print(f"skipped: {e}")
            continue
        other = seen.setdefault(hashlib.sha256(text.encode()).digest(), file)
        if other is not file and text:
            raise UserError(f"{other} and {file} hold the same text; leave one of them out")
        empty = empty and not text.strip()
        cleaned.append(written(folder / f"{number}.txt", str(file), text))
    if empty:
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
            whole = text.path.read_text(encoding="utf-8")
            train.append(written(text.path.with_suffix(".train"), text.source, whole[:left]))
            val.append(written(text.path.with_suffix(".val"), text.source, whole[left:]))
        else:
            (train if left else val).append(text)
    return train, val
