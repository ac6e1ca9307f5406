"""Keys of every type: the night after finds each old row in every sink, and replaces the rows that changed."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from connectors.contracts import Commit, Sink, SourceContext, TableShape
from connectors.errors import JobError
from connectors.registry import SINKS
from connectors.sources.parquet_files import ParquetSource
from connectors.tables.schemas import errors_schema, results_schema
from pipelines.preparation.row_selection import RowSelection, select_rows
from pipelines.preparation.source_reader import SourceReader
from tests.conftest import Cli, ScriptedProvider, Workspace, error_reply
from tests.support.exhaustive import every_nth, marks
from tests.support.shared_database import shared_cursor

SINK_KEYS: dict[str, dict[str, str]] = {
    "parquet": {"parquet": "out"},
    "duckdb": {"duckdb": "out.duckdb", "table": "t"},
    "delta": {"delta": "out"},
}

SPREAD = sorted(((n * 0x9E3779B97F4A7C15) % 2**64 for n in range(1, 9)), key=lambda number: -abs(number - 2**63))
"""Numbers of 64 bits without a common factor."""


def moments(unit: str, zone: str | None = None) -> pa.Array:
    """Return four moments of the unit, among them one before 1970 and one of a far year."""
    seconds = [-86_401, 32_503_680_000 // (8 if unit == "ns" else 1), 1_704_067_200, 0]
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    return pa.array([second * factor + (factor * 123_456_789 // 10**9) for second in seconds], pa.timestamp(unit, zone))


KEYS: dict[str, pa.Array] = {
    **{
        f"int{bits}": pa.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0, -1], f"int{bits}")
        for bits in (8, 16, 32, 64)
    },
    **{f"uint{bits}": pa.array([0, 2**bits - 1, 2 ** (bits - 1), 1], f"uint{bits}") for bits in (8, 16, 32, 64)},
    "spread uint64": pa.array(SPREAD, pa.uint64()),
    "float16": pa.array([0.5, -1.5, 65504.0, 0.0], pa.float16()),
    "float32": pa.array([-1e30, 3.4028234e38, 0.1, 0.0], pa.float32()),
    "float64": pa.array([-1e300, 1.7976931348623157e308, 0.1, 5e-324], pa.float64()),
    "not finite": pa.array([float("nan"), float("inf"), float("-inf"), 1.0], pa.float64()),
    "decimal(5, 2)": pa.array(
        [Decimal("-999.99"), Decimal("999.99"), Decimal("1.10"), Decimal(0)], pa.decimal128(5, 2)
    ),
    "decimal(20, 0)": pa.array([Decimal(number) for number in SPREAD], pa.decimal128(20, 0)),
    "decimal(38, 9)": pa.array(
        [Decimal("-1e28"), Decimal("12345678901234567890123456789.123456789"), Decimal("1e-9"), Decimal(0)],
        pa.decimal128(38, 9),
    ),
    "decimal32": pa.array([Decimal("1.10"), Decimal("-9.99"), Decimal(0), Decimal("0.01")], pa.decimal32(5, 2)),
    "decimal64": pa.array([Decimal("1.10"), Decimal("-9.99"), Decimal(0), Decimal("0.01")], pa.decimal64(15, 2)),
    "string": pa.array(["", "😀", "a", "Ünï", 'it\'s "x"\n\\', "a\0b", "x" * 5000]),
    "long strings": pa.array(["p" * 200 + letter for letter in "abcd"]),
    "large_string": pa.array(["a", "b", "", "z" * 100], pa.large_string()),
    "string_view": pa.array(["a", "b", "", "z" * 100], pa.string_view()),
    "binary": pa.array([b"", b"\xff\xff", b"a", b"\\x00"], pa.binary()),
    "large_binary": pa.array([b"", b"\0\xff", b"a", b"long" * 100], pa.large_binary()),
    "binary(4)": pa.array([b"\0\0\0\0", b"\xff\xff\xff\xff", b"abcd", b"'\\\"x"], pa.binary(4)),
    "uuid": pa.array([uuid.UUID(int=number) for number in (0, 2**128 - 1, 2**127, 5)], pa.uuid()),
    "bool": pa.array([True, False]),
    "date32": pa.array([date(1, 1, 1), date(9999, 12, 31), date(1969, 12, 31), date(2026, 1, 2)], pa.date32()),
    # 'infinity', '-infinity', the year 0, the year 99999
    "far date32": pa.array([2**31 - 1, 1 - 2**31, -719_528, 35_804_357], pa.date32()),
    "date64": pa.array([date(1970, 1, 1), date(2026, 12, 31), date(1969, 12, 31)], pa.date64()),
    "time32(s)": pa.array([time(0), time(23, 59, 59)], pa.time32("s")),
    "time32(ms)": pa.array([time(0), time(23, 59, 59, 999000)], pa.time32("ms")),
    "time64(us)": pa.array([time(0), time(23, 59, 59, 999999)], pa.time64("us")),
    "time64(ns)": pa.array([0, 86_399_999_999_999, 1], pa.time64("ns")),
    **{f"timestamp({unit})": moments(unit) for unit in ("s", "ms", "us", "ns")},
    "far timestamp": pa.array([2**63 - 1, 1 - 2**63, -62_167_219_200_000_000, 0], pa.timestamp("us", "UTC")),
    **{f"timestamp({unit}, UTC)": moments(unit, "UTC") for unit in ("s", "ms", "us", "ns")},
    "timestamp(us, Tokyo)": moments("us", "Asia/Tokyo"),
    "timestamp(ns, Tokyo)": moments("ns", "Asia/Tokyo"),
    "dictionary": pa.array(["a", "b", "c"]).dictionary_encode(),
    "dictionary of numbers": pa.array([1, 2**40, -1]).dictionary_encode(),
    "duration": pa.array([timedelta(0), timedelta(days=-1), timedelta(seconds=1)], pa.duration("us")),
}

REFUSED = {"delta": {"time64(us)", "time64(ns)", "timestamp(ns)", "timestamp(ns, UTC)"}}
"""Types that a sink does not have."""

READ_AS_ANOTHER_TYPE = (
    "float16",
    "decimal32",
    "decimal64",
    "large_string",
    "string_view",
    "large_binary",
    "binary(4)",
    "uuid",
    "date64",
    "time32(s)",
    "time32(ms)",
    "timestamp(s)",
    "timestamp(ms)",
    "timestamp(s, UTC)",
    "timestamp(ms, UTC)",
    "timestamp(us, Tokyo)",
    "timestamp(ns, Tokyo)",
    "dictionary",
    "dictionary of numbers",
    "duration",
)
"""Types that every table has as another one of these."""
LIKE_ANOTHER_TYPE = ("int8", "int16", "int32", "uint8", "uint16", "float32", "decimal(5, 2)", "uint64")
"""Tested as columns of one key."""


class Nights:
    """A source and a sink in one folder; a night reads the source and writes what is new or changed into the sink."""

    def __init__(self, folder: Path, kind: str, key: tuple[str, ...]) -> None:
        self.folder = folder
        self.kind = kind
        self.key = key
        self.count = 0

    def source(self, rows: pa.Table) -> None:
        """Replace the source's file."""
        pq.write_table(rows, self.folder / "rows.parquet")

    @contextmanager
    def selected(self) -> Iterator[tuple[RowSelection, Sink, TableShape]]:
        """Compare the source with the sink, as a run does."""
        model = ParquetSource(parquet="rows.parquet", key=self.key)
        context = SourceContext(self.folder, (), self.folder / "scratch")
        with SourceReader(model, context) as reader:
            selection = select_rows(reader, ["text"], ["text"], b"", [], False)
            key, carried = list(selection.key_schema), list(selection.carried_schema)
            shape = TableShape(self.key, results_schema(key, carried, []), errors_schema(key), "merge")
            sink = SINKS[self.kind](**SINK_KEYS[self.kind]).open(shape, self.folder, 1)
            sink.prepare(False)
            selection.check_keys()
            selection.load_sink_state(sink)
            yield selection, sink, shape

    def run(self, commit_rows: int) -> tuple[list[str], int]:
        """Return the texts that are new or changed, and the number of rows removed."""
        texts: list[str] = []
        with self.selected() as (selection, sink, shape):
            selection.counts()
            for batch in selection.batches(commit_rows, frozenset()):
                rows = pa.Table.from_batches([batch])
                texts += rows.column("text").to_pylist()
                self._commit(sink, shape, rows)
            removed = sink.remove(selection.deleted_keys(), errors_too=True)
        return sorted(texts), removed

    def _commit(self, sink: Sink, shape: TableShape, rows: pa.Table) -> None:
        replaced: dict[str, list[int]] = {}
        for row, part in enumerate(rows.column("_part").to_pylist()):
            if part is not None:
                replaced.setdefault(part, []).append(row)
        run_id = pa.repeat(pa.scalar("r"), rows.num_rows)
        results = rows.append_column("_run_id", run_id).select(shape.results.names).cast(shape.results)
        keys, no_errors = results.select(self.key), shape.errors.empty_table()
        if not any(replaced):
            # Each row failed at first, and the first of them fails once more later.
            failed = [
                keys.column(field.name) if field.name in self.key else pa.nulls(rows.num_rows, field.type)
                for field in shape.errors
            ]
            errors = pa.table(failed, schema=shape.errors)
            sink.commit(Commit(results.slice(0, 0), {}, errors, keys.slice(0, 0)), f"failed-{self.count}")
            no_errors = errors.slice(0, 1)
            keys = keys.slice(1)
        sink.commit(Commit(results, replaced, no_errors, keys), f"part-{self.count}")
        self.count += 1

    def held(self) -> tuple[list[str], int]:
        """Return the texts of the results, and the number of errors."""
        with self.selected() as (_, sink, _), shared_cursor() as db:
            sink.attach(db)
            texts = [text for (text,) in db.execute(f"select text from {sink.results_sql()}").fetchall()]
            ((errors,),) = db.execute(f"select count(*) from {sink.errors_sql()}").fetchall()
        return sorted(texts), errors


