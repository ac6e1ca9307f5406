"""Schedules: due times over clock changes, missed runs, no overlap, the daemon, crontab and systemd."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from connectors.errors import JobError
from pipelines.runtime.child_process import rowmill_command
from pipelines.schedule.cron_systemd import crontab_block, merged_crontab, on_calendar, systemd_units
from pipelines.schedule.daemon import SchedulerDaemon
from pipelines.schedule.history import schedule_rows
from pipelines.schedule.scheduler import (
    DueRun,
    DueTimeStore,
    ScheduledJob,
    ScheduledJobs,
    Scheduler,
    latest_due,
    load_scheduled_jobs,
    next_due,
)
from tests.support.forked import command_line

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2027, 1, 4, 12, tzinfo=UTC)


def scheduled_job(workspace: Any, name: str = "job", cron: str = "30 2 * * *", **replaced: str) -> ScheduledJob:
    """Return a scheduled job of the test's workspace."""
    path = workspace.job(name, schedule=f'"{cron}"', **replaced)
    (job,) = load_scheduled_jobs([path], frozenset([path]))
    return job


def set_berlin_time(workspace: Any) -> None:
    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text() + "time_zone: Europe/Berlin\n")


def claimed_due_times(job: ScheduledJob, first: datetime, hours: int) -> list[str]:
    """Return the due times, in UTC, claimed by a check every ten minutes."""
    claimed = [DueTimeStore(job.workspace).claim(job, first + timedelta(minutes=n)) for n in range(0, hours * 60, 10)]
    return [due.astimezone(UTC).isoformat(timespec="minutes") for due in claimed if due is not None]


def test_a_job_at_half_past_two_runs_once_on_each_day_of_a_clock_change(workspace: Any) -> None:
    set_berlin_time(workspace)
    spring, autumn = datetime(2027, 3, 26, 23, tzinfo=UTC), datetime(2027, 10, 29, 22, tzinfo=UTC)
    assert claimed_due_times(scheduled_job(workspace), spring, 72) == [
        "2027-03-27T01:30+00:00", "2027-03-28T01:00+00:00", "2027-03-29T00:30+00:00",
    ]  # fmt: skip
    assert claimed_due_times(scheduled_job(workspace, "other"), autumn, 72) == [
        "2027-10-30T00:30+00:00", "2027-10-31T00:30+00:00", "2027-11-01T01:30+00:00",
    ]  # fmt: skip


def test_an_hourly_job_runs_every_real_hour_of_a_clock_change(workspace: Any) -> None:
    set_berlin_time(workspace)
    for name, first in (
        ("spring", datetime(2027, 3, 27, 20, 30, tzinfo=UTC)),
        ("autumn", datetime(2027, 10, 30, 20, 30, tzinfo=UTC)),
    ):
        hours = [(first + timedelta(minutes=30 + 60 * n)).isoformat(timespec="minutes") for n in range(12)]
        assert claimed_due_times(scheduled_job(workspace, name, "0 * * * *"), first, 12) == hours


def test_missed_runs_are_caught_up_once(workspace: Any) -> None:
    job, store = scheduled_job(workspace), DueTimeStore(scheduled_job(workspace).workspace)
    assert store.claim(job, START) is None
    assert store.claim(job, START + timedelta(days=4)) == datetime(2027, 1, 8, 2, 30, tzinfo=UTC)
    assert store.claim(job, START + timedelta(days=4)) is None
    assert store.claim(job, START + timedelta(days=5)) == datetime(2027, 1, 9, 2, 30, tzinfo=UTC)


def test_a_job_with_a_new_schedule_has_missed_nothing(workspace: Any) -> None:
    job = scheduled_job(workspace)
    DueTimeStore(job.workspace).claim(job, START)
    later = START + timedelta(days=1)
    assert DueTimeStore(job.workspace).claim(scheduled_job(workspace, cron="0 3 * * *"), later) is None
    assert (
        DueTimeStore(job.workspace).claim(scheduled_job(workspace, cron="0 3 * * *"), later + timedelta(days=1))
        is not None
    )


