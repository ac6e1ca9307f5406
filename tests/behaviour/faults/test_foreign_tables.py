"""Tables and files of other programs in the place of a sink: one line before anything is sent, and nothing changed."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.conftest import Cli, ScriptedProvider, Workspace
from tests.support.exhaustive import marks

FOREIGN = pa.table({"id": [1], "x": ["theirs"]})
SINKS = {"parquet": "parquet: out", "duckdb": "duckdb: r.duckdb, table: r", "delta": "delta: out"}


def parquet_part(table: str, rows: pa.Table = FOREIGN) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "out" / table / "theirs.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path)

    return write


def file_of(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def folder_of(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).mkdir(parents=True)


def statements(*sql: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with duckdb.connect(folder / "r.duckdb") as db:
            for statement in sql:
                db.execute(statement)

    return write


def sqlite_file(folder: Path) -> None:
    with sqlite3.connect(folder / "r.duckdb") as db:
        db.execute("create table r (a)")
    db.close()


def delta_table(table: str, partition: str | None = None) -> Callable[[Path], None]:
    return lambda folder: write_deltalake(folder / "out" / table, FOREIGN, partition_by=partition)


def delta_protocol(**changed: object) -> Callable[[Path], None]:
    """Return a writer of a table whose first log entry has another protocol or other properties."""

    def write(folder: Path) -> None:
        write_deltalake(folder / "out/results", FOREIGN)
        log = folder / "out/results/_delta_log/00000000000000000000.json"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for line in lines:
            if "protocol" in line and "configuration" not in changed:
                line["protocol"] = changed
            if "metaData" in line and "configuration" in changed:
                line["metaData"]["configuration"] = changed["configuration"]
        log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    return write


MOVE = "move it away, or write to another sink (--sink PATH)"
CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "results of another program": (
        "parquet",
        parquet_part("results"),
        f"out: its results (theirs.parquet) have id (int64), x (string): a table of another program; {MOVE}",
    ),
    "errors of another program": (
        "parquet",
        parquet_part("errors"),
        f"out: its errors (theirs.parquet) have id (int64), x (string): a table of another program; {MOVE}",
    ),
    "usage of another program": (
        "parquet",
        parquet_part("usage"),
        "out: its usage have id (int64), x (string), but this version",
    ),
    "a file in place of the folder": (
        "parquet",
        file_of("out", b"x"),
        "sink.parquet: @/out is a file; choose another path",
    ),
    "a file in place of a table": (
        "parquet",
        file_of("out/results", b"x"),
        "sink.parquet: @/out/results is a file; choose another path",
    ),
    "a part that is no Parquet": (
        "parquet",
        file_of("out/results/a.parquet", b"no"),
        "@/out/results/a.parquet: cannot be read (",
    ),
    "an empty part": ("parquet", file_of("out/results/a.parquet", b""), "@/out/results/a.parquet: cannot be read ("),
    "a folder that looks like a part": (
        "parquet",
        folder_of("out/results/a.parquet"),
        "@/out/results/a.parquet: cannot be read (",
    ),
    "a table of another program": (
        "duckdb",
        statements("create table r (id bigint, x varchar)"),
        f"r.duckdb: its table r has id (BIGINT), x (VARCHAR): a table of another program; {MOVE}",
    ),
    "a table in other case": (
        "duckdb",
        statements('create table "R" (id bigint)'),
        "r.duckdb: its table r has id (BIGINT): a table of",
    ),
    "an errors table alone": (
        "duckdb",
        statements("create table r_errors (a integer)"),
        "r.duckdb: its table r_errors has a (INTEGER): a table of",
    ),
    "a usage table alone": (
        "duckdb",
        statements("create table r_usage (a integer)"),
        "r.duckdb: its table r_usage has a (INTEGER), but this version",
    ),
    "a view": (
        "duckdb",
        statements("create view r as select 1 as id"),
        "r.duckdb: its r is a view; write to another table, or drop the view",
    ),
    "a view of errors": (
        "duckdb",
        statements("create view R_Errors as select 1 as id"),
        "r.duckdb: its r_errors is a view; write to",
    ),
    "a schema of Rowmill's name": (
        "duckdb",
        statements("create schema rowmill", "create table rowmill.layout (a text)"),
        "r.duckdb: ",
    ),
    "marks of another program": (
        "duckdb",
        statements("create schema rowmill", "create table rowmill.marks (a text)"),
        "r.duckdb: ",
    ),
    "a text file": ("duckdb", file_of("r.duckdb", b"hello " * 3000), "r.duckdb: "),
    "a SQLite file": ("duckdb", sqlite_file, "r.duckdb: "),
    "a folder": ("duckdb", folder_of("r.duckdb"), "sink.duckdb: @/r.duckdb is a folder; choose another path"),
    "a Delta table of another program": (
        "delta",
        delta_table("results"),
        f"out: its results have id (int64), x (string): a table of another program; {MOVE}",
    ),
    "Delta errors of another program": (
        "delta",
        delta_table("errors"),
        "out: its errors have id (int64), x (string): a table of another",
    ),
    "Delta usage of another program": (
        "delta",
        delta_table("usage"),
        "out: its usage have id (int64), x (string), but this version",
    ),
    "partitions": (
        "delta",
        delta_table("results", "id"),
        "out: its table results has partitions, which Rowmill cannot read; remove",
    ),
    "column mapping": (
        "delta",
        delta_protocol(configuration={"delta.columnMapping.mode": "name"}),
        "out: its table results has columnMapping, which Rowmill cannot read; remove",
    ),
    "deletion vectors": (
        "delta",
        delta_protocol(
            minReaderVersion=3,
            minWriterVersion=7,
            readerFeatures=["deletionVectors"],
            writerFeatures=["deletionVectors"],
        ),
        "out: its table results has deletionVectors, which Rowmill cannot read; remove",
    ),
    "a newer protocol": ("delta", delta_protocol(minReaderVersion=99, minWriterVersion=99), "out: "),
    "an unknown feature": (
        "delta",
        delta_protocol(minReaderVersion=3, minWriterVersion=7, readerFeatures=["fancy"], writerFeatures=["fancy"]),
        "out: ",
    ),
    "a broken log": ("delta", file_of("out/results/_delta_log/00000000000000000000.json", b"{no"), "out: "),
    "a file in place of the Delta folder": (
        "delta",
        file_of("out", b"x"),
        "sink.delta: @/out is a file; choose another path",
    ),
    "a file in place of a Delta table": (
        "delta",
        file_of("out/results", b"x"),
        "sink.delta: @/out/results is a file; choose another path",
    ),
}


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return the files of the sinks with their contents."""
    places = [*folder.glob("r.duckdb*"), *folder.glob("out"), *folder.glob("out/**/*")]
    return {f"{path.relative_to(folder)}": path.read_bytes() if path.is_file() else None for path in places}


