"""Projection of the ledger: the usage table grows by new exchanges; tables are encoded for the ledger."""

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from connectors.contracts import Sink, UsageMark
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.projection import append_usage, decode_table, encode_table

ERRORS = pa.schema([("id", pa.int64()), ("message", pa.string())])


class ListSink:
    """A sink that lists what it gets."""

    def __init__(self) -> None:
        self.usage: list[tuple[pa.Table, UsageMark]] = []

    def usage_marks(self) -> list[UsageMark]:
        return [mark for _, mark in self.usage]

    def add_usage(self, table: pa.Table, mark: UsageMark) -> None:
        self.usage.append((table, mark))


async def settle(ledger: Ledger, route_id: int, cost: int) -> None:
    pending = PendingExchange(ledger.next_exchange_id(), route_id, 1, b'["1"]', b"f" * 16, now_us(), None)
    await ledger.record_pending(pending)
    await ledger.settle(
        SettledExchange(pending.exchange_id, route_id, 1, pending.keys, pending.fingerprints, 17, 200, cost=cost)
    )


async def test_the_usage_table_gets_each_exchange_of_the_job_once(tmp_path: Path) -> None:
    ledger, sink = Ledger(tmp_path / "ledger.sqlite"), ListSink()
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    other = ledger.register_route("run-2", "another", "step", "local", "chat", "m")
    await settle(ledger, route_id, 10**12)
    await settle(ledger, other, 1)
    append_usage(ledger, cast("Sink", sink), "job")
    await settle(ledger, route_id, 2 * 10**12)
    append_usage(ledger, cast("Sink", sink), "job")
    append_usage(ledger, cast("Sink", sink), "job")
    ledger.close()
    rows = [row for table, _ in sink.usage for row in table.to_pylist()]
    assert [(row["run_id"], row["keys"], row["fingerprints"], row["cost_usd"]) for row in rows] == [
        ("run-1", ["1"], ["66" * 16], 1.0), ("run-1", ["1"], ["66" * 16], 2.0),
    ]  # fmt: skip
    assert [(mark.first, mark.last) for _, mark in sink.usage] == [(1, 1), (3, 3)]


async def test_earlier_processes_without_new_exchanges_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ListSink()
    reads: list[Any] = []
    stream = Ledger.stream
    monkeypatch.setattr(Ledger, "stream", lambda self, sql, values: reads.append(values) or stream(self, sql, values))
    for night in range(3):
        ledger = Ledger(tmp_path / "ledger.sqlite")
        for job in ("job", "another"):
            await settle(ledger, ledger.register_route(f"run-{night}", job, "step", "local", "chat", "m"), 1)
        append_usage(ledger, cast("Sink", sink), "job")
        ledger.close()
    assert [values[0] for values in reads] == [mark.writer for _, mark in sink.usage] == [1, 2, 3]


def table(schema: pa.Schema, *rows: tuple[Any, ...]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def test_an_encoded_table_is_read_back_and_an_empty_one_is_not_stored() -> None:
    errors = table(ERRORS, (1, "no"))
    blob = encode_table(errors)
    assert blob is not None
    assert decode_table(blob).equals(errors)
    assert encode_table(ERRORS.empty_table()) is None
