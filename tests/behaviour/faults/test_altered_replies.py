"""Every altered reply of the emulator, over HTTP: a run accepts it, and charges what it states."""

from collections.abc import Callable
from typing import Any

import pytest

from connectors.emulator.faults.altered_replies import ALTERED_REPLIES
from connectors.emulator.server import EmulatorOptions, EmulatorServer
from tests.conftest import Cli, Workspace

Read = Callable[..., list[dict[str, Any]]]

CHAT = (
    '[{name: ask, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
    "params: {max_tokens: 5}, stream: STREAM}]"
)
EMBEDDINGS = '[{name: v, endpoint: embeddings, provider: test, model: e, dimensions: 8, input: "{{ text }}"}]'

TOKENS: dict[str, tuple[int, int | None, int, float]] = {
    "usage-beside": (20, None, 105, 0.00023),
    "usage-cache-hits": (20, 15, 5, 0.0000165),
    "usage-cache-beside": (20, 15, 5, 0.0000165),
    "usage-with-cost": (20, None, 5, 0.5),
}
"""Fault -> input, cached and output tokens, and the cost."""


def run_with(workspace: Workspace, cli: Cli, fault: str, steps: str, rows: int) -> dict[str, Any]:
    """Run a job against an emulator that alters every reply."""
    workspace.csv(rows)
    with EmulatorServer(EmulatorOptions(faults=(f"{fault}=1",))) as server:
        workspace.write(
            "rowmill.yaml",
            f'providers: {{test: {{base_url: "{server.base_url}"}}}}\nprices:\n'
            "  m: {input_per_million: 1, cached_input_per_million: 0.1, output_per_million: 2}\n"
            "  e: {input_per_million: 1}\n",
        )
        return cli.run(workspace.job(steps=steps))


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("fault", ALTERED_REPLIES)
def test_a_conversation_is_answered_at_once(
    workspace: Workspace, cli: Cli, read: Read, fault: str, stream: str
) -> None:
    report = run_with(workspace, cli, fault, CHAT.replace("STREAM", stream), 2)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 2, 2)
    for row in read(workspace.folder / "out", "usage"):
        names = ("input_tokens", "cached_tokens", "output_tokens", "cost_usd")
        if fault in TOKENS:
            assert tuple(row[name] for name in names) == TOKENS[fault]
        else:
            assert row["input_tokens"] > 0 and row["cost_usd"] > 0


@pytest.mark.parametrize("fault", ALTERED_REPLIES)
def test_all_vectors_arrive_with_one_refusal_at_most(workspace: Workspace, cli: Cli, read: Read, fault: str) -> None:
    report = run_with(workspace, cli, fault, EMBEDDINGS, 60)
    assert (report["exit_code"], report["rows_ok"]) == (0, 60)
    refused = [row for row in read(workspace.folder / "out", "usage") if row["error_class"]]
    assert len(refused) == (fault in ("base64-refused", "ten-texts"))
    assert len({tuple(row["v"]) for row in read(workspace.folder / "out")}) > 40
