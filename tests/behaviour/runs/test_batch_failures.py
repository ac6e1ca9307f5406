"""Unexpected failures at any stage of a batch: the command ends with an error, and nothing is lost."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import Forked

Read = Callable[..., list[dict[str, Any]]]

BREAKING = """
import sys
from pipelines.batch import builder, dispatcher, lifecycle, settler, store
from pipelines.runtime import provider_api

lifecycle.FIRST_POLL_SECONDS, lifecycle.MAX_POLL_SECONDS = 0.02, 0.05
dispatcher.QUIET_SECONDS, builder.MAX_FILE_LINES, settler.LINES_AT_ONCE = 0.1, 20, 4

class Unexpected(Exception):
    pass

def breaking(owner, name, when=lambda *arguments: True):
    real = getattr(owner, name)
    async def replacement(*arguments):
        if when(*arguments):
            raise Unexpected("text 1 is secret")
        return await real(*arguments)
    setattr(owner, name, replacement)

settled = []
stage = sys.argv[1]
match stage:
    case "gather":
        breaking(builder.BatchBuilder, "add", lambda self, group, *others: group.requests[0].keys == ("27",))
    case "note":
        breaking(store.BatchLedger, "record_pending")
    case "upload":
        breaking(provider_api.ProviderApi, "upload_file")
    case "create":
        breaking(provider_api.ProviderApi, "create_batch")
    case "poll":
        breaking(provider_api.ProviderApi, "get_batch")
    case "fetch":
        breaking(provider_api.ProviderApi, "download_file")
    case "settle":
        breaking(settler.BatchSettler, "_settle_result", lambda *arguments: settled.append(1) or len(settled) == 6)
    case "resolve":
        def fail(*arguments):
            raise Unexpected("text 1 is secret")
        dispatcher.BatchDispatcher.on_answered = fail
    case "release":
        breaking(store.BatchLedger, "cancel_lines")
    case "clean":
        breaking(lifecycle.BatchLifecycle, "clean")
    case "deadline":
        breaking(dispatcher.BatchDispatcher, "_run_until_deadline")

