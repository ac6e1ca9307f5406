"""Delta Lake: one log entry per commit, merges, Delta's own types, object stores."""

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from connectors.contracts import Commit
from connectors.errors import DataError, JobError
from connectors.sinks import delta_table
from tests.conftest import Cli, ScriptedProvider, Workspace
from tests.unit.sinks.conftest import Tables


def operations(tables: Tables, table: str = "results") -> list[str]:
    """Return the operations in the log, newest first."""
    return [entry["operation"] for entry in DeltaTable(tables.workspace / "out" / table).history()]


def test_new_rows_are_appended_and_changed_rows_merged_in_one_log_entry(in_delta: Tables) -> None:
    sink = in_delta.ready()
    in_delta.commit(sink, [(1, "a"), (2, "a")])
    in_delta.commit(sink, [(3, "b")])
    in_delta.commit(sink, [(1, "A"), (4, "c")])
    assert operations(in_delta) == ["MERGE", "WRITE", "WRITE", "CREATE TABLE"]
    assert in_delta.answers() == {1: "A", 2: "a", 3: "b", 4: "c"}
    old = DeltaTable(in_delta.workspace / "out/results", version=2).to_pyarrow_table()
    assert dict(zip(old["id"].to_pylist(), old["answer"].to_pylist(), strict=True)) == {1: "a", 2: "a", 3: "b"}


def test_vectors_are_stored_as_lists_and_other_types_unchanged(in_delta: Tables) -> None:
    in_delta.outputs = [
        pa.field("vector", pa.list_(pa.float32(), 2)),
        pa.field("deep", pa.list_(pa.struct([("a b", pa.list_(pa.int32())), ("b", pa.list_(pa.float32(), 1))]))),
        pa.field("price", pa.decimal128(38, 9)),
        pa.field("day", pa.date32()),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("local", pa.timestamp("us")),
        pa.field("small", pa.uint8()),
        pa.field("huge", pa.uint64()),
        pa.field("raw", pa.binary()),
        pa.field("map", pa.map_(pa.string(), pa.int32())),
    ]
    row: dict[str, Any] = {
        "id": 1,
        "vector": [0.5, -1.0],
        "deep": [{"a b": [1, None], "b": [0.25]}],
        "price": Decimal("12345678901234567890.123456789"),
        "day": date(1999, 12, 31),
        "at": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        "local": datetime(2026, 1, 2, 3, 4, 5, 6),
        "small": 255,
        "huge": 2**64 - 1,
        "raw": b"\0\xff",
        "map": [("k", 1)],
        "_run_id": "r",
        "_row_fingerprint": "f",
    }
    sink = in_delta.ready()
    results = pa.Table.from_pylist([row], schema=in_delta.shape.results)
    sink.commit(Commit(results, {}, in_delta.errors([]), in_delta.keys([])), "part")
    read = in_delta.read("results")
    assert read.to_pylist() == [{**row, "huge": Decimal(2**64 - 1)}]
    assert pa.types.is_list(read.schema.field("vector").type)
    in_delta.ready()  # the stored types match the job
    sink.commit(Commit(results, {"results": [0]}, in_delta.errors([]), in_delta.keys([])), "again")
    assert in_delta.read("results").to_pylist() == read.to_pylist()


@pytest.mark.parametrize("kind", [pa.time64("us"), pa.duration("us"), pa.timestamp("ns"), pa.list_(pa.time64("us"))])
def test_a_column_that_delta_cannot_store_is_refused(in_delta: Tables, kind: pa.DataType) -> None:
    in_delta.outputs = [pa.field("when", kind)]
    with pytest.raises(JobError, match=r"^sink\.delta: the column when is .*; cast it by a `sql:` source"):
        in_delta.open()


def test_without_the_package_the_extra_is_named(in_delta: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(JobError, match=r"^sink\.delta: needs the package deltalake; pip install 'rowmill\[delta\]'$"):
        in_delta.open()


def test_a_job_without_the_package_is_refused_before_anything_is_sent(
    workspace: Workspace, cli: Cli, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(1)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    job = workspace.job(sink="{delta: out}")
    assert cli("validate", job) == 2
    assert cli.err.strip().endswith("sink.delta: needs the package deltalake; pip install 'rowmill[delta]'")
    assert cli.run(job)["exit_code"] == 2
    assert provider.seen == []


def test_a_job_writes_its_tables(workspace: Workspace, cli: Cli, provider: ScriptedProvider) -> None:
    workspace.csv(3)
    job = workspace.job(sink="{delta: out, deleted: remove}")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 3, 3)
    workspace.write("rows.csv", "id,text\n1,text 1\n3,changed\n")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 2, 1)
    results = DeltaTable(report["tables"]["results"]).to_pyarrow_table()
    assert dict(zip(results["id"].to_pylist(), results["answer"].to_pylist(), strict=True)) == {
        1: "TEXT 1",
        3: "CHANGED",
    }
    assert DeltaTable(report["tables"]["usage"]).to_pyarrow_table().num_rows == 4


