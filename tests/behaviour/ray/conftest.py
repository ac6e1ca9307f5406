"""A cluster of four worker processes on this machine, and a run on it that a test can kill."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

RUN = [sys.executable, "-c", "from pipelines.cli import main; main()", "run"]
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Gives access to the cluster to these tests only."""
HEAD = ["--head", "--num-cpus=4", "--include-dashboard=false", "--object-store-memory=200000000", "--block"]


@pytest.fixture(scope="session")
def ray_files() -> Path:
    """The folder of Ray's logs and sockets: a socket's path may have 107 characters, too few for pytest's folders."""
    return Path(tempfile.gettempdir(), f"rowmill-ray-{os.getpid()}")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, ray_files: Path) -> Iterator[str]:
    """The address of a cluster whose processes end with the tests."""
    port = 26379 + os.getpid() % 1000
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *HEAD, f"--port={port}", f"--temp-dir={ray_files}"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("wb") as out:
        environment = {**os.environ, **OWN}
        head = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None, log.read_text()
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    children = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.wait(60)
    for process in children:
        if process.is_running():
            process.kill()


class Run:
    """One `rowmill run --engine ray` in a separate process."""

    def __init__(self, job: Path, address: str, *flags: str) -> None:
        environment = {**os.environ, **OWN, "RAY_ADDRESS": address}
        command = [*RUN, str(job), "--engine", "ray", "--json", "--quiet", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def ended(self) -> dict[str, Any]:
        """Wait until it has ended; return the report that it printed with --json."""
        out, err = self.process.communicate(timeout=120)
        assert "Traceback" not in err, err
        assert len(out.splitlines()) == 1, out
        report: dict[str, Any] = json.loads(out)
        assert report["exit_code"] == self.process.returncode, err
        assert report["exit_code"] != 2, err
        return {**report, "stderr": err}

    def wait_for(self, provider: Any, answers: int) -> None:
        """Wait until the provider has sent so many answers, or the run has ended."""
        while len(provider.answered) < answers and self.process.poll() is None:
            time.sleep(0.005)
        assert self.process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to the driver."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)


@pytest.fixture
def ray_run(cluster: str) -> Any:
    """Starts a run on the cluster: (job, flags)."""
    return lambda job, *flags: Run(job, cluster, *flags)


@pytest.fixture
def asked_by() -> Any:
    """Returns the process of a client port.

    Process names are ambiguous: the actors of an earlier run may outlive its driver by a moment.
    """

    def of(port: int) -> psutil.Process:
        (pid,) = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.laddr.port == port and connection.raddr and connection.pid is not None
        }
        return psutil.Process(pid)

    return of
