"""A small job's tables in every kind of sink, and a reader that does not use the sink's code."""

import glob
import io
import posixpath
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from obstore.store import S3Store

from connectors.contracts import Commit, Sink, TableShape, UsageMark
from connectors.registry import SINKS, SinkConfig
from connectors.sinks import parquet_table
from connectors.tables import parquet_parts
from connectors.tables.schemas import errors_schema, failure_names, results_schema, usage_schema
from tests.support.shared_database import shared_cursor

SINK_KEYS: Mapping[str, dict[str, Any]] = {
    "parquet": {"parquet": "out"},
    "duckdb": {"duckdb": "out/answers.duckdb", "table": "answers"},
    "delta": {"delta": "out"},
}

KEY = [pa.field("id", pa.int64())]
OUTPUTS = [
    pa.field("answer", pa.string()),
    pa.field("vector", pa.list_(pa.float32(), 3)),
    pa.field("at", pa.timestamp("us", "UTC")),
    pa.field("tags", pa.list_(pa.struct([pa.field("name", pa.string())]))),
]


class Tables:
    """One job's sink in a separate folder."""

    def __init__(self, kind: str, workspace: Path, server: str | None = None) -> None:
        """`server`: address of an object store for the tables, instead of this machine."""
        self.kind = kind
        self.workspace = workspace
        self.server = server
        self.sink_keys: dict[str, Any] = SINK_KEYS[kind]
        self.key = KEY
        self.child_index: str | None = None
        """The last column of `key`, if source rows have several results."""
        self.outputs = OUTPUTS
        self.count = 0

    @property
    def model(self) -> SinkConfig:
        path = self.sink_keys[self.kind]
        return SINKS[self.kind](**{**self.sink_keys, self.kind: f"{self.home}/{path}" if self.server else path})

    @property
    def home(self) -> str:
        """The URL at which relative paths of an object store start."""
        return f"s3://rowmill-tests{self.workspace}"

    @property
    def store(self) -> S3Store:
        """The object store, used without the sink's code."""
        return S3Store("rowmill-tests", client_options={"allow_http": True})

    def objects(self, folder: str = "") -> list[str]:
        """Return the names of the objects below a folder of the workspace."""
        below = posixpath.join(f"{self.workspace}"[1:], folder).rstrip("/")
        return sorted(meta["path"][len(below) + 1 :] for page in obstore.list(self.store, below) for meta in page)

    @property
    def shape(self) -> TableShape:
        names = tuple(field.name for field in self.outputs)
        key = tuple(field.name for field in self.key)
        results, errors = results_schema(self.key, [], self.outputs), errors_schema(self.key)
        return TableShape(key, results, errors, "merge", names, child_index=self.child_index)

    def open(self) -> Sink:
        return self.model.open(self.shape, self.workspace, 0.3)

    def ready(self, fresh: bool = False) -> Sink:
        sink = self.open()
        sink.prepare(fresh)
        return sink

    # Writing: rows are (key, answer), errors are (key, message).

    def results(self, rows: Sequence[tuple[Any, str]]) -> pa.Table:
        values: list[dict[str, Any]] = [
            {
                **self._key(key),
                "answer": answer,
                "vector": [float(len(answer)), 0.5, -1.0],
                "at": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
                "tags": [{"name": answer}],
                "_run_id": "r1",
                "_row_fingerprint": f"fp {answer}",
            }
            for key, answer in rows
        ]
        return pa.Table.from_pylist(values, schema=self.shape.results)

    def errors(self, rows: Sequence[tuple[Any, str]]) -> pa.Table:
        values = [
            {
                **self._key(key),
                "step": "s",
                "error_class": "input",
                "message": message,
                failure_names(field.name for field in self.key)["details"]: message,
            }
            for key, message in rows
        ]
        return pa.Table.from_pylist(values, schema=self.shape.errors)

    def keys(self, keys: Sequence[Any]) -> pa.Table:
        fields = self.key if self.child_index is None else self.key[:-1]
        return pa.Table.from_pylist([self._key(key, fields) for key in keys], schema=pa.schema(fields))

    def _key(self, key: Any, fields: Sequence[pa.Field] | None = None) -> dict[str, Any]:
        """`fields`: of the key; None: all."""
        names = [field.name for field in fields or self.key]
        return dict(zip(names, key if isinstance(key, tuple) else (key,) * len(names), strict=True))

    def _source(self, key: Any) -> Any:
        """Return the part of a key that its source row has."""
        return key if self.child_index is None else key[:-1]

    def commit(
        self,
        sink: Sink,
        results: Sequence[tuple[Any, str]] = (),
        errors: Sequence[tuple[Any, str]] = (),
        cleared: Sequence[Any] = (),
        emptied: Sequence[Any] = (),
    ) -> None:
        """Commit, after looking up the parts of the old rows as a run does."""
        part_of = {self._source(key): part for key, part in self.parts(sink)}
        replaced: dict[str, list[int]] = {}
        for row, (key, _) in enumerate(results):
            if self._source(key) in part_of:
                replaced.setdefault(part_of[self._source(key)], []).append(row)
        without: dict[str, list[Any]] = {}
        for key in emptied:
            without.setdefault(part_of[key], []).append(key)
        self.count += 1
        name = f"0123abcd-000001-{self.count:06d}"
        removed = {part: self.keys(keys) for part, keys in without.items()}
        sink.commit(Commit(self.results(results), replaced, self.errors(errors), self.keys(cleared), removed), name)

    def commit_blind(self, sink: Sink, results: Sequence[tuple[Any, str]]) -> None:
        """Commit new rows without looking up existing ones."""
        self.count += 1
        none = self.errors([]), self.keys([])
        sink.commit(Commit(self.results(results), {}, *none), f"0123abcd-000001-{self.count:06d}")

    def usage(self, sink: Sink, first: int, last: int, writer: int = 1) -> None:
        values = [{"run_id": "r1", "job": "j", "keys": [str(n)], "attempt": 1} for n in range(first, last + 1)]
        sink.add_usage(pa.Table.from_pylist(values, schema=usage_schema()), UsageMark("0123abcd", writer, first, last))

    # Reading.

    def parts(self, sink: Sink) -> list[tuple[Any, str]]:
        with duckdb.connect() if self.server else shared_cursor() as db:
            sink.attach(db)
            key = ", ".join('"' + field.name.replace('"', '""') + '"' for field in self.key)
            rows = db.sql(f"select {key}, _part from {sink.results_sql()}").fetchall()
            sink.detach(db)
        return [(row[0] if len(row) == 2 else row[:-1], row[-1]) for row in rows]

    def read(self, table: str) -> pa.Table:
        """Return a table as a user reads it by DuckDB, from the names that the sink returns."""
        name = self.open().tables()[table]
        if self.kind == "delta":
            options = {"AWS_ALLOW_HTTP": "true"} if self.server else None
            return DeltaTable(name, storage_options=options).to_pyarrow_table()
        if self.server:
            folder = name.removeprefix(f"{self.home}/").removesuffix("/*.parquet")
            start = f"{self.workspace}"[1:]
            parts = [f"{start}/{folder}/{one}" for one in self.objects(folder) if one.endswith(".parquet")]
            found = [pq.read_table(io.BytesIO(bytes(self.store.get(part).bytes()))) for part in parts]
            return pa.concat_tables(found)
        if self.kind == "parquet":
            escaped = glob.escape(name.removesuffix("*.parquet")) + "*.parquet"
            with shared_cursor() as db:
                return db.sql("select * from read_parquet(?)", params=[escaped]).to_arrow_table()
        with shared_cursor() as db:
            path = str(self.workspace / self.sink_keys["duckdb"]).replace("'", "''")
            db.execute(f"attach '{path}' as tables (read_only)")
            try:
                return db.sql(f'select * from tables."{name}"').to_arrow_table()
            finally:
                db.execute("detach tables")

    def answers(self) -> dict[Any, str]:
        """Return key -> answer; each key must occur once."""
        return self._pairs("results", "answer")

    def failures(self) -> list[tuple[Any, str]]:
        table = self.read("errors")
        return sorted(zip(self._keys(table), table.column("message").to_pylist(), strict=True), key=str)

    def used(self) -> list[int]:
        return sorted(int(keys[0]) for keys in self.read("usage").column("keys").to_pylist())

    def _pairs(self, name: str, column: str) -> dict[Any, str]:
        table = self.read(name)
        pairs = list(zip(self._keys(table), table.column(column).to_pylist(), strict=True))
        assert len(dict(pairs)) == len(pairs), "a key occurs twice"
        return dict(pairs)

    def _keys(self, table: pa.Table) -> list[Any]:
        columns = [table.column(field.name).to_pylist() for field in self.key]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