def test_a_due_time_in_the_future_is_not_trusted(workspace: Any) -> None:
    """The clock was 400 days ahead when the scheduler first saw the job, and was then set right."""
    job, store = scheduled_job(workspace), DueTimeStore(scheduled_job(workspace).workspace)
    assert store.claim(job, START + timedelta(days=400)) is None
    distrusted: list[datetime] = []
    claims = [store.claim(job, START + timedelta(days=day), distrusted.append) for day in (0, 1, 1, 2)]
    due = datetime(2027, 1, 5, 2, 30, tzinfo=UTC)
    assert claims == [None, due, None, due + timedelta(days=1)]
    assert distrusted == [START + timedelta(days=400)]


def test_a_clock_that_jumps_ahead_during_a_schedule_costs_one_run(workspace: Any) -> None:
    job, store = scheduled_job(workspace), DueTimeStore(scheduled_job(workspace).workspace)
    days = (0, 1, 401, 1, 2, 3)
    dues = [datetime(2027, 1, 4, 2, 30, tzinfo=UTC) + timedelta(days=day) for day in (1, 401, 2, 3)]
    claims = [store.claim(job, START + timedelta(days=day)) for day in days]
    assert claims == [None, dues[0], dues[1], None, dues[2], dues[3]]


def test_a_clock_that_is_set_back_a_little_does_not_repeat_a_run(workspace: Any) -> None:
    job, store = scheduled_job(workspace, cron="0 * * * *"), DueTimeStore(scheduled_job(workspace).workspace)
    store.claim(job, START)
    distrusted: list[datetime] = []
    times = [START + timedelta(minutes=minutes) for minutes in (61, 50, 62, 121)]
    claims = [store.claim(job, now, distrusted.append) for now in times]
    assert claims == [START + timedelta(hours=1), None, None, START + timedelta(hours=2)]
    assert distrusted == []


