"""A job's tables from Python: frames, connection, files, neighbours, two results side by side, and a run to await."""

import asyncio
import base64
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from aiohttp import web

from connectors.errors import JobError, Locked
from pipelines.analysis.comparison import compare
from pipelines.analysis.results import read_results
from pipelines.python_api.live_run import run
from pipelines.runtime.locks import job_lock

PARQUET, DUCKDB = "{parquet: out, columns: [text]}", "{duckdb: out.duckdb, table: answers, columns: [text]}"
DELTA = "{delta: out, columns: [text]}"
of_all_sinks = pytest.mark.parametrize(
    "embedded", [PARQUET, DUCKDB, DELTA], ids=["parquet", "duckdb", "delta"], indirect=True
)

VECTORS = {
    "text 1": [1, 0, 0],
    "text 2": [0.9, 0.1, 0],
    "text 3": [0.2, 1, 0],
    "text 4": [0, 0, 1],
    "asked": [0, 0.8, 0.1],
}
STEPS = (
    '[{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
    "params: {max_tokens: 9}}, "
    '{name: vector, endpoint: embeddings, provider: test, model: e, input: "{{ text }}", dimensions: 3, when: id < 5}]'
)


def vectors(path: str, body: dict[str, Any], count: int) -> dict[str, Any] | None:
    """Embeddings as VECTORS has them."""
    if path != "embeddings":
        return None
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    result = [base64.b64encode(np.array(VECTORS[text], "<f4").tobytes()).decode() for text in texts]
    data = [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(result)]
    used = {"prompt_tokens": 4 * len(texts), "total_tokens": 4 * len(texts)}
    return {"object": "list", "model": body["model"], "data": data, "usage": used}


def refusal(status: int, message: str, code: str | None = None) -> web.Response:
    """An error as the API words it."""
    return web.json_response({"error": {"message": message, "type": "t", "param": None, "code": code}}, status=status)


@pytest.fixture
def embedded(workspace: Any, provider: Any, cli: Any, request: pytest.FixtureRequest) -> Path:
    """A job that has been run: five rows, the first four with a vector."""
    workspace.csv(5)
    provider.script = vectors
    job: Path = workspace.job(steps=STEPS, sink=getattr(request, "param", PARQUET))
    assert cli.run(job)["rows_ok"] == 5
    return job


@of_all_sinks
def test_the_three_tables_are_lazy_frames_with_vectors_as_arrays(embedded: Path) -> None:
    tables = read_results(embedded)
    assert isinstance(tables.results, pl.LazyFrame)
    schema = tables.results.collect_schema()
    assert schema["vector"] == pl.Array(pl.Float32, 3)
    assert schema.names() == ["id", "text", "answer", "vector", "_run_id", "_row_fingerprint"]
    rows = tables.results.sort("id").collect()
    assert rows["answer"].to_list() == [f"TEXT {n}" for n in range(1, 6)]
    assert rows["vector"][4] is None
    assert tables.usage.collect()["step"].sort().to_list() == ["answer"] * 5 + ["vector"]
    assert tables.usage.collect_schema()["started_at"] == pl.Datetime("us", "UTC")
    assert tables.errors.collect().shape == (0, 14)
    assert tables.job.name == "job"


@of_all_sinks
def test_the_connection_has_tables_of_the_same_names_and_rows(embedded: Path) -> None:
    tables = read_results(str(embedded))
    with tables.duckdb() as db:
        assert db.execute("select id, answer from results order by id").fetchall()[0] == (1, "TEXT 1")
        assert db.execute("select count(*) from usage").fetchall() == [(6,)]
        assert db.execute("select count(*) from errors").fetchall() == [(0,)]
        names = [row[0] for row in db.execute("describe results").fetchall()]
        assert names == tables.results.collect_schema().names()


def test_an_open_connection_does_not_keep_the_next_run_from_writing(workspace: Any, cli: Any) -> None:
    workspace.csv(2)
    job = workspace.job(sink=DUCKDB)
    cli.run(job)
    tables = read_results(job)
    with tables.duckdb() as db:
        workspace.csv(4)
        assert cli.run(job)["rows_ok"] == 4
        assert db.execute("select count(*) from results").fetchall() == [(2,)]
    assert tables.results.select(pl.len()).collect().item() == 4


