"""HTML pages: the text that a reader sees, with blank lines between paragraphs; one page."""

import codecs
import re
from typing import BinaryIO

from lxml import etree

from connectors.documents.text import decode_marked
from connectors.media.document_types import DocumentError

_LEFT_OUT = frozenset(
    {"head", "script", "style", "template", "noscript", "svg", "math", "iframe", "object", "audio", "video"}
)
_PARAGRAPHS = frozenset(
    {
        *("h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "blockquote", "address", "figure", "hr"),
        *("ol", "ul", "dl", "table", "form", "fieldset", "details"),
        *("article", "aside", "footer", "header", "main", "nav", "section"),
    }
)
"""Elements with a blank line before and after them."""
_LINES = frozenset(
    {"body", "div", "li", "dt", "dd", "tr", "br", "caption", "figcaption", "legend", "option", "summary"}
)
_CELLS = frozenset({"td", "th"})
_SPACE = re.compile(r"[ \t\n\r\f]+")
_DECLARED = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)
_DECLARATION_BYTES = 4096
_MAX_DEPTH = 2048
"""Of libxml2, with `huge_tree`."""
_BREAKS = ("", " ", "\n", "\n\n")
_SPACE_BREAK, _LINE_BREAK, _BLANK_LINE = 1, 2, 3


def read_pages(file: BinaryIO) -> list[str]:
    """Return the text as the only page."""
    content = _decode(file.read())
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, no_network=True, remove_comments=True, remove_pis=True)
    root = etree.fromstring(content.encode("utf-8", "replace"), parser) if content.strip() else None
    if any(entry.level_name == "FATAL" for entry in parser.error_log):
        found = parser.error_log.last_error.message
        reason = f"elements in more than {_MAX_DEPTH:,} others" if "depth" in found else found
        raise DocumentError(f"cannot be read to its end ({reason}); simplify it")
    return [""] if root is None else [_PageText(root).text]


def _decode(content: bytes) -> str:
    """Decode by the byte order mark, else the charset declared in the page, else UTF-8, else Windows-1252."""
    if (text := decode_marked(content)) is not None:
        return text
    declared = _DECLARED.search(content[:_DECLARATION_BYTES])
    try:
        name = codecs.lookup(declared[1].decode("ascii")).name if declared else "utf-8"
    except LookupError:
        name = "utf-8"
    # As browsers do: pages that declare Latin-1 contain Windows-1252.
    for encoding in (name if name not in ("iso8859-1", "ascii") else "cp1252", "utf-8"):
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("cp1252", "replace")


class _PageText:
    """The text of a page, without recursion: pages may be nested deeply."""

    def __init__(self, root: etree._Element) -> None:
        self._parts: list[str] = []
        self._break = 0
        self._preformatted = 0
        skipped: etree._Element | None = None
        for event, element in etree.iterwalk(root, events=("start", "end")):
            name = element.tag if isinstance(element.tag, str) else ""
            if skipped is not None:
                if element is skipped and event == "end":
                    skipped = None
                    self._add(element.tail)
                continue
            if event == "start":
                if name in _LEFT_OUT:
                    skipped = element
                    continue
                self._open(name)
                self._add(element.text)
            else:
                self._close(name)
                self._add(element.tail)
        if self._parts[-1:] == ["\t"]:
            # The page ends with a cell.
            self._parts.pop()
        self.text = "".join(self._parts)

    def _open(self, name: str) -> None:
        self._require(name)
        if name == "pre":
            self._preformatted += 1

    def _close(self, name: str) -> None:
        if name == "pre":
            self._preformatted -= 1
        if name in _CELLS:
            if self._parts and self._break < _LINE_BREAK:
                self._parts.append("\t")
                self._break = 0
        elif name != "br":
            self._require(name)

    def _require(self, name: str) -> None:
        level = _BLANK_LINE if name in _PARAGRAPHS else _LINE_BREAK if name in _LINES else 0
        self._break = max(self._break, level)

    def _add(self, text: str | None) -> None:
        if not text:
            return
        if self._preformatted:
            self._write(text)
            return
        collapsed = _SPACE.sub(" ", text)
        if collapsed.startswith(" "):
            self._break = max(self._break, _SPACE_BREAK)
        if words := collapsed.strip(" "):
            self._write(words)
            if collapsed.endswith(" "):
                self._break = _SPACE_BREAK

    def _write(self, text: str) -> None:
        if self._parts:
            last = self._parts[-1]
            if self._break >= _LINE_BREAK and last == "\t":
                self._parts.pop()
            if not (self._break == _SPACE_BREAK and last == "\t"):
                self._parts.append(_BREAKS[self._break])
        self._break = 0
        self._parts.append(text)
