"""Names of source files: special characters, suffixes, folders with values, Delta tables."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.errors import DataError, JobError
from tests.unit.sources.conftest import ReadSourceFixture

KINDS = ("csv", "jsonl", "parquet")
ODD_NAMES = ("data[1]", "a*b", "what?", "[a-z]", "x{1}", "it's", "b\\c", "a b%20", "ü")


def content_of(kind: str, text: str) -> bytes:
    """One row with an id."""
    if kind == "csv":
        return f"id\n{text}\n".encode()
    if kind == "jsonl":
        return json.dumps({"id": text}).encode() + b"\n"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [text]}), sink)
    return bytes(sink.getvalue())


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_a_name_before_it_is_a_pattern(
    tmp_path: Path, read_source: ReadSourceFixture, kind: str, name: str
) -> None:
    for decoy in ("data1", "axxb", "whatX", "q", name):
        write(tmp_path / f"data/{decoy}.{kind}", content_of(kind, decoy))
    assert read_source(kind, f"data/{name}.{kind}").rows == [(name,)]
    assert sorted(row[0] for row in read_source(kind, "data").rows) == sorted({"data1", "axxb", "whatX", "q", name})


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_takes_suffixes_in_any_case_and_names_other_files(
    tmp_path: Path, read_source: ReadSourceFixture, kind: str
) -> None:
    zstd = pa.compress(content_of(kind, "6"), codec="zstd", asbytes=True)
    for name, content in (
        (f"a.{kind}", content_of(kind, "1")),
        (f"B.{kind.upper()}", content_of(kind, "2")),
        (f"c.{kind}.GZ", gzip.compress(content_of(kind, "3"))),
        (f"d.{kind}.bz2", bz2.compress(content_of(kind, "4"))),
        (f"deep/e.{kind}.xz", lzma.compress(content_of(kind, "5"))),
        (f"f.{kind}.zst", zstd),
        ("notes.txt", b"x"),
        ("_hidden.txt", b"x"),
    ):
        write(tmp_path / "data" / name, content)
    found = read_source(kind, "data")
    assert sorted(str(row[0]) for row in found.rows) == ["1", "2", "3", "4", "5", "6"]
    (warning,) = found.warnings
    assert warning.startswith(f"source: {tmp_path}/data/notes.txt: not read, since no name ends in .")


@pytest.mark.parametrize(
    ("kind", "suffixes"), [("csv", ".csv, .tsv"), ("jsonl", ".jsonl, .ndjson"), ("parquet", ".parquet")]
)
def test_a_folder_without_a_file_of_the_format_names_the_suffixes(
    tmp_path: Path, read_source: ReadSourceFixture, kind: str, suffixes: str
) -> None:
    write(tmp_path / "data/rows.txt", b"{}")
    with pytest.raises(
        DataError, match=f"^source.{kind}: data: no file in the folder ends in {suffixes}; name a file, or a glob$"
    ):
        read_source(kind, "data")


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_folders_become_columns_and_replace_none(
    tmp_path: Path, read_source: ReadSourceFixture, kind: str
) -> None:
    for folder, text in (("year=2024/id=x", "a"), ("year=2025/id=y", "b")):
        write(tmp_path / f"data/{folder}/f.{kind}", content_of(kind, text))
    found = read_source(kind, "data")
    assert (found.types, found.rows) == ({"id": "string", "year": "int64"}, [("a", 2024), ("b", 2025)])
    assert read_source(kind, "data", hive=False).types == {"id": "string"}
    write(tmp_path / f"data/g.{kind}", content_of(kind, "c"))
    assert read_source(kind, "data").types == {"id": "string"}


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_folders_keep_their_digits(tmp_path: Path, read_source: ReadSourceFixture, kind: str) -> None:
    for folder, text in (("zip=01234/a%20b=x%2Fy", "a"), ("zip=__HIVE_DEFAULT_PARTITION__/a%20b=z", "b")):
        write(tmp_path / f"data/{folder}/f.{kind}", content_of(kind, text))
    found = read_source(kind, "data")
    assert sorted(found.rows) == [("a", "01234", "x/y"), ("b", None, "z")]
    # As earlier versions typed it.
    assert sorted(read_source(kind, "data", {"zip": "BIGINT"}).rows) == [("a", 1234, "x/y"), ("b", None, "z")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_no_bytes_has_no_rows_and_is_named(tmp_path: Path, read_source: ReadSourceFixture, kind: str) -> None:
    write(tmp_path / f"data/a.{kind}", content_of(kind, "1x"))
    write(tmp_path / f"data/b.{kind}", b"")
    found = read_source(kind, "data")
    assert found.rows == [("1x",)]
    assert found.warnings == (f"{tmp_path}/data/b.{kind}: has no bytes: it has no rows, and no row is removed",)
    with pytest.raises(DataError, match="has no rows, so its columns are unknown; run again when it has some"):
        read_source(kind, f"data/b.{kind}")
    if kind != "parquet":
        write(tmp_path / f"data/c.{kind}.gz", gzip.compress(b""))
        assert len(read_source(kind, "data").warnings) == 2


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (
            "csv",
            gzip.compress(b"id\n1\n", mtime=0),
            "is gzip, which is read if the name ends in .gz; rename it, or name a CSV",
        ),
        ("jsonl", b"PAR1", "is a Parquet file; rename it, or name a file of JSON lines"),
        ("csv", b"PK\x03\x04", "is a zip file \\(or a workbook\\)"),
        ("parquet", b"id\n1\n", "cannot be read as Parquet"),
    ],
)
def test_a_file_of_another_kind_is_reported_by_its_kind(
    tmp_path: Path, read_source: ReadSourceFixture, kind: str, content: bytes, message: str
) -> None:
    write(tmp_path / f"f.{kind}", content)
    with pytest.raises(DataError, match=message):
        read_source(kind, f"f.{kind}")


def test_the_folder_of_a_delta_table_is_read_as_its_log_says(tmp_path: Path, read_source: ReadSourceFixture) -> None:
    from deltalake import write_deltalake

    table = str(tmp_path / "data/t")
    write_deltalake(table, pa.table({"id": [1, 2], "day": ["a", "b"]}), partition_by=["day"])
    write_deltalake(table, pa.table({"id": [3], "day": ["c d"]}), mode="overwrite")
    assert read_source("parquet", "data/t").rows == [(3, "c d")]
    assert read_source("parquet", "data").rows == [(3, "c d")]
    with pytest.raises(JobError, match="is a part of the Delta table"):
        read_source("parquet", "data/t/day=a")


def test_duckdb_files_may_have_the_names_of_its_own_databases(tmp_path: Path, read_source: ReadSourceFixture) -> None:
    import duckdb

    for name in ("main", "temp", "system", "memory", "Main", "information_schema", "pg_catalog"):
        (tmp_path / f"{name}.duckdb").unlink(missing_ok=True)
        with duckdb.connect(tmp_path / f"{name}.duckdb") as db:
            db.execute("create table t as select 1 as id")
        assert read_source("duckdb", f"{name}.duckdb", table="t").rows == [(1,)]
