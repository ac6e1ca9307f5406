"""A failure that nobody expected, at any stage of a batch: the command ends and says so, and nothing is lost."""

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
    case "landing":
        breaking(settler.BatchSettler, "_settle_result", lambda *arguments: settled.append(1) or len(settled) == 6)
    case "telling":
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


def ran(stage: str, job: Path, *flags: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a run in a process of its own; one that hangs fails the test."""
    return Forked(BREAKING, stage, "run", job, "--json", "--quiet", *flags).ended(90)


@pytest.mark.parametrize(
    "stage",
    [
        "gather", "note", "upload", "create", "poll", "fetch", "landing", "telling", "release", "clean", "deadline",
    ],
)  # fmt: skip
def test_an_unexpected_failure_at_any_stage_ends_the_command_and_the_next_run_goes_on(
    workspace: Any, batches: Any, read: Read, stage: str
) -> None:
    workspace.csv(50)
    job = workspace.job(delivery="batch")
    code, out, err = ran(stage, job)
    told = json.loads(out)
    assert (code, told["exit_code"]) == (3, 3)
    assert told["stopped"].startswith("a defect of Rowmill, printed on stderr")
    assert "Unexpected: text 1 is secret" in err.splitlines()[-1], err
    assert (told["rows"], told["rows_failed"], told["rows_ok"] + told["rows_left"]) == (50, 0, 50)
    assert told["rows_ok"] <= told["requests"]
    kept = len(read(workspace.folder / "out"))
    assert kept == told["rows_ok"]
    _, out, err = ran("", job)
    second = json.loads(out)
    assert (second["exit_code"], second["rows_ok"], second["run_id"]) == (0, 50, told["run_id"]), err
    assert second["requests"] == 50 - told["requests"]
    assert batches.submitted == Counter({f"text {n}": 1 for n in range(1, 51)})
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == [f"TEXT {n}" for n in range(1, 51)]
    assert len(read(workspace.folder / "out", "usage")) == 50
    assert batches.files == {}
    with sqlite3.connect(workspace.folder / ".rowmill" / "ledger.sqlite") as db:
        for table in ("batches", "batch_lines", "noted"):
            assert db.execute(f"select count(*) from {table}").fetchone() == (0,), table
    db.close()


def test_a_defect_is_a_line_of_json_where_lines_are_asked_for(workspace: Any, batches: Any) -> None:
    workspace.csv(5)
    _, _, err = ran("poll", workspace.job(delivery="batch"), "--log", "json")
    (event,) = [json.loads(line) for line in err.splitlines()]
    assert (event["event"], event["level"], event["message"]) == ("defect", "error", "Unexpected")
    assert event["traceback"].splitlines()[-1].endswith("Unexpected: text 1 is secret")


def test_a_provider_that_sends_what_cannot_be_tried_again_stops_the_run(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from connectors.transport.client import RequestError
    from pipelines.runtime.provider_api import ProviderApi

    async def refused(*given: Any) -> None:
        raise RequestError("access_denied", "the proxy wants a password", 1.0, billable=False)

    workspace.csv(5)
    monkeypatch.setattr(ProviderApi, "create_batch", refused)
    told = cli.run(workspace.job(delivery="batch"))
    assert (told["exit_code"], told["rows_left"]) == (3, 5)
    assert told["stopped"] == "access_denied: test: the proxy wants a password"


def test_a_provider_without_a_batch_api_is_told_as_such(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(5)
    provider.script = lambda path, body, count: error_reply(404, "Not Found")
    file = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text().replace("/v1", "/nowhere"))
    told = cli.run(workspace.job(delivery="batch", retry="{attempts: 1, longest_wait: 0.01, longest_hold: 1}"))
    assert (told["exit_code"], told["rows_left"]) == (3, 5)
    assert told["stopped"].startswith("bad_request: test says of a batch: ")
    assert told["stopped"].endswith("; it seems to have no Batch API: write delivery: online")
    assert cli.run(workspace.folder / "job.yaml", "--delivery", "online")["exit_code"] in (1, 3)


@pytest.mark.parametrize("later", [False, True], ids=["refused at once", "failed by the time it is looked at"])
def test_a_line_that_alone_is_above_the_enqueued_limit_is_its_rows_error_and_the_others_have_their_answers(
    workspace: Any, batches: Any, cli: Any, read: Read, later: bool
) -> None:
    workspace.csv(6)
    workspace.write("rows.csv", (workspace.folder / "rows.csv").read_text() + f"7,{'very long ' * 400}\n")
    batches.most_characters, batches.limit_fails_later = 1000, later
    batches.limit_words = "Enqueued token limit reached for m. Limit: 300 enqueued tokens. Please try again later."
    told = cli.run(workspace.job(delivery="batch"))
    assert (told["exit_code"], told["rows_ok"], told["rows_failed"], told["requests"]) == (1, 6, 1, 6)
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
def test_a_line_that_may_be_above_is_given_up_when_the_job_has_held_on_and_the_next_run_asks_it(
    workspace: Any, batches: Any, cli: Any, read: Read, words: str
) -> None:
    workspace.csv(6)
    workspace.write("rows.csv", (workspace.folder / "rows.csv").read_text() + f"7,{'very long ' * 400}\n")
    batches.most_characters, batches.limit_words = 1000, words
    job = workspace.job(delivery="batch", retry="{attempts: 3, longest_wait: 0.02, longest_hold: 0.3}")
    told = cli.run(job)
    assert (told["exit_code"], told["rows_ok"], told["rows_failed"], told["requests"]) == (1, 6, 1, 6)
    (row,) = read(workspace.folder / "out", "errors")
    assert (row["id"], row["error_class"], row["code"]) == (7, "rate_limit", "token_limit_exceeded")
    assert set(batches.submitted.values()) == {1}
    assert batches.files == {}
    batches.most_characters = None
    assert cli.run(job)["requests"] == 1
    assert read(workspace.folder / "out", "errors") == []


def test_a_pack_that_alone_is_above_the_limit_is_asked_row_by_row(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(30)
    batches.most_characters = 100
    steps = '[{name: v, endpoint: embeddings, provider: test, model: e, dimensions: 3, input: "{{ text }}"}]'
    retry = "{attempts: 3, longest_wait: 0.02, longest_hold: 0.1}"
    told = cli.run(workspace.job(delivery="batch", steps=steps, retry=retry))
    assert (told["exit_code"], told["rows_ok"], told["requests"]) == (0, 30, 30)
    assert set(batches.submitted.values()) == {1}


def test_a_line_that_has_room_by_itself_waits_for_batches_that_run(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.batch.builder.MAX_FILE_LINES", 6)
    workspace.csv(6)
    workspace.write("rows.csv", (workspace.folder / "rows.csv").read_text() + f"7,{'very long ' * 99}\n")
    batches.most_characters, batches.polls = 1000, 12
    batches.limit_words = "Limit: 260 enqueued tokens."
    told = cli.run(workspace.job(delivery="batch", retry="{attempts: 3, longest_wait: 0.02, longest_hold: 0.1}"))
    assert (told["exit_code"], told["rows_ok"], told["retries"]) == (0, 7, 0)
    assert batches.limited >= 1
    assert batches.lines_of_batches == [6, 1]
