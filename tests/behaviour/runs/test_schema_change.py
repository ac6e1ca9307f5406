"""Schema changes: a job whose output is declared differently is refused, cast, or requested again as a whole."""

import asyncio
import io
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from obstore.store import S3Store

from tests.conftest import chat_reply
from tests.support.exhaustive import marks
from tests.support.forked import COMMAND, Forked, run
from tests.support.shared_database import shared_cursor

SINKS = {
    "parquet": "{parquet: out%s}",
    "duckdb": "{duckdb: out/o.duckdb, table: t%s}",
    "delta": "{delta: out%s}",
    "parquet at s3": "{parquet: BUCKET/out%s}",
}
CLASSES = {
    "parquet": "from connectors.sinks.parquet_table import ParquetTables as Tables",
    "duckdb": "from connectors.sinks.duckdb_table import DuckdbTables as Tables",
    "delta": "from connectors.sinks.delta_table import DeltaTables as Tables",
}
OLD = "{mood: {type: string}, score: {type: integer}}"
NEW = "{score: {type: string}, sure: {type: boolean}}"


class Declared:
    """A job whose declaration changes, in one kind of sink."""

    def __init__(self, workspace: Any, kind: str, bucket: str | None) -> None:
        self.workspace = workspace
        self.kind = kind
        self.bucket = bucket or ""
        workspace.csv(3)

    def job(self, output: str = OLD, sink: str = "", name: str = "job", **blocks: str) -> Path:
        steps = f"""
  - name: label
    endpoint: chat
    provider: test
    model: m
    messages: [{{user: "{{{{ text }}}}"}}]
    output: {output}
    params: {{max_tokens: 20}}
"""
        written = (SINKS[self.kind] % sink).replace("BUCKET", self.bucket)
        path: Path = self.workspace.job(name, sink=written, **{"steps": steps, **blocks})
        return path

    def results(self, table: str = "results") -> list[dict[str, Any]]:
        """The rows as a user reads them."""
        folder = self.workspace.folder / "out"
        if self.kind == "duckdb":
            with duckdb.connect(folder / "o.duckdb", read_only=True) as db:
                name = "t" if table == "results" else f"t_{table}"
                found = db.sql(f"select * from {name} order by id").to_arrow_table()
        elif self.kind == "delta":
            found = DeltaTable(folder / table).to_pyarrow_table().sort_by("id")
        elif self.kind == "parquet":
            with shared_cursor() as db:
                found = db.sql(f"from read_parquet('{folder}/{table}/*.parquet') order by id").to_arrow_table()
        else:
            store = S3Store("rowmill-tests", client_options={"allow_http": True})
            below = f"{self.bucket.removeprefix('s3://rowmill-tests/')}/out/{table}"
            parts = sorted(meta["path"] for page in obstore.list(store, below) for meta in page)
            found = pa.concat_tables([pq.read_table(io.BytesIO(bytes(store.get(p).bytes()))) for p in parts])
            found = found.sort_by("id")
        rows: list[dict[str, Any]] = found.to_pylist()
        return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


@pytest.fixture(params=[pytest.param(kind, marks=marks("s3" in kind)) for kind in SINKS])
def declared(request: pytest.FixtureRequest, workspace: Any) -> Declared:
    """In each kind of sink; in object stores by default only if a test is `also_in_s3`."""
    bucket = request.getfixturevalue("bucket") if "s3" in request.param else None
    return Declared(workspace, request.param, bucket)


also_in_s3 = pytest.mark.parametrize("declared", [*SINKS], indirect=True)


@pytest.fixture(params=[*CLASSES])
def here(request: pytest.FixtureRequest, workspace: Any) -> Declared:
    """In each kind of sink on this machine."""
    return Declared(workspace, request.param, None)


@pytest.fixture
def folder(workspace: Any) -> Declared:
    """In a Parquet folder."""
    return Declared(workspace, "parquet", None)


@pytest.fixture(autouse=True)
def typed(provider: Any) -> None:
    """The provider fills in the schema that it is sent; a plain text is said in upper case."""

    def answer(path: str, body: Any, count: int) -> Any:
        if "response_format" not in body:
            return None
        number = body["messages"][-1]["content"].split()[-1]
        of = {"string": number, "integer": int(number), "number": float(number) + 0.5, "boolean": True}
        asked = body["response_format"]["json_schema"]["schema"]["properties"]
        kinds = {name: spec["type"] for name, spec in asked.items()}
        return chat_reply(json.dumps({n: of[k if isinstance(k, str) else k[0]] for n, k in kinds.items()}))

    provider.script = answer


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "ledger.sqlite" not in path.name)


