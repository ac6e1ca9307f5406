"""Kills at every file operation of a Parquet sink: a forked process ends there, and the next one recovers."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from connectors.contracts import Commit
from tests.unit.sinks.conftest import Tables

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

KILLED = 77
EveryKill = Callable[..., Iterator[None]]
OPERATIONS = ("replace", "rename", "unlink", "rmdir", "mkdir", "link")


def killed_at(operation: int, act: Callable[[], None]) -> bool:
    """Act in a process that dies right before its n-th file operation; return whether it died."""
    child = os.fork()
    if child == 0:
        remaining = [operation]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                remaining[0] -= 1
                if remaining[0] < 0:
                    os._exit(KILLED)
                return real(*args, **kwargs)

            return call

        try:
            for name in OPERATIONS:
                setattr(os, name, counted(getattr(os, name)))
            act()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def killed_and_restarted(
    step: int, tables: Tables, begin: Callable[[Any], Any], act: Callable[[Any], None]
) -> Iterator[None]:
    """Repeat from the start, killed `step` operations later each time, until the action completes."""
    start = tables.workspace / "start"
    tables.workspace /= "killed"
    # The action changes this object in the forked process only.
    sink = begin(tables)
    tables.workspace.rename(start)
    count = tables.count
    for operation in range(0, 500, step):
        shutil.copytree(start, tables.workspace)
        tables.count = count
        died = killed_at(operation, lambda: act(sink))
        assert_complete_parquet(tables.workspace)
        yield
        shutil.rmtree(tables.workspace)
        if not died:
            assert operation > 3
            return
    raise AssertionError("the action never completed")


@pytest.fixture(params=[3, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["every third operation", "every one"])
def every_kill(request: pytest.FixtureRequest) -> EveryKill:
    """(tables, begin, act) -> one iteration for each operation at which the process is killed."""
    return partial(killed_and_restarted, request.param)


def assert_complete_parquet(folder: Path) -> None:
    """Every file called `.parquet` is complete."""
    for path in folder.rglob("*.parquet"):
        assert pq.ParquetFile(path).metadata.num_columns > 0


def with_rows(tables: Tables) -> Any:
    sink = tables.ready()
    tables.commit(sink, [(1, "old"), (2, "old")], [(10, "old"), (11, "old")])
    tables.commit(sink, [(3, "old")], [(12, "old")])
    tables.usage(sink, 1, 2)
    return sink


OLD = ({1: "old", 2: "old", 3: "old"}, [(10, "old"), (11, "old"), (12, "old")])
NEW = ({1: "new", 2: "old", 3: "new", 4: "new"}, [(10, "new"), (12, "old"), (13, "new")])


def test_a_commit_killed_anywhere_is_complete_or_absent(parquet: Tables, every_kill: EveryKill) -> None:
    def act(sink: Any) -> None:
        parquet.commit(sink, [(1, "new"), (3, "new"), (4, "new")], [(10, "new"), (13, "new")], cleared=[11])

    seen = []
    for _ in every_kill(parquet, with_rows, act):
        parquet.answers()  # no key twice before the recovery either
        assert parquet.open().exists()
        sink = parquet.ready()
        seen.append((parquet.answers(), parquet.failures()))
        assert seen[-1] in (OLD, NEW)
        parquet.commit(sink, [(5, "later")])
        assert parquet.answers() == {**seen[-1][0], 5: "later"}
    assert seen[0] == OLD
    assert seen[-1] == NEW
    assert [state == NEW for state in seen] == sorted(state == NEW for state in seen)


def test_a_commit_that_divides_a_part_is_complete_or_absent_if_killed_anywhere(
    parquet: Tables, every_kill: EveryKill, low_division_limits: None
) -> None:
    def begin(tables: Tables) -> Any:
        sink = tables.ready()
        for _ in range(2):
            tables.commit(sink, [(n, "old") for n in range(8)])
        return sink

    old, new = dict.fromkeys(range(8), "old"), {**dict.fromkeys(range(8), "old"), 1: "new", 6: "new", 9: "new"}
    seen = []
    for _ in every_kill(parquet, begin, lambda sink: parquet.commit(sink, [(1, "new"), (6, "new"), (9, "new")])):
        sink = parquet.ready()
        seen.append(parquet.answers())
        assert seen[-1] in (old, new)
        sink.finish()
        assert parquet.answers() == seen[-1]
    assert (seen[0], seen[-1]) == (old, new)


def test_a_deletion_killed_anywhere_is_complete_or_absent(parquet: Tables, every_kill: EveryKill) -> None:
    seen = []
    for _ in every_kill(parquet, with_rows, lambda sink: sink.remove(parquet.keys([1, 3, 10]), errors_too=True)):
        parquet.ready()
        seen.append((parquet.answers(), parquet.failures()))
        assert seen[-1] in (OLD, ({2: "old"}, [(11, "old"), (12, "old")]))
    assert seen[-1] != OLD


def test_a_replacement_killed_anywhere_leaves_the_old_table_or_the_new(parquet: Tables, every_kill: EveryKill) -> None:
    def begin(tables: Tables) -> Any:
        with_rows(tables)
        sink = tables.ready(fresh=True)
        sink.commit(Commit(tables.results([(9, "new")]), {}, tables.errors([]), tables.keys([])), "fresh")
        return sink

    seen = []
    for _ in every_kill(parquet, begin, lambda sink: sink.finish()):
        assert parquet.open().exists()
        parquet.ready()
        seen.append((parquet.answers(), parquet.failures()))
        assert seen[-1] in (OLD, ({9: "new"}, []))
        assert parquet.used() == [1, 2]
    assert seen[-1] != OLD


def test_a_first_build_killed_anywhere_does_not_count_until_it_is_complete(
    parquet: Tables, every_kill: EveryKill
) -> None:
    def build(_: Any) -> None:
        sink = parquet.ready(fresh=True)
        sink.commit(Commit(parquet.results([(9, "new")]), {}, parquet.errors([]), parquet.keys([])), "fresh")
        sink.finish()

    def begin(tables: Tables) -> Any:
        tables.workspace.mkdir()
        return None

    for _ in every_kill(parquet, begin, build):
        done = parquet.open().exists()
        if not done:
            build(None)
        else:
            parquet.ready()
        assert parquet.answers() == {9: "new"}


def test_compaction_killed_anywhere_keeps_every_row_and_mark(
    parquet: Tables, every_kill: EveryKill, low_compaction_limits: None
) -> None:
    def begin(tables: Tables) -> Any:
        sink = with_rows(tables)
        for n in range(20, 23):
            tables.commit(sink, [(n, "old")])
            tables.usage(sink, n, n, writer=n)
        return sink

    for _ in every_kill(parquet, begin, lambda sink: sink.finish()):
        assert parquet.open().exists()
        sink = parquet.ready()
        assert parquet.answers() == {**OLD[0], **dict.fromkeys(range(20, 23), "old")}
        assert parquet.failures() == OLD[1]
        assert parquet.used() == [1, 2, 20, 21, 22]
        assert {mark.writer: mark.last for mark in sink.usage_marks()} == {1: 2, 20: 20, 21: 21, 22: 22}


def test_usage_killed_anywhere_is_appended_once(parquet: Tables, every_kill: EveryKill) -> None:
    for _ in every_kill(parquet, with_rows, lambda sink: parquet.usage(sink, 3, 5)):
        sink = parquet.ready()
        parquet.usage(sink, 3, 5)
        assert parquet.used() == [1, 2, 3, 4, 5]


def test_the_next_commit_completes_a_decided_one(parquet: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = with_rows(parquet)
    replace, count = os.replace, [0]

    def failing(*args: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.EIO, "the disk is gone for a moment")
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="for a moment"):
            parquet.commit(sink, [(1, "new"), (3, "new"), (4, "new")], [(10, "new"), (13, "new")], cleared=[11])
    assert json.loads((parquet.workspace / "out/.staging/commit/manifest.json").read_text())["swaps"] == []
    parquet.usage(sink, 3, 3)
    assert (parquet.answers(), parquet.failures()) == NEW
