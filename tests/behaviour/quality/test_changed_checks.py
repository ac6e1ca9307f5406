"""A check that changes between two nights: stored answers are evaluated, and only rows that fail are requested."""

import json
from pathlib import Path

import pytest

from tests.behaviour.quality.test_checks import answers_of, checked_job
from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply

pytestmark = pytest.mark.usefixtures("provider")


def answers(read: ReadTable, workspace: Workspace) -> dict[int, str]:
    return {row["id"]: row["answer"] for row in read(workspace.folder / "out")}


def by_row(path: str, body: Body, count: int) -> Body:
    """Rows answer with their last digit, and after each repair turn with one more."""
    repaired = sum(message["role"] == "assistant" for message in body["messages"])
    return chat_reply(str(int(body["messages"][0]["content"][-1]) + repaired))


def least(workspace: Workspace, number: int) -> Path:
    return checked_job(workspace, f"check: [cast(answer as integer) >= {number}]")


def test_a_check_that_is_added_requests_only_rows_that_fail(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = by_row
    workspace.csv(5)
    assert cli.run(checked_job(workspace, "reuse: true"))["requests"] == 5
    assert cli.run(least(workspace, 2))["requests"] == 1
    assert answers(read, workspace) == {1: "2", 2: "2", 3: "3", 4: "4", 5: "5"}


def test_a_stricter_check_requests_rows_whose_last_answers_fail(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = by_row
    workspace.csv(5)
    assert cli.run(least(workspace, 2))["requests"] == 6
    # Row 1 ended with 2 after its repair turn; rows 1 and 2 fail by now.
    report = cli.run(least(workspace, 3))
    assert report["rows_failed"] == 1
    assert answers(read, workspace)[2] == "3"
    sent = [body["messages"][0]["content"] for _, body in provider.seen[6:]]
    assert sorted(sent) == ["text 1", "text 2"]


def test_a_removed_check_accepts_last_answers_without_a_request(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = by_row
    workspace.csv(3)
    cli.run(checked_job(workspace, "check: [cast(answer as integer) >= 3]"))
    assert answers(read, workspace) == {2: "3", 3: "3"}
    report = cli.run(checked_job(workspace, "reuse: true"))
    assert (report["requests"], report["exit_code"]) == (0, 0)
    # Row 1 failed with the answer of its repair turn.
    assert answers(read, workspace) == {1: "2", 2: "3", 3: "3"}


def test_a_looser_check_accepts_the_last_answer_of_a_row_in_errors(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = answers_of("wrong", "almost")
    workspace.csv(1)
    assert cli.run(checked_job(workspace, "check: [\"answer = 'right'\"]"))["rows_failed"] == 1
    report = cli.run(checked_job(workspace, "check: [\"answer in ('right', 'almost')\"]"))
    assert (report["requests"], report["rows_failed"]) == (0, 0)
    assert answers(read, workspace) == {1: "almost"}


def test_a_check_that_stays_requests_nothing(cli: Cli, workspace: Workspace, provider: ScriptedProvider) -> None:
    provider.script = by_row
    workspace.csv(5)
    job = least(workspace, 3)
    cli.run(job)
    sent = len(provider.seen)
    assert cli.run(job)["requests"] == 0
    assert len(provider.seen) == sent


def test_a_changed_value_that_only_a_check_reads_is_checked_without_a_request(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = by_row
    workspace.write("rows.csv", "id,text,least\n1,text 1,1\n2,text 2,2\n")
    job = checked_job(workspace, "check: [cast(answer as integer) >= least]")
    assert cli.run(job)["requests"] == 2
    workspace.write("rows.csv", "id,text,least\n1,text 1,0\n2,text 2,3\n")
    assert cli.run(job)["requests"] == 1
    assert answers(read, workspace) == {1: "1", 2: "3"}


def test_retry_requests_a_row_again_that_fails_a_check(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = answers_of("wrong")
    workspace.csv(1)
    job = checked_job(workspace, "check: [\"answer <> 'wrong'\"]")
    cli.run(job)
    assert cli.run(job)["requests"] == 0
    assert cli("retry", job, "--quiet") == 1
    # The first request and its repair turn once more.
    assert len(provider.seen) == 4
    provider.script = answers_of("wrong", "right")
    assert cli("retry", job, "--quiet") == 0
    assert answers(read, workspace) == {1: "right"}


def test_rebuild_writes_the_answers_of_repair_turns(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = by_row
    workspace.csv(2)
    job = least(workspace, 2)
    cli.run(job)
    before = read(workspace.folder / "out")
    assert cli("rebuild", job) == 0
    assert read(workspace.folder / "out") == before


def test_plan_shows_the_rows_that_a_changed_check_requests(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider
) -> None:
    provider.script = by_row
    workspace.csv(5)
    cli.run(least(workspace, 2))
    # Row 1 has 2 after its repair turn.
    for number, requests in ((2, 0), (3, 2), (5, 4), (1, 0)):
        assert cli("plan", least(workspace, number), "--json") == 0
        assert json.loads(cli.out)["steps"][0]["requests"] == requests, number


def test_dropped_answers_are_checked_in_the_sink(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = by_row
    workspace.csv(5)
    file = workspace.folder / "rowmill.yaml"
    file.write_text(f"keep_answers: committed\n{file.read_text()}")
    assert cli.run(least(workspace, 2))["requests"] == 6
    before = read(workspace.folder / "out")
    # Another check that all rows pass, one that is removed, and one that row 1 and 2 fail.
    looser = "check: [cast(answer as integer) between 2 and 9]"
    for check, requests in ((looser, 0), ("check: [cast(answer as integer) >= 3]", 2)):
        assert cli("plan", checked_job(workspace, check), "--json") == 0
        assert json.loads(cli.out)["steps"][0]["requests"] == requests
    assert cli.run(checked_job(workspace, looser))["requests"] == 0
    assert answers(read, workspace) == {row["id"]: row["answer"] for row in before}
    assert cli.run(checked_job(workspace, "reuse: true"))["requests"] == 0
    assert answers(read, workspace) == {row["id"]: row["answer"] for row in before}
    cli.run(least(workspace, 3))
    assert {body["messages"][0]["content"] for _, body in provider.seen[6:]} == {"text 1", "text 2"}


def test_pruned_answers_are_checked_in_the_sink(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = by_row
    workspace.csv(3)
    cli.run(least(workspace, 1))
    assert cli("ledger", "prune", "--job", "job", "--workspace", workspace.folder) == 0
    assert cli.run(least(workspace, 0))["requests"] == 0
    assert answers(read, workspace) == {1: "1", 2: "2", 3: "3"}


@pytest.mark.parametrize("answers_are", ["kept", "committed", "pruned"])
def test_the_answer_of_a_rung_is_the_last_one_although_another_check_would_accept_that_before(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, answers_are: str
) -> None:
    """With `committed` the ledger has the answers of the step as declared, and not those of the rung."""
    provider.script = lambda path, body, count: chat_reply("right" if body["model"] == "big" else "wrong")
    workspace.csv(2)
    if answers_are == "committed":
        file = workspace.folder / "rowmill.yaml"
        file.write_text(f"keep_answers: committed\n{file.read_text()}")
    rescue = "repairs: 0, rescue: [{on: [invalid_answer], model: big}]"
    assert cli.run(checked_job(workspace, rescue + ", check: [\"answer = 'right'\"]"))["requests"] == 4
    if answers_are == "pruned":
        assert cli("ledger", "prune", "--job", "job", "--workspace", workspace.folder) == 0
    for check in (", check: [\"answer like 'r%'\"]", ", check: [\"answer like '%r%'\"]", ""):
        job = checked_job(workspace, rescue + check)
        assert cli("plan", job, "--json") == 0
        assert json.loads(cli.out)["requests"] == 0
        report = cli.run(job)
        assert (report["requests"], report["rows_ok"]) == (0, 2)
        found = [(row["answer"], row["answer_rung"]) for row in read(workspace.folder / "out")]
        assert found == [("right", 1), ("right", 1)]
    if answers_are == "kept":
        before = read(workspace.folder / "out")
        assert cli("rebuild", job) == 0
        assert read(workspace.folder / "out") == before