def test_validate_and_plan_report_the_refusal_of_the_run_and_create_nothing(
    declared: Declared, cli: Any, provider: Any
) -> None:
    assert cli.run(declared.job())["rows_ok"] == 3
    job, folder = declared.job(NEW), declared.workspace.folder
    before, rows, sent = listing(folder), declared.results(), len(provider.seen)
    assert cli("validate", job) == 2
    (line,) = cli.err.splitlines()
    assert "mood (" in line
    assert "sure (" in line
    assert line.endswith(
        "cast the existing rows (run --schema-change cast), ask all rows again (run --schema-change backfill), "
        "or write to another sink (run --sink PATH)"
    )
    assert cli("plan", job, "--json") == 0
    report = json.loads(cli.out)
    assert (report["refused"], report["changed"]) == (line, 3)
    assert cli("plan", job) == 0
    assert line in " ".join(cli.out.split())
    assert f"next  rowmill run {job} --schema-change cast" in cli.out
    assert listing(folder) == before
    assert cli("run", job, "--quiet") == 2
    assert cli.err.splitlines() == [line]
    assert (declared.results(), len(provider.seen)) == (rows, sent)
    fine = declared.job()
    assert cli("validate", fine) == 0
    assert cli("plan", fine, "--json") == 0
    assert json.loads(cli.out)["refused"] is None


@also_in_s3
def test_cast_leaves_the_rows_of_an_append_as_they_are_under_the_new_columns(
    declared: Declared, cli: Any, provider: Any
) -> None:
    cli.run(declared.job(sink=", write: append"))
    declared.workspace.csv(4)
    sent = len(provider.seen)
    report = cli.run(declared.job(NEW, sink=", write: append"), "--schema-change", "cast")
    assert (report["rows_ok"], report["requests"], len(provider.seen) - sent) == (4, 1, 1)
    old = [{"id": n, "score": str(n), "sure": None} for n in (1, 2, 3)]
    assert declared.results() == [*old, {"id": 4, "score": "4", "sure": True}]


def test_cast_under_merge_asks_the_rows_as_changed_ones(declared: Declared, cli: Any) -> None:
    cli.run(declared.job())
    report = cli.run(declared.job(NEW), "--schema-change", "cast")
    assert (report["rows_ok"], report["requests"]) == (3, 3)
    assert declared.results() == [{"id": n, "score": str(n), "sure": True} for n in (1, 2, 3)]
    # Once they fit, the option says nothing more.
    assert cli.run(declared.job(NEW), "--schema-change", "backfill")["requests"] == 0
    assert cli.run(declared.job(NEW))["requests"] == 0


def test_a_value_that_does_not_fit_is_named_and_nothing_is_sent_or_changed(
    declared: Declared, cli: Any, provider: Any
) -> None:
    cli.run(declared.job("{score: {type: number}}"))
    before, sent = declared.results(), len(provider.seen)
    assert cli("run", declared.job("{score: {type: integer}}"), "--quiet", "--schema-change", "cast") == 2
    (line,) = cli.err.splitlines()
    report = r"the column score of its results holds (\d)\.5 \(id \1\), which as double does not fit int64"
    assert re.search(report, line)
    assert "nothing was changed" in line
    assert (declared.results(), len(provider.seen)) == (before, sent)
    assert cli("run", declared.job("{score: {type: number}}"), "--quiet") == 0
    assert len(provider.seen) == sent


@also_in_s3
def test_backfill_requests_all_rows_next_to_the_old_table_and_a_rename_costs_nothing(
    declared: Declared, cli: Any, provider: Any
) -> None:
    cli.run(declared.job("mood", sink=", write: append"))
    sent = len(provider.seen)
    report = cli.run(declared.job("tone", sink=", write: append"), "--schema-change", "backfill")
    assert (report["rows_ok"], report["rows_reused"], report["requests"], len(provider.seen)) == (3, 3, 0, sent)
    assert declared.results() == [{"id": n, "tone": f"TEXT {n}"} for n in (1, 2, 3)]
    report = cli.run(declared.job(NEW, sink=", write: append"), "--schema-change", "backfill")
    assert (report["rows_ok"], report["requests"]) == (3, 3)
    assert declared.results() == [{"id": n, "score": str(n), "sure": True} for n in (1, 2, 3)]


