"""The simulated week: what each run sent, reused and paid, by its reports, its tables and the server."""

import fcntl
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.runtime.child_process import rowmill_command
from pipelines.schedule.daemon import SchedulerDaemon
from pipelines.schedule.scheduler import ScheduledJobs
from tests.behaviour.scheduling.provider_with_batches import Bill, Body
from tests.behaviour.scheduling.week import (
    CONCURRENCY,
    KILLED_AFTER,
    LABEL_MODELS,
    PER_DAY,
    Line,
    format_week,
    run_week,
    week_of,
)

PAGE = Path(__file__).parents[3] / "jobs" / "docs" / "scheduling.md"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State after an invocation."""

    line: Line
    source: dict[int, str]
    results: list[Body]
    errors: list[Body]
    usage: list[Body]
    """Usage table of the first job, all runs so far."""
    replies: list[Body]
    requests: int
    """Total at the server."""
    files: int
    """At the server."""

    @property
    def texts(self) -> dict[int, str]:
        """Return key -> text of the results; every key occurs once."""
        texts = {row["id"]: row["text"] for row in self.results}
        assert len(texts) == len(self.results)
        return texts


@dataclass(frozen=True, slots=True)
class FinishedWeek:
    """The whole week."""

    folder: Path
    snapshots: list[Snapshot]
    bills: dict[str, Bill]
    held: list[str]
    """Request ids of answers to the killed run that never arrived."""

    @property
    def lines(self) -> list[Line]:
        return [after.line for after in self.snapshots]

    @property
    def usage(self) -> list[Body]:
        """Return the usage table at the end of the week."""
        return self.snapshots[-1].usage

    @property
    def unknown(self) -> list[Body]:
        """Return the usage of unknown outcome."""
        return [row for row in self.usage if row["error_class"] == "unknown"]


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> FinishedWeek:
    """Run the week once, even if several processes share the tests."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "week"
    folder.mkdir(exist_ok=True)
    result = folder / "week.pickle"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            result.write_bytes(pickle.dumps(run_and_record(folder)))
    finished: FinishedWeek = pickle.loads(result.read_bytes())
    return finished


def run_and_record(folder: Path) -> FinishedWeek:
    """Run the week and record the state after each invocation."""
    with week_of(folder) as week:
        snapshots = [
            Snapshot(
                line, dict(week.rows), week.table("results"), week.table("errors"), week.table("usage"),
                week.replies(), week.api.requests, week.api.files(),
            )
            for line in run_week(week)
        ]  # fmt: skip
        return FinishedWeek(folder, snapshots, week.api.bills, week.api.held)


def test_each_run_sends_only_new_and_changed_rows(week: FinishedWeek) -> None:
    reported = [
        (
            line.day, line.rows, line.plan["new"], line.plan["changed"], line.sent,
            *(line.labels.get(name) for name in ("rows_reused", "rows_failed", "rows_left", "exit_code")),
        )
        for line in week.lines
    ]  # fmt: skip
    first, grew, killed, goes_on, down, catches_up, sample, prompt, batch, nothing = reported
    assert first == (1, 240, 240, 0, 240, 0, 1, 0, 1)
    # Two of the 60 new rows have the text of another; the refused row is not asked again.
    assert grew == (2, 300, 60, 0, 58, 241, 1, 0, 5)
    # One of the changed rows is the refused one: it has no result yet, so it counts as new.
    assert killed == (3, 345, 61, 25, KILLED_AFTER + CONCURRENCY, None, None, None, None)
    assert (goes_on[:2], goes_on[4] + goes_on[5], goes_on[6:]) == ((3, 345), 345, (0, 0, 0))
    assert down[:6] == (4, 375, 30, 0, 0, 345)
    assert (down[6] + down[7], down[8]) == (30, 3)
    assert catches_up == (5, 375, 30, 0, 30, 345, 0, 0, 0)
    assert sample == (5, 375, 0, 20, 20, 0, 0, 0, 0)
    # The 20 of the sample are paid, and the two repeated texts.
    assert prompt == (5, 375, 0, 375, 353, 22, 0, 0, 0)
    assert batch == (6, 420, 50, 10, 60, 360, 0, 0, 0)
    assert nothing == (7, 420, 0, 0, 0, 420, 0, 0, 0)


