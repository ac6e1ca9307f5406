"""Row fingerprints of earlier versions: the texts of values in them, which depended on the type of the column."""

from collections.abc import Iterator, Mapping, Sequence

import duckdb

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
"""Type -> SQL condition on its texts, the narrowest type first, as earlier versions had them."""
_PATH_CANDIDATES = {"BIGINT": "try_cast(VALUE as BIGINT) is not null"}
"""For values in the names of folders."""

COLUMNS_PER_QUERY = 50


def earlier_texts(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    texts: Mapping[str, tuple[str, bool]],
    known: Mapping[str, str],
) -> Sequence[Mapping[str, str]]:
    """Return what earlier versions may have had as the texts of columns: column -> SQL, most likely first.

    `texts`: column -> (SQL of its text in the file, whether it is from a path); `known`: types in the sink. The type of
    a column was that of all its values. If some values have another type by now, it was that of most of them.
    """
    all_types: dict[str, str] = {}
    main_types: dict[str, str] = {}
    for name, total, counts in _counts(connection, relation, texts):
        if not total:
            continue
        complete = [kind for kind, count in counts.items() if count == total]
        frequent = [kind for kind, count in counts.items() if 2 * count > total]
        all_types[name] = known[name] if known.get(name) in complete else next(iter(complete), "VARCHAR")
        main_types[name] = known[name] if known.get(name) in frequent else next(iter(frequent), "VARCHAR")
    # Sinks that do not have a column knew no type of it.
    candidates: list[Mapping[str, str]] = []
    for types in (all_types, main_types, {}):
        candidate = {name: _as_type(text, types.get(name, "VARCHAR")) for name, (text, _) in texts.items()}
        if candidate not in candidates:
            candidates.append(candidate)
    return candidates


def _counts(
    connection: duckdb.DuckDBPyConnection, relation: str, texts: Mapping[str, tuple[str, bool]]
) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield (column, its values that are not null, candidate -> values that match it)."""
    names = list(texts)
    for start in range(0, len(names), COLUMNS_PER_QUERY):
        some = names[start : start + COLUMNS_PER_QUERY]
        candidates = {name: _PATH_CANDIDATES if texts[name][1] else CANDIDATES for name in some}
        counts: list[str] = []
        for name in some:
            text = texts[name][0]
            matching = (condition.replace("VALUE", text) for condition in candidates[name].values())
            counts += [f"count({text})", *(f"count(*) filter ({condition})" for condition in matching)]
        row = connection.execute(f"select {', '.join(counts)} from {relation}").fetchone()
        assert row is not None
        values = iter(row)
        for name in some:
            yield name, next(values), {kind: next(values) for kind in candidates[name]}


def _as_type(text: str, kind: str) -> str:
    return text if kind == "VARCHAR" else f"coalesce(cast(try_cast({text} as {kind}) as VARCHAR), {text})"
