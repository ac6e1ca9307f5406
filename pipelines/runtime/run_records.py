"""Runs in the ledger: a run stays open until it is finished, and the next invocation continues it."""

import secrets
from datetime import UTC, datetime

import orjson
from msgspec import Struct

from pipelines.ledger.ledger import Ledger, now_us
from pipelines.runtime.run_report import RunReport

CLOSING = frozenset({0, 1, 5})
"""Exit codes that close a run; after any other the next invocation continues it."""

NEWEST_FIRST = "r.started_at > (strftime('%s', 'now') + 3600) * 1000000, r.started_at desc"
"""SQL order of runs `r`; one that seems to begin in the future is old: the clock was wrong when it began."""


class OpenRun(Struct, frozen=True):
    """The run that this invocation is part of."""

    run_id: str
    spent: int
    """Pico-dollars that its earlier invocations have spent."""
    is_continued: bool


def open_run(ledger: Ledger, job: str, is_new: bool) -> OpenRun:
    """Return the job's open run, or start one; `is_new` closes an open run first."""
    if is_new:
        ledger.write("update runs set state = 'closed' where job = ? and state = 'open'", (job,))
    found = ledger.query(
        f"select run_id from runs r where job = ? and state = 'open' order by {NEWEST_FIRST} limit 1", (job,)
    )
    if found:
        ((run_id,),) = found
        ((spent,),) = ledger.query(
            "select coalesce(sum(e.cost), 0) from exchanges e join legs l on l.id = e.leg where l.run_id = ?", (run_id,)
        )
        return OpenRun(run_id, spent, True)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    ledger.write("insert into runs (run_id, job, state, started_at) values (?, ?, 'open', ?)", (run_id, job, now_us()))
    return OpenRun(run_id, 0, False)


def end_invocation(ledger: Ledger, run_id: str, report: RunReport) -> None:
    """Record how an invocation ended; the run closes if its exit code is one of `CLOSING`."""
    ledger.write(
        "update runs set state = ?, ended_at = ?, exit_code = ?, stopped = ?, report = ? where run_id = ?",
        (
            "closed" if report.exit_code in CLOSING else "open",
            now_us(),
            report.exit_code,
            report.stopped,
            orjson.dumps(report.to_record()).decode(),
            run_id,
        ),
    )
