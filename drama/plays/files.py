"""The files that people bring: which ones are meant, their encodings, and what is tidied in them."""

import codecs
import hashlib
import unicodedata
from pathlib import Path

from configurator import UserError
from drama.plays.layouts import LONGEST, Layout, convert

NO_TEXT = {  # how files begin that people take for text, in lower case
    b"pk\x03\x04": "a Word or OpenDocument file, or a zip archive",
    b"\xd0\xcf\x11\xe0": "a file of an older Word",
    b"{\\rtf": "rich text (RTF), with its markup",
    b"%pdf": "a PDF",
    b"\x1f\x8b": "compressed",
    b"<!doctype html": "a web page, with its markup",
    b"<html": "a web page, with its markup",
    b"<?xml": "XML, with its markup",
}


def input_files(value: str) -> list[Path]:
    """The files that --input names, folders expanded. Raises UserError for what cannot be read.

    Several names are separated by commas or newlines; a file may have a comma in its own name. In a folder,
    hidden files and folders are left out.
    """
    names = [
        part for line in value.split("\n") for part in ([line] if Path(line).exists() else line.split(","))
    ]
    files = []
    for name in filter(None, map(str.strip, names)):
        path = Path(name).expanduser()
        if path.is_dir():
            texts = [p for p in path.rglob("*") if p.suffix.lower() in (".txt", ".fountain") and p.is_file()]
            texts = [p for p in texts if not any(part.startswith(".") for part in p.relative_to(path).parts)]
            if not texts:
                raise UserError(f"{path} holds no .txt or .fountain file; name other files one by one")
            files += sorted(texts)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: " + ("not a plain file" if path.exists() else "no such file"))
    if not files:
        raise UserError(f"input={value!r} names no file")
    return files


def read_text(path: Path, encoding: str) -> str:
    """A file's text, newlines as \\n, without a mark at its start. Raises UserError where it is not one."""
    data = path.read_bytes()
    for beginning, kind in NO_TEXT.items():
        if data[:500].lstrip().lower().startswith(beginning):
            raise UserError(f"{path} is {kind}; save it as plain text in UTF-8 (or as Fountain)")
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


def clean(path: Path, encoding: str, layout: Layout, normalize: bool) -> str:
    """A file's text in the form that a model learns from; prints what it was and what was changed."""
    text, notes = read_text(path, encoding), []
    if marks := text.count("\ufeff"):
        text = text.replace("\ufeff", "")
        notes.append(f"byte-order marks within it removed: {marks}")  # as where files were joined
    if normalize and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        notes.append("letters and their accents made one character (--normalize=false leaves them)")
    if layout == "auto" and path.suffix.lower() == ".fountain":
        layout = "fountain"
    play = convert(text, layout)
    if layout not in ("auto", "keep") and text and not play.speeches:
        raise UserError(f"{path}: no speech in the layout {layout}; try another --layout, or auto")
    if layout == "auto" and len(text) > LONGEST:
        notes.append("too long for one play, so its layout was not looked for (--layout names it)")
    elif play.layout:
        notes.append(f"from the layout {play.layout} (--layout=keep takes it as it is)")
        if play.left_out:
            notes.append(f"{play.left_out:,} lines left out (headings, stage directions)")
    elif play.text != text:
        notes.append("spaces at the ends of lines removed")
    elif layout == "auto" and not play.speeches:
        notes.append("no speakers found: the text is learned as it is; --layout=...")
    if play.speeches:
        names = ", ".join(play.names[:4]) + ", ..." * (len(play.names) > 4)
        notes.append(f"{play.speeches:,} speeches by {len(play.names):,} speakers ({names})")
    print(f"{path}: {path.stat().st_size:,} bytes" + "".join(f"; {note}" for note in notes))
    return play.text


def cleaned_files(files: list[Path], folder: Path, **kwargs) -> list[Path]:
    """The cleaned texts of files, as files in folder; kwargs as `clean` takes them.

    Raises UserError where two hold the same text.
    """
    cleaned, seen, empty = [], {}, True
    for number, file in enumerate(files):
        text = clean(file, **kwargs)
        empty = empty and not text.strip()
        other = seen.setdefault(hashlib.sha256(text.encode()).digest(), file)
        if other is not file and text:
            raise UserError(f"{other} and {file} hold the same text; leave one of them out")
        cleaned.append(folder / f"{number}.txt")
        cleaned[-1].write_text(text, encoding="utf-8", newline="")
    if empty:
        raise UserError(f"{files[0]} is empty" if len(files) == 1 else "the files are all empty")
    return cleaned
