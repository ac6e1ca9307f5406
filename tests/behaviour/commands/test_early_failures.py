"""What `--json` tells where a run ends before its rows set out, and of what was sent before that."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import error_reply

UNKNOWN_LENGTH = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}"}]'


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program has the DuckDB file open."""
    hold = f"import duckdb, sys; db = duckdb.connect({str(path)!r}); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.communicate(b"")


def test_a_sink_that_is_held_from_the_start_leaves_the_number_of_rows_and_the_cost_known(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(3)
    job = workspace.job(
        sink="{duckdb: out.duckdb, table: t}", retry="{attempts: 3, longest_wait: 0.02, longest_hold: 0.1}"
    )
    first = cli.run(job)
    workspace.csv(5)
    with held(workspace.folder / "out.duckdb"):
        told = cli.run(job)
        assert cli("run", job) == 3
    assert cli.out == ""
    assert "held open by another program" in told["stopped"]
    unknown = dict.fromkeys(("run_id", "rows_ok", "rows_reused", "rows_failed", "rows_left"))
    known = {"job": "job", "rows": 5, "exit_code": 3, "tables": first["tables"]}
    spent = {"requests": 0, "retries": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
    assert told == unknown | known | spent | {"stopped": told["stopped"], "seconds": told["seconds"]}
    assert list(told) == list(first)
    assert len(provider.seen) == 3
    assert cli.run(job)["rows_ok"] == 5


def test_what_was_spent_on_a_length_that_was_not_learned_is_told(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(3)
    provider.script = lambda *_: error_reply(503, "down")
    job = workspace.job(steps=UNKNOWN_LENGTH, retry="{attempts: 3, longest_wait: 0.01, longest_hold: 0.1}")
    told = cli.run(job)
    assert told["exit_code"] == 3
    assert "could not be learned" in told["stopped"]
    assert (told["rows"], told["rows_ok"], told["rows_failed"], told["rows_left"]) == (3, 0, 0, 3)
    assert (told["requests"], told["retries"]) == (len(provider.seen), len(provider.seen) - 1)
    assert told["requests"] > 0
    assert told["run_id"] is not None
    provider.script = lambda *_: None
    again = cli.run(job)
    assert (again["exit_code"], again["run_id"]) == (0, told["run_id"])


def test_the_row_whose_vector_told_the_length_has_needed_a_request(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(4)
    job = workspace.job(steps=UNKNOWN_LENGTH)
    told = cli.run(job)
    assert (told["rows_ok"], told["rows_reused"], told["requests"]) == (4, 0, len(provider.seen))
    again = cli.run(job)
    assert (again["rows_ok"], again["rows_reused"], again["requests"]) == (4, 4, 0)


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_plain_address_in_the_environment_is_warned_of_where_it_is_used(
    workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, command: str
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


def test_an_address_is_warned_of_before_anything_is_sent_there(
    workspace: Any, provider: Any, capsys: pytest.CaptureFixture[str], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.config.workspace.is_unencrypted", lambda url: True)
    seen: list[str] = []
    look: Callable[..., None] = lambda *_: seen.append(capsys.readouterr().err)  # noqa: E731
    provider.script = look
    workspace.csv(1)
    assert cli("run", workspace.job()) == 0
    assert "http without encryption" in seen[0]


@pytest.mark.parametrize("place", ["pipelines.execution.invocation.prepare_job", "pipelines.config.job_graph.sort_jobs"])
def test_a_defect_before_the_first_row_is_no_row_that_failed(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("nobody expected it")

    workspace.csv(2)
    job = workspace.job()
    monkeypatch.setattr(place, broken)
    assert cli("run", job, "--json") == 3
    (line,) = cli.out.splitlines()
    told = json.loads(line)
    assert (told["exit_code"], told["rows"]) == (3, None)
    assert told["stopped"].startswith("a defect of Rowmill, printed on stderr: please report it")
    first, second, *_, last = cli.err.splitlines()
    assert "a defect of Rowmill; please report it" in first
    assert (second, last) == ("Traceback (most recent call last):", "ZeroDivisionError: nobody expected it")
    assert (cli("run", job), cli.out) == (3, "")
    assert cli("run", job, "--log", "json", "--quiet") == 3
    events = [json.loads(line) for line in cli.err.splitlines()]
    assert [(event["event"], event["message"]) for event in events] == [("defect", "ZeroDivisionError")]
    assert provider.seen == []
