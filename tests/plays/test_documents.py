"""Word, web pages, e-books and PDF: what a file is, and its lines as plain text where a library is there."""

import zipfile

import pytest

from configurator import UserError
from drama.plays.documents import kind_of, printed_lines, text_of

SPEECHES = [("ANNA", "Where is the well?"), ("BEN", "Behind the house, *there* it_is.")] * 20


def packed(path, files: dict[str, str]):
    with zipfile.ZipFile(path, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return path


DECLARED = b"<?xml version='1.0'?>"


@pytest.mark.parametrize("content,kind", [
    (b"ANNA: <b>x</b>", ""), (b"<b>ANNA</b>: x", ""), (b"<3 ANNA: x", ""), (b"", ""), (b"<!-- a note", ""),
    (DECLARED + b"<a/>", "xml"), (b"\xef\xbb\xbf\n" + DECLARED + b"<a/>", "xml"), (b"<TEI>", "xml"),
    (b'<tei:TEI xmlns:tei="x">', "xml"), ((DECLARED + b"<a/>").decode().encode("utf-16"), "xml"),
    ("<TEI><text/></TEI>".encode("utf-16-be"), "xml"), (b"<!-- a --><TEI.2>", "xml"),
    (b"<FinalDraft ", "xml"), (b"<HTML><BODY>", "html"), (b"\xef\xbb\xbf<head>", "html"),
    (b"<!-- a --> <!doctype html>", "html"), (DECLARED + b"\n<!-- a --><html>", "html"),
    ("<html>".encode("utf-16"), "html"), (b"<p>ANNA", "html"), (b"%PDF-1.7", "pdf"), (b"{\\rtf1", "rtf"),
])  # fmt: skip
def test_markup_is_known_by_its_beginning_whatever_the_name(tmp_path, content, kind):
    path = tmp_path / "play.txt"
    path.write_bytes(content)
    assert kind_of(path) == kind


def test_archives_are_known_by_what_is_in_them(tmp_path):
    assert kind_of(packed(tmp_path / "a", {"word/document.xml": "<x/>"})) == "docx"
    assert kind_of(packed(tmp_path / "b", {"mimetype": "application/epub+zip"})) == "epub"
    odt = packed(tmp_path / "c", {"mimetype": "application/vnd.oasis.opendocument.text"})
    for path, words in ((odt, "OpenDocument"), (packed(tmp_path / "d", {"a.txt": "x"}), "unpack it")):
        with pytest.raises(UserError, match=words):
            kind_of(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("drama.plays.documents.LARGEST", 100)
    with pytest.raises(UserError, match="unpacks to 101 bytes"):
        kind_of(packed(tmp_path / "a", {"word/document.xml": "x" * 101}))


def test_a_missing_library_and_a_damaged_document_are_one_line(tmp_path):
    path = packed(tmp_path / "play.docx", {"word/document.xml": "<x"})
    with pytest.raises(UserError, match=r"play\.docx") as refused:
        text_of(path, "docx")
    assert "\n" not in str(refused.value)


def test_a_web_page_is_its_text_without_marks_that_were_not_in_it(tmp_path):
    pytest.importorskip("markitdown")
    page = "".join(f"<p>{name}: {words}</p>" for name, words in SPEECHES)
    path = tmp_path / "play.html"
    path.write_text(
        f'<html><head><title>No</title></head><body><a href="x">Up</a>{page}<img src="x"></body></html>'
    )
    text = text_of(path, "html")
    assert text.count("ANNA: Where is the well?\n\nBEN: Behind the house, *there* it_is.") == 20
    assert "(x)" not in text and "<" not in text and "No" not in text


def test_names_in_bold_and_tabs_come_through_word(tmp_path):
    pytest.importorskip("markitdown")
    docx = pytest.importorskip("docx")
    document = docx.Document()
    for name, words in SPEECHES:
        document.add_paragraph(f"{name}\t{words}")
    document.save(tmp_path / "play.docx")
    assert text_of(tmp_path / "play.docx", "docx").startswith("ANNA\tWhere is the well?\n\nBEN\tBehind")


def word(x: float, line: float, text: str) -> dict:
    return dict(x0=x, x1=x + 6 * len(text), top=12 * line - 10, bottom=12 * line, text=text)


def test_the_lines_of_a_page_stand_as_printed_without_its_number():
    page = [
        word(300, 1, "12"), word(200, 4, "ANNA"), word(118, 4.99, "is"), word(100, 5, "It"),
        word(100, 6, "so."), word(100, 8, "BEN"), word(180, 8, "Yes."), word(100, 9, "No."),
        word(300, 12, "-"), word(310, 12, "12"),
    ]  # fmt: skip
    lines = [(200, "ANNA"), (100, "It is"), (100, "so."), (None, ""), (100, "BEN\tYes."), (100, "No.")]
    assert printed_lines(page) == lines
