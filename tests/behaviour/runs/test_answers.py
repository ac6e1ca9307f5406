"""What counts as an answer: runs against servers that end, place and request answers in their own way."""

import json
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace, chat_reply, error_reply

TYPED = "{topic: {type: string, enum: [bug, other]}, urgency: {type: integer, minimum: 1, maximum: 5}}"
GOOD = '{"topic": "bug", "urgency": 3}'


def steps(output: str = TYPED, **keys: str) -> str:
    more = "".join(f", {name}: {value}" for name, value in keys.items())
    return (
        "[{name: label, endpoint: chat, provider: test, model: m, params: {max_tokens: 20}, "
        f'messages: [{{user: "{{{{ text }}}}"}}], output: {output}{more}}}]'
    )


def forms(provider: ScriptedProvider) -> list[str]:
    """Return how each request since the last call asked for its schema: its keywords in question, or the mode."""
    seen = []
    for _, body in provider.seen:
        form = body.get("response_format", {})
        limits = [word for word in ("minimum", "maximum", "additionalProperties") if f'"{word}"' in json.dumps(form)]
        seen.append(" ".join(limits) or form.get("type") or "prompt")
    provider.seen.clear()
    return seen


class Refusing:
    """A server that refuses a schema with one of these words in it."""

    def __init__(self, *words: str, message: str) -> None:
        self.words = words
        self.message = message

    def __call__(self, path: str, body: Any, count: int) -> Any:
        form = json.dumps(body.get("response_format", {}))
        if any(word in form for word in self.words):
            return error_reply(400, self.message)
        return chat_reply(GOOD)


def test_a_schema_is_sent_without_the_keywords_that_a_server_refuses(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    provider.script = Refusing("minimum", "maximum", message="schema: properties maximum, minimum are not supported")
    workspace.csv(3)
    job = workspace.job(steps=steps())
    assert cli("run", job) == 0
    assert "label: test refuses the schema for m; schema without maximum, minimum is used" in " ".join(cli.out.split())
    assert forms(provider) == ["minimum maximum additionalProperties", *["additionalProperties"] * 3]
    # The next run knows the mode, and names it.
    workspace.csv(5)
    assert cli("run", job) == 0
    assert "schema without maximum, minimum" in " ".join(cli.out.split())
    assert forms(provider) == ["additionalProperties"] * 2
    # A changed schema starts over.
    provider.script = Refusing("pattern", message="no pattern")
    workspace.job(steps=steps("{topic: {type: string}, urgency: {type: integer, minimum: 1}}"))
    assert cli("run", job) == 0
    assert "refuses" not in cli.out
    assert forms(provider) == ["minimum additionalProperties"] * 5


def test_a_server_without_schemas_gets_json_object_and_at_last_a_prompt(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    provider.script = Refusing("json_schema", "json_object", message="response_format: additional_properties")
    workspace.csv(2)
    assert cli.run(workspace.job(steps=steps()))["rows_ok"] == 2
    assert forms(provider) == [
        "minimum maximum additionalProperties", "minimum maximum", "json_object", "prompt", "prompt",
    ]  # fmt: skip


def test_one_rows_refusal_changes_nothing_for_the_others(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    def script(path: str, body: Any, count: int) -> Any:
        if body["messages"][-1]["content"] == "text 2":
            return error_reply(400, "Invalid image format")
        return chat_reply(GOOD)

    provider.script = script
    workspace.csv(4)
    report = cli.run(workspace.job(steps=steps(), limits="{concurrency: 1}"))
    assert (report["rows_ok"], report["rows_failed"]) == (3, 1)
    assert sorted(forms(provider)) == ["json_object", *["minimum maximum additionalProperties"] * 4, "prompt"]
    workspace.csv(5)
    cli.run(workspace.job(steps=steps()))
    assert forms(provider) == ["minimum maximum additionalProperties"]


def test_allow_empty_accepts_and_rejects_stored_answers_without_a_request(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    provider.script = lambda path, body, count: chat_reply("")
    workspace.csv(2)
    plain = '[{name: label, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]%s}]'
    job = workspace.job(steps=plain % "")
    report = cli.run(job)
    assert (report["rows_failed"], report["requests"]) == (2, 2)
    workspace.job(steps=plain % ", allow_empty: true")
    report = cli.run(job)
    assert (report["rows_ok"], report["requests"]) == (2, 0)
    assert [row["label"] for row in read(workspace.folder / "out")] == ["", ""]
    workspace.job(steps=plain % "")
    report = cli.run(job)
    assert (report["rows_failed"], report["requests"]) == (2, 0)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_broken_off_answer_is_never_stored(
    stream: str, workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    def reply(text: str, finish: str) -> Any:
        body = chat_reply(text, finish=finish)
        if stream == "false":
            return body
        (choice,) = body["choices"]
        chunks = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}]
        chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}]
        lines = "".join(
            f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, {"choices": [], "usage": body["usage"]}]
        )
        return web.Response(text=lines + "data: [DONE]\n\n", content_type="text/event-stream")

    provider.script = lambda path, body, count: reply("the first ha", "abort") if count == 0 else reply("whole", "stop")
    workspace.csv(1)
    plain = f'[{{name: label, endpoint: chat, provider: test, model: m, messages: [{{user: "a"}}], stream: {stream}}}]'
    report = cli.run(workspace.job(steps=plain))
    assert (report["rows_ok"], report["requests"], report["retries"]) == (1, 2, 1)
    assert [row["label"] for row in read(workspace.folder / "out")] == ["whole"]
    usage = read(workspace.folder / "out", "usage", "attempt")
    assert [(row["error_class"], row["finish_reason"], row["output_tokens"]) for row in usage] == [
        ("server", "abort", 5),
        (None, "stop", 5),
    ]


def test_a_repair_turn_shows_the_schema_that_a_server_ignored(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    provider.script = lambda path, body, count: chat_reply(GOOD if len(body["messages"]) == 3 else "A bug, I think.")
    workspace.csv(3)
    job = workspace.job(steps=steps())
    assert cli("run", job) == 0
    advice = (
        "label: 3 of 3 answers did not fit the schema at first; if the provider ignores it, add `structured: prompt`"
    )
    assert advice in " ".join(cli.out.split())
    assert '"urgency":{"type":"integer","minimum":1,"maximum":5}' in provider.prompts()[-1]
    assert [(row["topic"], row["urgency"]) for row in read(workspace.folder / "out")] == [("bug", 3)] * 3
    # Answers that fit after a repair turn are few enough.
    provider.script = lambda path, body, count: chat_reply(GOOD)
    workspace.csv(9)
    assert cli("run", job) == 0
    assert "structured: prompt" not in cli.out
