"""Every fault of the table: exit code, errors, usage and the server's own count are as the table says."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.faults.hostile_server import RoughServer
from tests.behaviour.faults.table import FAULTS, SOME, Fault, as_markdown, bomb, one_row

Read = Callable[..., list[dict[str, Any]]]
PAGE = Path(__file__).parents[3] / "jobs" / "docs" / "errors-and-faults.md"
EMBEDDINGS = '[{name: answer, endpoint: embeddings, provider: test, model: e, dimensions: 2, input: "{{ text }}"}]'


@pytest.fixture
def rough() -> Iterator[RoughServer]:
    """A server that misbehaves as a test says."""
    server = RoughServer()
    yield server
    server.close()


def test_the_page_shows_the_current_fault_tables() -> None:
    assert as_markdown() in PAGE.read_text()


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_run_does_what_the_table_says(workspace: Any, rough: RoughServer, cli: Any, read: Read, fault: Fault) -> None:
    out = workspace.folder / "out"
    workspace.csv(fault.rows)
    provider = f'providers: {{test: {{base_url: "{fault.base_url(rough)}"}}}}\n'
    workspace.write("rowmill.yaml", provider + "prices: {m: {input_per_million: 1, output_per_million: 2}}\n")
    blocks = {"limits": "{concurrency: 1}", **fault.job}
    if fault.endpoint == "embeddings":
        blocks["steps"] = EMBEDDINGS
    job = workspace.job(**blocks)
    rough.fault, rough.hits = fault.answer, fault.hits

    told = cli.run(job)

    errors = Counter(row["error_class"] for row in read(out, "errors"))
    usage = Counter(row["error_class"] or "ok" for row in read(out, "usage"))
    assert (told["exit_code"], errors) == (fault.exit_code, fault.errors)
    assert set(usage) == set(fault.usage)
    assert all(fault.usage[name] in (count, SOME) for name, count in usage.items()), usage
    assert len(rough.read) == fault.requests
    assert told["requests"] == sum(usage.values())
    assert told["rows_ok"] == len(read(out)) == fault.rows - told["rows_failed"] - told["rows_left"]
    assert (told["stopped"] or "").startswith(fault.stopped or "")
    assert (told["stopped"] is None) == (fault.stopped is None)

    rough.fault = None
    workspace.write("rowmill.yaml", (workspace.folder / "rowmill.yaml").read_text().replace(
        fault.base_url(rough), f"http://127.0.0.1:{rough.port}/v1"))  # fmt: skip
    cured = cli.run(job)
    assert cured["requests"] == fault.again
    assert cured["rows_ok"] == fault.rows - (0 if fault.again or not fault.errors else sum(fault.errors.values()))


def test_a_bomb_takes_no_more_memory_than_the_largest_reply_may(workspace: Any, rough: RoughServer) -> None:
    workspace.csv(2)
    workspace.write("rowmill.yaml", f'providers: {{test: {{base_url: "http://127.0.0.1:{rough.port}/v1"}}}}\n')
    job = workspace.job(limits="{concurrency: 1}", retry="{attempts: 2, longest_wait: 0.01}")
    rough.fault, rough.hits = bomb, one_row
    # What the system says of a child begins with the memory of its parent: the process looks at itself.
    script = (
        "import sys\nfrom pipelines.cli import exit_code_of\ncode = exit_code_of(sys.argv[1:])\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", script, "run", str(job), "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    # In kB: the program itself, and one reply of 128 MB in pieces.
    assert int(done.stdout) < 450_000
