"""A night whose source is empty, or whose values could be of several types: columns keep the types of the sink."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

SINKS = {
    "parquet": "{parquet: out, columns: all}",
    "duckdb": "{duckdb: out.duckdb, table: t, columns: all}",
    "delta": "{delta: out, columns: all}",
}
COLUMNS = ("id", "text", "seen", "score", "code")
TYPES = {"id": "BIGINT", "text": "VARCHAR", "seen": "DATE", "score": "DOUBLE", "code": "VARCHAR"}
FIRST = ((1, "a", "2026-01-02", 1.5, "007"), (2, "b", "2026-01-03", 2, "x"))


@pytest.fixture(params=[*SINKS])
def sink(request: pytest.FixtureRequest) -> str:
    """One of each kind on this machine."""
    return SINKS[request.param]


def write_csv(workspace: Any, *rows: tuple[Any, ...]) -> None:
    lines = [COLUMNS, *(["" if value is None else str(value) for value in row] for row in rows)]
    workspace.write("rows.csv", "".join(",".join(line) + "\n" for line in lines))


def write_jsonl(workspace: Any, *rows: tuple[Any, ...]) -> None:
    lines = (json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows)
    workspace.write("rows.jsonl", "".join(f"{line}\n" for line in lines))


def held(folder: Path, sink: str) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    """Types and values of the source's columns in the results."""
    with duckdb.connect() as db:
        if "duckdb" in sink:
            db.execute(f"attach '{folder}/out.duckdb' as o (read_only)")
            table = "o.t"
        elif "delta" in sink:
            delta = DeltaTable(folder / "out/results").to_pyarrow_table()
            db.register("delta", delta)
            table = "delta"
        else:
            table = f"read_parquet('{folder}/out/results/*.parquet')"
        found = db.sql(f"select {', '.join(COLUMNS)} from {table} order by id")
        types = dict(zip(found.columns, map(str, found.types), strict=True))
        return types, db.sql(f"select id, text, cast(seen as VARCHAR), score, code from {table} order by id").fetchall()


def test_a_file_with_a_header_only_is_a_night_without_work(workspace: Any, provider: Any, cli: Any, sink: str) -> None:
    write_csv(workspace, *FIRST)
    job = workspace.job(sink=sink)
    assert cli.run(job)["rows_ok"] == 2
    before = held(workspace.folder, sink)
    assert before == (TYPES, list(FIRST))
    write_csv(workspace)
    assert cli("validate", job) == 0
    assert cli("plan", job, "--json") == 0
    assert json.loads(cli.out)["refused"] is None
    report = cli.run(job)
    assert (report["exit_code"], report["rows"], report["requests"]) == (0, 0, 0)
    assert cli.run(job, "--schema-change", "cast")["exit_code"] == 0
    assert cli("rebuild", job) == 0
    assert held(workspace.folder, sink) == before
    write_csv(workspace, *FIRST, (3, "c", "2026-01-04", 0.5, "y"))
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 3, 1)
    assert held(workspace.folder, sink)[0] == TYPES


@pytest.mark.parametrize("columns", ["[]", "[score]"])
def test_conditions_stay_valid_in_a_night_without_values(workspace: Any, cli: Any, columns: str) -> None:
    write_csv(workspace, *FIRST)
    step = "{name: c, endpoint: chat, provider: test, model: m, messages: [{user: '{{ text }}'}], when: score > 1}"
    source = "{csv: rows.csv, key: id, where: \"score > 1.7 or seen < '2027-01-01'\"}"
    job = workspace.job(source=source, steps=f"[{step}]", sink=f"{{parquet: out, columns: {columns}}}")
    assert cli.run(job)["rows_ok"] == 2
    for rows in ([(3, "c", "2026-01-05", None, "x")], [(4, "d", None, None, "x")], []):
        write_csv(workspace, *rows)
        dated = sum(seen is not None for _, _, seen, *_ in rows)
        report = cli.run(job)
        assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, dated, 0)


def test_a_night_whose_values_would_do_as_other_types_keeps_those_of_the_sink(
    workspace: Any, cli: Any, sink: str
) -> None:
    write_csv(workspace, *FIRST)
    job = workspace.job(sink=sink)
    cli.run(job)
    # No date, scores that are whole, codes that are numbers.
    write_csv(workspace, *FIRST[:1], (3, "c", None, 4, "12.50"))
    assert cli("validate", job) == 0
    assert cli.run(job)["rows_ok"] == 2
    write_csv(workspace, (4, "d", None, 5, "8"))
    assert cli.run(job)["rows_ok"] == 1
    rows = [*FIRST, (3, "c", None, 4.0, "12.50"), (4, "d", None, 5.0, "8")]
    assert held(workspace.folder, sink) == (TYPES, rows)


def test_the_same_for_json_lines(workspace: Any, cli: Any) -> None:
    source, sink = "{jsonl: rows.jsonl, key: id}", SINKS["parquet"]
    write_jsonl(workspace, *FIRST)
    job = workspace.job(source=source, sink=sink)
    cli.run(job)
    types = held(workspace.folder, sink)[0]
    write_jsonl(workspace, *FIRST, (3, "c", None, 4, None))
    cli.run(job)
    write_jsonl(workspace, (4, "d", None, 5, None))
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (0, 1)
    found = held(workspace.folder, sink)
    assert (found[0], found[1][2:]) == (types, [(3, "c", None, 4.0, None), (4, "d", None, 5.0, None)])
    # A number that the DOUBLE of the sink would change.
    write_jsonl(workspace, (5, "d", None, (1 << 53) + 1, None))
    report = cli.run(job)
    assert (report["exit_code"], report["rows_failed"], report["requests"]) == (1, 1, 0)
    (error,) = duckdb.sql(f"select id, error_class, message from '{workspace.folder}/out/errors/*.parquet'").fetchall()
    assert error == (5, "input", "score: 9007199254740993 does not fit DOUBLE, the type of the column in the sink")


def test_values_that_are_not_of_the_sinks_type_are_refused_as_ever(workspace: Any, provider: Any, cli: Any) -> None:
    write_csv(workspace, *FIRST)
    job = workspace.job(sink=SINKS["parquet"])
    cli.run(job)
    sent = len(provider.seen)
    write_csv(workspace, ("three", "c", None, 4, "y"))
    assert cli("run", job, "--quiet") == 2
    assert "source.key: id: three does not fit BIGINT, the type of the column in the sink" in cli.err
    assert len(provider.seen) == sent


def test_a_sink_without_values_has_no_influence_on_types(workspace: Any, cli: Any, sink: str) -> None:
    write_csv(workspace)
    job = workspace.job(sink=sink)
    assert cli.run(job)["exit_code"] == 0
    write_csv(workspace, *FIRST)
    assert cli.run(job)["rows_ok"] == 2
    assert held(workspace.folder, sink) == (TYPES, list(FIRST))


def test_the_type_of_a_key_is_known_by_rows_that_failed_alone(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(2)
    provider.script = lambda *_: error_reply(400, "no")
    job = workspace.job()
    assert cli.run(job)["rows_failed"] == 2
    workspace.csv(0)
    assert cli.run(job)["exit_code"] == 0
