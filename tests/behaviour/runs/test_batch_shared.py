"""Several processes on the embedded provider of one workspace: they share files and batches."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support import forked
from tests.support.forked import Forked

Read = Callable[..., list[dict[str, Any]]]

WATCHED = """
import os, signal, sys
from pathlib import Path
from connectors.emulator.batches import batches
from pipelines.batch import builder, dispatcher, lifecycle

lifecycle.FIRST_POLL_SECONDS, lifecycle.MAX_POLL_SECONDS = 0.02, 0.05
dispatcher.QUIET_SECONDS, builder.MAX_FILE_LINES = 0.1, 20
real = batches._run_batch

async def noted(incoming, batch):
    with open(os.environ["WORKED_ON"], "a") as file:
        file.write(f"{os.getpid()} {batch['id']}\\n")
    await real(incoming, batch)

batches._run_batch = noted
"""
COMMAND = f"{WATCHED}\n{forked.COMMAND}"
SERVER = f"""{WATCHED}
from connectors.emulator.server import EmulatorOptions, EmulatorServer
signal.signal(signal.SIGTERM, lambda *arguments: sys.exit())
with EmulatorServer(EmulatorOptions(folder=Path(sys.argv[1]))) as server:
    print(server.base_url, flush=True)
    signal.pause()
"""


@pytest.fixture
def worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, str]]]:
    """Returns (process, batch) for each time that a process began to work on a batch."""
    file = tmp_path / "worked-on"
    file.touch()
    monkeypatch.setenv("WORKED_ON", str(file))
    return lambda: [(line.split()[0], line.split()[1]) for line in file.read_text().splitlines()]


class Servers:
    """Servers in separate processes on one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: list[Forked] = []

    def start(self) -> str:
        """Its base_url."""
        self.processes.append(Forked(SERVER, self._folder))
        return self.processes[-1].first_line()

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            process.ended()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Starts servers."""
    running = Servers(tmp_path / "local")
    yield running
    running.close()


def create_batch(http: httpx.Client, base_url: str, lines: int, **metadata: str) -> str:
    """Create a batch; return its id."""
    content = "".join(
        json.dumps({
            "custom_id": str(n), "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"text {n}"}]},
        }) + "\n"
        for n in range(lines)
    )  # fmt: skip
    file = http.post(f"{base_url}/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch: dict[str, Any] = http.post(f"{base_url}/batches", json={**asked, "metadata": metadata}).json()
    return str(batch["id"])


def status_of(http: httpx.Client, base_url: str, batch_id: str) -> str:
    return str(http.get(f"{base_url}/batches/{batch_id}").json()["status"])


def wait_until(http: httpx.Client, base_url: str, batch_id: str, *wanted: str) -> str:
    """Return the status of a batch once it is one of these."""
    until = time.monotonic() + 30
    while (status := status_of(http, base_url, batch_id)) not in wanted:
        assert time.monotonic() < until, status
    return status


def test_a_file_of_one_process_can_be_read_listed_and_deleted_by_another(servers: Servers, worked_on: Any) -> None:
    one, other = servers.start(), servers.start()
    with httpx.Client(timeout=10) as http:
        batch = create_batch(http, one, 3)
        assert wait_until(http, other, batch, "completed") == "completed"
        (listed,) = http.get(f"{other}/batches").json()["data"]
        assert (listed["id"], listed["request_counts"]["completed"]) == (batch, 3)
        answers = http.get(f"{other}/files/{listed['output_file_id']}/content").text
        assert [json.loads(line)["custom_id"] for line in answers.splitlines()] == ["0", "1", "2"]
        for file in http.get(f"{other}/files").json()["data"]:
            assert http.delete(f"{other}/files/{file['id']}").json()["deleted"]
        assert http.get(f"{one}/files").json()["data"] == []
        assert http.get(f"{one}/files/{listed['output_file_id']}/content").status_code == 404
    assert [batch_id for _, batch_id in worked_on()] == [batch]


def test_only_one_process_works_on_a_batch_and_any_may_cancel_it(servers: Servers, worked_on: Any) -> None:
    one, other = servers.start(), servers.start()
    with httpx.Client(timeout=10) as http:
        batch = create_batch(http, one, 3, rowmill_delay_s="64800")
        wait_until(http, other, batch, "in_progress")
        assert [each["status"] for each in http.get(f"{other}/batches").json()["data"]] == ["in_progress"]
        assert http.post(f"{other}/batches/{batch}/cancel").json()["status"] == "cancelling"
        assert wait_until(http, one, batch, "cancelled") == "cancelled"
        assert status_of(http, other, batch) == "cancelled"
        assert http.post(f"{other}/batches/{batch}/cancel").status_code == 409
    assert len(worked_on()) == 1


def test_the_batch_of_a_killed_process_is_taken_over(servers: Servers, worked_on: Any) -> None:
    one, other = servers.start(), servers.start()
    with httpx.Client(timeout=10) as http:
        batch = create_batch(http, one, 400, rowmill_delay_s="1")
        wait_until(http, other, batch, "in_progress")
        servers.processes[0].send_signal(signal.SIGKILL)
        assert wait_until(http, other, batch, "completed") == "completed"
        assert len(http.get(f"{other}/files").json()["data"]) == 2
    assert [process for process, _ in worked_on()] == [str(each.pid) for each in servers.processes]


def test_two_uploads_of_the_same_file_at_the_same_time_are_two_files(servers: Servers, worked_on: Any) -> None:
    addresses = [servers.start(), servers.start()]
    with httpx.Client(timeout=10) as http:
        ids = [
            http.post(f"{each}/files", files={"file": ("a", b"{}")}, data={"purpose": "batch"}).json()["id"]
            for each in addresses
        ]
        assert len(set(ids)) == 2
        assert http.delete(f"{addresses[0]}/files/{ids[1]}").status_code == 200
        assert http.get(f"{addresses[1]}/files/{ids[0]}/content").text == "{}"


def test_two_runs_and_a_reader_of_the_same_workspace_do_not_disturb_each_other(
    workspace: Any, read: Read, worked_on: Any
) -> None:
    workspace.csv(60)
    names = ("one", "two")
    for name in names:
        steps = (
            '[{name: answer, endpoint: chat, provider: local, model: gpt-4o-mini, messages: [{user: "%s {{ text }}"}]}]'
        )
        workspace.job(name, steps=steps % name, sink=f"{{parquet: {name}}}", delivery="batch")
    runs = [Forked(COMMAND, "run", workspace.folder / f"{name}.yaml", "--json", "--quiet") for name in names]
    looks = 0
    while any(run.poll() is None for run in runs):
        for kind in ("batches", "files"):
            code, _, err = Forked(
                COMMAND, kind, "list", "--provider", "local", cwd=workspace.folder, WORKED_ON="/dev/null"
            ).ended()
            assert code == 0, err
            looks += 1
    assert looks >= 2
    for run, name in zip(runs, names, strict=True):
        _, out, err = run.ended()
        report = json.loads(out)
        assert (report["exit_code"], report["rows_ok"], report["retries"], err) == (0, 60, 0, "")
        assert len(read(workspace.folder / name)) == 60
        assert len(read(workspace.folder / name, "usage")) == 60
    local = workspace.folder / ".rowmill" / "local"
    assert list((local / "file").iterdir()) == []
    batches = [json.loads(path.read_text()) for path in (local / "batch").glob("*.json")]
    assert [(batch["status"], batch["request_counts"]["completed"]) for batch in batches] == [("completed", 20)] * 6
