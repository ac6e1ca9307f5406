"""What Parquet folders add: parts that readers see only when whole, recovery from a kill anywhere, compaction."""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors import parts as parts_module
from connectors.contracts import Commit
from connectors.errors import DataError
from connectors.parts import PartWriter, write_part
from connectors.sinks import parquet_folder

KILLED = 77


def test_parts_are_named_by_their_commit_and_only_changed_ones_are_written_again(parquet: Any, tmp_path: Path) -> None:
    sink = parquet.ready()
    parquet.commit(sink, [(1, "a"), (2, "a")])
    parquet.commit(sink, [(3, "b")])
    results = tmp_path / "out/results"
    first, second = results / "0123abcd-000001-000001.parquet", results / "0123abcd-000001-000002.parquet"
    assert dict(parquet.parts(sink)) == {1: first.name, 2: first.name, 3: second.name}
    untouched = second.stat().st_ino
    parquet.commit(sink, [(1, "A"), (4, "c")])
    assert second.stat().st_ino == untouched
    assert sorted(pq.read_table(first).column("id").to_pylist()) == [1, 2]
    assert dict(parquet.parts(sink))[4] == "0123abcd-000001-000003.parquet"


def test_a_part_name_that_is_taken_is_not_used_again(parquet: Any) -> None:
    sink = parquet.ready()
    for n in (1, 2):
        sink.commit(Commit(parquet.results([(n, "a")]), {}, parquet.errors([(n, "b")]), parquet.keys([])), "same")
    assert parquet.answers() == {1: "a", 2: "a"}
    assert parquet.failures() == [(1, "b"), (2, "b")]


def test_nothing_but_the_tables_is_left_and_nothing_unfinished_is_called_parquet(parquet: Any, tmp_path: Path) -> None:
    sink = parquet.ready()
    parquet.commit(sink, [(1, "a")], [(2, "b")])
    parquet.usage(sink, 1, 1)
    sink.finish()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["errors", "files", "results", "usage"]
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or pq.ParquetFile(path).metadata.num_rows >= 0


def test_polars_and_arrow_read_vectors_of_fixed_size(parquet: Any, tmp_path: Path) -> None:
    parquet.commit(parquet.ready(), [(1, "abc")])
    frame = pl.scan_parquet(tmp_path / "out/results/*.parquet").collect()
    assert frame.schema["vector"] == pl.Array(pl.Float32, 3)
    table = pq.read_table(tmp_path / "out/results")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 3)
    assert table.column("vector").to_pylist() == [[3.0, 0.5, -1.0]]


def test_vectors_are_written_without_a_dictionary_and_in_groups_of_bounded_size(tmp_path: Path) -> None:
    rows, size = 12_000, 1536
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * size, dtype="f4")), size)
    table = pa.table({"vector": vectors, "text": pa.array(["same"] * rows), "number": pa.array([1.5] * rows)})
    write_part(tmp_path / "part", table)
    meta = pq.ParquetFile(tmp_path / "part").metadata
    group = meta.row_group(0)
    assert group.column(0).compression == "ZSTD"
    assert not group.column(0).has_dictionary_page
    assert group.column(1).has_dictionary_page
    assert "BYTE_STREAM_SPLIT" in group.column(2).encodings
    sizes = [meta.row_group(n).total_byte_size for n in range(meta.num_row_groups)]
    assert len(sizes) > 1
    assert max(sizes) <= parts_module.ROW_GROUP_BYTES * 1.05
    assert pq.read_table(tmp_path / "part").equals(table)


def test_many_small_tables_make_few_row_groups(tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(range(1000))})
    with PartWriter(tmp_path / "part", table.schema) as out:
        for _ in range(100):
            out.write(table)
    meta = pq.ParquetFile(tmp_path / "part").metadata
    assert meta.num_rows == 100_000
    assert meta.num_row_groups == 2