@pytest.fixture(params=[*sorted(SINKS), "parquet at s3"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Tables:
    """A job's tables in each kind of sink."""
    kind, _, is_remote = request.param.partition(" at ")
    if is_remote:
        request.getfixturevalue("bucket")
    return Tables(kind, tmp_path, request.getfixturevalue("object_server") if is_remote else None)


@pytest.fixture
def in_delta(tmp_path: Path) -> Tables:
    """A job's tables in Delta Lake."""
    return Tables("delta", tmp_path)


@pytest.fixture
def delta_at_s3(tmp_path: Path, bucket: str, object_server: str) -> Tables:
    """A job's tables in Delta Lake on an object store."""
    return Tables("delta", tmp_path, object_server)


@pytest.fixture
def at_s3(tmp_path: Path, bucket: str, object_server: str) -> Tables:
    """A job's tables as Parquet objects of a store."""
    return Tables("parquet", tmp_path, object_server)


@pytest.fixture
def parquet(tmp_path: Path) -> Tables:
    """A job's tables as Parquet folders."""
    return Tables("parquet", tmp_path)


@pytest.fixture
def in_duckdb(tmp_path: Path) -> Tables:
    """A job's tables in a DuckDB file."""
    return Tables("duckdb", tmp_path)


@pytest.fixture
def low_compaction_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows and few parts are enough for compaction."""
    monkeypatch.setattr(parquet_table, "MAX_SMALL_PARTS", 3)
    monkeypatch.setattr(parquet_table, "SMALL_PART_BYTES", 10_000)
    monkeypatch.setattr(parquet_table, "MIN_PART_BYTES", 6_000)
    monkeypatch.setattr(parquet_table, "MAX_PART_BYTES", 6_000)


@pytest.fixture
def low_division_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is rewritten for the second time is divided into pieces of three rows."""
    monkeypatch.setattr(parquet_table, "MAX_REWRITTEN_BYTES", 0)
    monkeypatch.setattr(parquet_table, "PIECE_BYTES", 1)
    for limit in ("READ_BATCH_ROWS", "ROW_GROUP_ROWS"):
        monkeypatch.setattr(parquet_parts, limit, 3)
