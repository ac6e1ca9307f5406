"""SQL sources: values of every type, and the errors of queries."""

from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from connectors.errors import JobError
from connectors.sources.sql_query import SqlSource
from tests.unit.sources.conftest import ReadSourceFixture

VALUES = pa.table(
    {
        "small": pa.array([1, None, -128], pa.int8()),
        "large": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "real": pa.array([1.5, float("inf"), None], pa.float64()),
        "price": pa.array([Decimal("1.50"), None, Decimal("-9.99")], pa.decimal128(38, 2)),
        "text": pa.array(["ä\n\0b", "", None]),
        "flag": pa.array([True, False, None]),
        "raw": pa.array([b"\x00\xff", b"", None]),
        "day": pa.array([date(2026, 2, 28), None, date(1, 1, 1)]),
        "hour": pa.array([time(23, 59, 59, 999999), None, time(0)]),
        "moment": pa.array([datetime(2026, 1, 2, 3, 4, 5, 6, UTC), None, None], pa.timestamp("us", "UTC")),
        "exact": pa.array([1, None, 3], pa.timestamp("ns")),
        "tags": pa.array([["a", None], [], None], pa.list_(pa.string())),
        "vector": pa.array([[0.5, 1.5], None, [2.5, 3.5]], pa.list_(pa.float32(), 2)),
        "person": pa.array([{"name": "x", "ages": [1, 2]}, None, {"name": None, "ages": []}]),
        "scores": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int32())),
    }
)


def test_a_query_returns_the_values_and_types_of_its_files(tmp_path: Path, read_source: ReadSourceFixture) -> None:
    pq.write_table(VALUES, tmp_path / "rows.parquet")
    direct = read_source("parquet", "rows.parquet")
    for query in ("select * from 'rows.parquet'", "from read_parquet(['rows.parquet']) order by all;"):
        found = read_source("sql", query)
        assert found.types == direct.types
        assert sorted(map(repr, found.rows)) == sorted(map(repr, direct.rows))
    assert found.texts.keys() == direct.texts.keys()


def test_types_that_tables_lack_become_others_without_a_loss(read_source: ReadSourceFixture) -> None:
    huge = 2**127 - 1
    found = read_source(
        "sql", f"select {huge}::hugeint as huge, 7::hugeint as whole, interval 1 day as span, 'a'::enum('a') as word"
    )
    assert found.types == {"huge": "string", "whole": "string", "span": "string", "word": "string"}
    assert found.rows[0][:2] == (str(huge), "7")
    assert read_source("sql", "select 7::hugeint as whole").types == {"whole": "decimal128(38, 0)"}
    spans = read_source("sql", "select interval '-1 day 00:00:00.000001' as span, [interval '1 microsecond'] as spans")
    assert spans.rows == [("-1 day 00:00:00.000001", ["00:00:00.000001"])]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select 1; select 2", "source.sql: has 2 statements; write one SELECT"),
        (
            "create table t as select 1",
            "source.sql: is not a SELECT; write",
        ),
        ("select x from range(3)", 'source.sql: Referenced column "x" not found in FROM clause!'),
        ("select * from tickets", "source.sql: Table with name tickets does not exist!"),
        ("select * from '/etc/passwd.csv'", "source.sql: Cannot access file "),
    ],
    ids=["two", "create", "column", "table", "outside"],
)
def test_a_query_that_cannot_run_is_an_error_of_the_key(
    read_source: ReadSourceFixture, query: str, message: str
) -> None:
    with pytest.raises(JobError) as caught:
        read_source("sql", query)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("jobs", [{"a b": "x"}, {"": "x"}, {"a": "x", "A": "y"}], ids=["space", "empty", "case"])
def test_a_job_has_a_name_that_sql_can_tell_from_others(jobs: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SqlSource(sql="select 1", jobs=jobs)
