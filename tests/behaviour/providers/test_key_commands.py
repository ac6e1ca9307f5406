"""Keys of commands in a run: at its start, after a 401, and if they cannot be renewed."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.providers.conftest import RecordingProvider
from tests.behaviour.security.test_secrets import written_texts

ROTATION = """
import sys
with open("runs", "a") as runs:
    runs.write("x")
print("rotated-key-" + open("runs").read())
"""


@pytest.fixture
def keyed(recorder: RecordingProvider, configure: Callable[..., Any], workspace: Any) -> Callable[..., Path]:
    """Write a job whose key comes from Python code."""

    def write(code: str = ROTATION, rows: int = 2, **keys: Any) -> Path:
        workspace.write("key.py", code)
        command = f"{sys.executable} key.py"
        job: Path = configure(rows, base_url=recorder.base_url, api_key_command=command, **keys)
        return job

    return write


def runs(job: Path) -> int:
    file = job.parent / "runs"
    return len(file.read_text()) if file.exists() else 0


def test_only_a_run_with_something_to_send_asks_for_a_key(
    recorder: RecordingProvider, keyed: Callable[..., Path], cli: Any
) -> None:
    job = keyed()
    for command in ("validate", "plan"):
        assert cli(command, job) == 0, cli.err
    assert runs(job) == 0
    assert cli("run", job, "--quiet") == 0, cli.err
    assert {headers["Authorization"] for headers in recorder.headers} == {"Bearer rotated-key-x"}
    assert cli("run", job, "--quiet") == 0, cli.err
    assert (runs(job), len(recorder.urls)) == (1, 2)


def test_refused_requests_renew_the_key_once_and_are_sent_again_without_an_attempt(
    recorder: RecordingProvider, keyed: Callable[..., Path], cli: Any, read: Any
) -> None:
    job = keyed(rows=30)
    recorder.accepts = lambda headers: headers["Authorization"] == "Bearer rotated-key-xx"
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"]) == (0, 30)
    assert runs(job) == 2
    usage = read(job.parent / "out", "usage")
    assert Counter((row["attempt"], row["http_status"], row["error_class"]) for row in usage) == {
        (1, 200, None): 30,
        (1, 401, "access_denied"): len(recorder.urls) - 30,
    }
    assert (report["requests"], report["retries"]) == (len(recorder.urls), len(recorder.urls) - 30)


def test_a_second_refusal_and_a_failed_renewal_stop_the_run(
    recorder: RecordingProvider, keyed: Callable[..., Path], cli: Any, workspace: Any
) -> None:
    recorder.accepts = lambda headers: False
    job = keyed()
    report = cli.run(job)
    assert report["exit_code"] == 3
    assert report["stopped"].startswith("access_denied: test says: Incorrect API key: Bearer [the key]")
    for where, text in (*written_texts(job.parent), ("output", cli.err + report["stopped"])):
        if not where.endswith("key.py"):
            assert "rotated-key-x" not in text, where
    failing = ROTATION + "\nif len(open('runs').read()) > 1:\n    sys.exit('login expired')\n"
    (job.parent / "runs").unlink()
    workspace.write("key.py", failing)
    report = cli.run(job)
    assert report["exit_code"] == 3
    assert "access_denied: " in report["stopped"]
    assert "failed (exit code 1): login expired" in report["stopped"]


def test_a_command_that_fails_at_the_start_ends_the_command_with_its_last_line(
    recorder: RecordingProvider, keyed: Callable[..., Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = keyed("import sys; print('line one', file=sys.stderr); sys.exit('you are logged out')")
    monkeypatch.chdir(job.parent)
    message = "providers.test.api_key_command: "
    for command in (
        ["run", job, "--json"],
        ["models", "list", "--provider", "test"],
        ["batches", "list", "--provider", "test"],
    ):
        assert cli(*command) == 2
        assert message in cli.err
        assert "failed (exit code 1): you are logged out; run it by hand in" in cli.err
    assert cli("run", job, "--json") == 2
    assert json.loads(cli.out)["exit_code"] == 2
    assert recorder.urls == []


def test_a_command_reads_the_environment_file(
    recorder: RecordingProvider, keyed: Callable[..., Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VAULT_TOKEN", raising=False)
    job = keyed("import os; print('key-of-' + os.environ['VAULT_TOKEN'])", headers={"X-Vault": {"env": "VAULT_TOKEN"}})
    (job.parent / ".env").write_text("VAULT_TOKEN=vault-1\n")
    assert cli("run", job, "--quiet") == 0, cli.err
    assert {headers["Authorization"] for headers in recorder.headers} == {"Bearer key-of-vault-1"}