def test_backfill_refuses_to_lose_rows_that_have_left_the_source(folder: Declared, cli: Any, provider: Any) -> None:
    cli.run(folder.job())
    folder.workspace.csv(2)
    before, sent = folder.results(), len(provider.seen)
    assert cli("run", folder.job(NEW), "--quiet", "--schema-change", "backfill") == 2
    assert "1 row in out left the source and cannot be requested again" in cli.err
    assert (folder.results(), len(provider.seen)) == (before, sent)
    assert cli.run(folder.job(NEW, sink=", deleted: remove"), "--schema-change", "backfill")["rows_ok"] == 2
    assert [row["id"] for row in folder.results()] == [1, 2]


def test_backfill_of_a_few_rows_only_is_refused(folder: Declared, cli: Any, provider: Any) -> None:
    cli.run(folder.job())
    sent = len(provider.seen)
    assert cli("run", folder.job(NEW), "--quiet", "--schema-change", "backfill", "--limit", "1") == 2
    assert "would leave only the first rows in out; run without a limit" in cli.err
    assert len(provider.seen) == sent


def killed(job: Path, kind: str, method: str, change: str, instead: str = "os._exit(77)") -> None:
    """Run the job until it calls the sink's method, then die, or do what is said `instead` of it."""
    patch = f"import os; {CLASSES[kind]}; real = Tables.{method}; "
    patch += f"Tables.{method} = lambda self, given=None, name=None: {instead}; "
    code, _, err = Forked(f"{patch}{COMMAND}", "run", job, "--quiet", "--schema-change", change).ended()
    assert code == 77, err


@pytest.mark.parametrize("change", ["cast", "backfill"])
def test_a_kill_in_the_middle_leaves_the_old_table_whole_and_running_again_goes_on(
    here: Declared, cli: Any, provider: Any, change: str
) -> None:
    cli.run(here.job())
    before, job = here.results(), here.job(NEW)
    for method in ("commit", "finish"):
        killed(job, here.kind, method, change)
        assert here.results() == before
        # Without the option it is as it was before the kill: refused, and the old table stays.
        assert cli("validate", job) == 2
        assert cli("run", job, "--quiet") == 2
        assert "--schema-change cast" in cli.err
        assert here.results() == before
    report = cli.run(job, "--schema-change", change)
    # What the killed run was answered is paid once.
    assert (report["rows_ok"], len(provider.answered)) == (3, 6)
    assert here.results() == [{"id": n, "score": str(n), "sure": True} for n in (1, 2, 3)]


def test_a_killed_backfill_may_be_ended_by_a_cast_or_by_going_back(here: Declared, cli: Any, provider: Any) -> None:
    cli.run(here.job())
    before = here.results()
    killed(here.job(NEW), here.kind, "finish", "backfill")
    assert cli.run(here.job())["requests"] == 0
    assert here.results() == before
    assert cli.run(here.job(NEW), "--schema-change", "cast")["requests"] == 0
    assert here.results() == [{"id": n, "score": str(n), "sure": True} for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("cast('2026-01-01 05:00' as TIMESTAMP)", "cast('2026-01-01' as DATE)", "timestamp[us] does not fit date32"),
        ("cast(0.1 as DOUBLE)", "cast(0.5 as FLOAT)", "double does not fit float"),
        ("cast(123456789012345678.25 as DECIMAL(20, 2))", "cast(1 as DOUBLE)", "does not fit double"),
    ],
)
def test_a_cast_changes_no_value_on_the_way(folder: Declared, cli: Any, was: str, becomes: str, message: str) -> None:
    def job(value: str) -> Path:
        query = f"select 1 as id, 'text 1' as text, {value} as extra"
        return folder.job(source=f'{{sql: "{query}", key: id}}', sink=", columns: [extra]")

    cli.run(job(was))
    before = folder.results()
    assert cli("run", job(becomes), "--quiet", "--schema-change", "cast") == 2
    assert message in cli.err
    assert folder.results() == before