def test_nothing_of_an_extra_is_imported_before_it_is_used() -> None:
    code = "import sys, pipelines.cli, connectors.registry; print({'deltalake', 'obstore'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_usage_marks_survive_the_cleaning_of_the_log(in_delta: Tables) -> None:
    sink = in_delta.ready()
    in_delta.usage(sink, 1, 2)
    in_delta.usage(sink, 1, 5, writer=2)
    in_delta.usage(sink, 3, 4)
    usage = DeltaTable(in_delta.workspace / "out/usage")
    usage.create_checkpoint()
    for entry in (in_delta.workspace / "out/usage/_delta_log").glob("*.json"):
        if int(entry.stem) < usage.version():
            entry.unlink()
    marks = {(mark.ledger, mark.writer): (mark.first, mark.last) for mark in in_delta.open().usage_marks()}
    assert marks == {("0123abcd", 1): (1, 4), ("0123abcd", 2): (1, 5)}
    in_delta.usage(in_delta.ready(), 3, 4)
    assert len(in_delta.used()) == 9


def test_many_small_files_are_compacted_and_older_versions_remain_readable(
    in_delta: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_table, "MAX_SMALL_FILES", 3)
    sink = in_delta.ready()
    for n in range(5):
        in_delta.commit(sink, [(n, "a")])
        in_delta.usage(sink, n + 1, n + 1)
    sink.finish()
    results = DeltaTable(in_delta.workspace / "out/results")
    assert len(results.file_uris()) == 1
    assert "OPTIMIZE" in operations(in_delta)
    assert in_delta.answers() == dict.fromkeys(range(5), "a")
    assert [(mark.first, mark.last) for mark in in_delta.ready().usage_marks()] == [(1, 5)]
    assert DeltaTable(in_delta.workspace / "out/results", version=3).to_pyarrow_table().num_rows == 3


def test_a_rebuild_is_one_entry_in_the_log_of_the_old_table(in_delta: Tables, tmp_path: Path) -> None:
    in_delta.commit(in_delta.ready(), [(1, "old")])
    sink = in_delta.ready(fresh=True)
    for n in range(3):
        sink.commit(Commit(in_delta.results([(n, "new")]), {}, in_delta.errors([]), in_delta.keys([])), f"n{n}")
    sink.finish()
    assert operations(in_delta) == ["WRITE", "WRITE", "CREATE TABLE"]
    assert in_delta.answers() == dict.fromkeys(range(3), "new")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["errors", "files", "results", "usage"]


def test_a_file_without_a_log_entry_is_not_part_of_the_table(in_delta: Tables) -> None:
    sink = in_delta.ready()
    in_delta.commit(sink, [(1, "a")])
    existing = DeltaTable(in_delta.workspace / "out/results").file_uris()[0]
    Path(in_delta.workspace / "out/results/part-00000-lost.parquet").write_bytes(Path(existing).read_bytes())
    assert in_delta.parts(in_delta.ready()) == [(1, "results")]


def test_tables_with_deletion_vectors_are_refused(in_delta: Tables) -> None:
    in_delta.ready()
    log = in_delta.workspace / "out/results/_delta_log/00000000000000000001.json"
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"],
        "writerFeatures": ["deletionVectors"],
    }
    log.write_text(json.dumps({"protocol": protocol}) + "\n")
    with pytest.raises(DataError, match="has deletionVectors, which Rowmill cannot read"):
        in_delta.open().prepare(False)


def test_rows_appended_by_another_program_are_seen(in_delta: Tables) -> None:
    sink = in_delta.ready()
    in_delta.commit(sink, [(1, "a")])
    appended = in_delta.results([(2, "theirs")]).cast(in_delta.read("results").schema)
    write_deltalake(in_delta.workspace / "out/results", appended, mode="append")
    in_delta.commit(sink, [(2, "ours"), (1, "b")])
    assert in_delta.answers() == {1: "b", 2: "ours"}


def test_tables_may_be_on_an_object_store(delta_at_s3: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_table, "MAX_SMALL_FILES", 1)
    sink = delta_at_s3.ready()
    assert sink.exists()
    assert delta_at_s3.parts(sink) == []
    (sink.files_folder / "a.png").write_bytes(b"picture")
    delta_at_s3.commit(sink, [(1, "a"), (2, "a")], [(3, "bad"), (None, "line 1")])
    delta_at_s3.commit(sink, [(2, "b"), (4, "b")], [], cleared=[3])
    delta_at_s3.usage(sink, 1, 3)
    delta_at_s3.usage(delta_at_s3.ready(), 1, 3)
    assert sink.remove(delta_at_s3.keys([1, 9]), errors_too=True) == 1
    assert delta_at_s3.answers() == {2: "b", 4: "b"}
    assert delta_at_s3.failures() == [(None, "line 1")]
    assert delta_at_s3.used() == [1, 2, 3]
    assert delta_at_s3.objects("out/files") == ["a.png"]
    sink = delta_at_s3.ready(fresh=True)
    sink.commit(Commit(delta_at_s3.results([(7, "new")]), {}, delta_at_s3.errors([]), delta_at_s3.keys([])), "n")
    assert delta_at_s3.answers() == {2: "b", 4: "b"}
    sink.finish()
    assert delta_at_s3.answers() == {7: "new"}
    assert delta_at_s3.objects("out/.fresh") == []
