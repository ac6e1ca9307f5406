"""`check`, `repairs` and `evidence` in runs that are killed, that go through batches, and that have packs and rungs."""

import re
import signal
import time
from collections import Counter
from typing import Any

from tests.behaviour.quality.test_checks import checked_job, turns
from tests.behaviour.runs.conftest import BatchProvider
from tests.behaviour.runs.test_packing import HostileServer
from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply
from tests.support.forked import ended, run

CHECKED = "check: [\"answer_match <> 'none'\"], evidence: {answer: text}, repairs: 1"
PLACES = ("answer", "answer_start", "answer_end", "answer_match")


def places(read: ReadTable, workspace: Workspace) -> dict[int, tuple[Any, ...]]:
    return {row["id"]: tuple(row[name] for name in PLACES) for row in read(workspace.folder / "out")}


def quoted(number: int) -> tuple[Any, ...]:
    """The answer of a row that quotes its whole text."""
    text = f"TEXT {number}"
    return text, 0, len(text), "normalized"


def every_third_wrong(body: Body) -> Body:
    """Quotes the text; every third row does so after a repair turn only."""
    text = next(message["content"] for message in body["messages"] if message["role"] == "user")
    is_right = int(text.split()[-1]) % 3 or turns(body)
    return chat_reply(text.upper() if is_right else "something else")


def test_after_a_kill_among_repair_turns_nothing_is_paid_twice(
    workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    rows, concurrency = 120, 4
    provider.script = lambda path, body, count: every_third_wrong(body)
    provider.latency = 0.002
    workspace.csv(rows)
    job = checked_job(workspace, CHECKED, limits=f"{{concurrency: {concurrency}}}")
    process = run(job)
    while sum(turns(body) for _, body in provider.answered) < 10 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    ended(process)
    assert ended(run(job))[0] == 0
    assert places(read, workspace) == {number: quoted(number) for number in range(1, rows + 1)}
    usage = read(workspace.folder / "out", "usage")
    unknown = [row for row in usage if row["error_class"] == "unknown"]
    assert len(unknown) <= concurrency
    paid = Counter(key for row in usage if row["http_status"] == 200 for key in row["keys"])
    assert paid == {str(number): 1 if number % 3 else 2 for number in range(1, rows + 1)}


def test_repair_turns_of_checks_go_into_the_next_batch(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    batches.script = lambda text, body: {"status_code": 200, "body": every_third_wrong(body)}
    workspace.csv(7)
    report = cli.run(checked_job(workspace, CHECKED, delivery="batch"))
    assert places(read, workspace) == {number: quoted(number) for number in range(1, 8)}
    assert [len(batch["lines"]) for batch in batches.batches.values()] == [7, 2]
    assert (report["exit_code"], report["requests"], report["rows_ok"]) == (0, 9, 7)


def test_packs_checks_repair_turns_and_rungs_work_together_with_a_hostile_server(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    rows, hostile = 150, HostileServer(3, 0.2)

    def script(path: str, body: Body, count: int) -> Any:
        """Every 7th row needs a repair turn, every 14th a rung."""
        text = next(message["content"] for message in body["messages"] if message["role"] == "user")
        if "max_tokens" in body and body["max_tokens"] == 200:
            return chat_reply(text.upper())
        if turns(body):
            return chat_reply(text.upper() if int(text.split()[-1]) % 14 else "something else")
        reply = hostile(path, body, count)
        if reply is None:
            return chat_reply(text.upper() if int(text.split()[-1]) % 7 else "something else")
        if isinstance(reply, dict):
            message = reply["choices"][0]["message"]
            message["content"] = re.sub(
                r'"TEXT (\d+)"',
                lambda found: found[0] if int(found[1]) % 7 else '"something else"',
                message["content"],
            )
        return reply

    provider.script = script
    workspace.csv(rows)
    more = f"{CHECKED}, pack: {{rows: 20, verify: 0.2}}, params: {{max_tokens: 20}}"
    job = checked_job(workspace, f"{more}, rescue: [{{on: [invalid_answer], params: {{max_tokens: 200}}}}]")
    assert cli.run(job)["rows_ok"] == rows
    expected = {number: quoted(number) for number in range(1, rows + 1)}
    rungs = {row["id"]: row["answer_rung"] for row in read(workspace.folder / "out")}
    assert places(read, workspace) == expected
    assert rungs == {number: int(number % 14 == 0) for number in range(1, rows + 1)}
    assert cli.run(job)["requests"] == 0
    assert cli("rebuild", job) == 0
    assert places(read, workspace) == expected
    assert {row["id"]: row["answer_rung"] for row in read(workspace.folder / "out")} == rungs
