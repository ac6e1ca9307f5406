"""Tables of `usage`, `batches list`, `ledger show` and others fit any terminal, and are uncut in a pipe."""

import re
from pathlib import Path
from typing import Any

import pytest

from connectors.emulator.server import EmulatorOptions, EmulatorServer
from pipelines.formatting import DataTable, render
from pipelines.reporting.status_format import format_usage
from tests.behaviour.screens.conftest import Screen
from tests.conftest import error_reply

USAGE: list[dict[str, object]] = [
    {"step": "ticket-enrichment/label", "requests": 120_480, "failed": 12, "input_tokens": 48_911_002,
     "output_tokens": 3_512_007, "cost_usd": 9.4436, "unpriced": 0},
    {"step": "ticket-enrichment/vector", "requests": 1_883, "failed": 0, "input_tokens": 21_004_221, "output_tokens": 0,
     "cost_usd": None, "unpriced": 1_883},
]  # fmt: skip
LEDGER: list[dict[str, object]] = [
    {"job": "ticket-enrichment", "runs": 31, "open": 1, "exchanges": 122_363, "cost_usd": 9.4436, "answers": 120_480,
     "size": "311.9 MB", "oldest_answer": "2026-11-02T02:00:11+00:00"},
    {"job": "reviews", "runs": 2, "open": 0, "exchanges": 3_000, "cost_usd": 0.0004, "answers": 0, "size": "0 bytes",
     "oldest_answer": None},
]  # fmt: skip
BATCHES: list[dict[str, object]] = [
    {"id": "batch_67481c9c2f1c8190a1b2c3d4e5f60718", "status": "completed", "answered": "49,990 of 50,000, 10 failed",
     "endpoint": "/v1/chat/completions", "created": "2026-11-24T01:12:00+00:00", "input": "file-AbCdEfGhIjKlMnOpQrStUv",
     "output": "file-BbCdEfGhIjKlMnOpQrStUv", "errors": "file-CbCdEfGhIjKlMnOpQrStUv"},
    {"id": "batch_67481c9c2f1c8190a1b2c3d4e5f60719", "status": "in_progress", "answered": "12 of 50,000",
     "endpoint": "/v1/embeddings", "created": "2026-11-24T02:00:00+00:00", "input": "file-DbCdEfGhIjKlMnOpQrStUv",
     "output": None, "errors": None},
]  # fmt: skip


@pytest.mark.parametrize("width", [80, 50])
def test_a_table_that_is_too_wide_becomes_a_block_a_row(screen: Screen, width: int) -> None:
    shown = [render(content, width) for content in (format_usage(USAGE), DataTable(LEDGER), DataTable(BATCHES))]
    screen(f"tables-{width}.txt", "\n\n".join(shown) + "\n")
    assert max(len(line) for text in shown for line in text.splitlines()) <= width


def test_the_tables_of_commands_fit_80_columns(workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(workspace.folder)
    workspace.csv(3)
    job = workspace.job(delivery="batch")
    with EmulatorServer(EmulatorOptions()) as server:
        workspace.write("rowmill.yaml", f"providers: {{test: {{base_url: '{server.base_url}'}}}}\n")
        assert cli.run(job)["exit_code"] == 0
        for words in (
            ("usage",), ("usage", "--by", "step"), ("usage", "--by", "model"), ("usage", "--by", "day"),
            ("ledger", "show"), ("batches", "list", "--provider", "test"), ("files", "list", "--provider", "test"),
            ("models", "list", "--provider", "test"), ("status",),
        ):  # fmt: skip
            assert cli(*words) == 0, cli.err
            assert cli.out
            for line in cli.out.splitlines():
                # The path of the ledger is not wrapped.
                assert len(line) <= 80 or str(workspace.folder) in line, (words, line)


def test_piped_output_is_not_cut(workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "The text is too long for this model. " * 5
    provider.script = lambda path, body, count: error_reply(400, message)
    monkeypatch.delenv("COLUMNS", raising=False)
    workspace.csv(2)
    job = workspace.job()
    assert cli.run(job)["exit_code"] == 1
    assert cli("errors", job) == 0
    assert sum(message.strip() in line for line in cli.out.splitlines()) == 3
    monkeypatch.setenv("COLUMNS", "80")
    assert cli("errors", job) == 0
    assert max(len(line) for line in cli.out.splitlines() if "rowmill" not in line) <= 80


def test_a_usage_without_any_price_has_no_total_cost() -> None:
    unpriced = [{**row, "cost_usd": None, "unpriced": row["requests"]} for row in USAGE]
    lines = render(format_usage(unpriced)).splitlines()
    assert lines[0].split() == ["step", "requests", "failed", "tokens", "in", "tokens", "out"]
    assert lines[-1].startswith("not in the cost: 122,363 requests without a price")


@pytest.mark.parametrize("group", ["", "schedule", "models", "files", "batches", "ledger"])
def test_the_one_line_help_of_each_command_is_not_cut(cli: Any, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli(*filter(None, [group]), "--help") == 0
    listed = re.split(r"^(?:Commands|Jobs):\n", cli.out, flags=re.MULTILINE)[1].splitlines()
    commands = [line for line in listed if line.startswith("  ")]
    assert len(commands) >= 2
    assert all(re.match(r"  \w+ +[A-Z].*\.$", line) for line in commands)
    assert [line for line in commands if len(line) > 80 or line.endswith("...")] == []


@pytest.mark.parametrize("command", ["status", "usage", "errors"])
def test_a_folder_stands_for_its_workspace(
    workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    workspace.csv(3)
    job = workspace.job()
    workspace.write("jobs/job.yaml", job.read_text())
    job.unlink()
    assert cli.run(workspace.folder / "jobs/job.yaml")["exit_code"] == 0
    monkeypatch.chdir(tmp_path)
    assert cli(command, workspace.folder / "jobs") == 0, cli.err
    of_jobs = cli.out
    assert cli(command, workspace.folder) == 0, cli.err
    assert cli.out == of_jobs
    assert ("job" in of_jobs) if command != "errors" else (of_jobs == "no row has failed\n")
