"""YAML 1.2 files as plain values, with the line of every key."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from connectors.errors import JobError, KeyPath, dotted
from pipelines.config.included_files.text_file import read_text_file

MAX_VALUES = 100_000
"""After aliases are expanded: nine lines of them can ask for billions."""
MAX_DEPTH = 60
MAX_CACHED_CHARACTERS = 1 << 16
"""Of a text whose tree is kept, which takes many times as much memory."""

# The core schema of YAML 1.2.2, section 10.3.2: `yes`, `on` and 12:30 are text.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN_TEXT = re.compile(r"[\w./(](?:[\w ./*+()%;=<>$^|'-]|:(?! ))*")
"""Texts that need no quotes in blocks and flow collections; others may need none either."""
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_QUOTED = "'"

_SYNTAX_ERRORS = (
    (r"character '\t'", "a tab in the indentation", "indent with spaces"),
    ("that cannot start any token", "a value starts with a character that YAML reserves", "put it in quotes"),
    ("while scanning an alias", "a value starts with *", "put it in quotes"),
    ("while scanning an anchor", "a value starts with &", "put it in quotes"),
    ("while scanning a directive", "a line starts with %", "put the value in quotes"),
    ("while scanning a quoted scalar", "a quoted text is not closed, or holds a wrong escape", "check its quotes"),
    ("while scanning a double-quoted scalar", "a wrong escape in a quoted text", "double its backslashes"),
    ("while scanning a simple key", "a key without a colon", "write key: value"),
    (
        "mapping values are not allowed here",
        "a colon where none can be",
        "check the indentation, or put a text that holds one in quotes",
    ),
    ("while parsing a flow", "a bracket, a brace or a comma is missing", "close it, or put a template in quotes"),
    ("while parsing a block", "a line does not fit those around it", "check indentation and quotes"),
)
"""(part of ruamel's message, what was found, what to do); the first that matches counts."""


class YamlFile(Struct, frozen=True):
    """A file's values and the line (from 1) of each key path."""

    values: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def __repr__(self) -> str:
        """Name it without its values: some are secret."""
        return f"YamlFile({', '.join(map(str, self.values))})"


def read_yaml(path: Path, shown: str) -> YamlFile:
    """Return the mapping in the file, empty for an empty file; JobError, located by `shown`, if there is none."""
    text = read_text_file(path, shown, "data belongs in separate files that the source names")
    return parse_yaml(text, shown)


def parse_yaml(text: str, shown: str) -> YamlFile:
    """Parse a text as `read_yaml` parses a file."""
    expansion = _Expansion()
    try:
        top = _composed(text)
        values = None if top is None else expansion.value(top, ())
        if values is None:
            return YamlFile({}, {})
        if not isinstance(values, dict):
            found = "a list" if isinstance(values, list) else "a single value"
            raise _Problem(expansion.lines[()], f"found {found}, expected keys and values", "write key: value")
    except _Problem as exc:
        raise JobError(f"{shown}:{exc.line}" if exc.line else shown, exc.found, exc.remedy) from exc
    return YamlFile(values, expansion.lines)


def parse_value(text: str, shown: str) -> Any:
    """Parse one value as it would be written after a key; `shown` locates the JobError."""
    try:
        top = _composed(text)
        return None if top is None else _Expansion().value(top, ())
    except _Problem as exc:
        raise JobError(shown, exc.found, exc.remedy) from exc


def is_plain_text(text: str) -> bool:
    """Return whether a text without quotes is read as itself: not as a number, true or null, nor as syntax."""
    looks = (_NULL, _BOOL, _INT, _FLOAT, _NOT_FINITE)
    is_word = _PLAIN_TEXT.fullmatch(text) is not None and text == text.strip() and not text.endswith(":")
    return is_word and not any(look.fullmatch(text) for look in looks)


class _Problem(Exception):
    """What is wrong on a line of the text."""

    def __init__(self, line: int | None, found: str, remedy: str) -> None:
        super().__init__(found)
        self.line, self.found, self.remedy = line, found, remedy


class _PlainComposer(Composer):
    """Composes nodes without tags and without aliases that contain themselves."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            node = self.anchors.get(event.anchor)
            # A collection gets its end mark when it is complete.
            if node is None or node.end_mark is None:
                found = f"*{event.anchor} names no anchor before it"
                raise _Problem(line, found, "a text that starts with * needs quotes")
        has_tag = not isinstance(event, AliasEvent) and event.ctag is not None
        if has_tag and str(event.ctag) not in _TEXT_TAGS:
            raise _Problem(line, "a YAML tag", "leave it out, values are read as they are written")
        node = super().compose_node(parent, index)
        if has_tag and isinstance(event, ScalarEvent):
            node.style = _QUOTED
        return node


def _composed(text: str) -> Node | None:
    """Return the one document's tree, which must not be changed; None for an empty text.

    A scheduler and the pages read the same small files again and again.
    """
    return _composed_once(text) if len(text) <= MAX_CACHED_CHARACTERS else _compose(text)


def _compose(text: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _PlainComposer
    # A scalar is one level deeper than the collection around it.
    yaml.max_depth = MAX_DEPTH + 1
    try:
        top: Node | None = yaml.compose(text)
        return top
    except ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise _Problem(line, f"a control character (code {exc.character})", "delete it") from exc
    except MaxDepthExceededError as exc:
        raise _Problem(exc.problem_mark.line + 1, f"nested more than {MAX_DEPTH} deep", "flatten it") from exc
    except ComposerError as exc:
        line = exc.problem_mark.line + 1
        raise _Problem(line, "a second document", "keep one in a file, without a --- line") from exc
    except MarkedYAMLError as exc:
        # A quote that is never closed is noticed at the end of the file; the reader wants its beginning.
        begins_at_context = str(exc.context).startswith("while scanning a")
        mark = (begins_at_context and exc.context_mark) or exc.problem_mark or exc.context_mark
        message = f"{exc.context or ''} {exc.problem or ''}"
        unknown = (f"not valid YAML ({exc.problem})", "check indentation and quotes")
        found, remedy = next(((what, do) for sign, what, do in _SYNTAX_ERRORS if sign in message), unknown)
        raise _Problem(None if mark is None else mark.line + 1, found, remedy) from exc
    except YAMLError as exc:
        raise _Problem(None, "not valid YAML", "check indentation and quotes") from exc


_composed_once = functools.lru_cache(maxsize=8)(_compose)


class _Expansion(Struct):
    """Turns a tree into values, aliases expanded, and records the line of each key path."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    count: int = 0

    def value(self, node: Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _Problem(_line(node), f"aliases make more than {MAX_VALUES:,} values of it", "use fewer")
        if len(path) > MAX_DEPTH:
            raise _Problem(_line(node), f"nested more than {MAX_DEPTH} deep", "flatten it")
        self.lines.setdefault(path, _line(node))
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if isinstance(node, SequenceNode):
            return [self.value(entry, (*path, index)) for index, entry in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: Node, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        key_lines: dict[str, int] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            key = _key(key_node, value_node)
            if key == "<<":
                merged.append(value_node)
                continue
            if key in key_lines:
                found = f"{dotted((*path, key))}: already on line {key_lines[key]}"
                raise _Problem(_line(key_node), found, "keep one of them")
            key_lines[key] = self.lines[(*path, key)] = _line(key_node)
            values[key] = self.value(value_node, (*path, key))
        for source in merged:
            self._merge(source, path, values)
        return values

    def _merge(self, node: Node, path: KeyPath, values: dict[str, Any]) -> None:
        """Add the keys of `<<: *name` that the mapping does not have itself."""
        sources = node.value if isinstance(node, SequenceNode) else [node]
        if not sources or not all(isinstance(source, MappingNode) for source in sources):
            raise _Problem(_line(node), "<< takes a mapping", "write <<: *NAME of an anchor on one")
        for source in sources:
            for key_node, value_node in source.value:
                key = _key(key_node, value_node)
                if key not in values and key != "<<":
                    self.lines[(*path, key)] = _line(key_node)
                    values[key] = self.value(value_node, (*path, key))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _key(node: Node, value: Node) -> str:
    """Return a key as text; a number or true is taken as it is written."""
    if not isinstance(node, ScalarNode):
        is_template = isinstance(node, MappingNode) and isinstance(value, ScalarNode) and _scalar(value) is None
        remedy = 'put a template in quotes: "{{ column }}"' if is_template else "write a plain word before the colon"
        raise _Problem(_line(node), "a key that is not text", remedy)
    key = _scalar(node)
    if isinstance(key, str):
        return key
    return {None: "null", True: "true", False: "false"}[key] if key is None or isinstance(key, bool) else str(key)


def _scalar(node: ScalarNode) -> Any:
    """Return a scalar's value: of a plain one by the core schema, of any other its text."""
    text = node.value
    if node.style is not None:
        return _quoted_text(node)
    if _NULL.fullmatch(text):
        return None
    if truth := _BOOL.fullmatch(text):
        return truth[1] is not None
    if _INT.fullmatch(text):
        if len(text) > 1000:
            raise _Problem(_line(node), f"a number of {len(text)} digits", "put it in quotes if it is a text")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text


def _quoted_text(node: ScalarNode) -> str:
    """Return the text of a quoted scalar: its escapes can write two halves of one character, as JSON does, or none."""
    try:
        text = str(node.value).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as exc:
        found = "half a character (\\ud800 to \\udfff alone)"
        raise _Problem(_line(node), found, "write the character itself") from exc
    if "\0" in text:
        raise _Problem(_line(node), "a control character (code 0)", "delete it")
    return text
