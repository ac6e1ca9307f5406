"""Type inference for columns of text, from all of their values."""

from collections.abc import Iterable, Mapping

import duckdb

from connectors.sql import identifier

# A number that would not be written the same again (007, +49 30, 1_000) stays text: it would become another value.
_INTEGER = "'-?(0|[1-9][0-9]*)'"
_NUMBER = "'-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?'"
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIMESTAMP = _DATE + "[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?"
_ZONE = "(Z|[+-][0-9]{2}(:?[0-9]{2})?)"

CANDIDATES: Mapping[str, str] = {
    "BIGINT": f"regexp_full_match(VALUE, {_INTEGER}) and try_cast(VALUE as BIGINT) is not null",
    "DOUBLE": f"regexp_full_match(VALUE, {_NUMBER}) and isfinite(try_cast(VALUE as DOUBLE)) "
    f"and (length(VALUE) < 16 or not regexp_full_match(VALUE, {_INTEGER}))",
    "BOOLEAN": "lower(VALUE) in ('true', 'false')",
    "DATE": f"regexp_full_match(VALUE, '{_DATE}') and try_cast(VALUE as DATE) is not null",
    "TIMESTAMP": f"regexp_full_match(VALUE, '{_TIMESTAMP}') and try_cast(VALUE as TIMESTAMP) is not null",
    "TIMESTAMPTZ": f"regexp_full_match(VALUE, '{_TIMESTAMP}{_ZONE}') and try_cast(VALUE as TIMESTAMPTZ) is not null",
}
"""Type -> SQL condition on its texts, the narrowest type first."""

FIRST_ROWS = 2048
"""Rows that exclude most candidates, so that the pass over all rows has less to test."""


def infer_types(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: Iterable[str], known: Mapping[str, str]
) -> dict[str, str]:
    """Return the `known` type of a column if all its values have it, else the first candidate that they have.

    VARCHAR if there is none, or if all values are null.
    """
    first = _matches(connection, f"(from {relation} limit {FIRST_ROWS})", dict.fromkeys(columns, tuple(CANDIDATES)))
    # None: only nulls so far, so every candidate is still possible.
    likely = {name: tuple(kind for kind, all_match in kinds if all_match is not False) for name, kinds in first.items()}
    final = _matches(connection, relation, likely)
    # Any text is a VARCHAR.
    matching = {name: [*(kind for kind, all_match in kinds if all_match), "VARCHAR"] for name, kinds in final.items()}
    return {name: known[name] if known.get(name) in kinds else kinds[0] for name, kinds in matching.items()}


def _matches(
    connection: duckdb.DuckDBPyConnection, relation: str, candidates: Mapping[str, tuple[str, ...]]
) -> dict[str, list[tuple[str, bool | None]]]:
    """Return whether all values of a column match each of its candidates; None for nulls only."""
    tests = [(name, kind) for name, kinds in candidates.items() for kind in kinds]
    matches: dict[str, list[tuple[str, bool | None]]] = {name: [] for name in candidates}
    if tests:
        # A null has every type, but `try_cast(null …) is not null` is false: leave nulls out.
        columns = (
            f"bool_and({CANDIDATES[kind].replace('VALUE', column)}) filter (where {column} is not null)"
            for column, kind in ((identifier(name), kind) for name, kind in tests)
        )
        row = connection.execute(f"select {', '.join(columns)} from {relation}").fetchone()
        assert row is not None
        for (name, kind), all_match in zip(tests, row, strict=True):
            matches[name].append((kind, all_match))
    return matches
