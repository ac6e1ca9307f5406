"""Control characters and markup in text of a provider or of a row have no effect on a terminal or in a report."""

import json
from typing import Any

import pytest
from aiohttp import web

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b2J\r\u202egnp.\x00<script>alert(1)</script><img src=x onerror=alert(2)>'\"-->"
SCRIPT_TAGS = ("<script>alert", "<img src=x")


def control_characters(text: str) -> list[str]:
    """Return what a terminal would obey in a text of several lines."""
    return [character for character in text if character != "\n" and not character.isprintable()]


@pytest.fixture
def job(workspace: Any, provider: Any, cli: Any) -> Any:
    """A job that has run: one answer, one error message and one key are hostile."""

    def script(path: str, body: Any, count: int) -> Any:
        message = body["messages"][-1]["content"]
        if message == "text 2":
            error = dict.fromkeys(("message", "type", "code", "param", "more"), HOSTILE)
            return web.json_response({"error": error}, status=400)
        answer = {"role": "assistant", "content": HOSTILE}
        return {
            "id": "c", "object": "chat.completion", "created": 1, "model": HOSTILE,
            "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }  # fmt: skip

    provider.script = script
    rows = [{"id": "1", "text": "text 1"}, {"id": HOSTILE.replace("\0", ""), "text": "text 2"}]
    workspace.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    file = workspace.job(source="{jsonl: rows.jsonl, key: id}")
    assert cli("run", file) == 1
    assert control_characters(cli.out + cli.err) == []
    return file


@pytest.mark.parametrize(
    "command",
    [
        ["errors"],
        ["errors", "--json"],
        ["status"],
        ["usage", "--by", "model"],
        ["plan"],
        ["retry"],
        ["run"],
        ["run", "--log", "json"],
        ["run", "--compare", "--limit", "2"],
    ],
    ids=" ".join,
)
def test_foreign_text_is_no_command_to_the_terminal(cli: Any, job: Any, command: list[str]) -> None:
    name, *options = command
    assert cli(name, job, *options) in (0, 1)
    text = cli.out + cli.err
    assert text
    # JSON escapes control characters, but not those that change the direction of writing.
    assert set(control_characters(text)) <= ({"\u202e", "\x9b"} if "json" in " ".join(options) else set())


def test_the_reason_of_a_stop_is_printed_without_control_characters(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(3)
    provider.script = lambda path, body, count: web.json_response({"error": {"message": HOSTILE}}, status=401)
    job = workspace.job()
    for command in (["run", job], ["status", job], ["run", job, "--quiet"]):
        assert cli(*command) in (0, 3)
        assert "owned" in cli.out + cli.err
        assert control_characters(cli.out + cli.err) == []


def test_a_report_runs_no_foreign_script(workspace: Any, cli: Any, job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    assert cli("report", job) == 0
    (page,) = workspace.folder.rglob("*.html")
    text = page.read_text()
    assert "alert(1)" in text or "owned" in text
    assert not any(tag in text for tag in SCRIPT_TAGS)
