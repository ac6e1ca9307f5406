"""Runs in the ledger: when a run stays open, and when the next invocation continues it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.ledger.ledger import Ledger, now_us
from pipelines.runtime import run_records
from pipelines.runtime.run_records import end_invocation, open_run
from pipelines.runtime.run_report import RunReport


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def test_an_open_run_is_continued_by_the_next_invocation(ledger: Ledger) -> None:
    first = open_run(ledger, "job", False)
    assert (first.spent, first.is_continued) == (0, False)
    again = open_run(ledger, "job", False)
    assert (again.run_id, again.is_continued) == (first.run_id, True)
    assert open_run(ledger, "other", False).run_id != first.run_id


def test_a_new_run_closes_the_open_one(ledger: Ledger) -> None:
    first = open_run(ledger, "job", False)
    second = open_run(ledger, "job", True)
    assert (second.run_id != first.run_id, second.is_continued) == (True, False)
    assert ledger.query("select run_id from runs where state = 'closed'") == [(first.run_id,)]


@pytest.mark.parametrize(
    ("exit_code", "state"), [(0, "closed"), (1, "closed"), (5, "closed"), (3, "open"), (130, "open")]
)
def test_the_exit_code_decides_whether_a_run_closes(ledger: Ledger, exit_code: int, state: str) -> None:
    run = open_run(ledger, "job", False)
    end_invocation(ledger, run.run_id, RunReport("job", run.run_id, stopped="why", exit_code=exit_code))
    ((found, code, stopped, report),) = ledger.query("select state, exit_code, stopped, report from runs")
    assert (found, code, stopped) == (state, exit_code, "why")
    assert '"job":"job"' in report
    assert open_run(ledger, "job", False).is_continued is (state == "open")


def test_the_newest_run_is_the_one_that_began_last_whatever_the_clock_showed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = now_us() + 400 * 86_400_000_000
    monkeypatch.setattr(run_records, "now_us", lambda: ahead)
    first = open_run(ledger, "job", is_new=False)
    monkeypatch.undo()
    ledger.write("insert into runs (run_id, job, state, started_at) values ('later', 'job', 'open', ?)", (now_us(),))
    assert first.run_id != "later"
    assert open_run(ledger, "job", is_new=False).run_id == "later"