SINK_AND_KIND = [
    # By default the other sinks take every third type, and those that they refuse.
    pytest.param(sink, kind, marks=marks(sink != "parquet" and place % 3 > 0 and kind not in REFUSED.get(sink, ())))
    for sink in SINK_KEYS
    for place, kind in enumerate(kind for kind in KEYS if kind not in (*READ_AS_ANOTHER_TYPE, *LIKE_ANOTHER_TYPE))
]


@pytest.mark.parametrize(("sink", "kind"), SINK_AND_KIND)
def test_each_night_finds_the_rows_of_the_night_before(tmp_path: Path, sink: str, kind: str) -> None:
    keys = KEYS[kind]
    nights = Nights(tmp_path, sink, ("id",))
    texts = [f"{row}" for row in range(len(keys))]
    nights.source(pa.table({"id": keys, "text": texts}))
    if kind in REFUSED.get(sink, ()):
        with pytest.raises(JobError, match=r"^sink\.delta: the column id is .*; cast it"):
            nights.run(commit_rows=100)
        return
    assert nights.run(commit_rows=100) == (texts, 0)
    # The first and second are the least and the greatest; each is written by a commit of its own.
    texts[:2] = ["first", "second"]
    texts = texts[: max(2, len(keys) - 1)]
    nights.source(pa.table({"id": keys[: len(texts)], "text": texts}))
    assert nights.run(commit_rows=1) == (texts[:2], len(keys) - len(texts))
    assert nights.held() == (sorted(texts), 0)


