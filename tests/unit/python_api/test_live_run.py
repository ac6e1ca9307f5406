"""Runs from Python: frames as rows, jobs as dicts and models, reports with tables, errors, and interrupts."""

import inspect
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from pydantic import BaseModel, Field

from connectors.errors import JobError, Locked
from pipelines import Job, read_results, retry, retry_sync, run, run_sync
from pipelines.runtime.locks import job_lock
from tests.conftest import chat_reply, error_reply

STEP: dict[str, Any] = {
    "name": "answer",
    "endpoint": "chat",
    "provider": "test",
    "model": "m",
    "messages": [{"user": "{{ text }}"}],
    "params": {"max_tokens": 20},
}
JOB: dict[str, Any] = {"name": "frame", "key": "id", "steps": [STEP]}


def frame(rows: int) -> pl.DataFrame:
    return pl.DataFrame({"id": range(1, rows + 1), "text": [f"text {n}" for n in range(1, rows + 1)]})


async def test_rows_of_every_library_are_those_of_one_job(workspace: Any, provider: Any) -> None:
    folder = workspace.folder
    report = await run(JOB, rows=frame(3), workspace=folder)
    assert (report.rows, report.rows_ok, report.requests, report.exit_code) == (3, 3, 3, 0)
    assert report.results.sort("id").select("id", "answer").collect().rows() == [
        (1, "TEXT 1"),
        (2, "TEXT 2"),
        (3, "TEXT 3"),
    ]
    assert report.usage.collect().height == 3
    assert report.errors.collect().height == 0
    rows = frame(4)
    again = await run(Job.model_validate(JOB), rows=rows.to_pandas(), workspace=folder)
    assert (again.rows_ok, again.rows_reused, again.requests) == (4, 3, 1)
    relation = duckdb.sql("select * from rows where id <> 2")
    third = await run(JOB, rows=relation, workspace=folder, limit=2)
    assert (third.rows, third.rows_reused, third.requests) == (2, 2, 0)
    assert read_results(JOB, workspace=folder).results.collect().height == 4
    assert [path.name for path in (folder / ".rowmill").glob("scratch-*")] == []


class Answer(BaseModel):
    topic: str
    urgency: int = Field(ge=1, le=5)


def test_a_class_makes_typed_columns_and_the_job_file_of_it_continues_the_job(
    workspace: Any, provider: Any, cli: Any
) -> None:
    provider.script = lambda path, body, count: chat_reply('{"topic": "bug", "urgency": 4}')
    job = Job.model_validate({**JOB, "steps": [{**STEP, "output": Answer}], "sink": {"parquet": "out"}})
    report = run_sync(job, rows=frame(2), workspace=workspace.folder)
    schema = report.results.collect_schema()
    assert (schema["topic"], schema["urgency"]) == (pl.String, pl.Int64)
    file = workspace.write("frame.yaml", job.to_yaml())
    assert run_sync(file, rows=frame(2)).rows_reused == 2
    workspace.csv(2)
    values = {**job.to_values(), "source": {"csv": "rows.csv", "key": "id"}}
    del values["key"]
    workspace.write("frame.yaml", Job.model_validate(values).to_yaml())
    assert cli.run(file)["rows_reused"] == 2


async def test_failed_rows_a_budget_and_audits_raise_nothing(workspace: Any, provider: Any) -> None:
    def refuse_one(path: str, body: dict[str, Any], count: int) -> Any:
        return error_reply(400, "no") if body["messages"][-1]["content"] == "text 2" else None

    provider.script = refuse_one
    folder = workspace.folder
    failed = run_sync(JOB, rows=frame(3), workspace=folder)
    assert (failed.exit_code, failed.rows_failed) == (1, 1)
    assert failed.errors.select("id", "error_class").collect().rows() == [(2, "bad_request")]
    stopped = run_sync(JOB, rows=frame(9), workspace=folder, budget_usd=0.00005)
    assert (stopped.exit_code, stopped.rows_left) == (3, 6)
    assert str(stopped.stopped).startswith("budget: ")
    audited = {**JOB, "name": "audited", "audits": [{"name": "none", "sql": "select 1"}]}
    assert run_sync(audited, rows=frame(1), workspace=folder).exit_code == 5


