"""Full disks, unwritable folders, locked files, and ledgers that are damaged or too new."""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.conftest import Cli, ScriptedProvider, Workspace
from tests.support.forked import COMMAND, Forked

Read = Callable[..., list[dict[str, Any]]]


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    assert ": " in line
    assert "; " in line
    return line


def test_a_ledger_that_cannot_grow_stops_the_run_and_loses_no_answer(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    """No file may exceed 600 kB; the ledger, which stores all answers, is the first to reach that."""
    workspace.csv(400)
    provider.script = lambda path, body, count: chat_reply(body["messages"][-1]["content"] * 500)
    job = workspace.job()

    file_limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))"
    code, out, err = Forked(f"{file_limit}\n{COMMAND}", "run", job, "--json", "--quiet").ended()
    assert "Traceback" not in err
    assert code == 3, err
    report = json.loads(out) if out else {}
    assert "ledger" in str(report.get("stopped")) or "ledger" in err
    sent = len(provider.seen)
    assert 0 < sent < 400
    again = cli.run(job)
    assert (again["exit_code"], again["rows_ok"]) == (0, 400)
    # Only requests in flight when the disk was full are sent again.
    assert len(provider.seen) <= 400 + 64
    assert len(read(workspace.folder / "out")) == 400


def test_a_full_file_system_is_reported_as_a_full_disk(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, tmp_path: Path
) -> None:
    """The workspace is on a small tmpfs in a separate mount namespace."""
    small = tmp_path / "small"
    small.mkdir()
    workspace.csv(300)
    job = workspace.job()
    provider.script = lambda path, body, count: chat_reply(body["messages"][-1]["content"] * 2000)
    rowmill = f"{sys.executable} -c 'from pipelines.cli import main; main()'"
    script = (
        f"mount -t tmpfs -o size=3m tmpfs {small} && "
        f"(cd {workspace.folder} && cp rows.csv rowmill.yaml {job} {small}) && "
        f"exec {rowmill} run {small}/job.yaml --json --quiet"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
        subprocess.run(["umount", str(small)], check=False, capture_output=True)
    if "mount" in done.stderr:
        pytest.skip("no permission to mount; the next test needs none")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 3
    assert "disk full" in done.stdout + done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_commit_without_disk_space_stops_the_run_and_loses_no_answer(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number), "results")

    workspace.csv(3)
    job = workspace.job()
    with monkeypatch.context() as full:
        full.setattr("connectors.sinks.parquet_table.ParquetTables.commit", fail)
        report = cli.run(job)
    assert (report["exit_code"], report["rows"]) == (3, 3)
    assert report["stopped"].startswith("disk full: make room and run again")
    assert len(provider.seen) == 3
    again = cli.run(job)
    assert (again["exit_code"], again["rows_ok"], again["rows_reused"], again["requests"]) == (0, 3, 3, 0)
    assert len(read(workspace.folder / "out")) == 3