def test_every_source_row_is_in_the_results_or_in_the_errors(week: FinishedWeek) -> None:
    before: dict[int, str] = {}
    for after in week.snapshots:
        failed = [(row["id"], row["error_class"]) for row in after.errors]
        if after.line.killed:
            assert after.texts.items() <= (before | after.source).items() | before.items()
            continue
        missing = after.source.keys() - after.texts.keys()
        if after.line.labels["exit_code"] == 3:
            assert after.texts == before
            assert [error_class for _, error_class in failed] == ["connection"] * after.line.labels["rows_failed"]
        else:
            assert failed == [(key, "bad_request") for key in missing]
            assert missing == ({77} if after.line.day < 3 else set())
        assert after.texts == {key: text for key, text in after.source.items() if key not in missing}
        assert after.line.labels["rows_failed"] == len(failed)
        before = after.texts


def test_the_reported_cost_is_what_the_server_billed(week: FinishedWeek) -> None:
    for line in week.lines:
        if not line.killed:
            reported = (line.labels["cost_usd"] or 0) + (line.replies.get("cost_usd") or 0)
            assert reported == pytest.approx(line.pico / 1e12, abs=1e-12)
    usage = week.usage
    sample = week.lines[6]
    billed = {
        name: bill.pico
        for name, bill in week.bills.items()
        if bill.model in LABEL_MODELS and name not in sample.bills and name not in week.held
    }
    paid = {row["request_id"]: row["cost_usd"] for row in usage if row["http_status"] == 200}
    assert paid == {name: pytest.approx(pico / 1e12, abs=1e-12) for name, pico in billed.items()}
    others = [row for row in usage if row["http_status"] != 200]
    assert {row["error_class"]: row["cost_usd"] for row in others if row["error_class"] != "unknown"} == {
        "bad_request": 0, "connection": 0,
    }  # fmt: skip


def test_every_request_is_answered_once_except_those_in_flight_at_the_kill(week: FinishedWeek) -> None:
    answered = Counter((bill.model, text) for bill in week.bills.values() for text in bill.asked)
    held = [week.bills[name] for name in week.held]
    assert {asked: count for asked, count in answered.items() if count > 1} == {
        (bill.model, text): 2 for bill in held for text in bill.asked
    }
    assert len(week.unknown) == len(held) == CONCURRENCY
    # Unknown outcomes count at their maximum cost.
    assert sum(row["cost_usd"] for row in week.unknown) >= sum(bill.pico for bill in held) / 1e12


