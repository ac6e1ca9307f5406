"""Columns without a value have no type yet: the first value gives them one, without --schema-change."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from tests.conftest import Cli, ScriptedProvider, Workspace

SINKS = {
    "parquet": "{parquet: out, columns: all}",
    "duckdb": "{duckdb: out.duckdb, table: t, columns: all}",
    "delta": "{delta: out, columns: all}",
}


@pytest.fixture(params=[*SINKS])
def kind(request: pytest.FixtureRequest) -> str:
    """One of each kind of sink on this machine."""
    return str(request.param)


def write_lines(workspace: Workspace, *rows: dict[str, Any]) -> None:
    workspace.write("rows.jsonl", "".join(f"{json.dumps({'text': 'a', **row})}\n" for row in rows))


def held(folder: Path, kind: str, table: str = "results") -> list[dict[str, Any]]:
    """Return the rows of a table without Rowmill's own columns, sorted by key."""
    if kind == "delta":
        rows = DeltaTable(folder / "out" / table).to_pyarrow_table()
    else:
        with duckdb.connect(
            ":memory:" if kind == "parquet" else folder / "out.duckdb", read_only=kind != "parquet"
        ) as db:
            rows = db.sql(f"from '{folder}/out/{table}/*.parquet'" if kind == "parquet" else "from t").to_arrow_table()
    return [
        {name: value for name, value in row.items() if name not in ("text", "answer") and name[0] != "_"}
        for row in rows.sort_by("id").to_pylist()
    ]


FIRST_VALUES = {
    "numbers": (None, 5),
    "fractions": (None, 0.5),
    "truth values": (None, True),
    "texts": (None, "t"),
    "lists": ([], [1, 2]),
    "lists of null": ([None], [1.5]),
    "lists of lists": ([[]], [[1], []]),
    "structs": ({"a": None, "b": []}, {"a": 1, "b": ["x"]}),
    "lists of structs": ([{"a": None}], [{"a": 2}]),
}


def test_the_first_values_give_columns_their_types(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, kind: str
) -> None:
    nothing = {name: first for name, (first, _) in FIRST_VALUES.items()}
    values = {name: value for name, (_, value) in FIRST_VALUES.items()}
    write_lines(workspace, {"id": 1, **nothing})
    job = workspace.job(source="{jsonl: rows.jsonl, key: id}", sink=SINKS[kind])
    assert cli.run(job)["requests"] == 1
    assert cli.run(job)["requests"] == 0
    write_lines(workspace, {"id": 1, **nothing}, {"id": 2, **values})
    assert cli("validate", job) == 0, cli.err
    assert cli("plan", job, "--json") == 0
    assert json.loads(cli.out)["refused"] is None
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (0, 2), cli.err
    rows = [{"id": 1, **nothing}, {"id": 2, **values}]
    assert held(workspace.folder, kind) == rows
    # A night without values again, and the tables from the ledger alone.
    write_lines(workspace, {"id": 3, **nothing})
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (0, 1), cli.err
    assert cli("rebuild", job) == 0, cli.err
    assert held(workspace.folder, kind) == [*rows, {"id": 3, **nothing}]


def test_a_row_whose_column_had_no_value_is_not_requested_again(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, kind: str
) -> None:
    workspace.write("rows.csv", "id,text,x\n1,a,\n")
    job = workspace.job(sink=SINKS[kind])
    assert cli.run(job)["requests"] == 1
    workspace.write("rows.csv", "id,text,x\n1,a,\n2,b,5\n")
    assert cli.run(job)["requests"] == 1
    assert held(workspace.folder, kind) == [{"id": 1, "x": None}, {"id": 2, "x": 5}]


def test_a_column_with_a_value_keeps_its_type(workspace: Workspace, provider: ScriptedProvider, cli: Cli) -> None:
    write_lines(workspace, {"id": 1, "x": None, "y": {"a": "t"}})
    job = workspace.job(source="{jsonl: rows.jsonl, key: id}", sink=SINKS["parquet"])
    cli.run(job)
    write_lines(workspace, {"id": 2, "x": 1, "y": {"a": [1]}})
    assert cli("run", job, "--quiet") == 2
    assert "out: its results have x (string), y (struct<a: string>), but the job makes" in cli.err
    assert len(provider.seen) == 1


def test_the_key_of_a_table_with_rejected_lines_alone_has_no_type(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, kind: str
) -> None:
    workspace.write("rows.csv", "id,text\n1,a,too many\n")
    job = workspace.job(source="{csv: rows.csv, key: id, rejects: keep}", sink=SINKS[kind])
    assert cli.run(job)["rows_failed"] == 1
    workspace.write("rows.csv", "id,text\n1,a\n2,b,too many\n")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (1, 1, 1), cli.err
    assert held(workspace.folder, kind) == [{"id": 1}]
