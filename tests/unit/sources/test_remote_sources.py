"""Sources on an object store, and whole jobs that read and write object stores."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.contracts import SourceContext
from connectors.errors import DataError, JobError
from connectors.registry import SOURCES
from connectors.sql import identifier_list
from connectors.storage import object_store
from pipelines.preparation.source_reader import SourceReader
from tests.conftest import Cli, ScriptedProvider, Workspace
from tests.support.exhaustive import marks


@pytest.fixture
def put(bucket: str, tmp_path: Path) -> Callable[[str, bytes | pa.Table], str]:
    """Put an object below the test's own folder."""

    def put_object(name: str, content: bytes | pa.Table) -> str:
        if isinstance(content, pa.Table):
            pq.write_table(content, tmp_path / "local", row_group_size=2)
            content = (tmp_path / "local").read_bytes()
        object_store.put(f"{bucket}/{name}", content)
        return f"{bucket}/{name}"

    return put_object


def rows(tmp_path: Path, kind: str, **written: Any) -> list[tuple[Any, ...]]:
    facts = SourceContext(tmp_path, (), tmp_path / "scratch")
    facts.scratch.mkdir(exist_ok=True)
    with SourceReader(SOURCES[kind](**written), facts) as reader:
        assert reader.row_bytes > 0
        names = reader.schema.names
        selected = f"select {identifier_list(names)} from {reader.chosen(names)} order by all"
        return reader.cursor().execute(selected).fetchall()


