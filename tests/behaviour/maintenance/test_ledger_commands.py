"""Ledger maintenance: show, prune, export, migrations, and `keep_answers: committed`."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from connectors.errors import JobError
from pipelines.ledger import ledger_file
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.maintenance import retention
from pipelines.runtime.locks import job_lock

Read = Callable[..., list[dict[str, Any]]]


def sql(workspace: Any, text: str) -> list[tuple[Any, ...]]:
    """Return rows of the workspace's ledger."""
    with closing(sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite")) as db, db:
        return db.execute(text).fetchall()


def ledger(cli: Any, workspace: Any, *arguments: str) -> int:
    code: int = cli("ledger", *arguments, "--workspace", workspace.folder)
    return code


def test_show_prints_sizes_answers_and_jobs(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(3)
    cli.run(workspace.job())
    assert ledger(cli, workspace, "show", "--json") == 0
    summary = json.loads(cli.out)
    assert (summary["answers"], summary["exchanges"], summary["answers_in_files"]) == (3, 3, 0)
    assert summary["ledger_bytes"] > 4096
    assert summary["bytes_per_answer"] > 100
    (job,) = summary["jobs"]
    assert {name: job[name] for name in ("job", "runs", "open_runs", "exchanges", "answers", "cost_usd")} == {
        "job": "job", "runs": 1, "open_runs": 0, "exchanges": 3, "answers": 3, "cost_usd": pytest.approx(6e-5),
    }  # fmt: skip
    assert ledger(cli, workspace, "show") == 0
    assert "3 answers since" in cli.out


def test_a_missing_ledger_is_an_error(workspace: Any, cli: Any) -> None:
    assert ledger(cli, workspace, "show") == 2
    assert "there is no ledger yet; run a job first" in cli.err


def test_after_a_prune_rows_and_usage_stay_and_rebuild_refuses_to_lose_rows(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(5)
    job = workspace.job()
    cli.run(job)
    assert ledger(cli, workspace, "prune", "--job", "job", "--answers-only", "--dry-run") == 0
    assert cli.out.startswith("would delete 5 answers and 0 commit records; they take ")
    assert cli.out.endswith(" of free disk meanwhile\n")
    assert sql(workspace, "select count(*) from answers") == [(5,)]
    assert ledger(cli, workspace, "prune", "--job", "job", "--answers-only") == 0
    assert cli.out.startswith("deleted 5 answers and 0 commit records; freed ")
    assert sql(workspace, "select (select count(*) from answers), (select count(*) from exchanges)") == [(0, 5)]
    again = cli.run(job)
    assert (again["requests"], again["rows_reused"]) == (0, 5)
    assert cli("rebuild", job) == 2
    assert "5 of 5 rows cannot be written again" in cli.err
    assert len(read(workspace.folder / "out")) == 5
    assert cli("rebuild", job, "--leave-out") == 0
    assert "left out 5 rows" in cli.out
    assert read(workspace.folder / "out") == []
    assert len(read(workspace.folder / "out", "usage")) == 5
    assert cli.run(job)["requests"] == 5


def test_after_a_prune_rebuild_refuses_to_lose_errors(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    from tests.conftest import chat_reply

    provider.script = lambda path, body, count: chat_reply("", finish="length")
    workspace.csv(3)
    job = workspace.job()
    assert cli.run(job)["rows_failed"] == 3
    assert ledger(cli, workspace, "prune", "--job", "job") == 0
    assert cli("rebuild", job) == 2
    assert "3 of 3 errors cannot be written again, since their record was pruned from the ledger" in cli.err
    assert len(read(workspace.folder / "out", "errors")) == 3
    assert cli.run(job)["requests"] == 0
    assert cli("rebuild", job, "--leave-out") == 0
    assert cli.out.splitlines()[:2] == [
        "wrote 0 rows again; nothing was sent",
        f"left out 3 errors whose record was pruned: rowmill run {job} sends these rows again",
    ]
    shutil.rmtree(workspace.folder / "out")
    assert cli("rebuild", job) == 0
    assert "the ledger has no record of the job's rows" in cli.out


def test_a_rebuild_of_lost_tables_counts_the_rows_whose_answers_are_gone(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    workspace.csv(5)
    job = workspace.job()
    cli.run(job)
    sql(workspace, "delete from answers where id <= 2")
    shutil.rmtree(workspace.folder / "out")
    assert cli("rebuild", job) == 0
    assert cli.out.splitlines()[:2] == [
        "wrote 3 rows again; nothing was sent",
        f"left out 2 rows whose answers were pruned from the ledger: rowmill run {job} sends them again",
    ]
    assert len(read(workspace.folder / "out")) == 3


def test_prune_by_age_deletes_files_of_large_answers(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import chat_reply

    provider.script = lambda path, body, count: chat_reply("long " * 60_000)
    workspace.csv(2)
    cli.run(workspace.job())
    files = workspace.folder / ".rowmill" / "answers"
    assert len([path for path in files.rglob("*") if path.is_file()]) == 2
    old = now_us() - round(timedelta(days=100).total_seconds() * 1e6)
    sql(workspace, f"update answers set at = {old} where id = (select min(id) from answers)")
    assert ledger(cli, workspace, "prune", "--older-than", "90d") == 0
    assert cli.out.startswith("deleted 1 answers and 0 commit records; freed ")
    assert len([path for path in files.rglob("*") if path.is_file()]) == 1
    assert sql(workspace, "select count(*) from answers") == [(1,)]
    assert ledger(cli, workspace, "prune", "--older-than", "90 days") == 2
    assert "--older-than 90 days: not an age" in cli.err


VECTORS = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}", dimensions: 4096}]'


def reply_with_long_vectors(path: str, body: Any, count: int) -> dict[str, Any]:
    """Return a reply of 16 KB a text."""
    data = [{"index": place, "embedding": [place, *[0.5] * 4095]} for place in range(len(body["input"]))]
    return {"data": data, "model": "e", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def test_prune_deletes_a_shared_file_with_its_last_answer(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    provider.script = reply_with_long_vectors
    workspace.csv(20)
    job = workspace.job(steps=VECTORS)
    assert cli.run(job)["requests"] == 1
    folder = workspace.folder / ".rowmill" / "answers"
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    assert ledger(cli, workspace, "show", "--json") == 0
    summary = json.loads(cli.out)
    assert (summary["answers"], summary["answers_in_files"]) == (20, 20)
    assert summary["jobs"][0]["answer_bytes"] > 20 * 4 * 4096
    rows = read(workspace.folder / "out")
    assert cli("rebuild", job) == 0
    assert read(workspace.folder / "out") == rows
    old = now_us() - round(timedelta(days=100).total_seconds() * 1e6)
    sql(workspace, f"update answers set at = {old} where id < 20")
    # As left by a process that was killed before it recorded them in the ledger.
    (file.parent / "70000000042").write_bytes(file.read_bytes())
    (file.parent / "unfinished.7.part").write_bytes(b"\xff" * 9)
    assert ledger(cli, workspace, "prune", "--older-than", "90d", "--answers-only") == 0
    assert cli.out.startswith("deleted 19 answers")
    assert [path for path in folder.rglob("*") if path.is_file()] == [file]
    sql(workspace, f"update answers set at = {old}")
    assert ledger(cli, workspace, "prune", "--older-than", "90d", "--answers-only") == 0
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_shared_file_is_deleted_when_all_of_its_rows_are_committed(workspace: Any, provider: Any, cli: Any) -> None:
    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text() + "keep_answers: committed\n")
    provider.script = reply_with_long_vectors
    workspace.csv(20)
    job = workspace.job(steps=VECTORS)
    assert cli.run(job)["rows_ok"] == 20
    assert sql(workspace, "select count(*) from answers") == [(0,)]
    assert [path for path in (workspace.folder / ".rowmill" / "answers").rglob("*") if path.is_file()] == []
    assert cli.run(job)["requests"] == 0


def test_prune_gone_deletes_only_the_answers_of_deleted_jobs(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(3)
    gone = workspace.job("old", sink="{parquet: old}")
    cli.run(gone)
    steps = '[{name: a, endpoint: chat, provider: test, model: m, messages: [{user: "also {{ text }}"}]}]'
    source = "{csv: rows.csv, key: id, where: id < 3}"
    cli.run(workspace.job("kept", sink="{parquet: kept}", source=source, steps=steps))
    gone.unlink()
    assert ledger(cli, workspace, "prune", "--gone") == 0
    assert cli.out.startswith("deleted 3 answers and 1 commit records; freed ")
    assert sql(workspace, "select l.job, count(*) from answers a join legs l on l.id = a.leg group by 1") == [
        ("kept", 2)
    ]
    workspace.write("invalid.yaml", "name: [\n")
    assert ledger(cli, workspace, "prune", "--gone") == 2
    assert "until then it is not known which jobs are gone" in cli.err


def test_prune_requires_a_selection_of_known_jobs(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(1)
    cli.run(workspace.job())
    assert ledger(cli, workspace, "prune") == 2
    assert "nothing to delete is selected" in cli.err
    assert ledger(cli, workspace, "prune", "--job", "jb") == 2
    assert "the ledger knows no such job" in cli.err


def test_answers_of_an_open_run_are_never_deleted(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(4)
    job = workspace.job(limits="{concurrency: 1}")
    provider.script = lambda path, body, count: error_reply(401, "no such key") if count == 2 else None
    assert cli.run(job)["exit_code"] == 3
    assert ledger(cli, workspace, "prune", "--job", "job") == 0
    assert "job: has an open run, so its answers stay" in cli.err
    assert cli.out.startswith("deleted 0 answers")
    assert cli.run(job)["requests"] == 2


def test_prune_is_refused_during_a_run(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(1)
    cli.run(workspace.job())
    with job_lock(workspace.folder / ".rowmill", "job"):
        assert ledger(cli, workspace, "prune", "--older-than", "1d") == 4
    assert "another run of this job is under way" in cli.err
    with job_lock(workspace.folder / ".rowmill", "its-first-run"):
        assert ledger(cli, workspace, "prune", "--older-than", "1d") == 4


def test_export_writes_exchanges_runs_and_answers(workspace: Any, provider: Any, cli: Any, read: Read) -> None:
    from tests.conftest import error_reply

    workspace.csv(3)
    provider.script = lambda path, body, count: error_reply(400, "no") if "text 1" in str(body) else None
    report = cli.run(workspace.job())
    target = workspace.folder / "copy"
    assert ledger(cli, workspace, "export", "-o", str(target)) == 0
    assert sorted(path.name for path in target.iterdir()) == ["answers.parquet", "exchanges.parquet", "runs.parquet"]
    exchanges = pq.read_table(target / "exchanges.parquet")
    usage = read(workspace.folder / "out", "usage", "keys")
    assert sorted(exchanges.drop_columns(["message"]).to_pylist(), key=lambda row: str(row["keys"])) == usage
    assert sorted(filter(None, exchanges.column("message").to_pylist())) == ["no"]
    (run,) = pq.read_table(target / "runs.parquet").to_pylist()
    # The ledger also has the steps and times, for the HTML report.
    stored = json.loads(run["report"]).items()
    stored_report = {name: value for name, value in stored if name not in ("steps", "times")}
    assert (run["run_id"], run["exit_code"], run["state"], stored_report) == (
        report["run_id"],
        1,
        "closed",
        report,
    )
    answers = pq.read_table(target / "answers.parquet").to_pylist()
    assert sorted((row["step"], row["error"] is None, row["in_file"]) for row in answers) == [
        ("answer", False, False), ("answer", True, False), ("answer", True, False),
    ]  # fmt: skip
    assert ledger(cli, workspace, "export", "-o", str(workspace.folder / "one.parquet")) == 0
    assert pq.read_table(workspace.folder / "one.parquet").num_rows == 3


def test_answers_are_deleted_when_their_rows_are_committed_and_failed_ones_stay(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    from tests.conftest import error_reply

    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text() + "keep_answers: committed\n")
    workspace.csv(5)
    job = workspace.job()
    provider.script = lambda path, body, count: error_reply(400, "no") if "text 1" in str(body) else None
    assert cli.run(job)["exit_code"] == 1
    assert sql(workspace, "select error is null, count(*) from answers group by 1") == [(0, 1)]
    again = cli.run(job)
    assert (again["requests"], again["rows_reused"], again["rows_failed"]) == (0, 4, 1)
    assert cli("rebuild", job) == 2
    assert "4 of 4 rows cannot be written again" in cli.err
    assert len(read(workspace.folder / "out")) == 4


def test_a_replaced_table_is_written_from_its_answers_which_are_kept(workspace: Any, cli: Any, read: Read) -> None:
    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text() + "keep_answers: committed\n")
    workspace.csv(3)
    job = workspace.job(sink="{parquet: out, write: replace}")
    assert cli.run(job)["requests"] == 3
    again = cli.run(job)
    assert (again["requests"], again["rows_reused"], len(read(workspace.folder / "out"))) == (0, 3, 3)


def test_answers_of_many_commits_are_deleted_in_batches(
    workspace: Any, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "DELETE_BATCH", 3)
    workspace.csv(9)
    job = workspace.job()
    for rows in (2, 4, 6, 7):
        cli.run(job, "--limit", str(rows))
    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text() + "keep_answers: committed\n")
    assert cli.run(job)["requests"] == 2
    assert sql(workspace, "select count(*), count(rows) from commits") == [(5, 0)]
    assert sql(workspace, "select count(*) from answers") == [(0,)]
    assert cli.run(job)["requests"] == 0
    assert len(read(workspace.folder / "out")) == 9


def test_answers_of_a_stopped_run_stay_until_it_is_finished(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text() + "keep_answers: committed\n")
    workspace.csv(4)
    job = workspace.job(limits="{concurrency: 1}")
    provider.script = lambda path, body, count: error_reply(401, "no such key") if count == 2 else None
    assert cli.run(job)["exit_code"] == 3
    assert sql(workspace, "select count(*) from answers") == [(2,)]
    assert cli.run(job)["exit_code"] == 0
    assert sql(workspace, "select count(*) from answers") == [(0,)]


def test_an_older_ledger_is_migrated_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    old = Ledger(path)
    old.write("insert into runs (run_id, job, state, started_at) values ('r', 'j', 'closed', 1)")
    old.write("pragma user_version = 1")
    old.close()
    steps = ("create table notes (text text); insert into notes values ('a')", "alter table notes add column more text")
    monkeypatch.setattr(ledger_file, "MIGRATIONS", steps)
    monkeypatch.setattr(ledger_file, "VERSION", 3)
    with closing(ledger_file.open_ledger_file(path)) as db:
        assert db.execute("pragma user_version").fetchall() == [(3,)]
        assert db.execute("select text, more from notes").fetchall() == [("a", None)]
        assert db.execute("select run_id from runs").fetchall() == [("r",)]
    with closing(ledger_file.open_ledger_file(path)) as db:
        assert db.execute("select count(*) from notes").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "missing_tables", [("vector_sizes",), ("vector_sizes", "batches", "batch_lines", "schedule"), ()]
)
def test_a_ledger_of_version_1_gets_its_missing_tables(
    workspace: Any, provider: Any, cli: Any, missing_tables: tuple[str, ...]
) -> None:
    """For a while, tables were added without a new version."""
    workspace.csv(2)
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}"}]'
    job = workspace.job(steps=steps)
    assert cli("run", job, "--quiet") == 0
    schema = sql(workspace, "select name, sql from sqlite_master order by name")
    added_tables = ("group_terms", "structured_modes", "last_answers", "packed_answers", "childless_rows")
    sql(workspace, "alter table answers rename to new_answers")
    (former,) = (part for part in ledger_file._FIRST.split(";") if "create table answers" in part)
    sql(workspace, former)
    sql(workspace, "insert into answers select * from new_answers")
    for table in (*missing_tables, *added_tables, "answer_index", "answer_tail", "new_answers"):
        sql(workspace, f"drop table {table}")
    for table, column in (("exchanges", "service_tier"), ("exchanges", "tool_calls"), ("commits", "emptied")):
        sql(workspace, f"alter table {table} drop column {column}")
    sql(workspace, "create table modes (provider text, model text, structured text)")
    sql(workspace, "pragma user_version = 1")
    assert cli("plan", job) == 0, cli.err
    assert sql(workspace, "select name, sql from sqlite_master order by name") == schema
    assert sql(workspace, "pragma user_version") == [(ledger_file.VERSION,)]
    assert cli.run(job)["requests"] == 0


def test_a_failed_migration_leaves_the_older_ledger_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    failing = (*ledger_file.MIGRATIONS, "create table notes (text text); alter table none add column x")
    monkeypatch.setattr(ledger_file, "MIGRATIONS", failing)
    monkeypatch.setattr(ledger_file, "VERSION", 1 + len(failing))
    with pytest.raises(JobError, match="no such table: none"):
        ledger_file.open_ledger_file(path)
    monkeypatch.undo()
    with closing(ledger_file.open_ledger_file(path)) as db:
        assert db.execute("select name from sqlite_master where name = 'notes'").fetchall() == []


def test_a_newer_ledger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(ledger_file.open_ledger_file(path)) as db:
        db.execute("pragma user_version = 99")
    with pytest.raises(JobError, match="newer Rowmill"):
        ledger_file.open_ledger_file(path)
    assert os.path.getsize(path) > 0  # noqa: PTH202
