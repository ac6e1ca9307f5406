"""YAML 1.2 files read into plain values, with the line of every key; whatever is wrong is told in one line."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.reader import ReaderError

from connectors.errors import JobError

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and indexes (from 0) of lists, from the top of the file."""

LARGEST_BYTES = 1_000_000
LARGEST_VALUES = 100_000
"""After aliases are expanded: nine lines of them can ask for billions."""
DEEPEST = 60

# The core schema of YAML 1.2.2, section 10.3.2: `yes`, `on` and 12:30 are text.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TEXT_TAG = "tag:yaml.org,2002:str"

# What ruamel says -> what the reader can do about it; tried in this order, as parts of its words.
_ADVICE = (
    (r"character '\t'", "a tab in the indentation", "indent with spaces"),
    ("that cannot start any token", "a value starts with a character that YAML keeps for itself", "put it in quotes"),
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
    (
        "while parsing a flow",
        "a bracket, a brace or a comma is missing",
        "close it, or put a template in quotes",
    ),
    ("while parsing a block", "a line does not fit those around it", "check indentation and quotes"),
)


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file's values and the line (from 1) on which each key path stands."""

    values: dict[str, Any]
    lines: Mapping[KeyPath, int]


def wrong(message: str) -> JobError:
    """In one line: line breaks and other control characters of what is quoted are made visible."""
    return JobError("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message))


def read_yaml(path: Path, shown: str) -> YamlFile:
    """The mapping that the file holds; empty for an empty file; JobError, placed by `shown`, if it is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError as exc:
        raise wrong(f"{shown}: no such file; check the path") from exc
    except IsADirectoryError as exc:
        raise wrong(f"{shown}: is a folder; name a file in it") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise wrong(f"{shown}: cannot be read ({reason}); check the path and its permissions") from exc
    if len(data) > LARGEST_BYTES:
        raise wrong(f"{shown}: larger than 1 MB; data belongs in files of its own that the source names")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise wrong(f"{shown}:{line}: not UTF-8 text; save the file as UTF-8") from exc
    return parse_yaml(text, shown)


def parse_yaml(text: str, shown: str) -> YamlFile:
    """As `read_yaml`, of a text."""
    top = _compose(text, shown)
    if top is None or (top.entries is None and top.scalar is None):
        return YamlFile({}, {})
    if not top.keyed:
        found = "a list" if top.entries is not None else "a single value"
        raise wrong(f"{shown}:{top.line}: found {found}, expected keys and values; write key: value")
    lines: dict[KeyPath, int] = {}
    values = _Expansion(shown, lines).value(top, ())
    return YamlFile(values, lines)


def parse_value(text: str, shown: str) -> Any:
    """One value as it would stand behind a key; `shown` places the JobError."""
    top = _compose(text, shown, lined=False)
    return None if top is None else _Expansion(shown, {}, lined=False).value(top, ())


@dataclass(slots=True)
class _Node:
    """A scalar, a list (`entries`: values) or a mapping (`keyed`; `entries`: keys and values in turn)."""

    line: int
    scalar: Any = None
    entries: "list[_Node] | None" = None
    keyed: bool = False
    anchor: str | None = field(default=None)


def _compose(text: str, shown: str, lined: bool = True) -> _Node | None:
    """The one document's tree, aliases standing for the node they name; None for an empty text."""
    open_nodes: list[_Node] = []
    anchors: dict[str, _Node] = {}
    top: _Node | None = None
    documents = 0
    for event in _events(text, shown, lined):
        line = event.start_mark.line + 1
        where = f"{shown}:{line}" if lined else shown
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise wrong(f"{where}: a second document; keep one in a file, without a --- line")
            continue
        if isinstance(event, CollectionEndEvent):
            node = open_nodes.pop()
        elif isinstance(event, NodeEvent):
            node = _node(event, line, anchors, where)
            if node.entries is not None and not isinstance(event, AliasEvent):
                open_nodes.append(node)
                if len(open_nodes) > DEEPEST:
                    raise wrong(f"{where}: nested more than {DEEPEST} deep; flatten it")
                continue
        else:
            continue
        if node.anchor:
            anchors[node.anchor] = node
        if not open_nodes:
            top = node
        else:
            inner = open_nodes[-1].entries
            assert inner is not None
            inner.append(node)
    return top


def _node(event: NodeEvent, line: int, anchors: Mapping[str, _Node], where: str) -> _Node:
    if isinstance(event, AliasEvent):
        named = anchors.get(event.anchor)
        if named is None:
            raise wrong(f"{where}: *{event.anchor} names no anchor before it; a text that starts with * needs quotes")
        return _Node(named.line, named.scalar, named.entries, named.keyed)
    assert isinstance(event, ScalarEvent | CollectionStartEvent)
    tag = str(event.ctag) if event.ctag is not None else None
    if tag is not None and tag not in ("!", _TEXT_TAG):
        raise wrong(f"{where}: a YAML tag; leave it out, values are read as they are written")
    anchor = str(event.anchor) if event.anchor else None
    if isinstance(event, ScalarEvent):
        plain = event.style is None and tag is None
        return _Node(line, _scalar(event.value, where) if plain else _text(event.value, where), anchor=anchor)
    return _Node(line, entries=[], keyed=isinstance(event, MappingStartEvent), anchor=anchor)


def _scalar(text: str, where: str) -> Any:
    """A plain scalar's value by the core schema."""
    if _NULL.fullmatch(text):
        return None
    if truth := _BOOL.fullmatch(text):
        return truth[1] is not None
    if _INT.fullmatch(text):
        if len(text) > 1000:
            raise wrong(f"{where}: a number of {len(text)} digits; put it in quotes if it is a text")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text


def _text(value: str, where: str) -> str:
    """A quoted scalar: its escapes can write what is no text, or one character as two halves (JSON does)."""
    try:
        whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as exc:
        raise wrong(f"{where}: half a character (\\ud800 to \\udfff alone); write the character itself") from exc
    if "\0" in whole:
        raise wrong(f"{where}: a character that no text holds (code 0); delete it")
    return whole


def _events(text: str, shown: str, lined: bool) -> Iterator[Event]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except ReaderError as exc:
        where = f"{shown}:{text.count(chr(10), 0, exc.position) + 1}" if lined else shown
        raise wrong(f"{where}: a character that no text holds (code {exc.character}); delete it") from exc
    except MarkedYAMLError as exc:
        # A quote that is never closed is noticed at the end of the file; the reader wants its beginning.
        begun = str(exc.context).startswith("while scanning a")
        mark = (begun and exc.context_mark) or exc.problem_mark or exc.context_mark
        where = f"{shown}:{mark.line + 1}" if lined and mark is not None else shown
        said = f"{exc.context or ''} {exc.problem or ''}"
        found = next((f"{what}; {do}" for sign, what, do in _ADVICE if sign in said), None)
        raise wrong(f"{where}: {found or f'is no YAML ({exc.problem}); check indentation and quotes'}") from exc
    except YAMLError as exc:
        raise wrong(f"{shown}: is no YAML; check indentation and quotes") from exc


@dataclass(slots=True)
class _Expansion:
    """Turns a tree into values and notes their lines."""

    shown: str
    lines: dict[KeyPath, int]
    lined: bool = True
    count: int = 0

    def value(self, node: _Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > LARGEST_VALUES:
            raise wrong(f"{self._at(node)}: aliases make more than {LARGEST_VALUES:,} values of it; use fewer")
        if len(path) > DEEPEST:
            raise wrong(f"{self._at(node)}: nested more than {DEEPEST} deep; flatten it")
        self.lines.setdefault(path, node.line)
        if node.entries is None:
            return node.scalar
        if not node.keyed:
            return [self.value(entry, (*path, index)) for index, entry in enumerate(node.entries)]
        return self._mapping(node.entries, path)

    def _mapping(self, entries: list[_Node], path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own: dict[str, int] = {}
        merged: list[_Node] = []
        for key_node, value_node in zip(entries[::2], entries[1::2], strict=True):
            key = self._key(key_node, value_node)
            if key == "<<":
                merged.append(value_node)
                continue
            if key in own:
                dotted = ".".join(map(str, (*path, key)))
                raise wrong(f"{self._at(key_node)}: {dotted}: stands on line {own[key]} already; keep one of them")
            own[key] = key_node.line
            self.lines[(*path, key)] = key_node.line
            found[key] = self.value(value_node, (*path, key))
        for node in merged:
            self._merge(node, path, found)
        return found

    def _merge(self, node: _Node, path: KeyPath, found: dict[str, Any]) -> None:
        """`<<: *name`: the keys of that mapping which are not written here."""
        sources = [node] if node.keyed else node.entries or []
        if not sources or not all(source.keyed for source in sources):
            raise wrong(f"{self._at(node)}: << takes a mapping; write <<: *NAME of an anchor on one")
        for source in sources:
            assert source.entries is not None
            for key_node, value_node in zip(source.entries[::2], source.entries[1::2], strict=True):
                key = self._key(key_node, value_node)
                if key not in found and key != "<<":
                    self.lines[(*path, key)] = key_node.line
                    found[key] = self.value(value_node, (*path, key))

    def _key(self, node: _Node, value: _Node) -> str:
        """Keys are texts; a number or true is taken as it is written."""
        if node.entries is not None:
            template = node.keyed and value.scalar is None and value.entries is None
            advice = 'put a template in quotes: "{{ column }}"' if template else "write a plain word before the colon"
            raise wrong(f"{self._at(node)}: a key that is no text; {advice}")
        if isinstance(node.scalar, str):
            return node.scalar
        written = {None: "null", True: "true", False: "false"}
        known = node.scalar is None or isinstance(node.scalar, bool)
        return written[node.scalar] if known else str(node.scalar)

    def _at(self, node: _Node) -> str:
        return f"{self.shown}:{node.line}" if self.lined else self.shown


@dataclass(frozen=True, slots=True)
class Places:
    """Tells the WHERE of a message for each key path of one file."""

    file: str
    """The path as the user gave it."""
    lines: Mapping[KeyPath, int]
    raw: Mapping[str, Any] = field(repr=False)
    """The file's values, flags applied."""
    flags: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key path -> the flag that set it."""

    def at(self, path: KeyPath) -> str:
        """`jobs/x.yaml:14: steps.label.model`, or the flag; without a key path the file alone."""
        if not path:
            return self.file
        for key, flag in self.flags.items():
            if key == path:
                return flag
            if key == path[: len(key)] or (path == key[: len(path)] and path not in self.lines):
                return f"{flag}: {self.dotted(path)}"
        line = self.line(path)
        return f"{self.file}:{line}: {self.dotted(path)}" if line else f"{self.file}: {self.dotted(path)}"

    def line(self, path: KeyPath) -> int:
        """The line of the key, or of the nearest key around it; 0 in an empty file."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 0)

    def dotted(self, path: KeyPath) -> str:
        """As `--set` takes it: steps by their names where they have one."""
        parts = list(path)
        if len(path) > 1 and path[0] == "steps" and isinstance(path[1], int):
            steps = self.raw.get("steps")
            step = steps[path[1]] if isinstance(steps, list | tuple) and path[1] < len(steps) else None
            name = step.get("name") if isinstance(step, Mapping) else None
            if isinstance(name, str) and name and (len(path) < 3 or path[2] != "name"):
                parts[1] = name
        return ".".join(map(str, parts))