async def test_the_daemon_reports_a_wrong_clock_in_one_line(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job = scheduled_job(workspace)
    DueTimeStore(job.workspace).claim(job, START + timedelta(days=400))
    jobs = ScheduledJobs(lambda: [job.path], frozenset([job.path]))
    assert await SchedulerDaemon(jobs, now=lambda: START).run(once=True) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.partition("  ")[2] == (
        "job: last due at 2028-02-08T12:00+00:00, which is in the future: the clock was or is wrong; counting from now"
    )


def test_an_interrupted_run_counts_as_missed(workspace: Any) -> None:
    job, store = scheduled_job(workspace), DueTimeStore(scheduled_job(workspace).workspace)
    store.claim(job, START)
    due = store.claim(job, START + timedelta(days=1))
    assert due is not None
    store.restore(job, due)
    assert store.claim(job, START + timedelta(days=1, minutes=1)) == due
    assert store.claim(job, START + timedelta(days=1, minutes=1)) is None


def test_a_running_job_is_not_started_twice_and_the_skip_is_recorded(workspace: Any) -> None:
    job = scheduled_job(workspace, cron="0 * * * *")
    skipped: list[tuple[DueRun, str]] = []
    scheduler = Scheduler(4, lambda due_run, why: skipped.append((due_run, why)))
    scheduler.collect_due([job], START)
    scheduler.collect_due([job], START + timedelta(hours=1))
    (start,) = scheduler.start_ready()
    scheduler.collect_due([job], START + timedelta(hours=2))
    assert scheduler.start_ready() == []
    assert [(one.due, why) for one, why in skipped] == [
        (START + timedelta(hours=2), "the run that was due at 2027-01-04 13:00 is still running")
    ]
    scheduler.finish(start, 0)
    assert scheduler.start_ready() == []
    (row,) = schedule_rows([job], 1, START + timedelta(hours=2))
    assert row["skipped"] == "2027-01-04T14:00:00+00:00: the run that was due at 2027-01-04 13:00 is still running"
    assert (row["how"], row["next"], row["cost_usd"]) == ("never ran", "2027-01-04T15:00:00+00:00", None)


def test_a_job_waits_for_its_upstream_job_and_is_skipped_if_that_fails(workspace: Any) -> None:
    above = scheduled_job(workspace, "above")
    below = scheduled_job(workspace, "below", source="{job: above, key: id}", sink="{parquet: out2}")
    further = scheduled_job(workspace, "further", source="{job: below, key: id}", sink="{parquet: out3}")
    skipped: list[str] = []
    scheduler = Scheduler(4, lambda start, why: skipped.append(f"{start.job.name}: {why}"))
    jobs = [further, below, above]
    scheduler.collect_due(jobs, START)
    scheduler.collect_due(jobs, START + timedelta(days=1))
    (first,) = scheduler.start_ready()
    assert first.job.name == "above"
    scheduler.finish(first, 1)
    assert [start.job.name for start in scheduler.start_ready()] == ["below"]
    scheduler.finish(scheduler.running[below.key], 3)
    assert scheduler.start_ready() == []
    assert skipped == ["further: below, whose results it reads, ended with exit code 3"]


def test_no_more_jobs_than_allowed_run_at_the_same_time(workspace: Any) -> None:
    jobs = [scheduled_job(workspace, name, sink=f"{{parquet: {name}}}") for name in ("a", "b", "c")]
    scheduler = Scheduler(2, lambda start, why: None)
    scheduler.collect_due(jobs, START)
    scheduler.collect_due(jobs, START + timedelta(days=1))
    first = scheduler.start_ready()
    assert [start.job.name for start in first] == ["a", "b"]
    assert scheduler.start_ready() == []
    scheduler.finish(first[0], 0)
    assert [start.job.name for start in scheduler.start_ready()] == ["c"]


def test_an_edited_file_is_read_again_and_an_error_in_it_keeps_the_previous_schedules(workspace: Any) -> None:
    path = workspace.job("job", schedule='"30 2 * * *"')
    problems: list[str] = []
    scheduled_jobs = ScheduledJobs(lambda: [path], frozenset([path]))
    scheduled_jobs.on_problem = problems.append
    assert [job.cron for job in scheduled_jobs.jobs()] == ["30 2 * * *"]
    workspace.job("job", schedule='"30 12 * * *"')
    assert [job.cron for job in scheduled_jobs.jobs()] == ["30 12 * * *"]
    workspace.job("job", schedule='"30 2 * * * nonsense"')
    assert [job.cron for job in scheduled_jobs.jobs()] == ["30 12 * * *"]
    assert len(problems) == 1
    assert "not a cron expression" in problems[0]
    assert len(scheduled_jobs.jobs()) == 1
    assert len(problems) == 1


def test_a_job_without_a_schedule_is_ignored_in_a_folder_and_an_error_when_named(workspace: Any) -> None:
    path = workspace.job("job")
    assert load_scheduled_jobs([path], frozenset()) == []
    with pytest.raises(JobError, match="has no schedule"):
        load_scheduled_jobs([path], frozenset([path]))


def missed_job(path: Path) -> ScheduledJob:
    """Return the job, whose last due time was claimed an hour ago."""
    (job,) = load_scheduled_jobs([path], frozenset())
    DueTimeStore(job.workspace).claim(job, datetime.now(UTC) - timedelta(hours=1))
    return job


@pytest.mark.usefixtures("started_children")
def test_once_runs_a_missed_job_in_a_separate_process_and_show_reports_it(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(3)
    missed_job(workspace.job("job", schedule='"* * * * *"'))
    # Neither of these may be imported as the package.
    workspace.write("pipelines/__init__.py", "raise SystemExit(77)\n")
    workspace.write("pipelines/cli.py", "raise SystemExit(77)\n")
    done = subprocess.run(
        [*rowmill_command(), "schedule", "run", "job.yaml", "--once"],
        cwd=workspace.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "job: ended with exit code 0: 3 of 3 rows done, 3 requests, $0.0001" in done.stderr
    assert done.stdout == ""
    assert sorted(provider.prompts()) == ["text 1", "text 2", "text 3"]
    assert cli("schedule", "show", workspace.folder / "job.yaml", "--json") == 0
    (row,) = [json.loads(line) for line in cli.out.splitlines()]
    assert (row["how"], row["exit_code"], row["rows_ok"], row["cost_usd"]) == ("done", 0, 3, pytest.approx(6e-5))
    assert cli("schedule", "show", workspace.folder) == 0
    assert "done" in cli.out


def test_once_exits_with_the_worst_exit_code_of_its_jobs(workspace: Any, provider: Any) -> None:
    workspace.csv(3)
    paths = [
        workspace.job("good", schedule='"* * * * *"'),
        workspace.job("bad", schedule='"* * * * *"', source="{csv: none.csv}", sink="{parquet: bad}"),
    ]
    for path in paths:
        missed_job(path)
    done = subprocess.run(
        [*rowmill_command(), "schedule", "run", *paths, "--once", "--log", "json"],
        cwd=workspace.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    ends = {event["job"]: event["exit_code"] for event in events if event["event"] == "schedule_end"}
    assert ends == {"good": 0, "bad": 2}


FROZEN_CLOCK = """
from datetime import UTC, datetime
from pipelines.cli import main
from pipelines.schedule import daemon
class FrozenClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime(2027, 1, 5, 2, 30, tzinfo=tz)
daemon.datetime = FrozenClock
main()
"""
"""`rowmill` with a scheduler with a frozen clock: a run of any length ends before the next due time."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_the_running_job_end_and_its_due_time_counts_as_missed(
    workspace: Any, provider: Any, number: signal.Signals
) -> None:
    workspace.csv(50)
    job = scheduled_job(workspace, cron="30 2 * * *", limits="{concurrency: 2}")
    due = datetime(2027, 1, 5, 2, 30, tzinfo=UTC)
    DueTimeStore(job.workspace).claim(job, START)
    provider.latency = 0.2
    process = subprocess.Popen(
        [*command_line(FROZEN_CLOCK), "schedule", "run", str(job.path)],
        cwd=workspace.folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while len(provider.seen) < 4:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping: waiting for job" in err
    assert "job: ended with exit code 130" in err
    # Requests in flight have finished: none is unknown.
    assert 4 <= len(provider.answered) < 50
    (row,) = schedule_rows([job], 1, due)
    assert (row["how"], row["stopped"]) == ("interrupted", "interrupted")
    assert DueTimeStore(job.workspace).claim(job, due) == due


async def test_a_stop_without_running_jobs_exits_with_zero(workspace: Any) -> None:
    path = workspace.job("job", schedule='"30 2 * * *"')
    daemon = SchedulerDaemon(ScheduledJobs(lambda: [path], frozenset()))
    running = asyncio.create_task(daemon.run())
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


@pytest.mark.usefixtures("started_children")
def test_the_crontab_block_replaces_the_previous_one_and_keeps_other_lines(workspace: Any) -> None:
    set_berlin_time(workspace)
    job = scheduled_job(workspace)
    block = crontab_block([job], Path("/etc/keys 100%"))
    folder = job.workspace.folder
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    assert lines == [
        "CRON_TZ=Europe/Berlin",
        f"30 2 * * * cd {folder} && set -a && . '/etc/keys 100\\%' && set +a && mkdir -p {folder}/.rowmill/logs && "
        f"{sys.executable} -P -m pipelines.cli run {folder}/job.yaml --fail-on new --log json --json >> "
        f"{folder}/.rowmill/logs/job.log 2>&1",
    ]
    mine = "MAILTO=me\n0 1 * * * backup\n"
    once = merged_crontab(mine, {folder: block})
    assert once == mine + block
    assert merged_crontab(once + "5 5 * * * later\n", {folder: block}) == mine + "5 5 * * * later\n" + block
    with pytest.raises(JobError, match="is missing"):
        merged_crontab(block.splitlines()[0], {folder: block})


def test_crontab_is_written_only_with_the_flag(
    workspace: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, folder = tmp_path / "tab", tmp_path / "bin"
    listed = f"if [ -f {tab} ]; then cat {tab}; else echo no crontab for me >&2; exit 1; fi"
    script = f'#!/bin/sh\nif [ "$1" = -l ]; then {listed}; else cat > {tab}; fi\n'
    workspace.write("bin/crontab", script).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    job = workspace.job("job", schedule='"30 2 * * *"')
    assert cli("schedule", "install", job, "--as", "crontab") == 0
    assert not tab.exists()
    shown_block = cli.out
    assert cli("schedule", "install", job, "--as", "crontab", "--write") == 0
    assert cli("schedule", "install", job, "--as", "crontab", "--write") == 0
    assert tab.read_text() == shown_block == cli.out


def test_systemd_units_contain_the_time_zone_and_the_times_that_a_clock_change_skips(workspace: Any, cli: Any) -> None:
    set_berlin_time(workspace)
    job = scheduled_job(workspace)
    units = systemd_units(job, None, date(2027, 1, 1))
    timer = next(text for name, text in units.items() if name.endswith(".timer"))
    calendar = [line.partition("=")[2] for line in timer.splitlines() if line.startswith("OnCalendar=")]
    assert calendar[:3] == [
        "*-*-* 02:30:00 Europe/Berlin", "2027-03-28 03:00:00 Europe/Berlin", "2028-03-26 03:00:00 Europe/Berlin",
    ]  # fmt: skip
    assert len(calendar) == 11
    assert "Persistent=true" in timer
    assert cli("schedule", "install", job.path, "--as", "systemd", "--dir", workspace.folder / "units") == 0
    assert not (workspace.folder / "units").exists()
    assert cli("schedule", "install", job.path, "--as", "systemd", "--dir", workspace.folder / "units", "--write") == 0
    assert sorted(path.name for path in (workspace.folder / "units").iterdir()) == sorted(units)


@pytest.mark.parametrize(
    ("cron", "calendars"),
    [
        ("*/15 2-3 * * *", ["*-*-* 02,03:00,15,30,45:00"]),
        ("0 0 1 * 1", ["*-*-01 00:00:00", "Mon *-*-* 00:00:00"]),
        ("0 0 * 6 0,7", ["Sun *-06-* 00:00:00"]),
        ("0 0 */10 * 1", ["Mon *-*-01,11,21,31 00:00:00"]),
        ("5 4 1,15 * *", ["*-*-01,15 04:05:00"]),
    ],
)
def test_cron_expressions_are_translated_to_systemd_calendars(workspace: Any, cron: str, calendars: list[str]) -> None:
    assert on_calendar(scheduled_job(workspace, cron=cron)) == calendars


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
@pytest.mark.parametrize("cron", ["*/15 2-3 * * *", "0 0 * 6 0,7", "0 0 */10 * 1", "5 4 1,15 * *"])
def test_systemd_reads_the_same_times_as_cron(workspace: Any, cron: str) -> None:
    job = scheduled_job(workspace, cron=cron)
    (spec,) = on_calendar(job)
    result = subprocess.run(
        ["systemd-analyze", "calendar", "--base-time=2027-01-04 12:00 UTC", "--iterations=5", f"{spec} UTC"],
        capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    )  # fmt: skip
    found = [
        line.split(": ", 1)[1].split()[1:3]
        for line in result.stdout.splitlines()
        if "UTC" in line and ":00 UTC" in line and ("elapse" in line or "Iter" in line)
    ]
    due, expected = START, []
    for _ in range(5):
        following = next_due(cron, due, UTC)
        assert following is not None
        due = following
        expected.append([f"{due:%Y-%m-%d}", f"{due:%H:%M:%S}"])
    assert found == expected


def test_syntax_that_only_rowmill_supports_is_refused_for_crontab_and_systemd(workspace: Any) -> None:
    for cron in ("0 2 L * *", "0 2 * * 1#1"):
        job = scheduled_job(workspace, cron=cron)
        with pytest.raises(JobError, match="supports L and #"):
            crontab_block([job], None)
        with pytest.raises(JobError, match="supports L and #"):
            systemd_units(job, None, date(2027, 1, 1))


def test_the_latest_due_time_includes_the_present_moment() -> None:
    now = datetime(2027, 1, 5, 2, 30, tzinfo=UTC)
    assert latest_due("30 2 * * *", START, now, UTC) == now
    assert latest_due("30 2 * * *", now, now, UTC) is None
    assert latest_due("30 2 * * *", START, now - timedelta(seconds=1), UTC) is None
    assert latest_due("30 2 * * *", START, datetime(2027, 3, 28, 0, 59, 59, tzinfo=UTC), BERLIN) == datetime(
        2027, 3, 27, 1, 30, tzinfo=UTC
    )


def test_an_emptied_folder_keeps_the_previous_schedules(workspace: Any) -> None:
    path = workspace.job("job", schedule='"30 2 * * *"')
    problems: list[str] = []

    def files() -> list[Path]:
        if not path.exists():
            raise JobError("jobs", "holds no job file")
        return [path]

    scheduled_jobs = ScheduledJobs(files, frozenset())
    scheduled_jobs.on_problem = problems.append
    scheduled_jobs.jobs()
    path.unlink()
    assert [job.name for job in scheduled_jobs.jobs()] == [job.name for job in scheduled_jobs.jobs()] == ["job"]
    assert problems == ["jobs: holds no job file (the schedules stay as they were)"]