from pipelines.cli import main
main(sys.argv[2:])
"""


def run_broken(stage: str, job: Path, *flags: str) -> tuple[int, str, str]:
    """Run in a separate process; return (exit code, stdout, stderr). A run that hangs fails the test."""
    return Forked(BREAKING, stage, "run", job, "--json", "--quiet", *flags).ended(90)


@pytest.mark.parametrize(
    "stage",
    [
        "gather", "note", "upload", "create", "poll", "fetch", "settle", "resolve", "release", "clean", "deadline",
    ],
)  # fmt: skip
def test_an_unexpected_failure_at_any_stage_ends_the_command_and_the_next_run_continues(
    workspace: Any, batches: Any, read: Read, stage: str
) -> None:
    workspace.csv(50)
    job = workspace.job(delivery="batch")
    code, out, err = run_broken(stage, job)
    report = json.loads(out)
    assert (code, report["exit_code"]) == (3, 3)
    assert report["stopped"].startswith("a defect of Rowmill, printed on stderr")
    assert "Unexpected: text 1 is secret" in err.splitlines()[-1], err
    assert (report["rows"], report["rows_failed"], report["rows_ok"] + report["rows_left"]) == (50, 0, 50)
    assert report["rows_ok"] <= report["requests"]
    kept = len(read(workspace.folder / "out"))
    assert kept == report["rows_ok"]
    _, out, err = run_broken("", job)
    second = json.loads(out)
    assert (second["exit_code"], second["rows_ok"], second["run_id"]) == (0, 50, report["run_id"]), err
    assert second["requests"] == 50 - report["requests"]
    assert batches.submitted == Counter({f"text {n}": 1 for n in range(1, 51)})
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == [f"TEXT {n}" for n in range(1, 51)]
    assert len(read(workspace.folder / "out", "usage")) == 50
    assert batches.files == {}
    with sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite") as db:
        for table in ("batches", "batch_lines", "noted"):
            assert db.execute(f"select count(*) from {table}").fetchone() == (0,), table
    db.close()


def test_a_defect_is_reported_as_a_json_line_in_json_format(workspace: Any, batches: Any) -> None:
    workspace.csv(5)
    _, _, err = run_broken("poll", workspace.job(delivery="batch"), "--log", "json")
    (event,) = [json.loads(line) for line in err.splitlines()]
    assert (event["event"], event["level"], event["message"]) == ("defect", "error", "Unexpected")
    assert event["traceback"].splitlines()[-1].endswith("Unexpected: text 1 is secret")


def test_a_reply_of_the_batch_api_that_cannot_be_retried_stops_the_run(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from connectors.transport.client import RequestError
    from pipelines.runtime.provider_api import ProviderApi

    async def refused(*arguments: Any) -> None:
        raise RequestError("access_denied", "the proxy wants a password", 1.0, is_billable=False)

    workspace.csv(5)
    monkeypatch.setattr(ProviderApi, "create_batch", refused)
    report = cli.run(workspace.job(delivery="batch"))
    assert (report["exit_code"], report["rows_left"]) == (3, 5)
    assert report["stopped"] == "access_denied: test: the proxy wants a password"


def test_the_message_names_a_provider_without_a_batch_api(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(5)
    provider.script = lambda path, body, count: error_reply(404, "Not Found")
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace("/v1", "/nowhere"))
    report = cli.run(workspace.job(delivery="batch", retry="{attempts: 1, longest_wait: 0.01, longest_hold: 1}"))
    assert (report["exit_code"], report["rows_left"]) == (3, 5)
    assert "test says: " in report["stopped"]
    assert report["stopped"].endswith("; it seems to have no Batch API: write delivery: online")
    assert cli.run(workspace.folder / "job.yaml", "--delivery", "online")["exit_code"] in (1, 3)


@pytest.mark.parametrize("later", [False, True], ids=["refused at once", "failed by the time it is looked at"])
def test_a_line_above_the_enqueued_limit_is_the_error_of_its_rows_only(
    workspace: Any, batches: Any, cli: Any, read: Read, later: bool
) -> None:
    workspace.csv(6)
    workspace.write("rows.csv", (workspace.folder / "rows.csv").read_text() + f"7,{'very long ' * 400}\n")
    batches.most_characters, batches.limit_fails_later = 1000, later
    batches.limit_words = "Enqueued token limit reached for m. Limit: 300 enqueued tokens. Please try again later."
    report = cli.run(workspace.job(delivery="batch"))
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["requests"]) == (1, 6, 1, 6)
    (row,) = read(workspace.folder / "out", "errors")
    assert (row["id"], row["error_class"], row["code"], row["message"], row["attempts"]) == (
        7, "bad_request", "token_limit_exceeded", batches.limit_words, 1,
    )  # fmt: skip
    assert batches.files == {}
    assert cli.run(workspace.folder / "job.yaml")["requests"] == 0


@pytest.mark.parametrize(
    "words",
    ["Enqueued token limit reached for m.", "Enqueued token limit reached for m. Limit: 1,500 enqueued tokens."],
    ids=["no limit is named", "it is not above by our count"],
)
def test_a_line_that_may_be_above_the_limit_fails_after_longest_hold_and_the_next_run_sends_it(
    workspace: Any, batches: Any, cli: Any, read: Read, words: str
) -> None:
    workspace.csv(6)
    workspace.write("rows.csv", (workspace.folder / "rows.csv").read_text() + f"7,{'very long ' * 400}\n")
    batches.most_characters, batches.limit_words = 1000, words
    job = workspace.job(delivery="batch", retry="{attempts: 3, longest_wait: 0.02, longest_hold: 0.3}")
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["requests"]) == (1, 6, 1, 6)
    (row,) = read(workspace.folder / "out", "errors")
    assert (row["id"], row["error_class"], row["code"]) == (7, "rate_limit", "token_limit_exceeded")
    assert set(batches.submitted.values()) == {1}
    assert batches.files == {}
    batches.most_characters = None
    assert cli.run(job)["requests"] == 1
    assert read(workspace.folder / "out", "errors") == []


def test_a_group_above_the_limit_is_sent_row_by_row(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(30)
    batches.most_characters = 100
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}]'
    retry = "{attempts: 3, longest_wait: 0.02, longest_hold: 0.1}"
    report = cli.run(workspace.job(delivery="batch", steps=steps, retry=retry))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 30, 30)
    assert set(batches.submitted.values()) == {1}


def test_a_line_below_the_limit_waits_for_running_batches(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 6)
    workspace.csv(6)
    workspace.write("rows.csv", (workspace.folder / "rows.csv").read_text() + f"7,{'very long ' * 99}\n")
    batches.most_characters, batches.polls = 1000, 12
    batches.limit_words = "Limit: 260 enqueued tokens."
    report = cli.run(workspace.job(delivery="batch", retry="{attempts: 3, longest_wait: 0.02, longest_hold: 0.1}"))
    assert (report["exit_code"], report["rows_ok"], report["retries"]) == (0, 7, 0)
    assert batches.limited >= 1
    assert batches.lines_of_batches == [6, 1]
