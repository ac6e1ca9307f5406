"""The report of a run that ends before its rows are sent, and of the probes that it sent before."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, ScriptedProvider, Workspace, error_reply

EMBEDDING = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}"}]'


@contextmanager
def opened_elsewhere(path: Path) -> Iterator[None]:
    """Open the DuckDB file in another process."""
    code = f"import duckdb, sys; db = duckdb.connect({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield
        finally:
            process.communicate(b"")


def test_a_sink_that_another_program_holds_is_reported_with_the_rows_and_the_cost(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(3)
    job = workspace.job(
        sink="{duckdb: out.duckdb, table: t}", retry="{attempts: 3, longest_wait: 0.02, longest_hold: 0.1}"
    )
    first = cli.run(job)
    workspace.csv(5)
    with opened_elsewhere(workspace.folder / "out.duckdb"):
        report = cli.run(job)
        assert cli("run", job) == 3
    assert cli.out == ""
    assert "held open by another program" in report["stopped"]
    unknown = dict.fromkeys(("run_id", "rows_ok", "rows_reused", "rows_failed", "rows_left", "rows_out"))
    known = {"job": "job", "rows": 5, "exit_code": 3, "tables": first["tables"]}
    spent = {"requests": 0, "retries": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
    assert report == unknown | known | spent | {"stopped": report["stopped"], "seconds": report["seconds"]}
    assert list(report) == list(first)
    assert len(provider.seen) == 3
    assert cli.run(job)["rows_ok"] == 5


def test_the_cost_of_a_failed_probe_of_dimensions_is_reported(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(3)
    provider.script = lambda *_: error_reply(503, "down")
    job = workspace.job(steps=EMBEDDING, retry="{attempts: 3, longest_wait: 0.01, longest_hold: 0.1}")
    report = cli.run(job)
    assert report["exit_code"] == 3
    assert "could not be determined" in report["stopped"]
    assert (report["rows"], report["rows_ok"], report["rows_failed"], report["rows_left"]) == (3, 0, 0, 3)
    assert (report["requests"], report["retries"]) == (len(provider.seen), len(provider.seen) - 1)
    assert report["requests"] > 0
    assert report["run_id"] is not None
    provider.script = lambda *_: None
    again = cli.run(job)
    assert (again["exit_code"], again["run_id"]) == (0, report["run_id"])


def test_the_row_that_probed_dimensions_counts_as_requested(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(4)
    job = workspace.job(steps=EMBEDDING)
    report = cli.run(job)
    assert (report["rows_ok"], report["rows_reused"], report["requests"]) == (4, 0, len(provider.seen))
    again = cli.run(job)
    assert (again["rows_ok"], again["rows_reused"], again["requests"]) == (4, 4, 0)


@pytest.mark.parametrize("command", ["run", "validate"])
def test_an_unencrypted_base_url_in_the_environment_is_a_warning_if_it_is_used(
    workspace: Workspace, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://192.0.2.1/v1")
    workspace.csv(0)
    used = workspace.job(steps='[{name: a, endpoint: chat, model: m, messages: [{user: "{{ text }}"}]}]')
    assert cli(command, used) == 0
    warning = "OPENAI_BASE_URL: http without encryption to another machine, the key goes with it; write https"
    assert warning in cli.err
    assert cli(command, workspace.job("other")) == 0
    assert "OPENAI_BASE_URL" not in cli.err
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert cli(command, used) == 0
    assert "OPENAI_BASE_URL" not in cli.err


def test_the_warning_is_printed_before_anything_is_sent(
    workspace: Workspace,
    provider: ScriptedProvider,
    capsys: pytest.CaptureFixture[str],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.config.workspace.is_unencrypted", lambda url: True)
    seen: list[str] = []
    look: Callable[..., None] = lambda *_: seen.append(capsys.readouterr().err)  # noqa: E731
    provider.script = look
    workspace.csv(1)
    assert cli("run", workspace.job()) == 0
    assert "http without encryption" in seen[0]


@pytest.mark.parametrize(
    "function", ["pipelines.execution.invocation.prepare_job", "pipelines.config.job_graph.sort_jobs"]
)
def test_a_defect_before_the_first_row_fails_no_row(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("unexpected")

    workspace.csv(2)
    job = workspace.job()
    monkeypatch.setattr(function, broken)
    assert cli("run", job, "--json") == 3
    (line,) = cli.out.splitlines()
    report = json.loads(line)
    assert (report["exit_code"], report["rows"]) == (3, None)
    assert report["stopped"].startswith("a defect of Rowmill, printed on stderr: please report it")
    first, second, *_, last = cli.err.splitlines()
    assert "a defect of Rowmill; please report it" in first
    assert (second, last) == ("Traceback (most recent call last):", "ZeroDivisionError: unexpected")
    assert (cli("run", job), cli.out) == (3, "")
    assert cli("run", job, "--log", "json", "--quiet") == 3
    events = [json.loads(line) for line in cli.err.splitlines()]
    assert [(event["event"], event["message"]) for event in events] == [("defect", "ZeroDivisionError")]
    assert provider.seen == []