def test_errors_and_keys_are_cast_with_the_rows(declared: Declared, cli: Any, provider: Any) -> None:
    usual = provider.script
    provider.script = lambda path, body, count: (
        chat_reply(None, finish="content_filter")
        if body["messages"][-1]["content"] == "text 2"
        else usual(path, body, count)
    )
    cli.run(declared.job("mood", sink=", write: append"))
    source = "{csv: rows.csv, key: id, types: {id: VARCHAR}}"
    sent = len(provider.seen)
    report = cli.run(declared.job("mood", sink=", write: append", source=source), "--schema-change", "cast")
    assert (report["rows_ok"], report["rows_failed"], len(provider.seen) - sent) == (2, 1, 0)
    assert declared.results() == [{"id": n, "mood": f"TEXT {n}"} for n in ("1", "3")]
    assert [row["id"] for row in declared.results("errors")] == ["2"]


def test_a_cast_that_would_make_two_keys_one_is_refused(folder: Declared, cli: Any) -> None:
    folder.workspace.write("rows.csv", "id,text\n1,a\n01,b\n")
    cli.run(folder.job("mood", source="{csv: rows.csv, key: id, types: {id: VARCHAR}}"))
    folder.workspace.write("rows.csv", "id,text\n1,a\n")
    before = folder.results()
    assert cli("run", folder.job("mood"), "--quiet", "--schema-change", "cast") == 2
    assert "the key id would be the same in 1 row and others" in cli.err
    assert folder.results() == before


def test_another_key_is_cast_if_the_table_has_its_columns(folder: Declared, cli: Any) -> None:
    cli.run(folder.job("mood", sink=", columns: [text], write: append"))
    both = "{csv: rows.csv, key: [id, text]}"
    assert cli.run(folder.job("mood", sink=", write: append", source=both), "--schema-change", "cast")["requests"] == 0
    other = folder.job("mood", source="{sql: 'select id as nr, text from \"rows.csv\"', key: nr}")
    assert cli("plan", other, "--json") == 0
    assert json.loads(cli.out)["new"] == 3
    assert cli("run", other, "--quiet", "--schema-change", "cast") == 2
    assert "the key nr would be null in 3 rows" in cli.err
    assert cli("run", other, "--quiet", "--schema-change", "backfill") == 2
    assert "it is not known which of them have left the source" in cli.err
    assert cli.run(other, "--set", "sink.write=replace")["rows_ok"] == 3


def test_a_new_vector_column_is_refused_before_its_dimensions_are_probed(
    folder: Declared, cli: Any, provider: Any
) -> None:
    cli.run(folder.job("mood"))
    sent = len(provider.seen)
    vector = '[{name: vector, endpoint: embeddings, provider: test, model: e, input: "{{ text }}"}]'
    job = folder.job(steps=vector)
    assert cli("validate", job) == 2
    assert cli("run", job, "--quiet") == 2
    assert "but the job makes vector (" in cli.err
    assert len(provider.seen) == sent
    assert cli.run(job, "--schema-change", "cast")["rows_ok"] == 3
    assert [len(row["vector"]) for row in folder.results()] == [4, 4, 4]
    assert cli("validate", job) == 0


def test_vectors_are_cast_with_the_rest(declared: Declared, cli: Any, provider: Any) -> None:
    vector = '{name: vector, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}'
    cli.run(declared.job(steps=f"[{vector}]", sink=", write: append"))
    sent = len(provider.seen)
    job = declared.job(steps=f"[{vector}]", sink=", write: append, columns: [text]")
    assert cli.run(job, "--schema-change", "cast")["rows_ok"] == 3
    assert declared.results() == [{"id": n, "text": None, "vector": [6.0, 6.0, 6.0]} for n in (1, 2, 3)]
    assert len(provider.seen) == sent
    assert cli("validate", job) == 0


