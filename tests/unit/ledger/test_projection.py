"""Projection of the ledger: the usage table grows by new exchanges, and rebuilt tables have each key's newest state."""

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from connectors.contracts import Commit, Endpoint, Sink, TableShape, UsageMark
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.projection import (
    SourceRows,
    append_usage,
    childless_rows,
    commit_statements,
    decode_table,
    encode_rows,
    encode_table,
    rebuild,
)

RESULTS = pa.schema([("id", pa.int64()), ("text", pa.string()), ("label", pa.string())])
ERRORS = pa.schema([("id", pa.int64()), ("message", pa.string())])
SHAPE = TableShape(("id",), RESULTS, ERRORS, "merge", ("label",))


class ListSink:
    """A sink that lists what it gets."""

    def __init__(self) -> None:
        self.usage: list[tuple[pa.Table, UsageMark]] = []
        self.commits: list[Commit] = []

    def usage_marks(self) -> list[UsageMark]:
        return [mark for _, mark in self.usage]

    def add_usage(self, table: pa.Table, mark: UsageMark) -> None:
        self.usage.append((table, mark))

    def commit(self, commit: Commit, name: str) -> None:
        self.commits.append(commit)

    def rows(self) -> tuple[list[Any], list[Any]]:
        results = [row for commit in self.commits for row in commit.results.to_pylist()]
        return results, [row for commit in self.commits for row in commit.errors.to_pylist()]


class LabelStep:
    """An endpoint whose answer is the label."""

    fields = (pa.field("label", pa.string()),)

    def committed_values(self, answer: bytes) -> str:
        return answer.decode()

    def arrays(self, values: list[str | None]) -> list[pa.Array]:
        return [pa.array(values, pa.string())]


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


def add_commit(ledger: Ledger, results: pa.Table, answers: list[list[bytes | None]], errors: pa.Table) -> None:
    cleared = encode_table(results.select(["id"]))
    ledger.write(
        "insert into commits (job, sink, at, rows, errors, cleared, removed) values (?, ?, 0, ?, ?, ?, null)",
        ("job", "sink", encode_rows(results, answers, SHAPE), encode_table(errors), cleared),
    )


def table(schema: pa.Schema, *rows: tuple[Any, ...]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


async def test_rebuilt_tables_have_the_newest_state_of_each_key(tmp_path: Path) -> None:
    ledger, sink = Ledger(tmp_path / "ledger.sqlite"), ListSink()
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    for label in ("old", "new", "good"):
        await ledger.store_answer(label.encode().ljust(16), route_id, b"{}", label.encode())
    old, new, good, pruned = (label.encode().ljust(16) for label in ("old", "new", "good", "pruned"))
    first = table(RESULTS, (1, "one", "old"), (3, "three", "pruned"))
    add_commit(ledger, first, [[old], [pruned]], table(ERRORS, (2, "no"), (4, "no")))
    add_commit(ledger, table(RESULTS, (1, "ONE", "new"), (2, "two", "good")), [[new], [good]], ERRORS.empty_table())
    count = rebuild(ledger, cast("Sink", sink), "job", "sink", SHAPE, [cast("Endpoint", LabelStep())])
    ledger.close()
    results, errors = sink.rows()
    # Key 3 is left out because its answer is missing.
    assert sorted(results, key=lambda row: row["id"]) == [
        {"id": 1, "text": "ONE", "label": "new"}, {"id": 2, "text": "two", "label": "good"},
    ]  # fmt: skip
    assert errors == [{"id": 4, "message": "no"}]
    assert count == 2


PIECES = pa.schema([("id", pa.int64()), ("piece_index", pa.int64()), ("label", pa.string())])
PIECE_ERRORS = pa.schema([("id", pa.int64()), ("piece_index", pa.int64()), ("message", pa.string())])
PIECE_SHAPE = TableShape(("id", "piece_index"), PIECES, PIECE_ERRORS, "merge", ("label",), child_index="piece_index")


async def test_a_source_row_is_rebuilt_with_all_its_newest_children_or_not_at_all(tmp_path: Path) -> None:
    ledger, sink = Ledger(tmp_path / "ledger.sqlite"), ListSink()
    route_id = ledger.register_route("run-1", "job", "step", "local", "chat", "m")
    old, new, pruned = (label.encode().ljust(16) for label in ("old", "new", "pruned"))
    for label in ("old", "new"):
        await ledger.store_answer(label.encode().ljust(16), route_id, b"{}", label.encode())

    def commit(rows: list[tuple[int, int]], answers: list[bytes], childless: dict[int, str]) -> None:
        results = table(PIECES, *((*row, "") for row in rows))
        encoded = encode_rows(results, [[answer] for answer in answers], PIECE_SHAPE)
        emptied = pa.table({"id": pa.array(childless, pa.int64())})
        children = SourceRows(
            [str(row) for row, _ in rows], {str(row): mark for row, mark in childless.items()}, emptied
        )
        none = PIECE_ERRORS.empty_table()
        ledger.write_all(commit_statements("job", "sink", 0, encoded, none, emptied, children))

    commit([(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 0)], [old, old, old, old, pruned, old], {6: "f6", 7: "f7"})
    commit([(1, 0), (6, 0)], [new, new], {2: "f2", 7: "f7 again"})
    rebuild(ledger, cast("Sink", sink), "job", "sink", PIECE_SHAPE, [cast("Endpoint", LabelStep())])
    results, _ = sink.rows()
    assert sorted(tuple(row.values()) for row in results) == [(1, 0, "new"), (4, 0, "old"), (6, 0, "new")]
    assert sorted(childless_rows(ledger, "job", "sink")) == [("2", "f2"), ("7", "f7 again")]
    ledger.close()


def test_an_encoded_table_is_read_back_and_an_empty_one_is_not_stored() -> None:
    errors = table(ERRORS, (1, "no"))
    blob = encode_table(errors)
    assert blob is not None
    assert decode_table(blob).equals(errors)
    assert encode_table(ERRORS.empty_table()) is None
