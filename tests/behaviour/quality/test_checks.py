"""`check` and `repairs`: answers that meet no condition take repair turns, then are errors of their rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply

STEP = '{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], MORE}'
TYPED = "output: {quote: {type: string}, urgency: {type: integer}}, MORE"


def checked_job(workspace: Workspace, more: str, **blocks: str) -> Path:
    return workspace.job(steps=f"[{STEP.replace('MORE', more)}]", **blocks)


def turns(body: Body) -> int:
    """The repair turns in a request."""
    return sum(message["role"] == "assistant" for message in body["messages"])


def answers_of(*texts: str | dict[str, Any]) -> Any:
    """A script that gives the text of a place to the request with so many repair turns before it."""

    def script(path: str, body: Body, count: int) -> Body:
        text = texts[min(turns(body), len(texts) - 1)]
        return chat_reply(text if isinstance(text, str) else json.dumps(text))

    return script


def errors_of(read: ReadTable, workspace: Workspace) -> list[tuple[Any, ...]]:
    return [
        (row["id"], row["error_class"], row["code"], row["message"]) for row in read(workspace.folder / "out", "errors")
    ]


def test_an_answer_that_passes_is_stored_with_one_request_a_row(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    workspace.csv(5)
    report = cli.run(checked_job(workspace, "check: [answer = upper(text), length(answer) > 3]"))
    assert (report["exit_code"], report["requests"], report["rows_ok"]) == (0, 5, 5)


def test_a_failed_check_takes_a_repair_turn_with_its_message(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = answers_of("wrong", "right")
    workspace.csv(2)
    check = "check: [{that: answer <> 'wrong', message: Never answer so.}]"
    report = cli.run(checked_job(workspace, check))
    assert (report["exit_code"], report["requests"]) == (0, 4)
    assert [row["answer"] for row in read(workspace.folder / "out")] == ["right", "right"]
    repair = next(body for _, body in provider.seen if turns(body))
    assert [message["role"] for message in repair["messages"]] == ["user", "assistant", "user"]
    assert repair["messages"][1]["content"] == "wrong"
    assert "Never answer so." in repair["messages"][2]["content"]


def test_a_repair_turn_without_a_message_names_the_condition(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = answers_of("wrong", "right")
    workspace.csv(1)
    cli.run(checked_job(workspace, "check: [\"answer <> 'wrong'\"]"))
    assert "answer <> 'wrong'" in provider.prompts()[-1]


def test_a_row_that_fails_after_its_repair_turns_is_an_error_with_the_condition(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = answers_of("wrong")
    workspace.csv(1)
    report = cli.run(checked_job(workspace, "check: [\"answer <> 'wrong'\"]"))
    assert (report["exit_code"], report["requests"], report["rows_failed"]) == (1, 2, 1)
    message = "the answer fails the check answer <> 'wrong'"
    assert errors_of(read, workspace) == [(1, "invalid_answer", "check_failed", message)]


@pytest.mark.parametrize(("repairs", "requests"), [(0, 1), (1, 2), (3, 4)])
def test_a_row_takes_at_most_so_many_repair_turns(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, repairs: int, requests: int
) -> None:
    provider.script = answers_of("wrong")
    workspace.csv(1)
    report = cli.run(checked_job(workspace, f"check: [\"answer <> 'wrong'\"], repairs: {repairs}"))
    assert report["requests"] == requests
    assert [turns(body) for _, body in provider.seen] == list(range(requests))


def test_type_errors_and_checks_share_the_repair_turns(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = answers_of("no JSON", {"quote": "text", "urgency": 9}, {"quote": "text", "urgency": 3})
    workspace.csv(1)
    more = TYPED.replace("MORE", "check: [urgency between 1 and 5], repairs: REPAIRS")
    assert cli.run(checked_job(workspace, more.replace("REPAIRS", "1")))["requests"] == 2
    assert [row[:3] for row in errors_of(read, workspace)] == [(1, "invalid_answer", "check_failed")]
    # `repairs` is part of no fingerprint: the next run sends nothing, `retry` does.
    job = checked_job(workspace, more.replace("REPAIRS", "2"))
    assert cli.run(job)["requests"] == 0
    assert cli("retry", job, "--quiet") == 0
    assert [row["urgency"] for row in read(workspace.folder / "out")] == [3]


def test_rows_with_one_request_are_checked_for_themselves(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = answers_of("5", "7")
    workspace.write("rows.csv", "id,text,least\n1,same,3\n2,same,6\n3,same,9\n")
    report = cli.run(checked_job(workspace, "check: [cast(answer as integer) >= least]"))
    assert (report["requests"], report["rows_failed"]) == (2, 1)
    assert [(row["id"], row["answer"]) for row in read(workspace.folder / "out")] == [(1, "5"), (2, "7")]


def test_a_condition_that_breaks_on_a_row_fails_that_row(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = lambda path, body, count: chat_reply("7" if "text 1" in body["messages"][0]["content"] else "x")
    workspace.csv(2)
    report = cli.run(checked_job(workspace, "check: [cast(answer as integer) > 0]"))
    assert (report["rows_ok"], report["rows_failed"]) == (1, 1)
    assert [row[:3] for row in errors_of(read, workspace)] == [(2, "invalid_answer", "check_failed")]


def test_an_embedding_that_fails_a_check_is_an_error_without_a_repair_turn(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    workspace.csv(2)
    step = '{name: vector, endpoint: embeddings, provider: test, model: m, input: "{{ text }}", check: [id <> 2]}'
    report = cli.run(workspace.job(steps=f"[{step}]"))
    assert (report["rows_ok"], report["rows_failed"]) == (1, 1)
    assert [row[:3] for row in errors_of(read, workspace)] == [(2, "invalid_answer", "check_failed")]


def test_a_later_step_is_not_requested_for_a_row_that_fails_a_check(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    workspace.csv(2)
    first = STEP.replace("MORE", "check: [id = 1], repairs: 0")
    second = '{name: again, endpoint: chat, provider: test, model: m, messages: [{user: "{{ answer }}!"}]}'
    assert cli.run(workspace.job(steps=f"[{first}, {second}]"))["requests"] == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("check: [topik = 1]", "no column topik here"),
        ("check: [{that: 'true', then: x}]", "then"),
        ("repairs: -1", "repairs"),
        ("check: [random() < 2]", "random gives another value each time; take it from a column of the source"),
        ("check: [count(*) > 1]", "WHERE clause cannot contain aggregates"),
        ("check: [row_number() over () > 1]", "WHERE clause cannot contain window functions"),
        ("check: [read_text('rows.csv') = '']", "read_text"),
    ],
)
def test_validate_names_a_wrong_check(cli: Cli, workspace: Workspace, more: str, message: str) -> None:
    workspace.csv(1)
    assert cli("validate", checked_job(workspace, more)) == 2
    (line,) = cli.err.splitlines()
    assert message in line


def test_errors_names_each_condition_that_rows_fail(cli: Cli, workspace: Workspace) -> None:
    workspace.csv(3)
    checks = "check: [id < 3, {that: id <> 1, message: Not the first.}], repairs: 0"
    cli.run(checked_job(workspace, checks))
    cli("errors", workspace.folder / "job.yaml")
    groups = [" ".join(line.split()) for line in cli.out.splitlines()[4:6]]
    assert groups == [
        "1 answer invalid_answer the answer fails the check id < 3",
        "1 answer invalid_answer the answer fails the check id <> 1: Not the first.",
    ]