def test_more_rows_than_fit_one_commit_are_cast_in_pieces(
    here: Declared, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.preparation.schema_evolution.BATCH_ROWS", 7)
    monkeypatch.setattr("pipelines.preparation.schema_evolution.CAST_COMMIT_ROWS", 10)
    monkeypatch.setattr("connectors.tables.parquet_parts.READ_BATCH_ROWS", 4)
    here.workspace.csv(100)
    cli.run(here.job(sink=", write: append"))
    assert cli.run(here.job(NEW, sink=", write: append"), "--schema-change", "cast")["requests"] == 0
    assert here.results() == [{"id": n, "score": str(n), "sure": None} for n in range(1, 101)]


def test_rebuild_names_the_remedy_if_the_declaration_has_changed(declared: Declared, cli: Any) -> None:
    cli.run(declared.job(sink=", write: append"))
    before, job = declared.results(), declared.job(NEW, sink=", write: append")
    assert cli("rebuild", job) == 2
    assert "cast the existing rows (run --schema-change cast)" in cli.err
    assert declared.results() == before
    cli.run(job, "--schema-change", "cast")
    cast = declared.results()
    assert cli("rebuild", job) == 2
    assert "3 of 3 rows cannot be written again" in cli.err
    assert "when the job was declared otherwise" in cli.err
    assert declared.results() == cast
    assert cli("rebuild", job, "--leave-out") == 0
    assert declared.results() == []


def test_rebuild_ends_a_backfill_that_was_killed_at_its_end(here: Declared, cli: Any, provider: Any) -> None:
    cli.run(here.job())
    killed(here.job(NEW), here.kind, "finish", "backfill")
    assert cli("rebuild", here.job(NEW)) == 0
    assert here.results() == [{"id": n, "score": str(n), "sure": True} for n in (1, 2, 3)]


def test_the_option_goes_to_every_job_of_a_folder(folder: Declared, cli: Any) -> None:
    for output, option in ((OLD, []), (NEW, ["--schema-change", "cast"])):
        jobs = [str(folder.job(output, name=name, sink=f"/{name}")) for name in ("one", "two")]
        assert cli("run", *jobs, "--quiet", *option) == 0


def test_a_comparison_writes_nothing_and_takes_no_such_option(folder: Declared, cli: Any) -> None:
    cli.run(folder.job())
    assert cli("run", folder.job(NEW), "--compare", "--limit", "1", "--schema-change", "cast") == 2
    assert "leave --schema-change out" in cli.err
    assert cli("run", folder.job(NEW), "--compare", "--limit", "1", "--quiet") == 0


def test_two_jobs_of_separate_commands_do_not_write_into_one_sink_at_the_same_time(
    here: Declared, cli: Any, provider: Any
) -> None:
    usual, free = provider.script, threading.Event()

    async def held(*asked: Any) -> Any:
        await asyncio.to_thread(free.wait, 30)

    provider.script = held
    first = run(here.job("mood", name="first"))
    while not provider.seen:
        time.sleep(0.005)
    (here.workspace.folder / "link").symlink_to(here.workspace.folder / "out")
    second = here.job("mood", name="second")
    second.write_text(second.read_text().replace(": out", ": ./link").replace("table: t", "table: T"))
    for command in (("run", second, "--quiet"), ("rebuild", second)):
        assert cli(*command) == 4
        assert "second: another job is writing to the same sink" in cli.err
        assert f"(job first, process {first.pid})" in cli.err
    first.send_signal(signal.SIGKILL)
    first.ended()
    free.set()
    provider.script = usual
    assert cli("run", second, "--quiet") == 0


def test_validate_reports_two_jobs_of_a_folder_with_the_same_sink(here: Declared, cli: Any) -> None:
    jobs = here.workspace.folder / "jobs"
    jobs.mkdir()
    for name in ("first", "second"):
        here.job("mood", name=name).rename(jobs / f"{name}.yaml")
    assert cli("validate", jobs) == 2
    (line,) = cli.err.splitlines()
    assert line.startswith(f"{jobs}/second.yaml: sink: ")
    assert f"is the sink of {jobs}/first.yaml too" in line


@pytest.mark.parametrize("change", ["cast", "backfill"])
def test_a_kill_between_the_two_swaps_of_delta_is_gone_on_with(
    workspace: Any, cli: Any, provider: Any, change: str
) -> None:
    declared = Declared(workspace, "delta", None)
    cli.run(declared.job())
    before, job = declared.results(), declared.job(NEW)
    killed(job, "delta", "_replace_by_build", change, "real(self, given) if given == 'errors' else os._exit(77)")
    assert declared.results() == before
    assert cli("run", job, "--quiet") == 2
    assert cli.run(job, "--schema-change", change)["rows_ok"] == 3
    assert declared.results() == [{"id": n, "score": str(n), "sure": True} for n in (1, 2, 3)]
    assert len(provider.answered) == 6
