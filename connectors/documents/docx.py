"""Word documents (DOCX): paragraphs and tables in their order, then footnotes and endnotes; one page.

Insertions that are not accepted yet belong to the text, deletions do not. Headers, footers and comments are left out.
"""

from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from connectors.documents.document import join_blocks
from connectors.documents.office_package import OfficePackage, children, local_name

_TEXTS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "ptab": "\t"}
_LEFT_OUT = frozenset({"Fallback", "del", "moveFrom", "pPr", "rPr", "instrText", "delText"})
"""`Fallback`: repeats the content of `Choice` for old programs."""


def read_pages(file: BinaryIO) -> list[str]:
    """Return the text as the only page."""
    package = OfficePackage(file)
    main = package.main_part
    assert main is not None, "its type was detected by this part"
    notes = [part for kind in ("footnotes", "endnotes") for part in package.related(main, kind).values()]
    blocks = (block for part in (main, *notes) for block in _blocks(package.root(part)))
    return [join_blocks(blocks)]


def _blocks(element: etree._Element) -> Iterator[tuple[str, str]]:
    """Yield (separator before, text) of paragraphs and of rows of tables."""
    was_item = False
    for child in element:
        name = local_name(child)
        if name == "p":
            is_item = any(_is_item(properties) for properties in children(child, "pPr"))
            yield "\n" if is_item and was_item else "\n\n", _paragraph(child)
            was_item = is_item
        elif name == "tbl":
            rows = (row for row in child.iter() if local_name(row) == "tr" and _table(row) is child)
            for index, row in enumerate(rows):
                yield "\n" if index else "\n\n", "\t".join(_cell(cell) for cell in children(row, "tc")).rstrip()
            was_item = False
        elif name not in _LEFT_OUT:
            yield from _blocks(child)


def _is_item(properties: etree._Element) -> bool:
    """Return whether a paragraph is an item of a list, by its numbering or by the style that has it."""
    return any(
        local_name(child) == "numPr" or (local_name(child) == "pStyle" and "List" in (_value(child) or ""))
        for child in properties
    )


def _value(element: etree._Element) -> str | None:
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == "val"), None)


def _table(row: etree._Element) -> etree._Element | None:
    """Return the table of a row; content controls may be between them."""
    return next((parent for parent in row.iterancestors() if local_name(parent) == "tbl"), None)


def _cell(cell: etree._Element) -> str:
    return " ".join(text for _, text in _blocks(cell) if text).replace("\n", " ").replace("\t", " ")


def _paragraph(element: etree._Element) -> str:
    """Return the text of a paragraph; the paragraphs of text boxes in it are lines."""
    parts: list[str] = []
    _add_texts(element, parts)
    return "".join(parts).strip()


def _add_texts(element: etree._Element, parts: list[str]) -> None:
    for child in element:
        name = local_name(child)
        if name == "t":
            parts.append(child.text or "")
        elif name in _TEXTS:
            parts.append(_TEXTS[name])
        elif name not in _LEFT_OUT:
            if name == "p":
                parts.append("\n")
            _add_texts(child, parts)
