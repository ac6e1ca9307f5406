"""`rowmill control`: a run in progress is paused, resumed, drained and given other limits, also by hostile clients."""

import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import JobError
from pipelines.config.workspace import find_workspace
from pipelines.control.client import send_request
from pipelines.control.protocol import ControlReply, ControlRequest
from pipelines.control.socket_file import connect, socket_path
from pipelines.formatting import print_out
from pipelines.reporting.status_format import format_status
from pipelines.reporting.status_queries import job_statuses
from tests.conftest import error_reply
from tests.support.forked import ended, run


class Terminal:
    """A second terminal: it steers the job of a workspace."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def send(self, command: Any, **values: Any) -> dict[str, Any]:
        """Send a command, with values whose `__` is a dot; return the state, or raise the refusal."""
        request = ControlRequest(command, {name.replace("__", "."): value for name, value in values.items()})
        reply: ControlReply = send_request(self._state, "job", request)
        if reply.error is not None:
            raise JobError("", reply.error)
        assert reply.state is not None
        return dict(reply.state)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds, at most a minute."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)


@contextlib.contextmanager
def steering(state: Path, script: Callable[[Terminal], None]) -> Iterator[None]:
    """Run the script in another thread meanwhile."""
    with ThreadPoolExecutor(1) as threads:
        steered = threads.submit(script, Terminal(state))
        yield
        steered.result(60)


def test_a_paused_run_sends_nothing_keeps_its_lock_and_goes_on_when_it_is_resumed(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(60)
    provider.latency = 0.02
    job = workspace.job(limits="{concurrency: 4}")
    states: list[dict[str, Any]] = []

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 8)
        states.append(terminal.send("pause"))
        terminal.wait_for(lambda: terminal.send("state")["in_flight"] == 0)
        seen = len(provider.seen)
        time.sleep(0.3)
        states.append(terminal.send("pause"))
        assert (len(provider.seen), len(provider.answered)) == (seen, seen)
        terminal.wait_for(lambda: status(workspace)["paused_since"])
        states.append(status(workspace))
        code, _ = ended(run(job))
        assert code == 4
        states.append(terminal.send("resume"))

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--json", "--log", "json") == 0
    first, second, shown, resumed = states
    assert first["paused_since"] == second["paused_since"] == shown["paused_since"]
    assert second["held"].startswith("paused since ")
    assert (second["seconds_left"], resumed["paused_since"], resumed["held"]) == (None, None, None)
    assert (shown["state"], shown["held"]) == ("running", second["held"])
    assert len(provider.seen) == 60
    report = json.loads(cli.out)
    assert [event["command"] for event in report["control"]] == ["pause", "resume"]
    logged = [json.loads(line) for line in cli.err.splitlines()]
    assert [one["command"] for one in logged if one["event"] == "control"] == ["pause", "resume"]


def status(workspace: Any) -> dict[str, Any]:
    return dict(job_statuses(find_workspace(workspace.folder))[0])


def test_status_shows_a_paused_job_as_paused(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "job": "job", "run_id": "r", "state": "running", "started": "2026-01-01T00:00:00+00:00", "exit_code": None,
        "rows": 100, "rows_ok": 40, "rows_failed": 0, "rows_left": 60, "cost_usd": 0.5, "stopped": None,
        "seconds_left": None, "held": "paused since 02:14:05 UTC", "bound_by": None,
        "paused_since": "2026-01-01T02:14:05+00:00",
    }  # fmt: skip
    print_out(format_status([row], datetime(2026, 1, 1, 3, tzinfo=UTC)))
    assert "paused 40 %" in capsys.readouterr().out


def test_a_drained_run_lands_what_is_in_flight_and_ends_with_3_and_the_reason(
    workspace: Any, provider: Any, cli: Any, read: Any
) -> None:
    workspace.csv(60)
    provider.latency = 0.2
    job = workspace.job(limits="{concurrency: 4}")

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: provider.in_flight == 4)
        assert terminal.send("drain")["stopping"] == "drained"

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--json") == 3
    report = json.loads(cli.out)
    sent = len(provider.seen)
    assert sent == len(provider.answered) == report["rows_ok"] < 60
    assert report["stopped"] == (f"drained by `rowmill control`: {60 - sent} rows left; run again to continue")
    assert cli("run", job, "--json", "--quiet") == 0
    assert len(provider.seen) == 60
    assert len(read(workspace.folder / "out")) == 60


def test_a_paused_run_can_be_drained_and_interrupted(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(40)
    job = workspace.job(limits="{concurrency: 2}")
    provider.latency = 0.02

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 4)
        terminal.send("pause")
        terminal.send("drain")

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--quiet") == 3

    def interrupt(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 15)
        terminal.send("pause")
        os.kill(os.getpid(), signal.SIGINT)

    with steering(workspace.folder / ".rowmill", interrupt):
        assert cli("run", job, "--quiet") == 130
    assert cli("run", job, "--quiet") == 0
    assert len(provider.seen) == 40


def test_what_is_set_applies_at_once_is_in_log_and_report_and_ends_with_the_invocation(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(80)
    provider.latency = 0.05
    job = workspace.job(limits="{concurrency: 2, requests_per_minute: 60000}", budget="{usd: 1}")
    states: list[dict[str, Any]] = []

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 4)
        assert provider.most_in_flight <= 2
        values = {"limits__concurrency": 9, "limits__requests_per_minute": None, "budget__usd": 2.5}
        states.append(terminal.send("set", **values))
        terminal.wait_for(lambda: provider.in_flight == 9)

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--json", "--log", "json", "--limit", "40") == 0
    assert provider.most_in_flight == 9
    set_values = {"limits.concurrency": 9, "limits.requests_per_minute": None, "budget.usd": 2.5}
    assert (states[0]["set"], states[0]["limits"]) == (
        set_values,
        {"requests_per_minute": None, "tokens_per_minute": None, "concurrency": 9},
    )
    assert states[0]["budget"]["usd"] == 2.5
    report = json.loads(cli.out)
    assert [(one["command"], one["values"]) for one in report["control"]] == [("set", set_values)]
    logged = [json.loads(line) for line in cli.err.splitlines()]
    assert [one["values"] for one in logged if one["event"] == "control"] == [set_values]
    assert next(one for one in logged if one["event"] == "finish")["report"]["control"] == report["control"]
    assert cli("report", job, "-o", workspace.folder / "page.html") == 0
    page = (workspace.folder / "page.html").read_text()
    assert "Last invocation: set limits.concurrency=9 limits.requests_per_minute=null budget.usd=2.5 at " in page
    provider.most_in_flight = 0
    assert cli("run", job, "--json", "--quiet") == 0
    assert provider.most_in_flight == 2
    assert "control" not in json.loads(cli.out)


def test_a_lowered_budget_stops_the_run_and_a_raised_one_lets_it_go_on(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(40)
    provider.latency = 0.02
    job = workspace.job(limits="{concurrency: 2}", budget="{usd: 1}")

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 6)
        terminal.send("set", budget__usd=0.0001)

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--json") == 3
    assert json.loads(cli.out)["stopped"].startswith("budget: ")
    assert len(provider.seen) < 40


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"limits.concurrency": 0},
            "set limits.concurrency: found 0, expected at least 1; write e.g. concurrency: 200",
        ),
        (
            {"limits.concurrency": "9"},
            'set limits.concurrency: found "9", expected a whole number; write e.g. concurrency: 200',
        ),
        ({"limits.concurrency": True}, "set limits.concurrency: found true, expected a whole number"),
        ({"budget.usd": -1}, "set budget.usd: found -1, expected at least 0; write e.g. usd: 5.00"),
        (
            {"limits.requests_per_minute": 100, "limits.failed_share": 0.5},
            "set limits.failed_share: cannot be set while the job runs; settable are limits.requests_per_minute, "
            "limits.tokens_per_minute, limits.concurrency, budget.usd",
        ),
        ({"limits.rpm": 5}, "did you mean limits.requests_per_minute? settable are"),
        ({}, "set: nothing to set; write e.g. set limits.concurrency=50"),
    ],
)
def test_a_value_that_does_not_fit_changes_nothing(
    workspace: Any, provider: Any, cli: Any, values: dict[str, Any], message: str
) -> None:
    workspace.csv(30)
    provider.latency = 0.05
    limits = {"requests_per_minute": None, "tokens_per_minute": None, "concurrency": 3}

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 1)
        with pytest.raises(JobError) as refused:
            terminal.send("set", **{name.replace(".", "__"): value for name, value in values.items()})
        assert message in str(refused.value)
        state = terminal.send("state")
        assert (state["limits"], state["budget"], state["set"]) == (limits, None, {})

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", workspace.job(limits="{concurrency: 3}"), "--quiet") == 0


def test_a_budget_is_refused_if_no_price_bounds_the_cost(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(20)
    provider.latency = 0.05
    steps = '[{name: answer, endpoint: chat, provider: test, model: odd, messages: [{user: "{{ text }}"}]}]'

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 1)
        with pytest.raises(JobError, match="no price is known for odd, so a budget cannot be guaranteed"):
            terminal.send("set", budget__usd=1.0, limits__concurrency=9)
        assert terminal.send("state")["limits"]["concurrency"] == 2

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", workspace.job(limits="{concurrency: 2}", steps=steps), "--quiet") == 0


def test_a_job_that_does_not_run_cannot_be_steered(workspace: Any, cli: Any) -> None:
    workspace.csv(1)
    job = workspace.job()
    assert cli("control", job, "pause") == 2
    assert cli.err == "job: this job is not running; start it with: rowmill run\n"
    assert cli("run", job, "--quiet") == 0
    assert cli("control", job, "state") == 2
    assert not socket_path(workspace.folder / ".rowmill", "job").exists()


def test_a_wrong_command_line_is_one_line(workspace: Any, cli: Any) -> None:
    job = workspace.job()
    assert cli("control", job, "pause", "limits.concurrency=3") == 2
    assert cli.err == (
        "control pause: takes no value, found limits.concurrency=3; did you mean set limits.concurrency=3?\n"
    )
    assert cli("control", job, "set", "limits.concurrency") == 2
    assert cli.err == "set limits.concurrency: no value; write e.g. set limits.concurrency=50\n"
    assert cli("control", job, "halt") == 2
    assert cli.err.count("\n") == 1
    assert cli("control", job) == 2
    assert cli.err == "job: this job is not running; start it with: rowmill run\n"


def test_a_run_after_a_kill_replaces_the_socket_of_the_killed_one(workspace: Any, provider: Any) -> None:
    workspace.csv(300)
    provider.latency = 0.02
    job = workspace.job(limits="{concurrency: 4}")
    path = socket_path(workspace.folder / ".rowmill", "job")
    terminal = Terminal(workspace.folder / ".rowmill")
    killed = run(job)
    terminal.wait_for(lambda: len(provider.seen) >= 4)
    terminal.send("pause")
    killed.send_signal(signal.SIGKILL)
    ended(killed)
    assert path.exists()
    with pytest.raises(JobError, match="this job is not running"):
        terminal.send("resume")
    second = run(job)
    terminal.wait_for(lambda: len(provider.seen) >= 20)
    assert terminal.send("state")["paused_since"] is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    terminal.send("drain")
    code, _ = ended(second)
    assert code == 3
    assert len(set(provider.prompts())) >= len(provider.prompts()) - 4


def test_hostile_clients_do_not_disturb_the_run(workspace: Any, provider: Any, cli: Any, read: Any) -> None:
    workspace.csv(200)
    provider.latency = 0.01
    path = socket_path(workspace.folder / ".rowmill", "job")
    opened: list[socket.socket] = []

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 4)
        for sent in (
            b"\x00\xff\n",
            b"{}\n",
            b"[1]\n",
            b'{"command": ["pause"]}\n',
            b'{"command": "set", "values": 3}\n',
        ):
            with contextlib.closing(connect(path, 10)) as connection:
                connection.sendall(sent + b"\n")
                assert json.loads(connection.recv(1 << 16))["ok"] is False
        for sent in (b'{"command": "pau', b"", b"x" * 100):
            opened.append(connect(path, 10))
            opened[-1].sendall(sent)
        flood = connect(path, 10)
        with contextlib.suppress(OSError):
            for _ in range(100):
                flood.sendall(b"y" * (1 << 16))
        opened.append(flood)
        for _ in range(60):
            opened.append(connect(path, 10))
        silent = connect(path, 10)
        silent.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(1000):
                silent.send(b'{"command": "state"}\n')
        opened.append(silent)
        state = terminal.send("state")
        assert (state["paused_since"], state["stopping"], state["set"]) == (None, None, {})

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", workspace.job(limits="{concurrency: 2}"), "--json") == 0
    for connection in opened:
        connection.close()
    assert cli.err == ""
    assert len(provider.seen) == len(read(workspace.folder / "out")) == 200


def test_a_run_whose_state_folder_takes_no_socket_goes_on_with_a_warning(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> socket.socket:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("pipelines.control.run_control.listen", refuse)
    workspace.csv(3)
    assert cli("run", workspace.job(), "--json") == 0
    state = workspace.folder / ".rowmill"
    assert cli.err == f"job: no socket in {state} (Operation not supported); `rowmill control` has no effect\n"


def test_a_state_folder_with_a_long_path_works(workspace: Any, provider: Any, cli: Any) -> None:
    deep = workspace.folder / ("a" * 100) / ("b" * 100)
    file = workspace.folder / "rowmill.yaml"
    file.write_text(f"{file.read_text()}state: {deep}\n")
    workspace.csv(20)
    provider.latency = 0.05

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 1)
        assert terminal.send("drain")["stopping"] == "drained"

    with steering(deep, script):
        assert cli("run", workspace.job(limits="{concurrency: 2}"), "--quiet") == 3


def test_a_pause_does_not_make_a_provider_silent_for_too_long(
    workspace: Any, provider: Any, cli: Any, time_passes: Callable[[float], None]
) -> None:
    workspace.csv(20)
    job = workspace.job(limits="{concurrency: 1}", retry="{attempts: 5, longest_wait: 0.01, longest_hold: 60}")
    provider.script = lambda path, body, count: error_reply(503, "busy") if count in range(5, 9) else None

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: len(provider.seen) >= 6)
        terminal.send("pause")
        terminal.wait_for(lambda: terminal.send("state")["in_flight"] == 0)
        time_passes(100)
        terminal.send("resume")

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--quiet") == 0


def test_while_a_batch_run_is_paused_no_batch_is_submitted(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(10)
    job = workspace.job(delivery="batch")
    seen: list[int] = []

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: socket_path(workspace.folder / ".rowmill", "job").exists())
        terminal.send("pause")
        time.sleep(0.5)
        seen.append(len(batches.seen))
        with pytest.raises(JobError, match="set limits: a run with delivery: batch has no limits"):
            terminal.send("set", limits__concurrency=3)
        terminal.send("resume")

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--json", "--quiet") == 0
    assert seen == [0]
    assert sum(batches.lines_of_batches) == 10


def test_a_drained_batch_run_waits_for_the_batches_at_the_provider(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(10)
    job = workspace.job(
        delivery="batch",
        steps="""
  - {name: one, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], params: {max_tokens: 20}}
  - {name: two, endpoint: chat, provider: test, model: m, messages: [{user: "{{ one }}!"}], params: {max_tokens: 20}}
""",
    )
    batches.held = True

    def script(terminal: Terminal) -> None:
        terminal.wait_for(lambda: batches.lines_of_batches == [10])
        terminal.send("drain")
        time.sleep(0.2)
        batches.held = False

    with steering(workspace.folder / ".rowmill", script):
        assert cli("run", job, "--json", "--quiet") == 3
    assert json.loads(cli.out)["stopped"].startswith("drained by `rowmill control`: 10 rows left")
    assert batches.lines_of_batches == [10]
    assert cli("run", job, "--json", "--quiet") == 0
    assert batches.lines_of_batches == [10, 10]