FLAGS = {
    "as it is": (),
    "backfill": ("--schema-change", "backfill"),
    "replace": ("--set", "sink.write=replace"),
}


@pytest.mark.parametrize(
    ("case", "flags"),
    [
        # By default the cases take turns with the flags.
        pytest.param(case, FLAGS[name], marks=marks((place - turn) % len(FLAGS) > 0), id=f"{case}, {name}")
        for place, case in enumerate(CASES)
        for turn, name in enumerate(FLAGS)
    ],
)
def test_they_are_refused_with_one_line_and_not_changed(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, case: str, flags: tuple[str, ...]
) -> None:
    sink, write, message = CASES[case]
    write(workspace.folder)
    before = listing(workspace.folder)
    workspace.csv(1)
    message = message.replace("@", f"{workspace.folder}")
    job = workspace.job(sink=f"{{{SINKS[sink]}, columns: [text]}}")
    assert cli("validate", job) == 2
    # A folder of jobs is validated as a whole: the job's name stands before.
    assert message in cli.err
    assert len(cli.err.splitlines()) == 1
    assert cli("run", job, "--quiet", *flags) == 2, cli.err
    location = f"{job}:4: " if message.startswith("sink.") else ""
    assert cli.err.startswith(f"{location}{message}")
    assert len(cli.err.splitlines()) == 1
    assert provider.seen == []
    assert listing(workspace.folder) == before


def test_a_part_of_another_program_among_those_of_a_job_is_named(workspace: Workspace, cli: Cli) -> None:
    workspace.csv(1)
    job = workspace.job()
    assert cli.run(job)["exit_code"] == 0
    parquet_part("results")(workspace.folder)
    assert cli("run", job, "--quiet") == 2
    assert cli.err.startswith(
        "out: its results (theirs.parquet) have id (int64), x (string): a table of another program"
    )


def test_other_tables_in_the_file_are_left_alone(workspace: Workspace, cli: Cli) -> None:
    workspace.csv(1)
    statements("create table theirs as select 1 as a", "create view v as select 2 as b", "create schema s")(
        workspace.folder
    )
    assert cli.run(workspace.job(sink="{duckdb: r.duckdb, table: r}"))["exit_code"] == 0
    with duckdb.connect(workspace.folder / "r.duckdb") as db:
        assert db.sql("select a, b, id from theirs, v, r").fetchall() == [(1, 2, 1)]


def test_files_beside_a_delta_table_are_left_alone(workspace: Workspace, cli: Cli) -> None:
    workspace.csv(1)
    parquet_part("results")(workspace.folder)
    job = workspace.job(sink="{delta: out}")
    assert cli.run(job)["exit_code"] == 0
    assert DeltaTable(workspace.folder / "out/results").to_pyarrow_table().num_rows == 1
    assert cli.run(job)["requests"] == 0
    assert pq.read_table(workspace.folder / "out/results/theirs.parquet") == FOREIGN
