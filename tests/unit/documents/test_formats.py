"""The formats of documents: their texts, pages and types, by content."""

import datetime
import io
from collections.abc import Callable
from typing import Any

import pytest

from connectors.documents.formats import read_document
from connectors.media.document_types import DocumentError
from tests.support.documents import docx, pdf, zipped

OFFICE = "application/vnd.openxmlformats-officedocument"
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)


def saved(document: Any) -> bytes:
    with io.BytesIO() as file:
        document.save(file)
        return file.getvalue()


def word_document() -> bytes:
    from docx import Document

    document = Document()
    document.add_heading("Title", 1)
    document.add_paragraph("First paragraph.")
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("two", style="List Bullet")
    table = document.add_table(2, 2)
    for row, column, text in ((0, 0, "a"), (0, 1, "b"), (1, 0, "c\nd"), (1, 1, "e")):
        table.cell(row, column).text = text
    document.add_paragraph("Last.")
    return saved(document)


def presentation() -> bytes:
    from pptx import Presentation

    slides = Presentation()
    first = slides.slides.add_slide(slides.slide_layouts[1])
    first.shapes.title.text, first.placeholders[1].text = "One", "A\nB"
    first.notes_slide.notes_text_frame.text = "Say hello."
    table = slides.slides.add_slide(slides.slide_layouts[6]).shapes.add_table(2, 2, 0, 0, 99, 99).table
    table.cell(0, 0).text, table.cell(0, 1).text, table.cell(1, 1).text = "x", "y", "z"
    return saved(slides)


def workbook() -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.title = "Prices"
    sheet.append(["name", "price", "on", "sold"])
    sheet.append(["tea\nleaves", 3.5, datetime.date(2024, 5, 1), True])
    sheet.append(["coffee", 4, datetime.datetime(2024, 5, 1, 10, 30), False])
    book.create_sheet("Empty")
    return saved(book)


PAGE = """<!-- made by hand --><!DOCTYPE html><html><head><title>T</title></head><body>
<script>var a = "<p>no</p>";</script>
<h1>Head</h1><p>One <b>two</b>
three.<p>Caf&eacute; &#x1F600;<ul><li>a<li>b <i>c</i></ul><table><tr><td>1<td>2<tr><td>3<td>4</table>
<pre>  as
  it is</pre><div>d</div>x<br>y</body></html>"""
PAGE_TEXT = "Head\n\nOne two three.\n\nCafé 😀\n\na\nb c\n\n1\t2\n3\t4\n\n  as\n  it is\n\nd\nx\ny"


@pytest.mark.parametrize(
    ("content", "media_type", "pages"),
    [
        (pdf(["First page", "", "Third"]), "application/pdf", ["First page", "", "Third"]),
        (
            word_document,
            f"{OFFICE}.wordprocessingml.document",
            ["Title\n\nFirst paragraph.\n\none\ntwo\n\na\tb\nc d\te\n\nLast."],
        ),
        (presentation, f"{OFFICE}.presentationml.presentation", ["One\n\nA\nB\n\nSay hello.", "x\ty\n\tz"]),
        (
            workbook,
            f"{OFFICE}.spreadsheetml.sheet",
            [
                "Prices\nname\tprice\ton\tsold\n"
                "tea leaves\t3.5\t2024-05-01\tTRUE\ncoffee\t4\t2024-05-01 10:30:00\tFALSE",
                "Empty",
            ],
        ),
        (PAGE.encode(), "text/html", [PAGE_TEXT]),
        (PAGE.encode("utf-16"), "text/html", [PAGE_TEXT]),
        (b"<html><meta charset=iso-8859-1><p>caf\xe9 \x80", "text/html", ["café €"]),
        (b"<p>part of a page</p>\n", "text/html", ["part of a page"]),
        (b"<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>", "text/html", ["a\tb\nc\td"]),
        (b"<p align=center>Badge</p>\n\n# Title\n", "text/markdown", ["<p align=center>Badge</p>\n\n# Title\n"]),
        (b"# Title\r\n\r\n- item", "text/markdown", ["# Title\n\n- item"]),
        ("\ufeffPlain\rtext, äöü\0".encode(), "text/plain", ["Plain\ntext, äöü"]),
        (b"\xfe\xff" + "漢字".encode("utf-16-be"), "text/plain", ["漢字"]),
        (b"", None, "is empty"),
        (bytes(range(256)), None, "unknown type"),
        ("äöü".encode("latin-1"), None, "not UTF-8"),
        (b"a" * 5000 + b"\xff", None, "is not UTF-8 \\(byte 5000\\)"),
        (b"{\\rtf1}", None, "is RTF; save it as DOCX"),
        (b"\x89PNG\r\n\x1a\n", None, "is a picture"),
        (zipped({"a.txt": "x"}), None, "is a zip archive; unpack it"),
        (b"PK\x03\x04broken", None, "is a broken zip archive"),
        (OLD_OFFICE, None, "is encrypted, or from an Office older than 2007"),
        (pdf(["secret"], is_encrypted=True), None, "is encrypted; save it without a password"),
        (b"%PDF-1.7\nnothing else", None, "is a broken PDF"),
        (docx("<w:p>")[:-300], None, "is a broken zip archive"),
        (docx("<w:p>"), None, "is not valid XML"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_the_content_decides_on_type_and_text(
    content: bytes | Callable[[], bytes], media_type: str | None, pages: list[str] | str
) -> None:
    file = io.BytesIO(content() if callable(content) else content)
    if isinstance(pages, str):
        with pytest.raises(DocumentError, match=pages):
            read_document(file, None)
        return
    found = read_document(file, None)
    assert (found.media_type, list(found.pages), found.text) == (media_type, pages, "\n\n".join(pages))


def test_word_text_includes_insertions_links_controls_and_text_boxes_once_and_leaves_deletions_out() -> None:
    body = (
        "<w:p><w:r><w:t>a</w:t></w:r><w:ins><w:r><w:t>b</w:t></w:r></w:ins><w:del><w:r><w:delText>X</w:delText></w:r>"
        "</w:del><w:hyperlink><w:r><w:t>c</w:t></w:r></w:hyperlink></w:p>"
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>d</w:t><w:br/><w:t>e</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        '<w:p><w:r><mc:AlternateContent xmlns:mc="m"><mc:Choice><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p>'
        "</w:txbxContent></mc:Choice><mc:Fallback><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Fallback>"
        "</mc:AlternateContent></w:r></w:p>"
    )
    assert read_document(io.BytesIO(docx(body)), None).text == "abc\n\nd\ne\n\nbox"
