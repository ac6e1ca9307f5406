"""Jobs without a key: the content of a row is its identity, whatever the order of its columns."""

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace

ROWS = [{"id": 1, "text": "a", "Z": None}, {"id": 2, "text": "b", "Z": 1.5}, {"id": 1, "text": "a", "Z": None}]


def write_rows(folder: Path, kind: str, names: list[str]) -> None:
    """Write the rows with their columns in this order."""
    path, columns = folder / f"rows.{kind}", {name: [row[name] for row in ROWS] for name in names}
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == "jsonl":
        path.write_text("".join(f"{json.dumps({name: row[name] for name in names})}\n" for row in ROWS))
    else:
        lines = [names, *(["" if row[name] is None else str(row[name]) for name in names] for row in ROWS)]
        path.write_text("".join(f"{','.join(line)}\n" for line in lines))


@pytest.mark.parametrize("columns", ["[text]", "[]", "all"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_the_order_of_columns_is_no_part_of_it(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable, kind: str, columns: str
) -> None:
    write_rows(workspace.folder, kind, ["id", "text", "Z"])
    job = workspace.job(source=f"{{{kind}: rows.{kind}}}", sink=f"{{parquet: out, columns: {columns}}}")
    assert cli.run(job)["rows_ok"] == 3
    before = read(workspace.folder / "out")
    for names in (["Z", "text", "id"], ["text", "id", "Z"]):
        write_rows(workspace.folder, kind, names)
        report = cli.run(job)
        assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 3, 0), cli.err
        assert read(workspace.folder / "out") == before
    assert len(provider.seen) == 2


def test_with_a_key_all_columns_keep_the_order_of_the_table(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    workspace.write("rows.csv", "id,text,b,a\n1,x,2,3\n")
    job = workspace.job(sink="{parquet: out, columns: all}")
    assert cli.run(job)["requests"] == 1
    workspace.write("rows.csv", "a,b,text,id\n3,2,x,1\n30,20,y,10\n")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 2, 1), cli.err
    rows = read(workspace.folder / "out", order="id")
    assert [list(row)[:4] for row in rows] == [["id", "text", "b", "a"]] * 2
    assert [(row["id"], row["text"], row["b"], row["a"]) for row in rows] == [(1, "x", 2, 3), (10, "y", 20, 30)]


def test_rows_under_the_digest_of_an_earlier_version_stay_done(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    write_rows(workspace.folder, "parquet", ["text", "id", "Z"])
    job = workspace.job(source="{parquet: rows.parquet}", sink="{parquet: out, columns: [id]}")
    assert cli.run(job)["rows_ok"] == 3
    values = ", ".join(
        f"coalesce(cast(length(cast({name} as varchar)) as varchar) || ':', 'n'), cast({name} as varchar)"
        for name in ("text", "id", '"Z"')
    )
    results = f"read_parquet('{workspace.folder}/out/results/*.parquet', filename = true)"
    with duckdb.connect() as db:
        (part,) = db.sql(f"select distinct filename from {results}").fetchall()
        old = db.sql(
            f"select md5(concat({values})) || '-' || row_number() over (partition by text) as _row_key, id "
            f"from '{workspace.folder}/rows.parquet' order by 1"
        ).to_arrow_table()
    table = pq.read_table(part[0])
    keys: dict[int, list[str]] = {row["id"]: [] for row in old.to_pylist()}
    for row in old.to_pylist():
        keys[row["id"]].append(row["_row_key"])
    column = pa.array([keys[id_].pop(0) for id_ in table.column("id").to_pylist()])
    pq.write_table(table.set_column(0, table.schema.field("_row_key"), column), part[0], compression="zstd")
    before = read(workspace.folder / "out")
    assert cli.run(job)["requests"] == 0
    assert read(workspace.folder / "out") == before
    # A new row has the identity of this version; nothing of the old ones changes.
    more = pa.concat_tables(
        [
            pq.read_table(workspace.folder / "rows.parquet"),
            pa.table({"text": ["c"], "id": [3], "Z": [None]}, schema=pq.read_schema(workspace.folder / "rows.parquet")),
        ]
    )
    pq.write_table(more, workspace.folder / "rows.parquet")
    report = cli.run(job)
    assert (report["rows_ok"], report["requests"]) == (4, 1)
    after = read(workspace.folder / "out")
    assert [row for row in after if row["id"] != 3] == before
    assert cli.run(job)["requests"] == 0