def test_a_ledger_that_cannot_be_written_stops_the_run_with_what_to_do(
    workspace: Workspace, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    workspace.csv(3)
    monkeypatch.setattr("pipelines.execution.committer.Committer.commit", fail)
    report = cli.run(workspace.job())
    assert (report["exit_code"], report["stopped"]) == (
        3,
        "the ledger cannot be written (disk I/O error); see whether its folder is there and can be written to, "
        "then run again",
    )


def test_a_sink_that_becomes_read_only_stops_the_run_with_its_path_and_the_remedy(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "out/.staging")

    workspace.csv(3)
    job = workspace.job()
    with monkeypatch.context() as read_only:
        read_only.setattr("connectors.sinks.parquet_table.ParquetTables.commit", fail)
        report = cli.run(job)
    assert (report["exit_code"], report["stopped"]) == (
        3,
        "out/.staging: Read-only file system; check that it exists and can be written",
    )
    again = cli.run(job)
    assert (again["exit_code"], again["rows_reused"], again["requests"]) == (0, 3, 0)


def test_a_link_to_nothing_as_sink_is_reported_as_such(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(3)
    (workspace.folder / "out").symlink_to("nowhere")
    assert cli("run", workspace.job(), "--quiet") == 2
    assert one_line(cli.err) == (
        f"{workspace.folder / 'out'}: a file, or a link to nothing, where a folder is needed; "
        "remove it, or name another path"
    )
    assert provider.seen == []


def chat_reply(content: str) -> dict[str, Any]:
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sink", "occupied"),
    [
        ("{parquet: folder/out}", "folder"),
        ("{duckdb: folder/out.duckdb, table: t}", "folder"),
        ("{parquet: out}", ".rowmill"),
    ],
)
def test_a_file_instead_of_a_folder_is_reported_before_anything_is_sent(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, sink: str, occupied: str
) -> None:
    workspace.csv(3)
    workspace.write(occupied, "a file")
    assert cli("run", workspace.job(sink=sink), "--quiet") == 2
    assert occupied in one_line(cli.err)
    assert provider.seen == []


@pytest.mark.parametrize("sink", ["{parquet: /proc/out}", "{duckdb: /proc/out.duckdb, table: t}"])
def test_an_unwritable_sink_is_reported_before_anything_is_sent(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, sink: str
) -> None:
    """Not even root can create a folder in /proc."""
    workspace.csv(3)
    assert cli("run", workspace.job(sink=sink), "--quiet") in (2, 3)
    assert "/proc/out" in one_line(cli.err)
    assert provider.seen == []


def test_an_unwritable_state_folder_is_reported(workspace: Workspace, provider: ScriptedProvider, cli: Cli) -> None:
    workspace.csv(3)
    text = (workspace.folder / "rowmill.yaml").read_text()
    workspace.write("rowmill.yaml", text + "state: /proc/state\n")
    assert cli("run", workspace.job(), "--quiet") == 2
    assert "/proc/state" in one_line(cli.err)
    assert provider.seen == []


def test_readers_of_a_parquet_sink_always_see_complete_tables(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.execution.committer.COMMIT_ROWS", 20)
    monkeypatch.setattr("pipelines.execution.job_run.CHUNK_ROWS", 16)
    workspace.csv(400)
    cli.run(workspace.job())
    found: list[int] = []

    def count_rows(path: str, body: Any, count: int) -> None:
        if count % 20 == 0:
            with duckdb.connect() as db:
                found.append(
                    db.sql(
                        f"select count(*) from read_parquet('{workspace.folder}/out/results/*.parquet') "
                        "having count(*) = count(distinct id) and count(*) = count(answer)"
                    ).fetchall()[0][0]
                )

    provider.script = count_rows
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},other {n}\n" for n in range(1, 401)))
    assert cli.run(workspace.job())["rows_ok"] == 400
    assert found
    assert set(found) == {400}


def test_a_commit_waits_for_a_locked_duckdb_file_and_then_stops_the_run(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(5)
    job = workspace.job(
        sink="{duckdb: out.duckdb, table: t}", retry="{attempts: 3, longest_wait: 0.02, longest_hold: 0.3}"
    )
    assert cli.run(job)["exit_code"] == 0
    workspace.csv(6)
    path = workspace.folder / "out.duckdb"
    hold = f"import duckdb, sys; db = duckdb.connect({str(path)!r}); print('held', flush=True); sys.stdin.read()"

    def hold_file() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    holders: list[subprocess.Popen[str]] = []
    provider.script = lambda *_: holders.append(hold_file())
    report = cli.run(job)
    assert report["exit_code"] == 3
    assert "held open by another program" in report["stopped"]
    assert "the answers are in the ledger" in report["stopped"]
    holders[0].communicate("")
    provider.seen.clear()
    assert cli.run(job)["rows_ok"] == 6
    assert provider.seen == []
    with duckdb.connect(path) as db:
        assert db.sql("select count(*), count(distinct id) from t").fetchall() == [(6, 6)]


def with_damaged_page(whole: bytes, page: int) -> bytes:
    """Return a file with one page overwritten."""
    return whole[: page * 4096] + os.urandom(4096) + whole[(page + 1) * 4096 :]


def test_a_ledger_with_a_damaged_page_is_reported_and_never_emptied(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(400)
    job = workspace.job()
    cli.run(job)
    ledger = workspace.folder / ".rowmill" / "ledger.sqlite"
    db = sqlite3.connect(ledger)
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()
    whole = ledger.read_bytes()
    shutil.rmtree(workspace.folder / "out")
    pages = len(whole) // 4096
    provider.seen.clear()
    codes: set[int] = set()
    for page in [0, *range(1, pages, max(1, pages // 5))]:
        for file in ledger.parent.glob("ledger.sqlite*"):
            file.unlink()
        ledger.write_bytes(with_damaged_page(whole, page))
        code = cli("run", job, "--quiet")
        if code:
            codes.add(code)
            assert code in (2, 3)
            line = one_line(cli.err)
            assert ".recover" in line, line
            assert ledger.stat().st_size >= len(whole)
        for command in (("status", job), ("errors", job), ("show", job, "7"), ("plan", job), ("rebuild", job)):
            if (code := cli(*command)) not in (0, 1):
                assert code == 2, (command, cli.err)
                assert ".recover" in one_line(cli.err)
        shutil.rmtree(workspace.folder / "out", ignore_errors=True)
    assert 2 in codes


def test_a_ledger_of_a_newer_version_is_not_touched(workspace: Workspace, provider: ScriptedProvider, cli: Cli) -> None:
    workspace.csv(2)
    job = workspace.job()
    cli.run(job)
    ledger = workspace.folder / ".rowmill" / "ledger.sqlite"
    db = sqlite3.connect(ledger)
    db.execute("pragma user_version = 99")
    db.close()
    before = ledger.read_bytes()
    workspace.csv(3)
    assert cli("run", job, "--quiet") == 2
    assert "newer Rowmill" in one_line(cli.err)
    assert ledger.read_bytes() == before
    assert len(provider.seen) == 2


def test_clock_jumps_change_only_the_reported_times(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch, read: Read
) -> None:
    import time

    real, real_ns = time.time, time.time_ns
    jumps = [0.0]

    def jump(path: str, body: Any, count: int) -> None:
        jumps[0] = (-86_400.0, 86_400.0, -3_000_000.0, 0.0)[count % 4]

    monkeypatch.setattr(time, "time", lambda: real() + jumps[0])
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(jumps[0] * 1e9))
    provider.script = jump
    workspace.csv(40)
    report = cli.run(workspace.job(limits="{concurrency: 4}"))
    assert (report["exit_code"], report["rows_ok"]) == (0, 40)
    assert 0 < report["seconds"] < 60
    usage = read(workspace.folder / "out", "usage")
    assert len(usage) == 40
    assert all(0 < row["latency_ms"] < 60_000 for row in usage)
    assert cli.run(workspace.job())["requests"] == 0
