"""Promotion: a combination's settings written into the job file, whose comments and layout stay."""

import difflib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct
from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, SequenceNode
from ruamel.yaml.util import load_yaml_guess_indent

from connectors.errors import JobError, KeyPath
from connectors.registry import SINKS
from pipelines.config.included_files.prompt_files import is_reference
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import Overrides, apply_overrides
from pipelines.config.yaml_reader import parse_value, parse_yaml
from pipelines.experiments.combinations import Combination, Setting
from pipelines.ledger.ledger_file import write_atomically

INDENT = 2
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]*")


class Promotion(Struct, frozen=True):
    """The job file with a combination's settings."""

    old: str
    new: str
    """Both with line ends of one character."""
    shown_path: str
    line_end: str = "\n"
    """That of the file."""

    @property
    def diff(self) -> str:
        """The change as a unified diff; empty if the file has these settings already."""
        lines = difflib.unified_diff(
            self.old.splitlines(keepends=True), self.new.splitlines(keepends=True), self.shown_path, self.shown_path
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def promote(loaded: LoadedJob, combination: Combination) -> Promotion:
    """Return the job file with the settings of a combination; nothing is written yet.

    JobError if the job would not be valid with them.
    """
    shown = loaded.file.shown_path
    read = loaded.path.read_bytes().decode()
    old = read.replace("\r\n", "\n")
    assignments = tuple(_assignment(loaded, setting) for setting in combination.settings)
    overrides = Overrides(over=assignments)
    loaded.with_overrides(overrides)
    applied = apply_overrides(loaded.file.content.values, overrides, SINKS)
    new = old
    for path in applied.flags:
        new = _with_value(new, path, _value_at(applied.values, path), shown)
    if parse_yaml(new, shown).values != applied.values:
        raise JobError(shown, "these settings cannot be written without changing others", "edit the file by hand")
    return Promotion(old, new, shown, "\r\n" if 2 * read.count("\r\n") > read.count("\n") else "\n")


def write_promotion(loaded: LoadedJob, promotion: Promotion) -> None:
    """Replace the content of the job file."""
    path = loaded.path.resolve()
    mode = path.stat().st_mode
    write_atomically(path, promotion.new.replace("\n", promotion.line_end).encode())
    path.chmod(stat.S_IMODE(mode))


def _assignment(loaded: LoadedJob, setting: Setting) -> str:
    """Return the setting as `--set` takes it; a file in place of another file by its name."""
    if setting.file is not None:
        file, folder = Path(setting.file).resolve(), loaded.workspace.folder.resolve()
        [path] = apply_overrides(loaded.file.content.values, Overrides(over=(setting.assignment,)), SINKS).flags
        if file.is_relative_to(folder) and is_reference(_value_at(loaded.file.content.values, path)):
            return f"{setting.key}.file={orjson.dumps(str(file.relative_to(folder))).decode()}"
    return setting.assignment


def _with_value(text: str, path: KeyPath, value: Any, shown: str) -> str:
    """Write one value into the text, and change nothing else of it; if it cannot be done, rewrite the file's YAML."""
    text = _without_aliases(text, path)
    nodes = list(_nodes(YAML().compose(text), path))
    edited = _replaced(text, nodes, value) if len(nodes) == len(path) + 1 else _added(text, nodes, path, value)
    if edited is not None and _has_value(edited, path, value, shown):
        return edited
    return _rewritten(text, path, value)


def _without_aliases(text: str, path: KeyPath) -> str:
    """Return the text with the values in place of those aliases by which other keys would change with a path."""
    while aliases := _aliases_at(text, path):
        written = [_with_alias_written(text, path, alias) for alias in aliases]
        # If the path is that of an alias, this one; if it is that of the anchor, all of them, one after the other.
        text = next((one for one in written if not _aliases_at(one, path)), written[0])
    return text


def _aliases_at(text: str, path: KeyPath) -> Sequence[AliasEvent]:
    """Return the aliases of the values on a path, in the order of the text."""
    anchors = {node.anchor for node in _nodes(YAML().compose(text), path) if node.anchor}
    events = YAML().parse(text) if anchors else ()
    return [event for event in events if isinstance(event, AliasEvent) and event.anchor in anchors]


def _with_alias_written(text: str, path: KeyPath, alias: AliasEvent) -> str:
    start, end = alias.start_mark.index, alias.end_mark.index
    anchor = next(node for node in _nodes(YAML().compose(text), path) if node.anchor == alias.anchor)
    value = YAML(typ="safe", pure=True).constructor.construct_document(anchor)
    return text[:start] + _yaml_text(value) + text[end:]


def _has_value(text: str, path: KeyPath, value: Any, shown: str) -> bool:
    try:
        return bool(_value_at(parse_yaml(text, shown).values, path) == value)
    except JobError:
        return False


def _replaced(text: str, nodes: Sequence[Node], value: Any) -> str | None:
    """Return the text with another value in place of the last node; None for a block of keys or items."""
    node, parents = nodes[-1], nodes[:-1]
    if isinstance(node, CollectionNode) and not node.flow_style:
        return None
    start, end = node.start_mark.index, node.end_mark.index
    # The end of a block scalar is the beginning of what follows it.
    tail = "\n" if text[start:end].endswith("\n") else ""
    is_block = bool(parents) and not _is_flow(parents)
    written = _yaml_text(value, parents[-1].start_mark.column + INDENT if is_block else None)
    return text[:start] + written + tail + text[end:]


def _added(text: str, nodes: Sequence[Node], path: KeyPath, value: Any) -> str | None:
    """Return the text with the rest of the path as a new key of the last node; None if that has no keys."""
    parent, (key, *inner) = nodes[-1], path[len(nodes) - 1 :]
    if not isinstance(parent, MappingNode) or not parent.value:
        return None
    for part in reversed(inner):
        value = {part: value}
    last = parent.value[-1][1]
    if _is_flow(nodes):
        end = last.end_mark.index
        return f"{text[:end]}, {_yaml_text(key)}: {_yaml_text(value)}{text[end:]}"
    while isinstance(last, CollectionNode) and not last.flow_style and last.value:
        last = last.value[-1][1] if isinstance(last, MappingNode) else last.value[-1]
    # Behind a comment in the same line, and before the empty lines that follow a block scalar.
    end = last.start_mark.index + len(text[last.start_mark.index : last.end_mark.index].rstrip())
    end = text.find("\n", end)
    before, after = (text, "") if end < 0 else (text[:end], text[end:])
    column = parent.start_mark.column
    return f"{before}\n{' ' * column}{_yaml_text(key)}: {_yaml_text(value, column + INDENT)}{after or chr(10)}"


def _is_flow(nodes: Sequence[Node]) -> bool:
    return any(isinstance(node, CollectionNode) and node.flow_style for node in nodes)


def _yaml_text(value: Any, indent: int | None = None) -> str:
    """Return a value as YAML; mappings and lists in one line. `indent`: see _scalar_text."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_yaml_text(key)}: {_yaml_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_yaml_text(inner) for inner in value)}]"
    return _scalar_text(value, indent)


def _scalar_text(value: Any, indent: int | None) -> str:
    """Return a value as YAML; a text of several lines as a literal block with this indent, if it may be one."""
    if not isinstance(value, str):
        return orjson.dumps(value).decode()
    lines = value.split("\n")
    is_block = indent is not None and len(lines) > 1 and lines[0].strip() and not lines[0].startswith((" ", "\t"))
    if is_block and all(line.isprintable() for line in lines):
        chomping = "" if value.endswith("\n") and not value.endswith("\n\n") else "-"
        body = value.removesuffix("\n").split("\n")
        if not value.endswith("\n\n"):
            return "\n".join([f"|{chomping}", *(" " * (indent or 0) + line if line else "" for line in body)])
    if _PLAIN_TEXT.fullmatch(value) and parse_value(value, "") == value:
        return value
    return orjson.dumps(value).decode()


def _nodes(node: Node | None, path: KeyPath) -> Iterator[Node]:
    """Yield the nodes from the top to the value at a path, as far as the file has them."""
    if node is None:
        return
    yield node
    if not path:
        return
    part, inner = path[0], None
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        inner = node.value[part]
    elif isinstance(node, MappingNode):
        inner = next((value for key, value in node.value if key.value == part), None)
    yield from _nodes(inner, path[1:])


def _rewritten(text: str, path: KeyPath, value: Any) -> str:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    _, sequence, offset = load_yaml_guess_indent(text)
    yaml.indent(mapping=INDENT, sequence=sequence or 2 * INDENT, offset=INDENT if offset is None else offset)
    document = yaml.load(text)
    here = document
    for part in path[:-1]:
        if isinstance(here, Mapping) and here.get(part) is None:
            here[part] = {}  # type: ignore[index]
        here = here[part]
    here[path[-1]] = value
    out = StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _value_at(values: Any, path: KeyPath) -> Any:
    """Return the value at a key path; None if there is none."""
    for part in path:
        is_key = isinstance(values, Mapping) and part in values
        if not is_key and not (isinstance(values, list) and isinstance(part, int) and part < len(values)):
            return None
        values = values[part]
    return values
