"""Rebuilt tables: they have each key's newest state, whatever commits replaced, cleared, emptied and removed it."""

import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from connectors.contracts import Commit, Endpoint, Sink, TableShape
from pipelines.ledger import rebuilt_tables
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.projection import (
    SourceRows,
    childless_rows,
    commit_statements,
    encode_rows,
    encode_table,
)
from pipelines.ledger.rebuilt_tables import RowCounts, newest_rows, rebuild

RESULTS = pa.schema([("id", pa.int64()), ("text", pa.string()), ("label", pa.string())])
ERRORS = pa.schema([("id", pa.int64()), ("message", pa.string())])
SHAPE = TableShape(("id",), RESULTS, ERRORS, "merge", ("label",))


class ListSink:
    """A sink that lists what it gets."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []

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
    counts = rebuild(ledger, cast("Sink", sink), "job", "sink", SHAPE, [cast("Endpoint", LabelStep())], tmp_path)
    ledger.close()
    results, errors = sink.rows()
    # Key 3 is left out because its answer is missing.
    assert sorted(results, key=lambda row: row["id"]) == [
        {"id": 1, "text": "ONE", "label": "new"}, {"id": 2, "text": "two", "label": "good"},
    ]  # fmt: skip
    assert errors == [{"id": 4, "message": "no"}]
    assert counts == RowCounts(2, 1)


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
    rebuild(ledger, cast("Sink", sink), "job", "sink", PIECE_SHAPE, [cast("Endpoint", LabelStep())], tmp_path)
    results, _ = sink.rows()
    assert sorted(tuple(row.values()) for row in results) == [(1, 0, "new"), (4, 0, "old"), (6, 0, "new")]
    assert sorted(childless_rows(ledger, "job", "sink")) == [("2", "f2"), ("7", "f7 again")]
    ledger.close()


KEY = pa.schema([("id", pa.float64())])
NUMBERS = TableShape(
    ("id",), pa.schema([*KEY, ("label", pa.string())]), pa.schema([*KEY, ("message", pa.string())]), "merge", ("label",)
)
IDS = [0.0, -0.0, float("nan"), float("inf"), 0.1, 1e300, None]
"""Keys that some comparisons take for one, or for none."""


def keyed(ids: Sequence[float | None]) -> pa.Table:
    return pa.table([pa.array(ids, pa.float64())], schema=KEY)


def test_the_newest_rows_are_those_that_a_table_has_after_all_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilt_tables, "COMPARED_ENTRIES", 3)
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        for job in range(12):
            check_newest_rows(ledger, str(job), tmp_path)


def check_newest_rows(ledger: Ledger, job: str, scratch: Path) -> None:
    """Write some random commits of a job, and compare."""
    chosen = random.Random(job)
    results: dict[str, tuple[int, Sequence[int]]] = {}
    errors: dict[str, tuple[int, Sequence[int]]] = {}
    for commit in range(7 * int(job) + 1, 7 * int(job) + 8):
        rows, failed, cleared, removed, emptied = (chosen.sample(IDS, chosen.randint(0, 2)) for _ in range(5))
        rows = [*rows, *rows[:1]]
        failed_keys = list(map(repr, failed))
        cleared = [one for one in cleared if repr(one) not in failed_keys]
        blobs = [
            encode_rows(
                keyed(rows).append_column("label", pa.nulls(len(rows), pa.string())), [[None]] * len(rows), NUMBERS
            ),
            *(encode_table(keyed(ids)) for ids in (failed, cleared, removed, emptied)),
        ]
        ledger.write(
            "insert into commits (job, sink, at, rows, errors, cleared, removed, emptied) "
            "values (?, 'sink', 0, ?, ?, ?, ?, ?)",
            [job, *blobs],
        )
        for table, ids, gone in ((results, rows, [*removed, *emptied]), (errors, failed, removed)):
            there, gone_keys = list(map(repr, ids)), set(map(repr, gone))
            for key in gone_keys.union(map(repr, cleared) if table is errors else ()):
                table.pop(key, None)
            table |= {
                key: (commit, [place for place, one in enumerate(there) if one == key])
                for key in set(there).difference(gone_keys)
            }
    for only_errors in (False, True):
        expected = [{}, errors] if only_errors else [results, errors]
        with newest_rows(ledger, job, "sink", NUMBERS, scratch, only_errors) as newest:
            found = [(commit, [places.to_pylist() for places in newest.places(commit)]) for commit in newest.commits()]
            assert newest.counts() == RowCounts(*(sum(len(places) for _, places in each.values()) for each in expected))
        assert found == [
            (
                commit,
                [
                    sorted(place for there, places in table.values() if there == commit for place in places)
                    for table in expected
                ],
            )
            for commit in sorted({commit for table in expected for commit, _ in table.values()})
        ]
