"""What the columns of a results table hold: counts, ranges, frequent values, and how the answers are distributed.

DuckDB counts everything; no row gets into the memory of this process. Works over any relation, whatever the sink.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import duckdb
from duckdb.sqltypes import DuckDBPyType
from msgspec import Struct

from connectors.sql import identifier, literal
from pipelines.reporting.page.axes import round_step

MAX_ROWS = 1_000_000
"""Of a larger table, only the first rows are looked at."""
MAX_VECTOR_NUMBERS = 25_000_000
"""Of columns of vectors, only rows with so many numbers in all are looked at."""
MAX_EXACT_ROWS = 100_000
"""In larger tables, different values are estimated, and frequent texts are counted only if texts are often equal."""
MAX_VALUES = 10
"""Values of a column that are shown one by one."""
MAX_BINS = 20
MAX_WHOLE_BINS = 24
"""Whole numbers within a smaller range have a bar for each."""
MAX_FREQUENT_VALUES = 4
LENGTH_SAMPLE_ROWS = 1000
"""Rows that show how long the vectors of a column are."""
NORM_DECIMALS = 4
ROUNDING = 1e-9
"""A number at the edge of a range is not counted in the range before because it was rounded."""
MIN_VECTOR_NUMBERS = 7
"""Shorter lists of decimals are lists, not vectors."""
FILE_NAME = r"^[^\n]{1,400}\.(png|jpe?g|webp|gif|mp3|wav|flac|ogg|opus|m4a|aac|webm|pcm)$"

Quantity = Literal["value", "characters", "items", "entries", "bytes", "norm", "seconds since 1970"]
Family = Literal["text", "boolean", "number", "time", "list", "vector", "record", "map", "binary", "other"]


class ValueCounts(Struct, frozen=True):
    """How often each value occurs; `counted`: rows, or elements of lists, or rows in which a field has a value."""

    counts: Sequence[tuple[str, int]]
    """The declared values in their order, else the most frequent first."""
    other_values: int
    """Further values, which are not in `counts`."""
    other_count: int
    """How often the further values occur."""
    counted: Literal["rows", "elements", "fields", "files"]


class Histogram(Struct, frozen=True):
    """How many rows lie in each of several ranges of equal width; extreme values are counted apart."""

    quantity: Quantity
    low: float
    width: float
    counts: Sequence[int]
    below: int
    """Rows below `low`."""
    above: int
    """Rows above the last range."""
    is_whole: bool
    """Whether the values are whole numbers: the range from `low` is then one value if `width` is 1."""
    median: float


class ColumnSummary(Struct, frozen=True):
    """One column of the results."""

    name: str
    family: Family
    kind: str
    """DuckDB's name of its type."""
    rows: int
    """Rows that were looked at."""
    table_rows: int
    """Rows of the table; more than `rows` if only the first were looked at."""
    nulls: int
    distinct: int | None = None
    """Different values; None if they are not counted."""
    is_distinct_estimated: bool = False
    least: Any = None
    most: Any = None
    mean: float | None = None
    unit: str = ""
    """Of least, most and mean: empty for values, else characters, items, entries or bytes."""
    frequent: Sequence[tuple[str, int]] = ()
    """The most frequent values that occur more than once."""
    numbers: int | None = None
    """Numbers of a vector, if all have as many."""
    zero_vectors: int = 0
    distributions: Sequence[ValueCounts | Histogram] = ()
    """Empty for columns that steps have not made."""


def summarize_columns(
    db: duckdb.DuckDBPyConnection,
    outputs: Mapping[str, Sequence[Any]],
    hidden: Sequence[str] = (),
    table: str = "results",
) -> Sequence[ColumnSummary]:
    """Summarize each column of a table or view.

    `outputs`: columns whose distribution is wanted, with the values that the job file declares for them.
    """
    relation = db.sql(f"select * from {table} limit 0")
    ((rows,),) = db.execute(f"select count(*) from {table}").fetchall()
    return [
        _Column(db, table, rows, name, kind, outputs.get(name)).summarize()
        for name, kind in zip(relation.columns, relation.types, strict=True)
        if name not in hidden
    ]


