"""Presentations (PPTX): a page is a slide, with the texts of its shapes and tables, then the speaker's notes."""

from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from connectors.documents.document import join_blocks
from connectors.documents.office_package import OfficePackage, children, local_name


def read_pages(file: BinaryIO) -> list[str]:
    """Return the text of each slide, in the order of the presentation."""
    package = OfficePackage(file)
    main = package.main_part
    assert main is not None, "its type was detected by this part"
    slides = package.related(main, "slide")
    names = (
        slides.get(value)
        for entry in package.root(main).iter()
        if local_name(entry) == "sldId"
        for key, value in entry.attrib.items()
        if key.endswith("}id")
    )
    return [_slide(package, name) for name in names if name is not None]


def _slide(package: OfficePackage, name: str) -> str:
    parts = [name, *package.related(name, "notesSlide").values()]
    return join_blocks(block for part in parts for block in _blocks(package.root(part), part != name))


def _blocks(element: etree._Element, is_notes: bool) -> Iterator[tuple[str, str]]:
    """Yield (separator before, text) of shapes and of rows of tables."""
    for child in element:
        name = local_name(child)
        if name == "sp":
            if not is_notes or _placeholder(child) == "body":
                yield "\n\n", "\n".join(_paragraphs(child))
        elif name == "tbl":
            for index, row in enumerate(children(child, "tr")):
                cells = (" ".join(_paragraphs(cell)).replace("\n", " ") for cell in children(row, "tc"))
                yield "\n" if index else "\n\n", "\t".join(cells).rstrip()
        elif name != "Fallback":
            yield from _blocks(child, is_notes)


def _placeholder(shape: etree._Element) -> str | None:
    """Return the kind of placeholder that a shape is; the notes are the `body` of their page."""
    return next((child.get("type") for child in shape.iter() if local_name(child) == "ph"), None)


def _paragraphs(element: etree._Element) -> Iterator[str]:
    for paragraph in element.iter():
        if local_name(paragraph) == "p":
            parts = (
                ("\n" if local_name(part) == "br" else part.text or "") for part in paragraph.iter() if _is_text(part)
            )
            if text := "".join(parts).strip():
                yield text


def _is_text(element: etree._Element) -> bool:
    return local_name(element) in ("t", "br")
