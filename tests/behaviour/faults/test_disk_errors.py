"""Real disks that are full or read-only, in a separate mount namespace, until the next run has completed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, ScriptedProvider, Workspace, chat_reply
from tests.support.exhaustive import marks

ROWMILL = f"{sys.executable} -c 'from pipelines.cli import main; main()'"
ROWMILL_EACH = (
    f"{sys.executable} -c 'import sys; from pipelines.cli import exit_code_of; "
    "sys.exit(any([exit_code_of(line.split()) for line in sys.stdin]))'"
)
"""Runs a command for each line of its input, in one process; fails if one of them fails."""


def mounted(script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script that may mount; skip the test if mounting is not possible."""
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-ec", script], capture_output=True, text=True, timeout=120, check=False
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no namespace in which to mount")
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_a_run_stops_before_its_disk_is_full_and_the_next_one_sends_no_request_again(
    workspace: Workspace, provider: ScriptedProvider, tmp_path: Path
) -> None:
    rows = 300
    small = tmp_path / "small"
    small.mkdir()
    workspace.csv(rows)
    workspace.job(limits="{concurrency: 8}")
    provider.script = lambda path, body, count: chat_reply(body["messages"][-1]["content"] * 2000)
    query = "select count(*), count(distinct id) from 'out/results/*.parquet' where length(answer) > 10000"
    read = workspace.write("read.py", f'import duckdb\nprint(duckdb.sql("{query}").fetchall())\n')
    done = mounted(
        f"mount -t tmpfs -o size=3m tmpfs {small}\n"
        f"cp {workspace.folder}/rows.csv {workspace.folder}/rowmill.yaml {workspace.folder}/job.yaml {small}\n"
        f"cd {small}\nexport PYTHONPATH={Path.cwd()}\n"
        f"{ROWMILL} run job.yaml --json --quiet || echo $?\n"
        f"mount -o remount,size=60m {small}\n"
        f"{ROWMILL} run job.yaml --json --quiet\n"
        f"{sys.executable} {read}\n"
        f"{ROWMILL} run job.yaml --json --quiet\n"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, code, second, counted, third = done.stdout.splitlines()
    assert (code, json.loads(first)["exit_code"]) == ("3", 3)
    assert "disk full" in json.loads(first)["stopped"]
    assert 0 < json.loads(first)["requests"] < rows
    assert (json.loads(second)["exit_code"], json.loads(second)["rows_ok"]) == (0, rows)
    assert counted == f"[({rows}, {rows})]"
    assert json.loads(third)["requests"] == 0
    assert len(provider.seen) == rows


@pytest.mark.parametrize(
    ("sink", "had_rows"),
    [
        pytest.param("{parquet: mounted/out}", False, marks=marks(True), id="empty folder"),
        pytest.param("{parquet: mounted/out}", True, id="folder with rows"),
        pytest.param("{duckdb: mounted/out.duckdb, table: t}", False, id="no file"),
        pytest.param("{duckdb: mounted/out.duckdb, table: t}", True, marks=marks(True), id="file with rows"),
    ],
)
def test_a_sink_on_a_read_only_disk_is_reported_and_loses_no_answer(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, sink: str, had_rows: bool
) -> None:
    folder = workspace.folder / "mounted"
    folder.mkdir()
    workspace.csv(3)
    job = workspace.job(sink=sink)
    if had_rows:
        assert cli.run(job)["exit_code"] == 0
    workspace.csv(6)
    provider.seen.clear()
    done = mounted(
        f"mount --bind {folder} {folder}\n"
        f"mount -o remount,ro,bind {folder}\n"
        f"{ROWMILL} run {job} --json --quiet || echo $?\n"
    )
    report, code = done.stdout.splitlines()
    assert code in ("2", "3")
    assert json.loads(report)["exit_code"] == int(code)
    assert str(folder) in str(json.loads(report)["stopped"])
    assert len(done.stderr.splitlines()) <= 1
    # With rows in it, the folder fails at the first commit: by then the answers are in the ledger.
    sent = len(provider.seen)
    assert sent == 0 or (code, had_rows) == ("3", True)
    again = cli.run(job)
    assert (again["exit_code"], again["rows_ok"]) == (0, 6)
    assert len(provider.seen) == (3 if had_rows else 6)


@pytest.mark.parametrize(
    ("protect", "prefix"),
    [
        ("mount --bind {0} {0}\nmount -o remount,ro,bind {0}", ""),
        # Root writes in any folder, unless it lacks this capability.
        ("chmod -R a-w {0}", "setpriv --bounding-set=-dac_override,-dac_read_search "),
    ],
    ids=["read-only disk", "no permission"],
)
def test_commands_that_send_nothing_work_in_a_folder_that_cannot_be_written(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, tmp_path: Path, protect: str, prefix: str
) -> None:
    """Nor do they change anything. The ledger is read as it was closed, then as a killed run has left it."""
    workspace.csv(3)
    job = workspace.job(schedule='"0 2 * * *"')
    assert cli.run(job)["exit_code"] == 0
    other = workspace.job("other")
    folder, page = workspace.folder, tmp_path.parent / f"{tmp_path.name}-report.html"
    commands = (
        *((command, path) for command in ("validate", "plan", "errors") for path in (job, other)),
        *((command, folder) for command in ("status", "usage", "ledger show --workspace")),
        ("show", f"{job} 2"),
        ("report", f"{job} -o {page}"),
        ("schedule show", job),
        ("ledger export", f"--workspace {folder} -o {page}.parquet"),
    )
    script = f"{protect.format(folder)}\ncd {tmp_path.parent}\n"
    lines = "\n".join(f"{command} {arguments}" for command, arguments in commands)
    script += f"{prefix}{ROWMILL_EACH} > /dev/null <<END\n{lines}\nEND\n"
    script += f"chmod -R u+w {folder}\n" if prefix else ""
    for hold in ("", f"import sqlite3; d = sqlite3.connect('{folder}/.rowmill/ledger.sqlite')\n"):
        kill = "d.execute('delete from days'); d.commit(); import os; os.kill(os.getpid(), 9)" if hold else ""
        subprocess.run([sys.executable, "-c", hold + kill], check=False)
        assert (folder / ".rowmill/ledger.sqlite-wal").exists() == bool(hold)
        done = mounted(script)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(provider.seen) == 3