async def test_a_retry_requests_failed_rows_that_a_run_leaves_alone(workspace: Any, provider: Any) -> None:
    folder = workspace.folder
    provider.script = lambda path, body, count: error_reply(400, "no") if count == 1 else None
    job = {**JOB, "limits": {"concurrency": 1}}
    assert (await run(job, rows=frame(3), workspace=folder)).rows_failed == 1
    assert (await run(job, rows=frame(3), workspace=folder)).requests == 0
    other = await retry(job, rows=frame(3), workspace=folder, classes=("length", "input"))
    assert (other.requests, other.rows_failed) == (0, 1)
    done = retry_sync(job, rows=frame(3), workspace=folder, classes="bad_request")
    assert (done.requests, done.rows_ok, done.errors.collect().height) == (1, 3, 0)
    with pytest.raises(JobError, match="--class lenght: no such error class"):
        await retry(job, rows=frame(3), workspace=folder, classes="lenght")


def test_both_ways_to_run_have_the_same_parameters_in_a_notebook() -> None:
    for awaited, blocking in ((run, run_sync), (retry, retry_sync)):
        assert inspect.signature(awaited) == inspect.signature(blocking)
        assert inspect.iscoroutinefunction(awaited) and not inspect.iscoroutinefunction(blocking)
    assert list(inspect.signature(run_sync).parameters)[:3] == ["job", "rows", "workspace"]


async def test_a_mistake_raises_one_line_and_a_held_lock_locked(workspace: Any, provider: Any) -> None:
    folder = workspace.folder
    for values, rows, message in [
        ({**JOB, "key": "idd"}, frame(1), "key: no column idd in the source; did you mean id?"),
        (
            {**JOB, "steps": [{**STEP, "modell": "x"}]},
            frame(1),
            "steps.answer.modell: no such key; did you mean model?",
        ),
        (JOB, frame(1).with_columns(_key=1), "rows: has a column _key, a name that Rowmill reserves; rename it"),
        (JOB, [1], "rows: found list, which is not a table"),
    ]:
        with pytest.raises(JobError) as caught:
            await run(values, rows=rows, workspace=folder)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
    with job_lock(folder / ".rowmill", "frame"), pytest.raises(Locked, match="another run of this job"):
        await run(JOB, rows=frame(1), workspace=folder)
    assert provider.seen == []


@pytest.fixture
def ctrl_c(provider: Any) -> Iterator[None]:
    """Ctrl-C at the tenth request, with Python's own handler, as in scripts and in the cells of a notebook."""
    main = threading.main_thread().ident
    assert main is not None
    provider.latency = 0.05

    def interrupt_at_the_tenth(path: str, body: dict[str, Any], count: int) -> None:
        if count == 10:
            signal.pthread_kill(main, signal.SIGINT)

    provider.script = interrupt_at_the_tenth
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_job(workspace: Any, provider: Any) -> None:
    job = {**JOB, "limits": {"concurrency": 2}}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run_sync(job, rows=frame(200), workspace=workspace.folder)
    first = len(provider.answered)
    assert 10 <= first < 200
    provider.latency = 0
    report = run_sync(job, rows=frame(200), workspace=workspace.folder)
    assert (report.rows_ok, report.rows_reused, report.requests) == (200, first, 200 - first)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_a_script_lets_what_is_in_flight_land_and_the_next_call_goes_on(
    workspace: Any, provider: Any
) -> None:
    interrupted_job(workspace, provider)


@pytest.mark.usefixtures("ctrl_c")
async def test_ctrl_c_while_a_loop_is_running_does_the_same(workspace: Any, provider: Any) -> None:
    interrupted_job(workspace, provider)


async def test_rows_by_batch_are_answered(workspace: Any) -> None:
    step = {**STEP, "provider": "local", "model": "rowmill-sentiment"}
    report = await run({**JOB, "steps": [step]}, rows=frame(3), workspace=workspace.folder, delivery="batch")
    assert (report.rows_ok, report.exit_code) == (3, 0)


def test_the_state_folder_may_be_elsewhere(workspace: Any, tmp_path: Path) -> None:
    settings = workspace.folder / "rowmill.yaml"
    settings.write_text(f"state: {tmp_path}/elsewhere\n{settings.read_text()}")
    report = run_sync(JOB, rows=frame(1), workspace=workspace.folder)
    assert dict(report.tables or {})["results"] == f"{tmp_path}/elsewhere/tables/frame/results/*.parquet"
    assert report.results.collect().height == 1
