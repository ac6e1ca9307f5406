"""Nested values of a job file whose texts are templates over a row's columns."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from connectors.errors import JobError, did_you_mean
from connectors.records import Row
from connectors.templating.template import Template


@dataclass(frozen=True, slots=True)
class Filled:
    """A value that each row fills in."""

    fill: Callable[[Row], Any]
    """The value for one row; TemplateProblem where the row makes none."""
    columns: frozenset[str] = frozenset()
    """The columns that its templates name."""
    moving: bool = True
    """Whether it can differ from row to row."""


def constant(value: Any) -> Filled:
    """The same for every row."""
    return Filled(lambda row: value, moving=False)


def filled(value: Any, known: Iterable[str], where: str) -> Filled:
    """Every text in `value`, at any depth, as a template; JobError, placed at `where`, for an unknown column."""
    if isinstance(value, str):
        return text_filled(value, known, where)
    if isinstance(value, Mapping):
        return mapping_of({str(key): filled(inner, known, f"{where}.{key}") for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return list_of([filled(inner, known, f"{where}.{place}") for place, inner in enumerate(value)])
    return constant(plain_json(value, where))


def text_filled(source: str, known: Iterable[str], where: str) -> Filled:
    """One text as a template."""
    if "{" not in source:
        return constant(source)
    template = Template(source, where)
    names = frozenset(known)
    for name in sorted(template.columns - names):
        raise JobError(f"{where}: no column {name} here; {did_you_mean(name, names)}")
    return Filled(template.render, template.columns)


def mapping_of(parts: Mapping[str, Filled]) -> Filled:
    """Keys with their values filled in, in the order given."""
    fixed = {key: None if part.moving else part.fill({}) for key, part in parts.items()}
    moving = [(key, part.fill) for key, part in parts.items() if part.moving]
    if not moving:
        return constant(fixed)

    def fill(row: Row) -> dict[str, Any]:
        made = dict(fixed)
        for key, value in moving:
            made[key] = value(row)
        return made

    return Filled(fill, _columns(parts.values()))


def list_of(parts: Iterable[Filled]) -> Filled:
    """Values filled in, one after another."""
    some = tuple(parts)
    if not any(part.moving for part in some):
        return constant([part.fill({}) for part in some])
    return Filled(lambda row: [part.fill(row) for part in some], _columns(some))


def plain_json(value: Any, where: str) -> Any:
    """What JSON makes of a value of a job file (keys become texts, dates ISO 8601); JobError where it makes nothing."""
    try:
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except TypeError as exc:
        raise JobError(f"{where}: cannot be written as JSON ({exc}); write texts, numbers, lists and keys") from exc


def _columns(parts: Iterable[Filled]) -> frozenset[str]:
    return frozenset[str]().union(*(part.columns for part in parts))