def test_parquet_objects_are_read_in_place_together_with_local_files(put: Any, bucket: str, tmp_path: Path) -> None:
    put("in/1.parquet", pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"]}))
    put("in/2.parquet", pa.table({"id": [4], "more": [0.5]}))
    pq.write_table(pa.table({"id": [5]}), tmp_path / "5.parquet")
    found = rows(tmp_path, "parquet", parquet=[f"{bucket}/in", "5.parquet"], key="id", where="id <> 2")
    assert found == [(1, "a", None), (3, "c", None), (4, None, 0.5), (5, None, None)]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_only_the_columns_in_a_query_are_downloaded(put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # DuckDB reads a small file at once, whatever the query.
    wide = pa.table({"id": range(16_000), "wide": [random.Random(n).randbytes(1000) for n in range(16_000)]})
    pq.write_table(wide, tmp_path / "wide.parquet", row_group_size=2000, write_statistics=["id"])
    url = put("wide.parquet", (tmp_path / "wide.parquet").read_bytes())
    fetched = [0]
    real = object_store.read_range

    def counting(url: str, start: int, length: int) -> bytes:
        fetched[0] += length
        return real(url, start, length)

    monkeypatch.setattr(object_store, "read_range", counting)
    facts = SourceContext(tmp_path, (), tmp_path)
    with SourceReader(SOURCES["parquet"](parquet=url, key="id"), facts) as reader:
        total = f"select sum(id) from {reader.chosen(reader.schema.names)}"
        assert reader.cursor().execute(total).fetchall() == [(127_992_000,)]
    assert fetched[0] < 1_000_000


def test_csv_and_json_lines_are_downloaded_only_while_they_are_read(put: Any, bucket: str, tmp_path: Path) -> None:
    put("c/1.csv", b"id,text\n1,a\n2,b\n")
    put("c/2.csv.gz", gzip.compress(b"id,text\n3,c\n"))
    assert rows(tmp_path, "csv", csv=f"{bucket}/c", key="id") == [(1, "a"), (2, "b"), (3, "c")]
    assert not (tmp_path / "scratch/objects").exists()
    put("j/1.jsonl", b"\xef\xbb\xbf" + json.dumps({"id": 1, "deep": {"x": [1]}}).encode())
    put("j/2.jsonl.gz", gzip.compress(json.dumps({"id": 2}).encode()))
    assert rows(tmp_path, "jsonl", jsonl=f"{bucket}/j/*", key="id") == [(1, {"x": [1]}), (2, None)]
    assert not (tmp_path / "scratch/objects").exists()


def test_errors_in_objects_name_their_urls(put: Any, bucket: str, tmp_path: Path) -> None:
    one, two = put("c/1.csv", b"id,text\n1,a\n"), put("c/2.csv", b"id,text\n2,b,b\n")
    with pytest.raises(DataError) as error:
        rows(tmp_path, "csv", csv=f"{bucket}/c", key="id")
    assert str(error.value).startswith(f"{two}:2: 3 values, but the first line has 2")
    facts = SourceContext(tmp_path, (), tmp_path / "scratch")
    with SourceReader(SOURCES["csv"](csv=[one, two], key="id", rejects="keep"), facts) as reader:
        ((line, message, _),) = reader.rejects
    assert (line, message[: len(two) + 1]) == (2, f"{two}:")
    bad = put("j.jsonl", b'{"id": 1}\nno json\n')
    with pytest.raises(DataError, match=r"j\.jsonl:2: is not JSON") as error:
        rows(tmp_path, "jsonl", jsonl=bad, key="id")
    assert str(error.value).startswith("s3://")
    broken = put("p.parquet", b"PAR1 is not all")
    with pytest.raises(DataError, match=r"^s3://.*p\.parquet: cannot be read as Parquet"):
        rows(tmp_path, "parquet", parquet=broken, key="id")
    with pytest.raises(DataError, match=r"^source\.parquet: s3://.*/none: no such object; check the URL$"):
        rows(tmp_path, "parquet", parquet=f"{bucket}/none", key="id")
    with pytest.raises(JobError, match=r"hdfs:// is not known"):
        rows(tmp_path, "parquet", parquet="hdfs://x/y", key="id")


def test_the_reader_cannot_open_other_objects(put: Any, tmp_path: Path) -> None:
    mine, other = put("1.parquet", pa.table({"id": [1]})), put("2.parquet", pa.table({"id": [2]}))
    facts = SourceContext(tmp_path, (), tmp_path)
    with SourceReader(SOURCES["parquet"](parquet=mine, key="id"), facts) as reader:
        assert reader.cursor().execute(f"select * from read_parquet('{mine}')").fetchall() == [(1,)]
        with pytest.raises(duckdb.PermissionException):
            reader.cursor().execute(f"select * from read_parquet('{other}')")


def results(bucket: str) -> dict[int, str]:
    """Return the results of the sink on S3; each key must occur once."""
    tables = []
    for one in object_store.list_objects(f"{bucket}/out/results"):
        assert one.name.endswith(".parquet")
        tables.append(pq.read_table(pa.BufferReader(object_store.read(one.url))))
    table = pa.concat_tables(tables)
    pairs = dict(zip(table["id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    assert len(pairs) == table.num_rows
    return pairs


# A whole run with Delta tables on an object store is in the tests of the report.
@pytest.mark.parametrize("sink", ["parquet", pytest.param("delta", marks=marks(True))])
def test_a_job_reads_and_writes_object_stores(
    put: Any,
    bucket: str,
    workspace: Workspace,
    cli: Cli,
    provider: ScriptedProvider,
    sink: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put("in/1.parquet", pa.table({"id": [1, 2], "text": ["one", "two"]}))
    put("in/2.parquet", pa.table({"id": [3], "text": ["three"]}))
    audits = "[{name: all, sql: select * from results where answer is null}]"
    job = workspace.job(
        source=f'{{parquet: "{bucket}/in", key: id}}', sink=f'{{{sink}: "{bucket}/out"}}', audits=audits
    )
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 3, 3), (report, cli.err)
    assert report["tables"]["results"].startswith(f"{bucket}/out/results")
    assert (cli.run(job)["requests"], len(provider.seen)) == (0, 3)

    put("in/2.parquet", pa.table({"id": [3, 4], "text": ["drei", "four"]}))
    report = cli.run(job)
    assert (report["requests"], report["rows_reused"], report["rows_ok"]) == (2, 2, 4)
    expected = {1: "ONE", 2: "TWO", 3: "DREI", 4: "FOUR"}
    if sink == "parquet":
        assert results(bucket) == expected

    # The tables are projections of the ledger: if deleted, they are written again without a request.
    object_store.delete([one.url for one in object_store.list_objects(f"{bucket}/out")])
    assert (cli.run(job)["requests"], len(provider.seen)) == (0, 5)
    assert cli("rebuild", job) == 0, cli.err
    assert cli("show", job, "3") == 0
    assert "DREI" in cli.out
    if sink == "parquet":
        assert results(bucket) == expected
    assert not [
        one for one in object_store.list_objects(f"{bucket}/out") if "/.staging" in one.url or "/.fresh" in one.url
    ]


def test_a_run_that_cannot_write_keeps_its_answers_for_the_next_run(
    bucket: str, workspace: Workspace, cli: Cli, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(3)
    job = workspace.job(sink=f'{{parquet: "{bucket}/out"}}')
    real = object_store.put

    def failing(url: str, content: Any) -> None:
        if "/results/" in url and "0-empty" not in url:
            raise DataError(url, "the store is away for a moment", "run again")
        real(url, content)

    with monkeypatch.context() as patch:
        patch.setattr(object_store, "put", failing)
        report = cli.run(job)
    assert report["exit_code"] == 3
    assert "away for a moment" in report["stopped"]
    report = cli.run(job)
    assert (report["exit_code"], report["requests"], len(provider.seen)) == (0, 0, 3)
    assert results(bucket) == {1: "TEXT 1", 2: "TEXT 2", 3: "TEXT 3"}


def test_a_missing_bucket_ends_validation_with_exit_2(bucket: str, workspace: Workspace, cli: Cli) -> None:
    workspace.csv(1)
    job = workspace.job(source='{parquet: "s3://rowmill-nowhere/x/*.parquet", key: id}')
    assert cli("validate", job) == 2
    assert "NoSuchBucket" in cli.err
    assert "Traceback" not in cli.err
