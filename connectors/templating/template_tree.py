"""Nested values of a job file whose texts are templates over a row's columns."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.records import Row
from connectors.templating.template import Template


@dataclass(frozen=True, slots=True)
class TemplateTree:
    """A value that each row fills in."""

    render: Callable[[Row], Any]
    """The value for one row; TemplateProblem where the row makes none."""
    columns: frozenset[str] = frozenset()
    """The columns that its templates name."""
    varies_by_row: bool = True
    """Whether it can differ from row to row."""


def literal(value: Any) -> TemplateTree:
    """The same for every row."""
    return TemplateTree(lambda row: value, varies_by_row=False)


def compile_template(value: Any, known: Iterable[str], where: KeyPath) -> TemplateTree:
    """Every text in `value`, at any depth, as a template; JobError, placed at `where`, for an unknown column."""
    if isinstance(value, str):
        return compile_text(value, known, where)
    if isinstance(value, Mapping):
        return mapping_template(
            {str(key): compile_template(inner, known, (*where, key)) for key, inner in value.items()}
        )
    if isinstance(value, list | tuple):
        return list_template([compile_template(inner, known, (*where, place)) for place, inner in enumerate(value)])
    return literal(plain_json(value, where))


def compile_text(source: str, known: Iterable[str], where: KeyPath) -> TemplateTree:
    """One text as a template."""
    if "{" not in source:
        return literal(source)
    template = Template(source, where)
    names = frozenset(known)
    for name in sorted(template.columns - names):
        raise JobError(where, f"no column {name} here", f"{did_you_mean(name, names)}")
    return TemplateTree(template.render, template.columns)


def mapping_template(parts: Mapping[str, TemplateTree]) -> TemplateTree:
    """Keys with their values filled in, in the order given."""
    fixed = {key: None if part.varies_by_row else part.render({}) for key, part in parts.items()}
    moving = [(key, part.render) for key, part in parts.items() if part.varies_by_row]
    if not moving:
        return literal(fixed)

    def fill(row: Row) -> dict[str, Any]:
        made = dict(fixed)
        for key, value in moving:
            made[key] = value(row)
        return made

    return TemplateTree(fill, _columns(parts.values()))


def list_template(parts: Iterable[TemplateTree]) -> TemplateTree:
    """Values filled in, one after another."""
    some = tuple(parts)
    if not any(part.varies_by_row for part in some):
        return literal([part.render({}) for part in some])
    return TemplateTree(lambda row: [part.render(row) for part in some], _columns(some))


def plain_json(value: Any, where: KeyPath) -> Any:
    """What JSON makes of a value of a job file (keys become texts, dates ISO 8601); JobError where it makes nothing."""
    try:
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except TypeError as exc:
        raise JobError(where, f"cannot be written as JSON ({exc})", "write texts, numbers, lists and keys") from exc


def _columns(parts: Iterable[TemplateTree]) -> frozenset[str]:
    return frozenset[str]().union(*(part.columns for part in parts))