class _Column:
    """The queries about one column."""

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        table: str,
        table_rows: int,
        name: str,
        kind: DuckDBPyType,
        declared: Sequence[Any] | None,
    ) -> None:
        self._db, self._name, self._kind, self._declared = db, name, kind, declared
        self._table_rows = table_rows
        self._column = identifier(name)
        self._family = _family(kind)
        self._tops: dict[tuple[str, int, str | None], Sequence[tuple[str, int]]] = {}
        self._numbers: int | None = None
        most = MAX_ROWS
        if self._family == "vector":
            length = _MEASURES["vector"][0].format(self._column)
            first = f"(select {self._column} from {table} limit {LENGTH_SAMPLE_ROWS})"
            ((shortest, longest),) = self._fetch(f"select min({length}), max({length})", first)
            self._numbers = shortest if shortest == longest else None
            if (longest or 0) < MIN_VECTOR_NUMBERS:
                self._family = "list"
            else:
                most = min(MAX_ROWS, max(LENGTH_SAMPLE_ROWS, MAX_VECTOR_NUMBERS // longest))
        self._rows = min(table_rows, most)
        # Without a limit DuckDB reads on all cores.
        self._source = table if table_rows <= most else f"(select {self._column} from {table} limit {most})"

    def summarize(self) -> ColumnSummary:
        """Return counts and range, and for an output its distributions."""
        facts = self._facts()
        present, named = facts.pop("present"), facts.pop("named", None)
        if "distinct" in facts:
            facts["is_distinct_estimated"] = self._rows > MAX_EXACT_ROWS
            if self._rows <= MAX_EXACT_ROWS or facts["distinct"] < 0.1 * present:
                top = self._top(f"cast({self._column} as VARCHAR)", MAX_VALUES + 1)
                facts["frequent"] = [(value, count) for value, count in top[:MAX_FREQUENT_VALUES] if count > 1]
        if self._family in _MEASURES:
            facts["unit"] = _MEASURES[self._family][1]
        distributions: Sequence[ValueCounts | Histogram] = ()
        if self._declared is not None and present:
            distributions = self._distributions(present, facts.get("distinct"), named == present)
        return ColumnSummary(
            name=self._name,
            family=self._family,
            kind=str(self._kind),
            rows=self._rows,
            table_rows=self._table_rows,
            nulls=self._rows - present,
            numbers=self._numbers,
            distributions=distributions,
            **facts,
        )

    def _facts(self) -> dict[str, Any]:
        """Return everything that one reading of the column can tell."""
        sql = {"present": f"count({self._column})"}
        if self._family in _MEASURES:
            size = _MEASURES[self._family][0].format(self._column)
            sql |= {"least": f"min({size})", "most": f"max({size})"}
        elif self._family == "number":
            sql |= {"least": f"min({self._column})", "most": f"max({self._column})", "mean": f"avg({self._column})"}
        elif self._family in ("time", "other"):
            sql |= {
                name: f"cast({call}({self._column}) as VARCHAR)" for name, call in (("least", "min"), ("most", "max"))
            }
        if self._family in ("text", "boolean", "number", "time", "other"):
            is_large = self._rows > MAX_EXACT_ROWS
            sql["distinct"] = f"{'approx_count_distinct(' if is_large else 'count(distinct '}{self._column})"
        if self._family == "text" and self._declared is not None:
            sql["named"] = f"count(*) filter (regexp_matches({self._column}, {literal(FILE_NAME)}, 'i'))"
        if self._family == "vector":
            sql["zero_vectors"] = f"count(*) filter ({self._norm()} = 0)"
        (values,) = self._fetch(f"select {', '.join(sql.values())}")
        return dict(zip(sql, values, strict=True))

    def _distributions(
        self, present: int, distinct: int | None, is_file_name: bool
    ) -> Sequence[ValueCounts | Histogram]:
        if self._family == "text":
            if is_file_name:
                suffix = f"lower(regexp_extract({self._column}, '\\.([^.]+)$', 1))"
                return (self._value_counts(suffix, "files", ()),)
            few = distinct is not None and distinct <= MAX_VALUES and distinct * 2 <= present
            if self._declared or few:
                return (self._value_counts(self._column, "rows", self._declared or ()),)
            return self._histogram("characters", is_whole=True)
        if self._family == "boolean":
            return (self._value_counts(self._column, "rows", ("true", "false")),)
        if self._family == "number":
            if self._declared:
                return (self._value_counts(self._column, "rows", self._declared),)
            return self._histogram("value", is_whole=self._is_whole())
        if self._family == "time":
            return self._histogram("seconds since 1970", is_whole=False)
        if self._family == "vector":
            return self._histogram("norm", is_whole=False)
        if self._family == "record":
            return (self._field_counts(),)
        if self._family == "list":
            return (*self._histogram("items", is_whole=True), *self._element_counts())
        if self._family in ("map", "binary"):
            return self._histogram("entries" if self._family == "map" else "bytes", is_whole=True)
        return ()

    def _is_whole(self) -> bool:
        name = str(self._kind.id)
        return name not in ("float", "double", "decimal") or (name == "decimal" and str(self._kind).endswith(",0)"))

    def _value_counts(self, sql: str, counted: Literal["rows", "files"], declared: Sequence[Any]) -> ValueCounts:
        text = f"cast({sql} as VARCHAR)"
        return self._named_counts(self._top(text, max(MAX_VALUES, len(declared)) + 1), declared, text, counted)

    def _named_counts(
        self,
        top: Sequence[tuple[str, int]],
        declared: Sequence[Any],
        text: str,
        counted: Literal["rows", "elements", "fields", "files"],
        source: str | None = None,
    ) -> ValueCounts:
        order = [_as_text(value) for value in declared][: 4 * MAX_VALUES]
        found = dict(top)
        shown = [*order, *(value for value, _ in top if value not in order)][: max(MAX_VALUES, len(order))]
        counts = [(value, found.get(value, 0)) for value in shown]
        if len(top) <= len(shown):
            return ValueCounts(counts, 0, 0, counted)
        ((values, every),) = self._fetch(f"select approx_count_distinct({text}), count({text})", source)
        return ValueCounts(counts, max(1, values - len(shown)), every - sum(n for _, n in counts), counted)

    def _element_counts(self) -> Sequence[ValueCounts]:
        """Return how often each element of the lists occurs, if elements are texts, numbers or booleans and repeat."""
        child = dict(self._kind.children)["child"]
        if not isinstance(child, DuckDBPyType) or _family(child) not in ("text", "boolean", "number"):
            return ()
        source = f"(select unnest({self._column}) as element from {self._source})"
        ((different, every),) = self._fetch("select approx_count_distinct(element), count(element)", source)
        if not every or (not self._declared and (different > 10 * MAX_VALUES or different * 2 > every)):
            return ()
        text = "cast(element as VARCHAR)"
        declared = self._declared or ()
        top = self._top(text, max(MAX_VALUES, len(declared)) + 1, source)
        return (self._named_counts(top, declared, text, "elements", source),)

    def _field_counts(self) -> ValueCounts:
        names = [name for name, _ in self._kind.children]
        sql = ", ".join(f"count(struct_extract({self._column}, {literal(name)}))" for name in names)
        counts = list(zip(names, self._fetch(f"select {sql}")[0], strict=True))
        shown = counts[: 2 * MAX_VALUES]
        return ValueCounts(shown, len(counts) - len(shown), sum(n for _, n in counts[len(shown) :]), "fields")

    def _histogram(self, quantity: Quantity, is_whole: bool) -> Sequence[Histogram]:
        measure = self._measure()
        finite = f"select {measure} as m from {self._source} where isfinite({measure})"
        least, most, median, low, high = self._fetch(
            "select min(m), max(m), median(m), quantile_disc(m, 0.01), quantile_disc(m, 0.99)", f"({finite})"
        )[0]
        if least is None:
            return ()
        # A few extreme values must not press all others into one bar.
        low = least if least >= low - (high - low) else low
        high = most if most <= high + (high - low) else high
        low, width, count = _bins(low, high, is_whole)
        place_of = f"cast(floor((m - {low!r}) / {width!r} + {ROUNDING}) as BIGINT)"
        found = dict(self._fetch(f"select {place_of} as bin, count(*)", f"({finite})", "group by 1"))
        # The greatest value belongs to the last range; a number at an edge may be rounded below the first.
        counts = [found.pop(place, 0) for place in range(count)]
        if not is_whole and most <= low + width * count * (1 + 1e-12):
            counts[-1] += found.pop(count, 0)
        below = sum(n for place, n in found.items() if place < 0)
        above = sum(n for place, n in found.items() if place >= count)
        return (Histogram(quantity, low, width, counts, below, above, is_whole, median),)

    def _measure(self) -> str:
        """Return the SQL of the number that a histogram shows."""
        if self._family == "vector":
            return self._norm()
        if self._family == "time":
            return f"epoch({self._column})"
        sql = _MEASURES[self._family][0] if self._family in _MEASURES else "{}"
        return f"cast({sql.format(self._column)} as DOUBLE)"

    def _norm(self) -> str:
        vector = f"cast({self._column} as FLOAT[])"
        # Float32 has seven digits: vectors of the length 1 must not be spread over a chart by rounding.
        # DuckDB's list_inner_product refuses a column of lists in which one list is null.
        return f"round(sqrt(list_sum(list_transform({vector}, lambda x: x * x))), {NORM_DECIMALS})"

    def _top(self, text: str, most: int, source: str | None = None) -> Sequence[tuple[str, int]]:
        if (text, most, source) not in self._tops:
            rest = f"where value is not null group by 1 order by n desc, 1 limit {most}"
            self._tops[text, most, source] = self._fetch(f"select {text} as value, count(*) as n", source, rest)
        return self._tops[text, most, source]

    def _fetch(self, select: str, source: str | None = None, rest: str = "") -> list[Any]:
        return self._db.execute(f"{select} from {source or self._source} {rest}").fetchall()


_MEASURES: Mapping[str, tuple[str, str]] = {
    "text": ("length({})", "characters"),
    "list": ("len({})", "items"),
    "vector": ("len(cast({} as FLOAT[]))", "numbers"),
    "map": ("cardinality({})", "entries"),
    "binary": ("octet_length({})", "bytes"),
}
"""By family, the SQL of its size and the unit."""
_NUMBERS = frozenset(
    {"tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"}
    | {"float", "double", "decimal"}
)
_TIMES = frozenset({"date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone"})


def _family(kind: DuckDBPyType) -> Family:
    name = str(kind.id)
    if name in ("list", "array"):
        child = dict(kind.children)["child"]
        is_decimal = isinstance(child, DuckDBPyType) and str(child.id) in ("float", "double")
        return "vector" if is_decimal else "list"
    if name in _NUMBERS:
        return "number"
    if name in _TIMES:
        return "time"
    names: Mapping[str, Family] = {
        "varchar": "text", "boolean": "boolean", "struct": "record", "map": "map", "blob": "binary",
    }  # fmt: skip
    return names.get(name, "other")


def _bins(low: float, high: float, is_whole: bool) -> tuple[float, float, int]:
    """Return (the least number, the width, the count) of ranges with round edges that cover `low` to `high`."""
    if is_whole and high - low < MAX_WHOLE_BINS:
        return float(int(low)), 1.0, int(high) - int(low) + 1
    if high <= low:
        return low, 1.0, 1
    width = round_step(high - low, MAX_BINS)
    width = max(1.0, width) if is_whole else width
    first = low // width
    count = int(-(-(high + (1 if is_whole else 0)) // width) - first)
    return first * width, width, max(1, count)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
