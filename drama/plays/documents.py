"""Documents that people keep plays in, as plain text: Word, rich text, web pages, e-books and PDF.

What a file is follows from how it begins or, where that does not tell, from how its name ends. It is read by
libraries that are not required; each is named in one line where it is missing.
"""

import io
import itertools
import logging
import re
import warnings
import zipfile
from pathlib import Path

from drama.program import optional

from configurator import UserError, one_line

LARGEST = 500_000_000  # bytes that a zip archive may unpack to
TEXT_PLEASE = "save it as plain text in UTF-8"

REFUSED = {  # how files begin that nothing here reads
    b"\xd0\xcf\x11\xe0": f"a file of an older Word; {TEXT_PLEASE}",
    b"\x1f\x8b": "compressed; unpack it",
}
WEB_PAGE = re.compile(r"<(?:!doctype\s+html|html|head|body|title|meta|div|p|h[1-6]|table)\b", re.I)
XML = re.compile(r"<(?:\?xml\b|!doctype\b|(?:\w+:)?(?:TEI(?:\.2)?|teiCorpus(?:\.2)?|FinalDraft)[\s>])", re.I)
ENDINGS = {".xml": "xml", ".fdx": "xml", ".html": "html", ".htm": "html", ".xhtml": "html"}
PASSED_OVER = re.compile(r"\s*(?:<\?[^>]{0,1000}\?>|<!--)")  # before the first element


def kind_of(path: Path) -> str:
    """What a file is: "xml", "html", "docx", "epub", "pdf", "rtf", or "" for text.

    Raises UserError for what is none of them, and says what to do.
    """
    with open(path, "rb") as file:
        head = file.read(10_000)
    for beginning, kind in REFUSED.items():
        if head.startswith(beginning):
            raise UserError(f"{path} is {kind}")
    if head.startswith(b"PK\3\4"):
        return kind_of_zip(path)
    if head.startswith((b"{\\rtf", b"%PDF")):
        return "rtf" if head[:1] == b"{" else "pdf"
    text = decoded(head).lstrip("\ufeff \t\r\n")
    kind = "xml" if XML.match(text) else ENDINGS.get(path.suffix.lower(), "")
    while before := PASSED_OVER.match(text):  # an XHTML page begins as XML does
        end = text.find("-->", before.end()) + 3 if before[0].endswith("<!--") else before.end()
        text = text[end:].lstrip() if end > 2 else ""
    return "html" if WEB_PAGE.match(text) else "xml" if XML.match(text) else kind


def decoded(head: bytes) -> str:
    """The beginning of a file in UTF-8 or UTF-16, to be looked at only."""
    for mark, order in ((b"\xff\xfe", "le"), (b"\xfe\xff", "be"), (b"<\0", "le"), (b"\0<", "be")):
        if head.startswith(mark):
            return head.decode(f"utf-16-{order}", "ignore")
    return head.decode("utf-8", "ignore")


def kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as z:
            names, size = z.namelist(), sum(entry.file_size for entry in z.infolist())
            kind = z.read("mimetype")[:60] if "mimetype" in names else b""
    except Exception as e:  # a damaged archive raises many things
        raise UserError(f"{path} is a damaged zip archive ({one_line(e)}); save it again") from None
    if size > LARGEST:
        raise UserError(f"{path} unpacks to {size:,} bytes, where {LARGEST:,} are read; split it")
    if "word/document.xml" in names:
        return "docx"
    if kind.startswith(b"application/epub+zip"):
        return "epub"
    if kind.startswith(b"application/vnd.oasis.opendocument.text"):
        raise UserError(f"{path} is an OpenDocument file; {TEXT_PLEASE}")
    raise UserError(f"{path} is a zip archive; unpack it")


