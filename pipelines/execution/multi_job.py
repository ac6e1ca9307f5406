"""Several jobs: each a process of its own, begun when the jobs that it reads have ended, some at the same time."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import orjson

from pipelines.config.job_graph import GraphJob
from pipelines.execution.run_report import nothing_done
from pipelines.runtime.child_process import lifeline, rowmill_command, rowmill_environment

AT_A_TIME = 4
"""Jobs that run together; their requests share the providers' limits."""

GOES_ON = frozenset({0, 1})
"""Exit codes after which a job that reads the results may begin: some rows may have failed."""


def run_many(jobs: Sequence[GraphJob], arguments: Sequence[str], ended: Callable[[GraphJob, Any], None]) -> None:
    """Run jobs that stand in an order of `graph_of`; `ended` is told the `--json` object of each as it ends."""
    told: dict[str, Future[dict[str, Any]]] = {}
    running: set[subprocess.Popen[bytes]] = set()
    one_at_a_time = threading.Lock()
    turns = threading.Semaphore(AT_A_TIME)
    stopping = threading.Event()

    def run(job: GraphJob) -> dict[str, Any]:
        for needed in job.needs:
            code = told[needed].result()["exit_code"]
            if code not in GOES_ON:
                reason = f"not run: job {needed}, whose results it reads, ended with exit code {code}"
                report = nothing_done(job.name, 130 if stopping.is_set() else 3, reason)
                break
        else:
            with turns:
                report = (
                    nothing_done(job.name, 130, "interrupted")
                    if stopping.is_set()
                    else _run_one(job, arguments, running, stdin)
                )
        with one_at_a_time:
            ended(job, report)
        return report

    with (
        lifeline() as stdin,
        _forwarding(running, stopping),
        ThreadPoolExecutor(max_workers=max(1, len(jobs))) as threads,
    ):
        for job in jobs:
            told[job.name] = threads.submit(run, job)
        for future in told.values():
            future.result()


def _run_one(
    job: GraphJob, arguments: Sequence[str], running: "set[subprocess.Popen[bytes]]", stdin: int
) -> dict[str, Any]:
    # A session of its own: a Ctrl-C reaches it once.
    command = [*rowmill_command(), "run", str(job.path), *arguments]
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, env=rowmill_environment(), start_new_session=True
    ) as process:
        running.add(process)
        out, _ = process.communicate()
        running.discard(process)
    lines = out.splitlines()
    if lines:
        report: dict[str, Any] = orjson.loads(lines[-1])
        return report
    # Whatever it broke on, its results are not what another job may read.
    code = 130 if process.returncode < 0 else 3 if process.returncode in GOES_ON else process.returncode
    return nothing_done(job.name, code, "ended without a word")


@contextmanager
def _forwarding(running: "set[subprocess.Popen[bytes]]", stopping: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to every job under way; no other begins."""

    def forward(number: int, frame: FrameType | None) -> None:
        stopping.set()
        for process in tuple(running):
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
