"""Several jobs, each in its own process; a job starts after the jobs whose results it reads."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType

import orjson

from pipelines.config.job_graph import GraphJob
from pipelines.dispatch.dispatch_state import INTERRUPTED
from pipelines.runtime.child_process import parent_pipe, rowmill_command, rowmill_environment
from pipelines.runtime.run_report import RunReport

MAX_PARALLEL_JOBS = 4
"""Jobs that run at the same time; their requests share the providers' limits."""

CONTINUING_EXIT_CODES = frozenset({0, 1})
"""Exit codes after which a job that reads the results may start; some rows may have failed."""


def run_jobs(jobs: Sequence[GraphJob], arguments: Sequence[str], on_end: Callable[[GraphJob, RunReport], None]) -> None:
    """Run jobs in the order of `graph_of`; `on_end` gets the report of each as it ends."""
    reports: dict[str, Future[RunReport]] = {}
    running: set[subprocess.Popen[bytes]] = set()
    one_at_a_time = threading.Lock()
    turns = threading.Semaphore(MAX_PARALLEL_JOBS)
    stopping = threading.Event()

    def run(job: GraphJob) -> RunReport:
        for needed in job.needs:
            code = reports[needed].result().exit_code
            if code not in CONTINUING_EXIT_CODES:
                reason = f"not run: job {needed}, whose results it reads, ended with exit code {code}"
                report = RunReport(job.name, exit_code=130 if stopping.is_set() else 3, stopped=reason, is_skipped=True)
                break
        else:
            with turns:
                report = (
                    RunReport(job.name, exit_code=130, stopped=INTERRUPTED)
                    if stopping.is_set()
                    else _run_one(job, arguments, running, stdin)
                )
        with one_at_a_time:
            on_end(job, report)
        return report

    with (
        parent_pipe() as stdin,
        _forwarding(running, stopping),
        ThreadPoolExecutor(max_workers=max(1, len(jobs))) as threads,
    ):
        for job in jobs:
            reports[job.name] = threads.submit(run, job)
        for future in reports.values():
            future.result()


def _run_one(job: GraphJob, arguments: Sequence[str], running: "set[subprocess.Popen[bytes]]", stdin: int) -> RunReport:
    # In a separate session, so that Ctrl-C reaches it only once, from here.
    command = [*rowmill_command(), "run", str(job.path), *arguments]
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, env=rowmill_environment(), start_new_session=True
    ) as process:
        running.add(process)
        out, _ = process.communicate()
        running.discard(process)
    lines = out.splitlines()
    if lines:
        return RunReport.from_json(orjson.loads(lines[-1]))
    # A child without a report has failed: other jobs must not read its results.
    code = 130 if process.returncode < 0 else 3 if process.returncode in CONTINUING_EXIT_CODES else process.returncode
    # One that is interrupted twice, or before it begins, leaves without a report.
    reason = INTERRUPTED if process.returncode == 130 else "the process ended without a report"
    return RunReport(job.name, exit_code=code, stopped=reason)


@contextmanager
def _forwarding(running: "set[subprocess.Popen[bytes]]", stopping: threading.Event) -> Iterator[None]:
    """Forward Ctrl-C and SIGTERM to every running job; no other job starts."""

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
