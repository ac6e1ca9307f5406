"""Runs with children that are killed: nothing is lost, and no reader sees a part of a source row."""

import json
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import duckdb
import pytest

from tests.behaviour.local_steps.conftest import DocumentJobs, Facts
from tests.conftest import ReadTable, ScriptedProvider
from tests.support.forked import ended, run
from tests.support.local_steps import ASK, FOLD, PIECES

CONCURRENCY = 20


class Reader:
    """Reads the results again and again, and remembers the source rows that it saw in part."""

    def __init__(self, documents: DocumentJobs, sizes: dict[int, int]) -> None:
        self.partial: set[tuple[int, int]] = set()
        self.reads = 0
        self._pattern = f"{documents.workspace.folder}/out/results/*.parquet"
        self._sizes = sizes
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._is_ended.wait(0.01):
            try:
                seen = duckdb.connect().sql(f"select id, count(*) from '{self._pattern}' group by id").fetchall()
            except duckdb.IOException:
                # No part is there yet, or compaction has replaced one while it was opened.
                continue
            self.reads += bool(seen)
            self.partial.update(row for row in seen if row[1] != self._sizes[row[0]])


def killed_until_done(provider: ScriptedProvider, job: Any, requests: int, kills: int) -> int:
    """Kill the run so many times, at random moments; how many kills hit a run under way."""
    dice, hits = random.Random(1), 0
    for number in range(kills):
        process = run(job)
        goal = requests * (number + dice.random()) / (kills + 1)
        while len(provider.answered) < goal and process.poll() is None:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hits += 1
        ended(process)
    code, out, _ = run(job).ended(timeout=900)
    assert (code, json.loads(out)["rows_left"]) == (0, 0)
    return hits


@pytest.mark.parametrize(
    ("rows", "children"), [(80, 8), pytest.param(2_000, 20, marks=pytest.mark.soak)], ids=["80x8", "2000x20"]
)
def test_after_kills_every_source_row_has_all_its_children_and_was_never_seen_in_part(
    documents: DocumentJobs, provider: ScriptedProvider, facts: Facts, rows: int, children: int
) -> None:
    sizes = {number: 1 + (number * 7) % (2 * children - 1) for number in range(1, rows + 1)}
    documents.write({number: [f"{number}-{index}" for index in range(size)] for number, size in sizes.items()})
    provider.latency = 0.01
    job = documents.job(limits=f"{{concurrency: {CONCURRENCY}}}")
    total = sum(sizes.values())
    with Reader(documents, sizes) as reader:
        hits = killed_until_done(provider, job, total, kills=3)
    assert hits == 3
    assert facts() == [(number, index, f"{number}-{index}") for number, size in sizes.items() for index in range(size)]
    assert (reader.partial, reader.reads > 0) == (set(), True)
    asked = Counter(provider.prompts())
    assert len(asked) == total
    assert sum(asked.values()) <= total + hits * CONCURRENCY


def test_after_kills_every_source_row_is_folded_once(
    documents: DocumentJobs, provider: ScriptedProvider, read: ReadTable
) -> None:
    sizes = {number: 1 + (number * 7) % 13 for number in range(1, 61)}
    documents.write({number: [f"w{number}-{index}" for index in range(size)] for number, size in sizes.items()})
    provider.latency = 0.01
    last = '{name: last, endpoint: chat, provider: test, model: m, messages: [{user: "{{ pieces }} of {{ id }}"}]}'
    job = documents.job(PIECES, ASK, FOLD, last, limits=f"{{concurrency: {CONCURRENCY}}}")
    total = sum(sizes.values()) + len(sizes)
    hits = killed_until_done(provider, job, total, kills=3)
    assert [list(row.values())[:4] for row in read(documents.workspace.folder / "out")] == [
        [number, [f"W{number}-{index}" for index in range(size)], size, f"{size} OF {number}"]
        for number, size in sizes.items()
    ]
    assert len(set(provider.prompts())) == total
    assert len(provider.seen) <= total + hits * CONCURRENCY
