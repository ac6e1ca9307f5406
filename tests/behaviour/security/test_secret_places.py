"""API keys are absent from telemetry, the JSON log, the report, on_finish and an export of the ledger."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from aiohttp import web

from tests.behaviour.security.test_secrets import KEY, as_error, assert_hidden
from tests.conftest import chat_reply

TELEMETRY = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console"}


@pytest.fixture
def job(workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job whose provider repeats its key wherever it can: in answers, in errors, in headers."""
    monkeypatch.setenv("TEST_KEY", KEY)
    workspace.write(
        "rowmill.yaml", f'providers: {{test: {{base_url: "{provider.base_url}", api_key_env: TEST_KEY}}}}\n'
    )

    def script(path: str, body: Any, count: int) -> Any:
        headers = {"x-request-id": KEY, "openai-processing-ms": KEY}
        if body["messages"][-1]["content"] == "text 2":
            return web.Response(
                text=as_error(KEY), status=400, reason=KEY, headers=headers, content_type="application/json"
            )
        reply = chat_reply(f"your key is {KEY}", model=KEY, finish=KEY)
        return web.json_response(reply | {"id": KEY, "system_fingerprint": KEY}, headers=headers)

    provider.script = script
    workspace.csv(3)
    notify = workspace.write(
        "notify.py", f"#!{sys.executable}\nimport sys\nopen('notification', 'w').write(sys.stdin.read())\n"
    )
    notify.chmod(0o755)
    return workspace.job(on_finish="{command: ./notify.py}")


def test_no_key_is_in_logs_traces_metrics_and_the_final_notification(workspace: Any, job: Any) -> None:
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run", str(job), "--log", "json"]
    completed = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | TELEMETRY, timeout=60, check=False
    )
    assert completed.returncode == 1, completed.stderr
    # The finish reason is unknown, so rows 1 and 3 are sent three times.
    assert completed.stderr.count('"name": "chat m"') == 7
    assert '"event":"start"' in completed.stderr
    assert json.loads((workspace.folder / "notification").read_text())["rows_failed"] == 3
    assert_hidden(workspace.folder, completed.stdout, completed.stderr)


def test_no_key_is_in_a_report_or_an_export(
    workspace: Any, cli: Any, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    outputs: list[str] = []
    for command in (
        ["run", job],
        ["report", job],
        ["show", job, "1"],
        ["show", job, "2"],
        ["errors", job, "--json"],
        ["usage", job, "--by", "model"],
        ["ledger", "export", "-o", "ledger-out"],
        ["rebuild", job],
        ["retry", job],
    ):
        assert cli(*command) in (0, 1), (command, cli.err)
        outputs += [cli.out, cli.err]
    assert list(workspace.folder.rglob("*.html"))
    assert (workspace.folder / "ledger-out").exists()
    assert_hidden(workspace.folder, *outputs)