def text_of(path: Path, kind: str) -> str:
    """The text of a document of that kind. Raises UserError where it has none or cannot be read."""
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            text = READERS[kind](file)
    except UserError as e:  # a library is not installed
        raise UserError(f"{path}: {e}, or {TEXT_PLEASE}") from None
    except OSError:
        raise
    except Exception as e:  # a library may raise anything
        raise UserError(f"{path} cannot be read as {kind} ({type(e).__name__}: {one_line(e)})") from None
    if not text.strip():
        raise UserError(f"{path} holds no text; pictures of pages have to be recognised (OCR) first")
    return text


def word(file) -> str:
    page = optional("mammoth", "markitdown[docx]").convert_to_html(file).value
    tab = "\ue000"  # between a name and its speech; white space in a page would be one space
    return web_page(io.BytesIO(page.replace("\t", tab).encode()), "utf-8").replace(tab, "\t")


def web_page(file, charset: str | None = None, extension: str = ".html") -> str:
    markitdown = optional("markitdown", "markitdown[docx,pdf]")
    about = markitdown.StreamInfo(extension=extension, charset=charset)
    text = markitdown.MarkItDown(enable_plugins=False).convert_stream(file, stream_info=about).markdown
    text = re.sub(r"!\[[^\[\]\n]{0,500}\]\([^()\n]{0,2000}\)", "", text)  # pictures
    text = re.sub(r"\[([^\[\]\n]{1,500})\]\([^()\n]{0,2000}\)", r"\1", text)  # links
    if not re.search(r"^\*\*", text, re.M):  # names are not bold, so what is read has no marks to escape
        text = re.sub(r"\\([^\w\s]|_)", r"\1", text)
    return text


def book(file) -> str:
    text = web_page(file, extension=".epub")
    about = re.match(r"(?:\*\*\w+:\*\* .*\n)+", text)  # title, author, publisher
    return text[about.end() :].lstrip("\n") if about else text


def rich_text(file) -> str:
    return optional("striprtf.striprtf", "striprtf").rtf_to_text(
        file.read().decode("latin-1"), errors="replace"
    )


def pdf(file) -> str:
    """The lines of each page as they stand on it: indented, a tab where a wide space is, no page numbers."""
    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    pages = []
    with optional("pdfplumber", "markitdown[pdf]").open(file) as document:
        for page in document.pages:
            pages += printed_lines(page.extract_words())
            page.close()
    left = min((x for x, _ in pages if x is not None), default=0)
    return "\n".join("" if x is None else " " * round((x - left) / 7) + text for x, text in pages)


def printed_lines(words: list[dict]) -> list[tuple[float | None, str]]:
    """(distance from the left in points, text) of each line of a page; (None, "") for an empty line."""
    rows = []
    for word in sorted(words, key=lambda word: word["bottom"]):
        if rows and word["bottom"] - rows[-1][0]["bottom"] < (word["bottom"] - word["top"]) / 3:
            rows[-1].append(word)
        else:
            rows.append([word])
    lines = []  # left, bottom, text
    for row in rows:
        row.sort(key=lambda word: word["x0"])
        text = row[0]["text"]
        for before, word in itertools.pairwise(row):
            wide = word["x0"] - before["x1"] > 1.5 * (word["bottom"] - word["top"])
            text += ("\t" if wide else " ") + word["text"]
        lines.append((row[0]["x0"], row[0]["bottom"], text))
    for end in (0, -1):  # the page's number
        while lines and re.fullmatch(r"\W*\d{1,4}\W*", lines[end][2]):
            del lines[end]
    leading = sorted(below[1] - line[1] for line, below in itertools.pairwise(lines))
    usual = leading[len(leading) // 4] if leading else 0
    printed = []
    for n, (left, bottom, text) in enumerate(lines):
        if n and bottom - lines[n - 1][1] > 1.4 * usual:
            printed.append((None, ""))
        printed.append((left, text))
    return printed


READERS = {"docx": word, "rtf": rich_text, "html": web_page, "epub": book, "pdf": pdf}
