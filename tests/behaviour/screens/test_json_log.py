"""`--log json`: every event of a run is one JSON line on stderr."""

import json
from typing import Any

import pytest

from pipelines.execution import committer
from pipelines.monitoring import json_events
from tests.support.forked import COMMAND, Forked


def events(cli: Any) -> list[dict[str, Any]]:
    """Parse stderr, where every line is JSON."""
    return [json.loads(line) for line in cli.err.splitlines()]


@pytest.fixture(autouse=True)
def frequent_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_events, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(json_events, "SECONDS_BETWEEN_PROGRESS", 0.0)


def test_a_run_is_logged_from_start_to_finish(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(40)
    provider.latency = 0.05
    provider.script = lambda path, body, count: error_reply(500, "text 7 is secret") if count == 0 else None
    assert cli("run", workspace.job(limits="{concurrency: 8}"), "--log", "json", "--json") == 0
    report = json.loads(cli.out)
    logged = events(cli)
    assert {event["job"] for event in logged} == {"job"}
    assert {event["run_id"] for event in logged} == {report["run_id"]}
    assert all(event["ts"].endswith("+00:00") for event in logged)
    assert [event["ts"] for event in logged] == sorted(event["ts"] for event in logged)
    start, finish = logged[0], logged[-1]
    assert (start["event"], start["level"], start["rows"], start["rows_done"], start["continued"]) == (
        "start", "info", 40, 0, False,
    )  # fmt: skip
    assert (finish["event"], finish["level"]) == ("finish", "info")
    assert {name: finish["report"][name] for name in report} == report
    kinds = {event["event"] for event in logged}
    assert kinds == {"start", "progress", "retry", "commit", "finish"}
    retries = [event for event in logged if event["event"] == "retry"]
    assert [(event["retries"], event["level"]) for event in retries] == [(1, "warning")]
    assert sum(event["rows"] for event in logged if event["event"] == "commit") == 40
    assert "secret" not in cli.err


def test_commits_are_logged_as_they_happen(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "COMMIT_SECONDS", 0.0)
    workspace.csv(1200)
    provider.latency = 0.1
    cli("run", workspace.job(), "--log", "json", "--json")
    commits = [event for event in events(cli) if event["event"] == "commit"]
    assert len(commits) > 1
    assert commits[-1]["rows_in_all"] == 1200


def test_a_provider_that_asks_to_wait_is_logged(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(5)
    provider.script = lambda path, body, count: error_reply(429, "slow down", retry_after="2") if count == 0 else None
    assert cli("run", workspace.job(limits="{concurrency: 1}"), "--log", "json", "--json") == 0
    holds = [event for event in events(cli) if event["event"] in ("hold", "resume")]
    assert [event["event"] for event in holds] == ["hold", "resume"]
    assert (holds[0]["level"], holds[0]["message"][:22]) == ("warning", "test asks to wait 2 s"[:22])


def test_errors_failed_audits_and_stops_are_events_too(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(2)
    job = workspace.job(audits='[{name: none, sql: "select * from results"}]', on_finish="{command: no-such-command}")
    assert cli("run", job, "--log", "json", "--json") == 5
    problems = [event["message"] for event in events(cli) if event["event"] == "problem"]
    assert problems[0] == "job: audit failed: none: 2 rows, at most 0 allowed"
    assert "no-such-command cannot be started" in problems[1]
    workspace.write("rows.csv", "id,text\n1,a\n1,b\n")
    assert cli("run", job, "--log", "json", "--json") == 2
    logged = events(cli)
    assert [event["event"] for event in logged] == ["problem", "problem", "finish"]
    assert "is not unique" in logged[0]["message"]
    assert (logged[-1]["level"], logged[-1]["report"]["exit_code"], logged[-1]["run_id"]) == ("error", 2, None)
    workspace.csv(3)
    provider.script = lambda path, body, count: error_reply(401, "no such key")
    assert cli("run", job, "--log", "json", "--json") == 3
    assert (events(cli)[-1]["level"], events(cli)[-1]["report"]["exit_code"]) == ("error", 3)


def test_quiet_logs_errors_only(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(2)
    assert cli("run", workspace.job(), "--log", "json", "--json", "--quiet") == 0
    assert cli.err == ""


def problems(cli: Any) -> list[str]:
    """Return the messages of a command that began no run: all of stderr is JSON."""
    logged = events(cli)
    assert {(event["level"], event["run_id"]) for event in logged} == {("error", None)}
    return [event["message"] for event in logged if event["event"] == "problem"]


def test_errors_before_a_job_begins_are_events_too(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(2)
    lines = ("--log", "json")
    bad = workspace.job("bad", limits="{inflight: 3}")
    assert cli("run", bad, *lines, "--json") == 2
    (problem,) = problems(cli)
    assert "limits.inflight: no such key" in problem
    (report,) = map(json.loads, cli.out.splitlines())
    assert (report["exit_code"], report["stopped"]) == (2, problem)
    assert cli("run", workspace.folder / "none.yaml", *lines) == 2
    assert "none.yaml" in problems(cli)[0]
    assert cli("run", workspace.job("good"), "--log=json", "--limt", "3", "--json") == 2
    assert "--limt" in problems(cli)[0]
    assert json.loads(cli.out)["exit_code"] == 2
    assert cli("retry", workspace.folder / "good.yaml", *lines, "--class", "tiemout") == 2
    assert problems(cli)[0].startswith("--class tiemout: no such error class; did you mean timeout?")
    assert cli("run", workspace.folder / "good.yaml", *lines, "--compare") == 2
    assert problems(cli)[0].startswith("--compare: requests every row again")
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace('v1"}', 'v1", api_key_env: NO_SUCH_KEY}'))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert cli("run", workspace.folder / "good.yaml", *lines) == 2
    assert "NO_SUCH_KEY" in problems(cli)[0]
    file.write_text("providers: [")
    assert cli("run", workspace.folder / "good.yaml", *lines, "--quiet") == 2
    assert problems(cli)
    assert provider.seen == []


def test_a_job_that_is_running_already_is_an_event(workspace: Any, provider: Any, cli: Any) -> None:
    from pipelines.runtime.locks import job_lock

    workspace.csv(2)
    job = workspace.job()
    with job_lock(workspace.folder / ".rowmill", "job"):
        assert cli("run", job, "--log", "json", "--json") == 4
    assert len(problems(cli)) == 1
    assert json.loads(cli.out)["exit_code"] == 4


def test_without_json_errors_are_plain_text(workspace: Any, cli: Any) -> None:
    workspace.csv(2)
    job = workspace.job(limits="{inflight: 3}")
    for flags in ((), ("--log", "plain"), ("--log", "json", "--log", "plain")):
        assert cli("run", job, *flags) == 2
        assert cli.err.startswith(str(job))


def test_a_job_that_is_not_run_because_of_another_is_an_event(workspace: Any, cli: Any) -> None:
    workspace.csv(2)
    for name, source in (
        ("first", "{csv: missing.csv, key: id}"),
        ("second", "{job: first}"),
        ("third", "{job: second}"),
    ):
        job = workspace.job(name, source=source, sink=f"{{parquet: {name}}}")
        workspace.write(f"jobs/{name}.yaml", job.read_text())
    code, _, err = Forked(COMMAND, "run", "jobs", "--log", "json", cwd=workspace.folder).ended()
    logged = [json.loads(line) for line in err.splitlines()]
    assert code in (2, 3)
    not_run = [event["message"] for event in logged if "not run" in str(event.get("message"))]
    assert [words.split(":")[0] for words in not_run] == ["second", "third"]
    assert {event["job"] for event in logged} == {"first", "second", "third"}
