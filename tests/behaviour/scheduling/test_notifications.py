"""on_finish: sends the report to a command or a webhook; its failure does not affect the run."""

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipelines.execution import notifications


@pytest.fixture
def script(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script of the workspace that stores its input."""
    monkeypatch.setenv("ROWMILL_TEST_WORD", "inherited")
    text = (
        f"#!{sys.executable}\nimport os, pathlib, sys\n"
        "pathlib.Path('report.json').write_text(sys.stdin.read())\n"
        "pathlib.Path('word').write_text(os.environ['ROWMILL_TEST_WORD'])\n"
        "print('output')\nsys.exit(int(sys.argv[1]))\n"
    )
    path: Path = workspace.write("notify.py", text)
    path.chmod(0o755)
    return path


class Hook:
    """A web server that stores requests and answers with a status."""

    def __init__(self) -> None:
        self.status = 204
        self.seen: list[tuple[str, str | None, dict[str, Any]]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                hook.seen.append((self.path, self.headers["content-type"], body))
                self.send_response(hook.status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?secret=s3cret"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    """A webhook."""
    server = Hook()
    yield server
    server.close()


def test_a_command_gets_the_report_on_stdin(workspace: Any, provider: Any, cli: Any, script: Path) -> None:
    workspace.csv(3)
    report = cli.run(workspace.job(on_finish='{command: "notify.py 0"}'))
    assert (report["exit_code"], report["rows_ok"]) == (0, 3)
    assert json.loads((workspace.folder / "report.json").read_text()) == report
    assert (workspace.folder / "word").read_text() == "inherited"
    assert cli.err == ""


@pytest.mark.parametrize(
    ("command", "warning"),
    [
        ("notify.py 7", "notify.py ended with exit code 7"),
        ("no-such-command", "no-such-command cannot be started (No such file or directory)"),
        ("rows.csv", "rows.csv cannot be started (Permission denied); make it executable: chmod +x"),
        ("'unclosed", "cannot be split into words"),
    ],
)
def test_a_command_that_fails_is_a_warning_and_the_exit_code_stays(
    workspace: Any, provider: Any, cli: Any, script: Path, command: str, warning: str
) -> None:
    workspace.csv(1)
    report = cli.run(workspace.job(on_finish=f'{{command: "{command}"}}'))
    assert report["exit_code"] == 0
    assert warning in cli.err
    assert "the run itself is not touched" in cli.err


def test_a_command_that_takes_too_long_is_killed_with_its_children(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "COMMAND_SECONDS", 0.3)
    workspace.csv(1)
    # By `sh`: a script that was written just before may be busy while another thread forks.
    workspace.write("slow.sh", "(sleep 100; touch late) &\nwait\n")
    report = cli.run(workspace.job(on_finish="{command: sh slow.sh}"))
    assert report["exit_code"] == 0
    assert "sh took longer than 0.3 s and was ended" in cli.err


def test_stopped_failed_and_refused_runs_are_reported_too(
    workspace: Any, provider: Any, cli: Any, script: Path
) -> None:
    from tests.conftest import error_reply

    workspace.csv(3)
    job = workspace.job(on_finish='{command: "notify.py 0"}')
    report_file = workspace.folder / "report.json"
    provider.script = lambda path, body, count: error_reply(401, "no such key")
    report = cli.run(job)
    assert (report["exit_code"], json.loads(report_file.read_text())) == (3, report)
    provider.script = lambda path, body, count: error_reply(400, "no") if "text 1" in str(body) else None
    report = cli.run(job)
    assert (report["exit_code"], json.loads(report_file.read_text())) == (1, report)
    workspace.write("rows.csv", "id,text\n1,a\n1,b\n")
    report = cli.run(job)
    assert (report["exit_code"], json.loads(report_file.read_text())) == (2, report)


def test_a_webhook_gets_the_report_as_json(workspace: Any, provider: Any, cli: Any, hook: Hook) -> None:
    workspace.csv(2)
    report = cli.run(workspace.job(on_finish=f'{{webhook: "{hook.url}"}}'))
    assert hook.seen == [("/hook?secret=s3cret", "application/json", report)]
    assert cli.err == ""


def test_a_redirect_is_not_followed_and_the_secret_is_not_printed(
    workspace: Any, provider: Any, cli: Any, hook: Hook
) -> None:
    workspace.csv(1)
    hook.status = 302
    assert cli.run(workspace.job(on_finish=f'{{webhook: "{hook.url}"}}'))["exit_code"] == 0
    assert [path for path, _, _ in hook.seen] == ["/hook?secret=s3cret"]
    assert "127.0.0.1 answered with HTTP 302" in cli.err
    assert "s3cret" not in cli.err


def test_an_unreachable_webhook_is_a_warning(workspace: Any, provider: Any, cli: Any, hook: Hook) -> None:
    workspace.csv(1)
    hook.close()
    assert cli.run(workspace.job(on_finish=f'{{webhook: "{hook.url}"}}'))["exit_code"] == 0
    assert "127.0.0.1 cannot be reached (ClientConnectorError)" in cli.err
    assert "s3cret" not in cli.err
