"""Tables of `usage`, `batches list`, `ledger show` and their like: readable in 80 columns, and in 50 as well."""

from typing import Any

import pytest

from connectors.emulator.server import LocalOptions, LocalServer
from pipelines.formatting import DataTable

USAGE: list[dict[str, object]] = [
    {"step": "ticket-enrichment/label", "requests": 120_480, "failed": 12, "tokens_in": 48_911_002,
     "tokens_out": 3_512_007, "cost_usd": 9.4436, "unpriced": None},
    {"step": "ticket-enrichment/vector", "requests": 1_883, "failed": 0, "tokens_in": 21_004_221, "tokens_out": 0,
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
def test_every_table_fits_and_numbers_stand_below_one_another(screen: Any, width: int) -> None:
    shown = [format_table(rows, width) for rows in (USAGE, LEDGER, BATCHES)]
    screen(f"tables-{width}.txt", "\n\n".join(shown) + "\n")
    assert max(len(line) for text in shown for line in text.splitlines()) <= width


def test_what_is_too_much_for_a_line_is_told_below_it() -> None:
    rows: list[dict[str, object]] = [{"a": "first", "b": 1.5, "c": 3000, "d": "x" * 20, "e": None}]
    assert format_table(rows, 30) == "a        b      c\nfirst  1.5  3,000\n  d xxxxxxxxxxxxxxxxxxxx"
    assert format_table([{"a": None}], 30) == "a\n"


def test_the_commands_tables_fit_80_columns(workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(workspace.folder)
    workspace.csv(3)
    job = workspace.job(delivery="batch")
    with LocalServer(LocalOptions()) as server:
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
                # The ledger's own path is as long as it is.
                assert len(line) <= 80 or str(workspace.folder) in line, (words, line)