@pytest.mark.parametrize("kind", every_nth(3, {kind: kind for kind in READ_AS_ANOTHER_TYPE}))
def test_keys_that_are_stored_as_another_type_are_found_as_well(tmp_path: Path, kind: str) -> None:
    test_each_night_finds_the_rows_of_the_night_before(tmp_path, "parquet", kind)


COMPOSITE = tuple(
    kind
    for kind in KEYS
    if kind not in (*READ_AS_ANOTHER_TYPE, *REFUSED["delta"], "bool", "not finite", "long strings")
)
"""Types that every sink has; together they are one key."""


def composite_rows(rows: int, *changed: int) -> pa.Table:
    columns = {name: KEYS[name][:rows] for name in COMPOSITE}
    return pa.table({**columns, "text": [f"{row} changed" if row in changed else f"{row}" for row in range(rows)]})


@pytest.fixture
def composite(workspace: Workspace) -> Path:
    """A job file whose key has all types of columns; two `@` mark the sink and its other keys."""
    keys = ", ".join(f'"{name}"' for name in COMPOSITE)
    pq.write_table(composite_rows(3), workspace.folder / "rows.parquet")
    return workspace.job(source=f"{{parquet: rows.parquet, key: [{keys}]}}", sink="@")


def sink_text(sink: str, more: str) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in SINK_KEYS[sink].items()) + f", columns: [text]{more}}}"


