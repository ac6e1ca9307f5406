"""Parquet folders: parts that readers see only when complete, and compaction."""

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.contracts import Commit
from connectors.errors import DataError, JobError
from connectors.tables import parquet_parts as parts_module
from connectors.tables.parquet_parts import PartWriter, write_part
from tests.unit.sinks.conftest import Tables


def test_parts_are_named_after_their_commit_and_only_changed_ones_are_rewritten(
    parquet: Tables, tmp_path: Path
) -> None:
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


def test_an_existing_part_is_never_overwritten_by_a_new_one(parquet: Tables) -> None:
    sink = parquet.ready()
    for n in (1, 2):
        sink.commit(Commit(parquet.results([(n, "a")]), {}, parquet.errors([(n, "b")]), parquet.keys([])), "same")
    assert parquet.answers() == {1: "a", 2: "a"}
    assert parquet.failures() == [(1, "b"), (2, "b")]


def test_only_the_tables_remain_and_every_parquet_file_is_complete(parquet: Tables, tmp_path: Path) -> None:
    sink = parquet.ready()
    parquet.commit(sink, [(1, "a")], [(2, "b")])
    parquet.usage(sink, 1, 1)
    sink.finish()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["errors", "files", "results", "usage"]
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or pq.ParquetFile(path).metadata.num_rows >= 0


def test_polars_and_arrow_read_vectors_of_fixed_size(parquet: Tables, tmp_path: Path) -> None:
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


def test_a_foreign_or_damaged_part_is_refused(parquet: Tables, tmp_path: Path) -> None:
    parquet.commit(parquet.ready(), [(1, "a")])
    part = tmp_path / "out/results/other.parquet"
    pq.write_table(pa.table({"x": [1]}), part)
    with pytest.raises(DataError, match="x \\(int64\\)"):
        parquet.open().prepare(False)
    part.write_bytes(b"PAR1 is not all")
    with pytest.raises(DataError, match=r"other\.parquet: cannot be read"):
        parquet.open().prepare(False)


def test_an_unknown_url_scheme_is_refused(parquet: Tables) -> None:
    parquet.sink_keys = {"parquet": "ftp://host/out"}
    with pytest.raises(JobError, match=r"ftp:// is not known; write the path of a file or folder, or one of s3://"):
        parquet.open()


