"""Every fault of the table: exit code, errors, usage and the server's own count are as the table says."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.faults.hostile_server import HostileServer
from tests.behaviour.faults.table import FAULTS, SOME, Fault, as_markdown, bomb, one_row
from tests.conftest import Cli, Workspace
from tests.support.exhaustive import marks

Read = Callable[..., list[dict[str, Any]]]
PAGE = Path(__file__).parents[3] / "jobs" / "docs" / "errors-and-faults.md"
EMBEDDINGS = '[{name: answer, endpoint: embeddings, provider: test, model: e, dimensions: 2, input: "{{ text }}"}]'


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    """A server that misbehaves as a test defines."""
    server = HostileServer()
    yield server
    server.close()


def test_the_page_shows_the_current_fault_tables() -> None:
    assert as_markdown() in PAGE.read_text()


LIKE_ANOTHER = ("413", "422", "502", "503", "529", "A reply of 200 MB", "A gzip bomb of less than 1 MB")
"""Faults that differ from another one of the default tests in a number only."""


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=marks(fault.name in LIKE_ANOTHER), id=fault.name) for fault in FAULTS],
)
def test_a_run_matches_the_fault_table(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read, fault: Fault
) -> None:
    out = workspace.folder / "out"
    workspace.csv(fault.rows)
    provider = f'providers: {{test: {{base_url: "{fault.base_url(hostile)}"}}}}\n'
    workspace.write("rowmill.yaml", provider + "prices: {m: {input_per_million: 1, output_per_million: 2}}\n")
    blocks = {"limits": "{concurrency: 1}", **fault.job}
    if fault.endpoint == "embeddings":
        blocks["steps"] = EMBEDDINGS
    job = workspace.job(**blocks)
    hostile.fault, hostile.hits = fault.answer, fault.hits

    report = cli.run(job)

    errors = Counter(row["error_class"] for row in read(out, "errors"))
    usage = Counter(row["error_class"] or "ok" for row in read(out, "usage"))
    assert (report["exit_code"], errors) == (fault.exit_code, fault.errors)
    assert set(usage) == set(fault.usage)
    assert all(fault.usage[name] in (count, SOME) for name, count in usage.items()), usage
    assert len(hostile.received) == fault.requests
    assert report["requests"] == sum(usage.values())
    assert report["rows_ok"] == len(read(out)) == fault.rows - report["rows_failed"] - report["rows_left"]
    assert (report["stopped"] or "").startswith(fault.stopped or "")
    assert (report["stopped"] is None) == (fault.stopped is None)

    hostile.fault = None
    workspace.write("rowmill.yaml", (workspace.folder / "rowmill.yaml").read_text().replace(
        fault.base_url(hostile), f"http://127.0.0.1:{hostile.port}/v1"))  # fmt: skip
    next_report = cli.run(job)
    assert next_report["requests"] == fault.again
    assert next_report["rows_ok"] == fault.rows - (0 if fault.again or not fault.errors else sum(fault.errors.values()))


def test_a_decompression_bomb_needs_no_more_memory_than_the_largest_reply(
    workspace: Workspace, hostile: HostileServer
) -> None:
    workspace.csv(2)
    workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "http://127.0.0.1:{hostile.port}/v1"}}}}\n')
    job = workspace.job(limits="{concurrency: 1}", retry="{attempts: 2, longest_wait: 0.01}")
    hostile.fault, hostile.hits = bomb, one_row
    # The rusage of a child starts with the memory of its parent: the process reads its own peak.
    script = (
        "import sys\nfrom pipelines.cli import exit_code_of\ncode = exit_code_of(sys.argv[1:])\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", script, "run", str(job), "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    # In kB: the program itself and one reply of 128 MB.
    assert int(done.stdout) < 450_000
