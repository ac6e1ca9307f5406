"""Keys of every type: rows are distinguished, displayed and replaced."""

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.exhaustive import every_nth

Read = Callable[..., list[dict[str, Any]]]

KEYS: dict[str, pa.Array] = {
    "numbers below zero": pa.array([-1, 1]),
    "small numbers": pa.array([-128, 127], pa.int8()),
    "large numbers": pa.array([2**64 - 1, 1], pa.uint64()),
    "floats": pa.array([0.0, -0.0, float("nan"), 1.5]),
    "decimals": pa.array([Decimal("1.10"), Decimal("-2.20")], pa.decimal128(10, 2)),
    "texts": pa.array(["", " ", "-x", 'it\'s "q"\n', "[1]", "null", "A", "a"]),
    "bytes": pa.array([b"\x00\xff", b"z"]),
    "moments": pa.array(
        [datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2)], pa.timestamp("us", "Asia/Tokyo")
    ),
    "days": pa.array([datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]),
    "flags": pa.array([True, False]),
    "words of a dictionary": pa.array(["x", "y"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", every_nth(3, {kind: kind for kind in KEYS}))
def test_keys_of_every_type_identify_rows_in_tables_and_screens(
    workspace: Any, provider: Any, cli: Any, read: Read, kind: str
) -> None:
    ids = KEYS[kind]
    job = workspace.job(source="{parquet: rows.parquet, key: id}", sink="{parquet: out, columns: [text]}")
    for change in ("was", "is"):
        # Every key is replaced once: the newest row of a key counts.
        texts = [f"{change} {row}" for row in range(len(ids))]
        pq.write_table(pa.table({"id": ids, "text": texts}), workspace.folder / "rows.parquet")
        report = cli.run(job)
        assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, len(ids), len(ids)), cli.err
    assert cli.run(job)["requests"] == 0
    for command in ("plan", "status", "errors", "rebuild"):
        assert cli(command, job) == 0, cli.err
    assert sorted(row["answer"] for row in read(workspace.folder / "out")) == [text.upper() for text in sorted(texts)]
    for (key,) in {tuple(row["keys"]) for row in read(workspace.folder / "out", "usage")}:
        assert cli("show", job, "--json", key) == 0, cli.err
        assert json.loads(cli.out)["key"] == key


def test_timestamps_that_differ_by_nanoseconds_are_two_keys(workspace: Any, provider: Any, cli: Any) -> None:
    table = pa.table({"id": pa.array([1, 2], pa.timestamp("ns")), "text": ["a", "b"]})
    pq.write_table(table, workspace.folder / "rows.parquet")
    job = workspace.job(source="{parquet: rows.parquet, key: id}")
    for requests in (2, 0):
        report = cli.run(job)
        assert (report["rows_ok"], report["requests"]) == (2, requests)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([[1, 2], [3]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
    ],
    ids=["lists", "structs", "maps"],
)
def test_a_key_is_made_of_single_values(workspace: Any, provider: Any, cli: Any, ids: pa.Array) -> None:
    pq.write_table(pa.table({"id": ids, "n": [1, 2], "text": ["a", "b"]}), workspace.folder / "rows.parquet")
    for key in ("id", "[n, id]"):
        assert cli("run", workspace.job(source=f"{{parquet: rows.parquet, key: {key}}}")) == 2
        assert "2: source.key: id holds lists or structs, which cannot identify a row; name" in cli.err
    assert provider.seen == []