def test_a_full_disk_leaves_the_tables_unchanged(
    parquet: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = parquet.ready()
    parquet.commit(sink, [(1, "a")])
    real = pa.OSFile
    with monkeypatch.context() as patch:
        # Every write goes to a full device.
        patch.setattr(parts_module.pa, "OSFile", lambda path, mode: real("/dev/full", mode))
        with pytest.raises(OSError, match="No space left") as full:
            parquet.commit(sink, [(1, "b"), (2, "b")], [(3, "bad")])
    assert full.value.errno == errno.ENOSPC
    assert not (tmp_path / "out/.staging").exists()
    assert parquet.answers() == {1: "a"}
    parquet.commit(sink, [(1, "b"), (2, "b")])
    assert parquet.answers() == {1: "b", 2: "b"}


# Compaction.


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def test_small_parts_are_merged_and_large_ones_stay(
    parquet: Tables, tmp_path: Path, low_compaction_limits: None
) -> None:
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
    assert [name[:7] for name in found[2:]] == ["merged-"] * 2
    assert (results / "large.parquet").stat().st_ino == large
    assert (parquet.answers(), parquet.failures(), parquet.used()) == before[:3]
    assert len(names(tmp_path / "out/usage")) == len(names(tmp_path / "out/errors")) == 4
    sink = parquet.ready()
    assert {(mark.writer, mark.last) for mark in sink.usage_marks()} >= {(1, 4), (2, 6)}
    parquet.usage(sink, 6, 6, writer=2)
    assert len(parquet.used()) == 6
    sink.finish()
    assert names(results) == found
    parquet.commit(sink, [(3, "changed"), (150, "changed")])
    assert parquet.answers() == {**before[0], 3: "changed", 150: "changed"}


def test_a_part_that_is_rewritten_again_is_divided_until_the_compaction(
    parquet: Tables, tmp_path: Path, low_division_limits: None
) -> None:
    sink = parquet.ready()
    parquet.commit(sink, [(n, "0") for n in range(12)], [(n, "bad") for n in range(20, 24)])
    (part,) = {part for _, part in parquet.parts(sink)}

    def commit(keys: Iterable[int], answer: str, new: Sequence[int] = ()) -> None:
        # A run looks up the parts once, at its start.
        rows = parquet.results([(n, answer) for n in (*new, *keys)])
        replaced = {part: range(len(new), rows.num_rows)}
        sink.commit(Commit(rows, replaced, parquet.errors([]), parquet.keys([])), f"later-{answer}")

    commit([0, 1], "1")
    assert {part for _, part in parquet.parts(sink)} == {part}
    results, stem = tmp_path / "out/results", part.removesuffix(".parquet")
    commit([5, 7], "2", new=[30])
    pieces = [f"{stem}-piece{n:03d}.parquet" for n in range(4)]
    assert names(results) == sorted(["0-empty.parquet", *pieces, "later-2.parquet"])
    inodes = {name: (results / name).stat().st_ino for name in pieces}
    commit([8, 9], "3")
    changed = [n for n, name in enumerate(pieces) if (results / name).stat().st_ino != inodes[name]]
    # The rows that the first commit has replaced are the last ones of the part.
    assert changed == [2]
    commit(range(12), "4")
    assert parquet.answers() == {**dict.fromkeys(range(12), "4"), 30: "2"}
    sink.finish()
    assert [name[:7] for name in names(results)] == ["0-empty", "merged-"]
    assert parquet.answers() == {**dict.fromkeys(range(12), "4"), 30: "2"}
    assert len(parquet.failures()) == 4


def test_pieces_that_a_killed_run_has_left_are_merged_by_the_next(
    parquet: Tables, tmp_path: Path, low_division_limits: None
) -> None:
    sink = parquet.ready()
    for answer in "abc":
        parquet.commit(sink, [(n, answer) for n in range(6)])
    assert any("-piece" in name for name in names(tmp_path / "out/results"))
    sink = parquet.ready()
    parquet.commit(sink, [(2, "d")])
    sink.finish()
    assert [name[:7] for name in names(tmp_path / "out/results")] == ["0-empty", "merged-"]
    assert parquet.answers() == {**dict.fromkeys(range(6), "c"), 2: "d"}


def test_emptied_parts_are_removed_by_the_next_compaction(
    parquet: Tables, tmp_path: Path, low_compaction_limits: None
) -> None:
    sink = parquet.ready()
    for n in range(5):
        parquet.commit(sink, [(n, "a")], [(n + 10, "bad")])
    sink.remove(parquet.keys(list(range(5))), errors_too=True)
    parquet.commit(sink, [], [], cleared=[n + 10 for n in range(5)])
    assert len(names(tmp_path / "out/results")) == 6
    sink.finish()
    assert names(tmp_path / "out/results") == names(tmp_path / "out/errors") == ["0-empty.parquet"]
    assert parquet.read("results").schema.names == parquet.shape.results.names


def test_compaction_copies_files_if_hard_links_fail(
    parquet: Tables, monkeypatch: pytest.MonkeyPatch, low_compaction_limits: None
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    sink = parquet.ready()
    for n in range(6):
        parquet.commit(sink, [(n, "a")])
    sink.finish()
    assert parquet.answers() == dict.fromkeys(range(6), "a")


def test_a_reader_never_sees_a_key_twice_during_commits(parquet: Tables, tmp_path: Path) -> None:
    sink = parquet.ready()
    keys = list(range(200))
    parquet.commit(sink, [(n, "0") for n in keys])
    stop, seen, failed = threading.Event(), [0], []

    def reading() -> None:
        query = f"select count(*), count(distinct id), min(id) from read_parquet('{tmp_path}/out/results/*.parquet')"
        with duckdb.connect() as db:
            while not stop.is_set():
                try:
                    ((rows, distinct, _),) = db.execute(query).fetchall()
                    assert rows == distinct >= len(keys)
                    seen[0] += 1
                except (AssertionError, duckdb.Error) as exc:
                    failed.append(exc)
                    return

    reader = threading.Thread(target=reading)
    reader.start()
    for turn in range(40):
        changed = [(n, str(turn)) for n in keys if n % 7 == turn % 7]
        parquet.commit(sink, [*changed, (1000 + turn, "new")], [(5000 + turn, "bad")])
    while seen[0] < 5 and not failed:
        stop.wait(0.01)
    stop.set()
    reader.join()
    assert failed == []
    assert len(parquet.answers()) == 240
