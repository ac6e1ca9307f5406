"""Nested values of a job file whose texts are templates over a row's columns."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from msgspec import Struct

from connectors.errors import JobError, KeyPath
from connectors.records import Row
from connectors.templating.template import Template


class TemplateTree(Struct, frozen=True):
    """A value with templates in it, which each row renders."""

    render: Callable[[Row], Any]
    """Returns the value for one row; raises RenderError if the row's values make none."""
    columns: frozenset[str] = frozenset()
    """The columns that its templates read."""
    varies_by_row: bool = True
    """Whether rows can render it differently."""


def literal(value: Any) -> TemplateTree:
    """Return a tree that is the same for every row."""
    return TemplateTree(lambda row: value, varies_by_row=False)


def compile_template(value: Any, known: Iterable[str], where: KeyPath) -> TemplateTree:
    """Compile every text in `value`, at any depth; JobError at `where` for an unknown column."""
    if isinstance(value, str):
        return compile_text(value, known, where)
    if isinstance(value, Mapping):
        return mapping_template(
            {str(key): compile_template(inner, known, (*where, key)) for key, inner in value.items()}
        )
    if isinstance(value, list | tuple):
        return list_template([compile_template(inner, known, (*where, index)) for index, inner in enumerate(value)])
    return literal(plain_json(value, where))


def compile_text(source: str, known: Iterable[str], where: KeyPath) -> TemplateTree:
    """Compile one text."""
    if "{" not in source:
        return literal(source)
    template = Template(source, where, frozenset(known))
    return TemplateTree(template.render, template.columns)


def mapping_template(parts: Mapping[str, TemplateTree]) -> TemplateTree:
    """Return a tree of keys and values, in the order given."""
    fixed = {key: None if part.varies_by_row else part.render({}) for key, part in parts.items()}
    varying = [(key, part.render) for key, part in parts.items() if part.varies_by_row]
    if not varying:
        return literal(fixed)

    def render(row: Row) -> dict[str, Any]:
        rendered = dict(fixed)
        for key, render_part in varying:
            rendered[key] = render_part(row)
        return rendered

    return TemplateTree(render, _columns(parts.values()))


def list_template(parts: Iterable[TemplateTree]) -> TemplateTree:
    """Return a tree of a list."""
    items = tuple(parts)
    if not any(part.varies_by_row for part in items):
        return literal([part.render({}) for part in items])
    return TemplateTree(lambda row: [part.render(row) for part in items], _columns(items))


def plain_json(value: Any, where: KeyPath) -> Any:
    """Return a job file's value in JSON (keys become texts, dates ISO 8601); JobError if it has no JSON form."""
    try:
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except TypeError as exc:
        raise JobError(where, f"cannot be written as JSON ({exc})", "write texts, numbers, lists and keys") from exc


def _columns(parts: Iterable[TemplateTree]) -> frozenset[str]:
    return frozenset[str]().union(*(part.columns for part in parts))