def test_paths_are_relative_to_the_current_folder(
    workspace: Any, cli: Any, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(embedded.parent)
    cli.run(Path("job.yaml"), "--sink", "elsewhere", "--limit", "2")
    assert read_results("job.yaml").results.collect().height == 5
    assert read_results("job.yaml", sink="elsewhere").results.collect().height == 2


def test_a_job_without_results_says_what_to_run(workspace: Any) -> None:
    workspace.csv(1)
    with pytest.raises(
        JobError, match=r"job.yaml:\d+: sink: nothing is in out yet; rowmill run .*job.yaml, or in a note"
    ):
        read_results(workspace.job())


def test_failed_rows_are_in_errors(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(3)
    provider.script = lambda path, body, count: (
        refusal(400, "no", "bad") if body["messages"][-1]["content"] == "text 2" else None
    )
    job = workspace.job()
    assert cli.run(job)["exit_code"] == 1
    errors = read_results(job).errors.select("id", "step", "error_class", "http_status", "code").collect()
    assert errors.rows() == [(2, "answer", "bad_request", 400, "bad")]


def test_files_are_found_by_the_name_in_their_column_and_nothing_outside_is(embedded: Path) -> None:
    tables = read_results(embedded)
    made = embedded.parent / "out" / "files" / "abc.txt"
    made.write_text("made")
    assert tables.media("files/abc.txt") == made
    assert tables.media("rows.csv").read_text().startswith("id,text")
    for name in ("files/../../rows.csv", "/etc/passwd", "../x"):
        with pytest.raises(JobError, match="is not below the workspace"):
            tables.media(name)
    with pytest.raises(JobError, match="there is no such file"):
        tables.media("files/gone.png")


@of_all_sinks
def test_the_neighbours_of_a_row_come_by_cosine_without_itself(embedded: Path) -> None:
    found = read_results(embedded).nearest(key=1, k=2)
    assert found.columns == ["similarity", "id", "text", "answer"]
    assert found["id"].to_list() == [2, 3]
    assert found["similarity"].to_list() == pytest.approx([0.9 / 0.82**0.5, 0.2 / 1.04**0.5])


def test_a_text_is_embedded_by_the_step_of_the_job_and_its_cost_is_returned(embedded: Path, provider: Any) -> None:
    tables = read_results(embedded)
    before = len(provider.seen)
    asked = tables.embed("asked")
    assert provider.seen[before:] == [
        ("embeddings", {"model": "e", "encoding_format": "base64", "dimensions": 3, "input": ["asked"]})
    ]
    assert (asked.input_tokens, asked.cost_usd) == (4, pytest.approx(4e-6))
    assert tables.nearest(text=asked, k=1)["id"].to_list() == [3]
    assert len(provider.seen) == before + 1
    assert tables.nearest(text="asked", k=1).equals(tables.nearest(text=asked, k=1))
    assert tables.usage.collect().height == 6


def test_a_search_without_vectors_is_refused(embedded: Path, provider: Any) -> None:
    tables = read_results(embedded)
    for arguments, result in (
        ({}, "needs either a key or a text"),
        ({"key": 99}, "no row has the key 99"),
        ({"key": 5}, "has no vector"),
        ({"key": (1, 2)}, "the key is"),
        ({"key": 1, "column": "vectr"}, "vectr is not a column of vectors; did you mean vector?"),
    ):
        with pytest.raises(JobError, match=result):
            tables.nearest(**arguments)
    provider.script = lambda path, body, count: refusal(401, "who are you")
    with pytest.raises(JobError, match="embed: test answered: who are you"):
        tables.embed("asked")


def test_two_results_are_laid_side_by_side_by_their_key(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(4)
    first = workspace.job(sink=PARQUET)
    second = workspace.job("other", sink="{parquet: other, columns: [text]}")
    cli.run(first)
    provider.script = lambda path, body, count: (
        provider._usual(path, {**body, "messages": [{"content": "else"}]})
        if body["messages"][-1]["content"] == "text 3"
        else None
    )
    cli.run(
        second, "--set", "steps.answer.params.max_tokens=21", "--sink", str(workspace.folder / "other"), "--limit", "3"
    )
    report = compare(read_results(first), read_results(second))
    assert report.agreement.rows() == [("answer", 3, 2, pytest.approx(2 / 3))]
    assert report.differing.rows(named=True) == [{"id": 3, "text": "text 3", "answer_a": "TEXT 3", "answer_b": "ELSE"}]
    assert (report.only_a, report.only_b) == (1, 0)
    with pytest.raises(JobError, match="text is not an output of both; both have answer"):
        compare(read_results(first), read_results(second), ["text"])


async def test_an_awaited_run_returns_the_report_of_the_command_line(workspace: Any) -> None:
    workspace.csv(6)
    job = workspace.job()
    report = await run(job, limit=4, changes={"limits.concurrency": 2})
    assert (report.rows, report.rows_ok, report.requests, report.exit_code) == (4, 4, 4, 0)
    assert report.cost_usd == pytest.approx(4 * 20e-6)
    assert "<th>rows done</th><td>4 of 4</td>" in report._repr_html_()
    assert read_results(job).results.collect().height == 4
    assert (await run(job)).rows_reused == 4


async def test_a_run_that_cannot_begin_raises_what_is_wrong(workspace: Any) -> None:
    with pytest.raises(JobError, match=r"rows\.csv"):
        await run(workspace.job())
    workspace.csv(1)
    (workspace.folder / ".rowmill").mkdir(exist_ok=True)
    with job_lock(workspace.folder / ".rowmill", "job"), pytest.raises(Locked, match="another run of this job"):
        await run(workspace.job())


async def test_an_interrupt_lets_what_is_in_flight_land_and_the_next_run_goes_on(workspace: Any, provider: Any) -> None:
    workspace.csv(200)
    job = workspace.job(limits="{concurrency: 2}")
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    provider.latency = 0.05

    def tell_the_tenth(path: str, body: dict[str, Any], count: int) -> None:
        if count == 10:
            loop.call_soon_threadsafe(begun.set)

    provider.script = tell_the_tenth
    running = asyncio.create_task(run(job))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    first = len(provider.answered)
    assert 10 <= first < 200
    assert read_results(job).usage.filter(pl.col("error_class").is_not_null()).collect().height == 0
    provider.latency = 0
    report = await run(job)
    assert (report.rows_ok, report.rows_reused, report.requests) == (200, first, 200 - first)


async def test_a_notebook_sees_how_far_the_run_is(
    workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []

    def display(bundle: dict[str, str], raw: bool, display_id: bool = False) -> Any:
        pages.append(bundle["text/html"])
        return SimpleNamespace(update=display)

    notebook, shown = ModuleType("IPython"), ModuleType("IPython.display")
    notebook.get_ipython = lambda: object()  # type: ignore[attr-defined]
    shown.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setattr("pipelines.python_api.live_run.UPDATE_SECONDS", 0.05)
    workspace.csv(30)
    provider.latency = 0.1
    await run(workspace.job(limits="{concurrency: 2}"))
    assert pages[0] == "<div>job.yaml: starting</div>"
    assert any('<progress max="30"' in page and " of 30 rows" in page for page in pages[1:-1])
    assert pages[-1].startswith("<div>job.yaml: 30 of 30 rows done in ")


def test_results_tell_themselves_in_a_notebook(embedded: Path) -> None:
    page = read_results(embedded)._repr_html_()
    with duckdb.connect() as db:
        ((cost,),) = db.execute(f"select sum(cost_usd) from '{embedded.parent}/out/usage/*.parquet'").fetchall()
    assert "5 rows: id BIGINT, text VARCHAR, answer VARCHAR" in page
    assert f"6 exchanges, ${cost:.6f}" in page


def test_importing_the_face_brings_neither_polars_nor_altair_and_names_are_functions() -> None:
    code = (
        "import sys, pipelines, pipelines.cli\n"
        "assert not {'polars', 'altair', 'IPython'} & set(sys.modules)\n"
        "from pipelines import Results, compare, read_results, run, score\n"
        "assert all(callable(one) for one in (Results, compare, read_results, run, score))\n"
        "from pipelines import read_results as again, run as once_more\n"
        "assert again is read_results and once_more is run\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
