"""A failure that nobody expected, at any stage of a batch: the command ends and says so, and nothing is lost."""

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Read = Callable[..., list[dict[str, Any]]]

BREAKING = """
import sys
from pipelines import batch_carry, batch_files, batch_gather, batch_land, batch_ledger, batch_out, provider_api

batch_carry.FIRST_POLL, batch_carry.LONGEST_POLL = 0.02, 0.05
batch_out.QUIET, batch_gather.LINES, batch_land.SETTLED_AT_ONCE = 0.1, 20, 4

class Unexpected(Exception):
    pass

def breaking(owner, name, when=lambda *given: True):
    real = getattr(owner, name)
    async def instead(*given):
        if when(*given):
            raise Unexpected("text 1 is secret")
        return await real(*given)
    setattr(owner, name, instead)

settled = []
stage = sys.argv[1]
match stage:
    case "gather":
        breaking(batch_gather.Gathering, "add", lambda self, pack, *given: pack.requests[0].keys == ("27",))
    case "note":
        breaking(batch_ledger.BatchLedger, "note")
    case "upload":
        breaking(provider_api.ProviderApi, "upload")
    case "create":
        breaking(provider_api.ProviderApi, "create_batch")
    case "poll":
        breaking(provider_api.ProviderApi, "batch")
    case "fetch":
        breaking(provider_api.ProviderApi, "download")
    case "landing":
        breaking(batch_land.Lander, "settle_line", lambda *given: settled.append(1) or len(settled) == 6)
    case "telling":
        def told(*given):
            raise Unexpected("text 1 is secret")
        batch_out.BatchOut.answered = told
    case "release":
        breaking(batch_ledger.BatchLedger, "release")
    case "clean":
        breaking(batch_carry.Carrier, "clean")
    case "deadline":
        breaking(batch_out.BatchOut, "_until_deadline")

from pipelines.cli import main
main(sys.argv[2:])
"""


def ran(stage: str, job: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    """A run in a process of its own; one that hangs fails the test."""
    command = [sys.executable, "-c", BREAKING, stage, "run", str(job), "--json", "--quiet", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=90, check=False
    )


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
    broken = ran(stage, job)
    told = json.loads(broken.stdout)
    assert (broken.returncode, told["exit_code"]) == (3, 3)
    assert told["stopped"].startswith("a defect of Rowmill, told on stderr")
    assert "Unexpected: text 1 is secret" in broken.stderr.splitlines()[-1]
    assert (told["rows"], told["rows_failed"], told["rows_ok"] + told["rows_left"]) == (50, 0, 50)
    assert told["rows_ok"] <= told["requests"]
    kept = len(read(workspace.folder / "out"))
    assert kept == told["rows_ok"]
    mended = ran("", job)
    second = json.loads(mended.stdout)
    assert (second["exit_code"], second["rows_ok"], second["run_id"]) == (0, 50, told["run_id"]), mended.stderr
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
    broken = ran("poll", workspace.job(delivery="batch"), "--log", "json")
    (event,) = [json.loads(line) for line in broken.stderr.splitlines()]
    assert (event["event"], event["level"], event["message"]) == ("defect", "error", "Unexpected")
    assert event["traceback"].splitlines()[-1].endswith("Unexpected: text 1 is secret")


def test_a_provider_that_sends_what_cannot_be_tried_again_stops_the_run(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from connectors.transport import RequestError
    from pipelines.provider_api import ProviderApi

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
