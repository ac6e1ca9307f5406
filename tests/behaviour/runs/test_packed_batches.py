"""`pack` with `delivery: batch`: a line of a batch is a pack, and rows without an answer go into the next batch."""

import json
import signal
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest

from tests.behaviour.runs.conftest import BatchProvider
from tests.behaviour.runs.test_packing import PACKED, answers, expected, items_of, packed_job, packed_reply
from tests.conftest import Body, Cli, ReadTable, Workspace
from tests.support.forked import ended, run

BATCH = {"delivery": "batch"}


def reply_to(body: Body, change: Any = lambda items: items) -> Body | None:
    """The line's response to a pack, whose items `change` may change; None for a single row: the usual answer."""
    items = [{"id": one["id"], "answer": one["content"].upper()} for one in items_of(body)]
    return {"status_code": 200, "body": packed_reply(change(items))} if items else None


def packs_of(batches: BatchProvider) -> list[list[int]]:
    """The rows of each line, batch by batch; a row that is alone is 1."""
    return [[len(items_of(line["body"])) or 1 for line in batch["lines"]] for batch in batches.batches.values()]


def test_a_line_is_a_pack_at_half_the_price(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    batches.script = lambda text, body: reply_to(body)
    workspace.csv(23)
    report = cli.run(packed_job(workspace, **BATCH))
    assert answers(read, workspace) == expected(23)
    assert packs_of(batches) == [[5, 5, 5, 5, 3]]
    assert (report["requests"], report["retries"], report["rows_ok"]) == (5, 0, 23)
    # Half of 100 tokens at a dollar and 50 at two a million, for each pack.
    assert report["cost_usd"] == pytest.approx(5 * 100e-6)
    usage = read(workspace.folder / "out", "usage")
    assert sorted(len(row["keys"]) for row in usage) == [3, 5, 5, 5, 5]


def test_rows_without_an_answer_go_into_the_next_batch_in_smaller_packs(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    batches.script = lambda text, body: reply_to(body, lambda items: [] if len(items) > 2 else items[1:])
    workspace.csv(8)
    report = cli.run(packed_job(workspace, "{rows: 8}", **BATCH))
    assert answers(read, workspace) == expected(8)
    assert packs_of(batches) == [[8], [4, 4], [2, 2, 2, 2], [1, 1, 1, 1]]
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 8, 11)


def test_a_pack_that_is_refused_is_halved_and_no_answered_row_is_sent_again(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    refusal = {"error": {"message": "this text is not acceptable", "type": "t", "param": None, "code": None}}

    def script(text: str, body: Body) -> Body | None:
        return {"status_code": 400, "body": refusal} if "text 6" in text else reply_to(body)

    batches.script = script
    workspace.csv(8)
    report = cli.run(packed_job(workspace, "{rows: 4}", **BATCH))
    assert packs_of(batches) == [[4, 4], [2, 2], [1, 1]]
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (1, 7, 1)
    (failed,) = read(workspace.folder / "out", "errors")
    assert (failed["id"], failed["error_class"]) == (6, "bad_request")


def test_a_server_without_schemas_gets_the_schema_in_words_in_the_next_batch(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    refusal = {"error": {"message": "response_format is not supported by this model", "code": None}}

    def script(text: str, body: Body) -> Body | None:
        if "response_format" in body:
            return {"status_code": 400, "body": refusal}
        items = [json.loads(line) for line in text.splitlines() if line.startswith('{"id"')]
        reply = packed_reply([{"id": one["id"], "answer": one["content"].upper()} for one in items])
        return {"status_code": 200, "body": reply} if items else None

    batches.script = script
    workspace.csv(10)
    report = cli.run(packed_job(workspace, **BATCH))
    assert answers(read, workspace) == expected(10)
    # Both lines are refused in each mode with a schema, and the size of the packs stays.
    assert [len(batch["lines"]) for batch in batches.batches.values()] == [2] * len(batches.batches)
    assert (report["exit_code"], report["rows_ok"]) == (0, 10)


def test_agreement_is_measured_and_the_packs_keep_their_size(
    cli: Cli, workspace: Workspace, batches: BatchProvider
) -> None:
    batches.script = lambda text, body: reply_to(body, lambda items: [{**one, "answer": "WRONG"} for one in items])
    workspace.csv(400)
    report = cli.run(packed_job(workspace, "{rows: 20, verify: 0.3}", **BATCH))
    assert report["pack_agreement"] == 0.0
    first, second = packs_of(batches)
    assert set(first) <= {20, 12}
    assert set(second) == {1}
    assert 60 <= len(second) <= 180


def test_the_budget_reserves_the_packs_of_a_batch(cli: Cli, workspace: Workspace, batches: BatchProvider) -> None:
    batches.script = lambda text, body: reply_to(body)
    workspace.csv(400)
    report = cli.run(packed_job(workspace, "{rows: 10}", budget="{usd: 0.002}", **BATCH))
    paid = sum(100e-6 if rows > 1 else 10e-6 for lines in packs_of(batches) for rows in lines)
    assert report["exit_code"] == 3
    assert 0 < paid <= 0.002
    assert report["cost_usd"] == pytest.approx(paid)


@pytest.mark.parametrize("daily", [False, True], ids=["job", "day"])
def test_a_batch_takes_smaller_packs_for_what_is_left_of_a_budget(
    cli: Cli, workspace: Workspace, batches: BatchProvider, daily: bool
) -> None:
    batches.script = lambda text, body: reply_to(body)
    workspace.csv(400)
    job = packed_job(workspace, "{rows: 20}", **BATCH, **({} if daily else {"budget": "{usd: 0.0006}"}))
    if daily:
        file = workspace.folder / "rowmill.yaml"
        file.write_text(file.read_text() + "budget: {usd_per_day: 0.0006}\n")
    report = cli.run(job)
    assert (report["exit_code"], report["stopped"].split(":")[0]) == (3, "budget")
    # For a daily budget, the run does not wait for the money that a batch may give back.
    least = 0 if daily else 0.0004
    assert (0 < report["rows_ok"] < 400, least < report["cost_usd"] <= 0.0006) == (True, True)
    assert max(rows for lines in packs_of(batches) for rows in lines) < 20


def test_packs_of_a_killed_run_are_read_by_the_next_even_without_pack(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    batches.script = lambda text, body: reply_to(body, lambda items: items[1:])
    batches.held = True
    workspace.csv(20)
    job = packed_job(workspace, "{rows: 10}", **BATCH)
    process = run(job)
    while not batches.batches and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    ended(process)
    batches.held = False
    plain = workspace.job(steps=PACKED.replace(", pack: PACK", ""), **BATCH)
    assert cli.run(plain)["rows_ok"] == 20
    assert answers(read, workspace) == expected(20)
    assert packs_of(batches) == [[10, 10], [1, 1]]


def test_after_a_kill_among_verified_rows_their_batch_is_adopted_and_no_pack_is_paid_twice(
    cli: Cli, workspace: Workspace, batches: BatchProvider, read: ReadTable
) -> None:
    def script(text: str, body: Body) -> Body | None:
        # From the first batch on, none ends before the kill.
        batches.held = True
        return reply_to(body)

    batches.script = script
    workspace.csv(20)
    job = packed_job(workspace, "{rows: 10, verify: 1}", **BATCH)
    process = run(job)
    while len(batches.batches) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    ended(process)
    batches.held = False
    batches.script = lambda text, body: reply_to(body)
    report = cli.run(job)
    assert answers(read, workspace) == expected(20)
    assert packs_of(batches) == [[10, 10], [1] * 20]
    assert (report["rows_ok"], report["pack_agreement"]) == (20, 1.0)
    with closing(sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite")) as ledger:
        assert ledger.execute("select count(*) from packed_answers").fetchone() == (0,)