def test_no_day_exceeds_the_daily_budget_but_the_week_does(week: FinishedWeek) -> None:
    done = subprocess.run(
        [*rowmill_command(), "usage", "--by", "day", "--json"],
        cwd=week.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    reported = {row["day"]: row["cost_usd"] for row in map(json.loads, done.stdout.splitlines())}
    expected: Counter[str] = Counter()
    for line in week.lines:
        expected[f"2027-03-{21 + line.day}"] += line.pico
    lost = sum(week.bills[name].pico for name in week.held)
    expected["2027-03-24"] += round(sum(row["cost_usd"] for row in week.unknown) * 1e12) - lost
    assert reported == {
        day: pytest.approx(pico / 1e12, abs=1e-12) for day, pico in expected.items() if pico or day in reported
    }
    assert max(reported.values()) < PER_DAY < sum(reported.values())
    with sqlite3.connect(week.folder / ".rowmill" / "ledger.sqlite") as db:
        days = dict(db.execute("select day, spent from days").fetchall())
    db.close()
    assert {day: pico for day, pico in days.items() if pico} == {day: pico for day, pico in expected.items() if pico}


def test_the_killed_and_the_stopped_run_are_continued(week: FinishedWeek) -> None:
    killed, goes_on = week.lines[2:4]
    down, catches_up = week.lines[4:6]
    assert (killed.labels, killed.exit_code) == ({}, -9)
    assert down.labels["run_id"] == catches_up.labels["run_id"]
    assert "billing-api has answered nothing for 1 s" in down.labels["stopped"]
    (run_of_the_lost,) = {row["run_id"] for row in week.unknown}
    assert run_of_the_lost == goes_on.labels["run_id"]
    with sqlite3.connect(week.folder / ".rowmill" / "ledger.sqlite") as db:
        runs = db.execute("select run_id, state from runs where job = 'labels' order by started_at").fetchall()
    db.close()
    reported = [line.labels["run_id"] for line in week.lines if line.labels.get("job") == "labels"]
    assert [run_id for run_id, _ in runs] == list(dict.fromkeys(reported))
    assert [state for _, state in runs] == ["closed"] * 7


def test_a_new_prompt_is_compared_on_a_sample_that_is_not_paid_again(week: FinishedWeek) -> None:
    before, sample, prompt = week.snapshots[5:8]
    assert (sample.results, sample.errors, sample.usage) == (before.results, before.errors, before.usage)
    rows = sample.line.labels["compare"]
    sentiments = {row["id"]: row["sentiment"] for row in before.results}
    assert {int(row["key"]): row["old"]["sentiment"] for row in rows} == {
        key: sentiments[key] for key in sorted(before.source)[:20]
    }
    applied = {row["id"]: row["sentiment"] for row in prompt.results}
    assert all(row["new"]["sentiment"] == applied[int(row["key"])] for row in rows)
    assert any(row["new"]["sentiment"] == "neutral" for row in rows)
    asked = {text for bill in sample.line.bills.values() for text in bill.texts}
    assert asked.isdisjoint(text for bill in prompt.line.bills.values() for text in bill.texts)
    # The texts are the same, so are their vectors: a new prompt pays for labels only.
    assert {bill.model for bill in prompt.line.bills.values()} == {"rowmill-sentiment"}


def test_a_run_by_batches_costs_half_and_leaves_no_files_at_the_provider(week: FinishedWeek) -> None:
    after = week.snapshots[8]
    bills = [bill for bill in after.line.bills.values() if bill.model in LABEL_MODELS]
    assert all(bill.batch for bill in bills)
    assert {bill.model for bill in bills} == set(LABEL_MODELS)
    assert not any(bill.batch for bill in week.bills.values() if bill.model not in LABEL_MODELS)
    run_id = after.line.labels["run_id"]
    prices = {"label": (0.15e-6, 0.6e-6), "vector": (0.02e-6, 0)}
    for row in after.usage:
        if row["run_id"] == run_id:
            given, made = prices[row["step"]]
            full = row["input_tokens"] * given + (row["output_tokens"] or 0) * made
            assert row["cost_usd"] == pytest.approx(full / 2, abs=1e-12)
    assert after.files == 0


def test_nothing_is_sent_if_nothing_has_changed(week: FinishedWeek) -> None:
    before, after = week.snapshots[8:]
    assert after.requests == before.requests
    assert (after.results, after.errors, after.usage) == (before.results, before.errors, before.usage)
    assert (after.line.labels["requests"], after.line.replies["requests"]) == (0, 0)


def test_the_downstream_job_follows_the_results_and_is_skipped_if_its_upstream_failed(
    week: FinishedWeek,
) -> None:
    for after in week.snapshots:
        line, reader = after.line, after.line.replies
        code = line.labels.get("exit_code")
        if code in (3, 5):
            assert reader["stopped"] == f"not run: job labels, whose results it reads, ended with exit code {code}"
            assert (reader["exit_code"], line.exit_code) == (3, 3)
        elif reader:
            complaints = {row["id"]: row["text"] for row in after.results if row["sentiment"] == "negative"}
            assert {row["id"]: row["text"] for row in after.replies} == complaints
            assert all(row["reply"] for row in after.replies)
            assert reader["rows"] == reader["rows_ok"] == len(complaints)
            assert (reader["exit_code"], line.exit_code) == (0, code)
            sent = Counter(bill.texts for bill in line.bills.values() if bill.model not in LABEL_MODELS)
            assert reader["requests"] == sent.total() == len(sent)


def test_the_drift_audit_fails_only_on_the_day_of_complaints(week: FinishedWeek) -> None:
    drifted = [
        (line.day, audit.get("found"))
        for line in week.lines
        for audit in line.labels.get("audits", ())
        if not audit["passed"]
    ]
    assert drifted == [
        (
            2,
            [
                "sentiment = negative: share 0.481 before, 0.800 now",
                "sentiment = positive: share 0.519 before, 0.200 now",
                "vector: share of nulls 0.519 before, 0.200 now",
            ],
        )
    ]


def test_on_finish_gets_every_report(week: FinishedWeek) -> None:
    reported = [json.loads(line) for line in (week.folder / "reports.jsonl").read_text().splitlines() if line]
    assert reported == [line.labels for line in week.lines if line.labels.get("job") == "labels"]


def test_status_shows_that_a_run_without_requests_costs_nothing(week: FinishedWeek) -> None:
    done = subprocess.run(
        [*rowmill_command(), "status", "--json"], cwd=week.folder, capture_output=True, text=True, check=True
    )
    reported = {row["job"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert {
        name: (row["state"], row["exit_code"], row["requests"], row["cost_usd"]) for name, row in reported.items()
    } == {
        "labels": ("closed", 0, 0, 0),
        "labels-compare": ("closed", 0, 20, pytest.approx(week.lines[6].pico / 1e12, abs=1e-12)),
        "replies": ("closed", 0, 0, 0),
    }


def test_the_cost_of_a_run_is_unknown_if_one_price_is_unknown(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(2)
    steps = """
  - {name: one, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]}
  - {name: two, endpoint: chat, provider: test, model: unknown-model, messages: [{user: "{{ one }}"}]}"""
    job = workspace.job(steps=steps, schedule='"30 2 * * *"')
    assert cli.run(job)["cost_usd"] is None
    for command in (["status", job, "--json"], ["schedule", "show", job, "--json"]):
        assert cli(*command) == 0
        assert json.loads(cli.out)["cost_usd"] is None


def test_the_documentation_shows_the_results_of_this_week(week: FinishedWeek) -> None:
    def plain(text: str) -> list[str]:
        rows = [" ".join(row.split()) for row in text.splitlines() if row.startswith("| ")]
        # How many vectors the killed run received varies.
        return [row for row in rows if not row.startswith(("| 3 |", "| -"))]

    shown = plain(PAGE.read_text(encoding="utf-8"))
    assert [row for row in plain(format_week(week.lines)) if row not in shown] == []


@pytest.mark.parametrize(
    ("first", "due"),
    [
        (datetime(2027, 3, 26, 23, tzinfo=UTC), ["27T01:30+00:00", "28T01:00+00:00", "29T00:30+00:00"]),
        (datetime(2027, 10, 29, 22, tzinfo=UTC), ["30T00:30+00:00", "31T00:30+00:00", "01T01:30+00:00"]),
    ],
    ids=["spring", "autumn"],
)
async def test_a_job_at_half_past_two_starts_once_a_day_across_clock_changes(
    workspace: Any, first: datetime, due: list[str]
) -> None:
    text = (workspace.folder / "rowmill.yaml").read_text()
    workspace.write("rowmill.yaml", f"{text}\ntime_zone: Europe/Berlin\n")
    job = workspace.job(schedule='"30 2 * * *"')
    started: list[str] = []
    for minutes in range(0, 72 * 60, 30):
        moment = first + timedelta(minutes=minutes)
        daemon = SchedulerDaemon(
            ScheduledJobs(lambda: [job], frozenset()),
            now=lambda moment=moment: moment,  # type: ignore[misc]
            command=[sys.executable, "-S", "-c", "print('{}')"],
        )
        assert await daemon.run(once=True) == 0
        started += [moment.isoformat(timespec="minutes")[8:] for _ in daemon.exit_codes]
    assert started == due
