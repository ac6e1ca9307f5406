"""JSON numbers with all their digits, for lines in which DuckDB would change one of them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from connectors.sql import literal
from connectors.storage.compressed_files import open_file

_ODD_NUMBER = r"[:,\[]\s*(-?(?:[0-9][0-9.eE+-]{15,}|[0-9]+[.][0-9]+0\b|[0-9.]+[eE][0-9+-]+))"
"""Regular expression of a number whose text DuckDB may not keep: of 16 digits, with 0 at its end, with an exponent."""


def odd_numbers(line: str) -> tuple[str, str]:
    """Return two SQL conditions on the text of a line: DuckDB writes a fraction in it in another way, or may round a
    whole number inside a list or object."""
    pattern = literal(_ODD_NUMBER)
    found = f"regexp_extract_all({line}, {pattern}, 1)"
    changed = "regexp_matches(n, '[.eE]') and cast(try_cast(n as DOUBLE) as VARCHAR) is distinct from n"
    is_any = f"regexp_matches({line}, {pattern})"
    return (
        f"({is_any} and len(list_filter({found}, lambda n: {changed})) > 0)",
        f"({is_any} and len(list_filter({found}, lambda n: regexp_full_match(n, '-?[0-9]+'))) > 0)",
    )


JsonPath = tuple[str, ...]
"""Keys from the line's object on; `[]` for the elements of a list."""


class JsonNumber(str):
    """A number that is written in JSON in another way than Python would."""

    __slots__ = ()


class NumberLeaves(Struct, frozen=True):
    """The numbers inside lists and objects that no DOUBLE holds, by their paths."""

    whole: frozenset[JsonPath] = frozenset()
    """Whole numbers only."""
    inexact: frozenset[JsonPath] = frozenset()
    """Some with a fraction, and one that a DOUBLE would change."""


def number_leaves(files: Iterable[Path]) -> NumberLeaves:
    """Find the numbers inside lists and objects that no DOUBLE holds."""
    changed: set[JsonPath] = set()
    fractions: set[JsonPath] = set()
    for line in _lines(files):
        for name, value in line.items():
            if isinstance(value, dict | list):
                for path, number in _leaves(value, (name,)):
                    if not str(number).removeprefix("-").isdigit():
                        fractions.add(path)
                    if path not in changed and not _is_exact(number):
                        changed.add(path)
    return NumberLeaves(frozenset(changed - fractions), frozenset(changed & fractions))


def exact_column(name: str) -> str:
    """Return the column with a list or object in which numbers that a DOUBLE would change are texts."""
    return f"_rowmill_exact_{name}"


def write_exact_lines(file: Path, target: Path, structure: Mapping[str, Any], inexact: frozenset[JsonPath]) -> None:
    """Write the lines with numbers as texts; lists and objects as JSON text and once more with `inexact` as texts."""
    with target.open("wb") as out:
        for line in _lines([file]):
            written: dict[str, Any] = {}
            for name, value in line.items():
                if isinstance(value, dict | list):
                    written[name] = _json_text(value)
                    if not isinstance(structure[name], str):
                        written[exact_column(name)] = _json_text(_with_texts(value, (name,), inexact))
                elif isinstance(value, bool) and structure[name] == "JSON":
                    written[name] = "true" if value else "false"
                else:
                    written[name] = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
            out.write(orjson.dumps(written, option=orjson.OPT_APPEND_NEWLINE))


def _lines(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with open_file(file) as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line, parse_float=JsonNumber, parse_int=_integer)


def _integer(text: str) -> Any:
    return int(text) if len(text) < 19 and text != "-0" else JsonNumber(text)


def _leaves(value: Any, path: JsonPath) -> Iterator[tuple[JsonPath, int | JsonNumber]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    elif isinstance(value, int | JsonNumber) and not isinstance(value, bool):
        yield path, value


def _is_exact(number: int | JsonNumber) -> bool:
    """Whether a DOUBLE holds the number."""
    value = float(number)
    return math.isfinite(value) and Decimal(number) == Decimal(repr(value))


def _with_texts(value: Any, path: JsonPath, inexact: frozenset[JsonPath]) -> Any:
    if isinstance(value, dict):
        return {key: _with_texts(inner, (*path, key), inexact) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_texts(inner, (*path, "[]"), inexact) for inner in value]
    if path in inexact and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return str(value) if path in inexact and isinstance(value, JsonNumber) else value


def _json_text(value: Any) -> str:
    return orjson.dumps(_fragments(value)).decode()


def _fragments(value: Any) -> Any:
    if isinstance(value, JsonNumber):
        return orjson.Fragment(value.encode())
    if isinstance(value, dict):
        return {key: _fragments(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fragments(inner) for inner in value]
    return value
