"""Office packages: the zip archive of XML parts that a DOCX, PPTX or XLSX file is."""

import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from lxml import etree

from connectors.media.document_types import DocumentError

MAX_UNPACKED_BYTES = 1 << 30
"""All parts of an archive together. Text of that size would not fit into a column anyway."""

_NO_MEMORY = (0, etree.ErrorTypes.ERR_NO_MEMORY)
"""Codes of lxml when libxml2 has no memory; 0 is its unknown error."""


class OfficePackage:
    """An opened office file."""

    def __init__(self, file: BinaryIO) -> None:
        """DocumentError if it is no archive, or one that unpacks to more than MAX_UNPACKED_BYTES."""
        try:
            self._archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as exc:
            raise DocumentError(f"is a broken zip archive ({exc}); save it again") from exc
        entries = self._archive.infolist()
        if (size := sum(entry.file_size for entry in entries)) > MAX_UNPACKED_BYTES:
            raise DocumentError(f"unpacks to {size / (1 << 30):.1f} GB, the limit is 1 GB; split it")
        self._names = frozenset(self._archive.namelist())
        self.main_part = self._main_part()
        """The name of the part with the document itself; None: it is no office file."""

    def _main_part(self) -> str | None:
        if "_rels/.rels" not in self._names:
            return None
        parts = self.related("", "officeDocument")
        return next(iter(parts.values()), None)

    def root(self, part: str) -> etree._Element:
        """Return the root element of a part."""
        # No entity is expanded and nothing else is opened; libxml2 limits depth and sizes.
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
        try:
            with self._archive.open(part) as file:
                return etree.parse(file, parser).getroot()
        except (KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as exc:
            raise DocumentError(f"is broken: its part {part} cannot be unpacked ({exc}); save it again") from exc
        except etree.XMLSyntaxError as exc:
            if exc.code in _NO_MEMORY:
                raise MemoryError from exc
            raise DocumentError(f"is broken: its part {part} is not valid XML ({exc.msg}); save it again") from exc

    def related(self, part: str, kind: str) -> Mapping[str, str]:
        """Return id -> name of the parts to which a part has relationships of this kind (`slide`)."""
        folder, name = posixpath.split(part)
        relationships = posixpath.join(folder, "_rels", f"{name}.rels")
        if relationships not in self._names:
            return {}
        found: dict[str, str] = {}
        for relation in children(self.root(relationships), "Relationship"):
            target = relation.get("Target")
            is_kind = relation.get("Type", "").rpartition("/")[2] == kind
            if target is None or not is_kind or relation.get("TargetMode") == "External":
                continue
            path = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
            if path in self._names:
                found[relation.get("Id", "")] = path
        return found


def local_name(element: etree._Element) -> str:
    """Return the name of an element without its namespace, which differs between editions of the standard."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def children(element: etree._Element, name: str) -> Iterator[etree._Element]:
    """Yield the children of this name."""
    return (child for child in element if local_name(child) == name)