def test_a_foreign_or_damaged_part_is_told(parquet: Any, tmp_path: Path) -> None:
    parquet.commit(parquet.ready(), [(1, "a")])
    part = tmp_path / "out/results/other.parquet"
    pq.write_table(pa.table({"x": [1]}), part)
    with pytest.raises(DataError, match="x \\(int64\\)"):
        parquet.open().prepare(False)
    part.write_bytes(b"PAR1 is not all")
    with pytest.raises(DataError, match=r"other\.parquet: cannot be read"):
        parquet.open().prepare(False)


def test_an_object_store_is_refused(parquet: Any) -> None:
    parquet.written = {"parquet": "s3://bucket/out"}
    with pytest.raises(ValueError, match="object stores are not available"):
        _ = parquet.model


def test_a_full_disk_is_told_and_leaves_the_tables_as_they_were(
    parquet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = parquet.ready()
    parquet.commit(sink, [(1, "a")])
    whole = pa.OSFile
    with monkeypatch.context() as patch:
        # Whatever is written meets a device without room.
        patch.setattr(parts_module.pa, "OSFile", lambda path, mode: whole("/dev/full", mode))
        with pytest.raises(OSError, match="No space left") as full:
            parquet.commit(sink, [(1, "b"), (2, "b")], [(3, "bad")])
    assert full.value.errno == errno.ENOSPC
    assert not (tmp_path / "out/.staging").exists()
    assert parquet.answers() == {1: "a"}
    parquet.commit(sink, [(1, "b"), (2, "b")])
    assert parquet.answers() == {1: "b", 2: "b"}


# Compaction.


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_folder, "SMALL_PARTS", 3)
    monkeypatch.setattr(parquet_folder, "SMALL_BYTES", 10_000)
    monkeypatch.setattr(parquet_folder, "PART_ROWS", 4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def test_small_parts_are_merged_and_large_ones_left_alone(parquet: Any, tmp_path: Path, small: None) -> None:
    sink = parquet.ready()
    sink.commit(
        Commit(
            parquet.results([(n, os.urandom(20).hex()) for n in range(100, 400)]),
            {}, parquet.errors([]), parquet.keys([]),
        ),
        "large",
    )  # fmt: skip
    for n in range(6):
        parquet.commit(sink, [(n, "a"), (50 + n, "a")], [(1000 + n, "bad")])
        parquet.usage(sink, n + 1, n + 1, writer=n // 4 + 1)
    before = (parquet.answers(), parquet.failures(), parquet.used(), sink.usage_marks())
    results = tmp_path / "out/results"
    large = (results / "large.parquet").stat().st_ino
    sink.finish()
    found = names(results)
    assert found[:2] == ["0-empty.parquet", "large.parquet"]
    assert [name[:7] for name in found[2:]] == ["merged-"] * 3
    assert (results / "large.parquet").stat().st_ino == large
    assert (parquet.answers(), parquet.failures(), parquet.used()) == before[:3]
    assert len(names(tmp_path / "out/usage")) == len(names(tmp_path / "out/errors")) == 3
    sink = parquet.ready()
    assert {(mark.writer, mark.last) for mark in sink.usage_marks()} >= {(1, 4), (2, 6)}
    parquet.usage(sink, 6, 6, writer=2)
    assert len(parquet.used()) == 6
    sink.finish()
    assert names(results) == found
    parquet.commit(sink, [(3, "changed"), (150, "changed")])
    assert parquet.answers() == {**before[0], 3: "changed", 150: "changed"}


def test_emptied_parts_are_dropped_by_the_next_compaction(parquet: Any, tmp_path: Path, small: None) -> None:
    sink = parquet.ready()
    for n in range(5):
        parquet.commit(sink, [(n, "a")], [(n + 10, "bad")])
    sink.remove(parquet.keys(list(range(5))), errors_too=True)
    parquet.commit(sink, [], [], cleared=[n + 10 for n in range(5)])
    assert len(names(tmp_path / "out/results")) == 6
    sink.finish()
    assert names(tmp_path / "out/results") == names(tmp_path / "out/errors") == ["0-empty.parquet"]
    assert parquet.read("results").schema.names == parquet.shape.results.names


def test_compaction_copies_where_there_are_no_links(parquet: Any, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    sink = parquet.ready()
    for n in range(6):
        parquet.commit(sink, [(n, "a")])
    sink.finish()
    assert parquet.answers() == dict.fromkeys(range(6), "a")


# Kills: a forked process ends at its n-th file operation, and the next one recovers.

OPERATIONS = ("replace", "rename", "unlink", "rmdir", "mkdir", "link")


def killed_at(operation: int, act: Callable[[], None]) -> bool:
    """Do it in a process that dies right before so many-th file operation; whether it died."""
    child = os.fork()
    if child == 0:
        left = [operation]

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def one(*arguments: Any, **others: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(KILLED)
                return real(*arguments, **others)

            return one

        try:
            for name in OPERATIONS:
                setattr(os, name, dying(getattr(os, name)))
            act()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def every_kill(tables: Any, begin: Callable[[Any], Any], act: Callable[[Any], None]) -> Iterator[None]:
    """Begin anew, be killed one operation later than the time before, recover; until nothing is left to kill."""
    home = tables.workspace
    for operation in range(500):
        tables.workspace = home / f"kill-{operation}"
        tables.count = 0
        sink = begin(tables)
        died = killed_at(operation, lambda sink=sink: act(sink))  # type: ignore[misc]
        whole_parquet(tables.workspace)
        yield
        if not died:
            assert operation > 3
            return
    raise AssertionError("never came to its end")


def whole_parquet(folder: Path) -> None:
    """Whatever is called `.parquet` is a whole file."""
    for path in folder.rglob("*.parquet"):
        assert pq.ParquetFile(path).metadata.num_columns > 0


pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def begun(tables: Any) -> Any:
    sink = tables.ready()
    tables.commit(sink, [(1, "old"), (2, "old")], [(10, "old"), (11, "old")])
    tables.commit(sink, [(3, "old")], [(12, "old")])
    tables.usage(sink, 1, 2)
    return sink


OLD = ({1: "old", 2: "old", 3: "old"}, [(10, "old"), (11, "old"), (12, "old")])
NEW = ({1: "new", 2: "old", 3: "new", 4: "new"}, [(10, "new"), (12, "old"), (13, "new")])


def test_a_commit_killed_anywhere_is_there_whole_or_not_at_all(parquet: Any) -> None:
    def act(sink: Any) -> None:
        parquet.commit(sink, [(1, "new"), (3, "new"), (4, "new")], [(10, "new"), (13, "new")], cleared=[11])

    seen = []
    for _ in every_kill(parquet, begun, act):
        parquet.answers()  # no key twice before the recovery either
        assert parquet.open().present()
        sink = parquet.ready()
        seen.append((parquet.answers(), parquet.failures()))
        assert seen[-1] in (OLD, NEW)
        parquet.commit(sink, [(5, "later")])
        assert parquet.answers() == {**seen[-1][0], 5: "later"}
    assert seen[0] == OLD
    assert seen[-1] == NEW
    assert [state == NEW for state in seen] == sorted(state == NEW for state in seen)


def test_a_removal_killed_anywhere_is_done_whole_or_not_at_all(parquet: Any) -> None:
    seen = []
    for _ in every_kill(parquet, begun, lambda sink: sink.remove(parquet.keys([1, 3, 10]), errors_too=True)):
        parquet.ready()
        seen.append((parquet.answers(), parquet.failures()))
        assert seen[-1] in (OLD, ({2: "old"}, [(11, "old"), (12, "old")]))
    assert seen[-1] != OLD


def test_a_swap_killed_anywhere_leaves_the_old_table_or_the_new(parquet: Any) -> None:
    def begin(tables: Any) -> Any:
        begun(tables)
        sink = tables.ready(fresh=True)
        sink.commit(Commit(tables.results([(9, "new")]), {}, tables.errors([]), tables.keys([])), "fresh")
        return sink

    seen = []
    for _ in every_kill(parquet, begin, lambda sink: sink.finish()):
        assert parquet.open().present()
        parquet.ready()
        seen.append((parquet.answers(), parquet.failures()))
        assert seen[-1] in (OLD, ({9: "new"}, []))
        assert parquet.used() == [1, 2]
    assert seen[-1] != OLD


def test_a_first_build_killed_anywhere_does_not_count_until_it_is_whole(parquet: Any) -> None:
    def build(_: Any) -> None:
        sink = parquet.ready(fresh=True)
        sink.commit(Commit(parquet.results([(9, "new")]), {}, parquet.errors([]), parquet.keys([])), "fresh")
        sink.finish()

    def begin(tables: Any) -> Any:
        tables.workspace.mkdir()
        return None

    for _ in every_kill(parquet, begin, build):
        done = parquet.open().present()
        if not done:
            build(None)
        else:
            parquet.ready()
        assert parquet.answers() == {9: "new"}


def test_compaction_killed_anywhere_keeps_every_row_and_mark(parquet: Any, small: None) -> None:
    def begin(tables: Any) -> Any:
        sink = begun(tables)
        for n in range(20, 24):
            tables.commit(sink, [(n, "old")])
            tables.usage(sink, n, n, writer=n)
        return sink

    for _ in every_kill(parquet, begin, lambda sink: sink.finish()):
        assert parquet.open().present()
        sink = parquet.ready()
        assert parquet.answers() == {**OLD[0], **dict.fromkeys(range(20, 24), "old")}
        assert parquet.failures() == OLD[1]
        assert parquet.used() == [1, 2, 20, 21, 22, 23]
        assert {mark.writer: mark.last for mark in sink.usage_marks()} == {1: 2, 20: 20, 21: 21, 22: 22, 23: 23}


def test_usage_killed_anywhere_is_appended_once(parquet: Any) -> None:
    for _ in every_kill(parquet, begun, lambda sink: parquet.usage(sink, 3, 5)):
        sink = parquet.ready()
        parquet.usage(sink, 3, 5)
        assert parquet.used() == [1, 2, 3, 4, 5]


def test_what_was_decided_is_carried_out_by_the_next_commit_as_well(
    parquet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = begun(parquet)
    replace, count = os.replace, [0]

    def failing(*arguments: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.EIO, "the disk is gone for a moment")
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="for a moment"):
            parquet.commit(sink, [(1, "new"), (3, "new"), (4, "new")], [(10, "new"), (13, "new")], cleared=[11])
    assert json.loads((parquet.workspace / "out/.staging/commit/manifest.json").read_text())["swaps"] == []
    parquet.usage(sink, 3, 3)
    assert (parquet.answers(), parquet.failures()) == NEW


def test_a_reader_sees_no_key_twice_while_rows_are_committed(parquet: Any, tmp_path: Path) -> None:
    sink = parquet.ready()
    everyone = list(range(200))
    parquet.commit(sink, [(n, "0") for n in everyone])
    stop, seen, failed = threading.Event(), [0], []

    def reading() -> None:
        query = f"select count(*), count(distinct id), min(id) from read_parquet('{tmp_path}/out/results/*.parquet')"
        with duckdb.connect() as db:
            while not stop.is_set():
                try:
                    ((rows, keys, _),) = db.execute(query).fetchall()
                    assert rows == keys >= len(everyone)
                    seen[0] += 1
                except (AssertionError, duckdb.Error) as exc:
                    failed.append(exc)
                    return

    reader = threading.Thread(target=reading)
    reader.start()
    for turn in range(40):
        changed = [(n, str(turn)) for n in everyone if n % 7 == turn % 7]
        parquet.commit(sink, [*changed, (1000 + turn, "new")], [(5000 + turn, "bad")])
    while seen[0] < 5 and not failed:
        stop.wait(0.01)
    stop.set()
    reader.join()
    assert failed == []
    assert len(parquet.answers()) == 240
