"""Types for columns of text, by every value in them."""

from collections.abc import Iterable, Mapping

import duckdb

from connectors.sql import quoted

# A number that does not keep its text (007, +49 30, 1_000) is none: it would be another value afterwards.
_WHOLE = "'-?(0|[1-9][0-9]*)'"
_NUMBER = "'-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?'"
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_MOMENT = _DATE + "[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?"
_ZONE = "(Z|[+-][0-9]{2}(:?[0-9]{2})?)"

CANDIDATES: Mapping[str, str] = {
    "BIGINT": f"regexp_full_match(VALUE, {_WHOLE}) and try_cast(VALUE as BIGINT) is not null",
    "DOUBLE": f"regexp_full_match(VALUE, {_NUMBER}) and isfinite(try_cast(VALUE as DOUBLE)) "
    f"and (length(VALUE) < 16 or not regexp_full_match(VALUE, {_WHOLE}))",
    "BOOLEAN": "lower(VALUE) in ('true', 'false')",
    "DATE": f"regexp_full_match(VALUE, '{_DATE}') and try_cast(VALUE as DATE) is not null",
    "TIMESTAMP": f"regexp_full_match(VALUE, '{_MOMENT}') and try_cast(VALUE as TIMESTAMP) is not null",
    "TIMESTAMPTZ": f"regexp_full_match(VALUE, '{_MOMENT}{_ZONE}') and try_cast(VALUE as TIMESTAMPTZ) is not null",
}
"""Type -> what a text must fulfil to have it, the narrowest first."""

FIRST_ROWS = 2048
"""They rule most candidates out, so that the pass over all rows has less to try."""


def inferred_types(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: Iterable[str], known: Mapping[str, str]
) -> dict[str, str]:
    """The `known` type of a column where all its values fulfil that, else the first candidate that they do; VARCHAR
    where there is none or all of them are null."""
    first = _fulfilled(connection, f"(from {relation} limit {FIRST_ROWS})", dict.fromkeys(columns, tuple(CANDIDATES)))
    # None: nothing but nulls so far, so that every candidate is still open.
    likely = {name: tuple(kind for kind, all_do in kinds if all_do is not False) for name, kinds in first.items()}
    whole = _fulfilled(connection, relation, likely)
    # Any text is a VARCHAR.
    fulfilled = {name: [*(kind for kind, all_do in kinds if all_do), "VARCHAR"] for name, kinds in whole.items()}
    return {name: known[name] if known.get(name) in kinds else kinds[0] for name, kinds in fulfilled.items()}


def _fulfilled(
    connection: duckdb.DuckDBPyConnection, relation: str, tried: Mapping[str, tuple[str, ...]]
) -> dict[str, list[tuple[str, bool | None]]]:
    """Whether all values of the column fulfil each of its candidates."""
    tests = [(name, kind) for name, kinds in tried.items() for kind in kinds]
    answers: dict[str, list[tuple[str, bool | None]]] = {name: [] for name in tried}
    if tests:
        # A null has every type: `try_cast(null …) is not null` is false, and would speak against it.
        columns = (
            f"bool_and({CANDIDATES[kind].replace('VALUE', quoted(name))}) filter (where {quoted(name)} is not null)"
            for name, kind in tests
        )
        row = connection.execute(f"select {', '.join(columns)} from {relation}").fetchone()
        assert row is not None
        for (name, kind), all_do in zip(tests, row, strict=True):
            answers[name].append((kind, all_do))
    return answers