def results_of(folder: Path, sink: str) -> list[str]:
    """Return the texts of a sink's results."""
    if sink == "delta":
        table = DeltaTable(folder / "out/results").to_pyarrow_table()
    else:
        with duckdb.connect(":memory:" if sink == "parquet" else folder / "out.duckdb") as db:
            table = db.sql(f"from '{folder}/out/results/*.parquet'" if sink == "parquet" else "from t").to_arrow_table()
    return sorted(table.column("text").to_pylist())


@pytest.mark.parametrize("sink", ["parquet", "duckdb", pytest.param("delta", marks=marks(True))])
def test_a_key_of_all_types_works_in_every_mode_and_command(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, composite: Path, sink: str
) -> None:
    template = composite.read_text()

    def run(mode: str, rows: pa.Table) -> tuple[int, int]:
        pq.write_table(rows, workspace.folder / "rows.parquet")
        composite.write_text(template.replace("@", sink_text(sink, mode)))
        report = cli.run(composite)
        assert report["exit_code"] in (0, 1), cli.err
        return report["requests"], report["rows_failed"]

    provider.script = lambda path, body, count: error_reply(400, "no") if count == 1 else None
    assert run("", composite_rows(3)) == (3, 1)
    assert run("", composite_rows(3)) == (0, 1)
    assert cli("errors", composite, "--json") == 0
    (failed,) = [json.loads(line) for line in cli.out.splitlines()]
    assert cli("retry", composite, "--quiet") == 0
    assert run(", write: append", composite_rows(3, 0)) == (0, 0)
    assert run("", composite_rows(3, 0)) == (1, 0)
    assert results_of(workspace.folder, sink) == ["0 changed", "1", "2"]
    with duckdb.connect() as db:
        columns = ", ".join(f'"{name}"' for name in COMPOSITE)
        found = db.sql(
            f"select cast(json_array({columns}) as varchar) from '{workspace.folder}/rows.parquet'"
        ).fetchall()
    for (key,) in found:
        assert cli("show", composite, key, "--json") == 0, cli.err
        shown = json.loads(cli.out)
        assert shown["result"]["text"] == shown["row"]["text"]
        assert [exchange["attempt"] for exchange in shown["exchanges"]] != []
    assert cli("rebuild", composite) == 0, cli.err
    assert results_of(workspace.folder, sink) == ["0 changed", "1", "2"]
    assert run(", write: replace", composite_rows(3, 0)) == (0, 0)
    assert run(", deleted: remove", composite_rows(2, 0)) == (0, 0)
    assert results_of(workspace.folder, sink) == ["0 changed", "1"]
    assert failed["error_class"] == "bad_request"
