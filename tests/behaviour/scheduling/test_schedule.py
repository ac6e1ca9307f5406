"""Schedules: due times over clock changes, missed runs, no overlap, the foreground process, crontab and systemd."""

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
    DueTimeStore,
    ScheduledJobs,
    ScheduledJob,
    Scheduler,
    DueRun,
    latest_due,
    next_due,
    load_scheduled_jobs,
)

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = datetime(2027, 1, 4, 12, tzinfo=UTC)


def job_of(workspace: Any, name: str = "job", cron: str = "30 2 * * *", **replaced: str) -> ScheduledJob:
    """A scheduled job of the test's workspace."""
    path = workspace.job(name, schedule=f'"{cron}"', **replaced)
    (job,) = load_scheduled_jobs([path], frozenset([path]))
    return job


def in_berlin(workspace: Any) -> None:
    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text() + "time_zone: Europe/Berlin\n")


def every_ten_minutes(job: ScheduledJob, first: datetime, hours: int) -> list[str]:
    """The due times taken, in UTC, when the clock is looked at every ten minutes."""
    taken = [DueTimeStore(job.workspace).claim(job, first + timedelta(minutes=n)) for n in range(0, hours * 60, 10)]
    return [due.astimezone(UTC).isoformat(timespec="minutes") for due in taken if due is not None]


def test_a_job_at_half_past_two_runs_once_on_both_nights_of_the_clock_change(workspace: Any) -> None:
    in_berlin(workspace)
    spring, autumn = datetime(2027, 3, 26, 23, tzinfo=UTC), datetime(2027, 10, 29, 22, tzinfo=UTC)
    assert every_ten_minutes(job_of(workspace), spring, 72) == [
        "2027-03-27T01:30+00:00", "2027-03-28T01:00+00:00", "2027-03-29T00:30+00:00",
    ]  # fmt: skip
    assert every_ten_minutes(job_of(workspace, "other"), autumn, 72) == [
        "2027-10-30T00:30+00:00", "2027-10-31T00:30+00:00", "2027-11-01T01:30+00:00",
    ]  # fmt: skip


def test_an_hourly_job_runs_every_real_hour_of_both_nights(workspace: Any) -> None:
    in_berlin(workspace)
    for name, first in (
        ("spring", datetime(2027, 3, 27, 20, 30, tzinfo=UTC)),
        ("autumn", datetime(2027, 10, 30, 20, 30, tzinfo=UTC)),
    ):
        hours = [(first + timedelta(minutes=30 + 60 * n)).isoformat(timespec="minutes") for n in range(12)]
        assert every_ten_minutes(job_of(workspace, name, "0 * * * *"), first, 12) == hours


def test_missed_runs_are_caught_up_once(workspace: Any) -> None:
    job, memory = job_of(workspace), DueTimeStore(job_of(workspace).workspace)
    assert memory.claim(job, NIGHT) is None
    assert memory.claim(job, NIGHT + timedelta(days=4)) == datetime(2027, 1, 8, 2, 30, tzinfo=UTC)
    assert memory.claim(job, NIGHT + timedelta(days=4)) is None
    assert memory.claim(job, NIGHT + timedelta(days=5)) == datetime(2027, 1, 9, 2, 30, tzinfo=UTC)


def test_a_job_with_a_new_schedule_has_missed_nothing(workspace: Any) -> None:
    job = job_of(workspace)
    DueTimeStore(job.workspace).claim(job, NIGHT)
    later = NIGHT + timedelta(days=1)
    assert DueTimeStore(job.workspace).claim(job_of(workspace, cron="0 3 * * *"), later) is None
    assert DueTimeStore(job.workspace).claim(job_of(workspace, cron="0 3 * * *"), later + timedelta(days=1)) is not None


def test_what_was_cut_short_counts_as_missed(workspace: Any) -> None:
    job, memory = job_of(workspace), DueTimeStore(job_of(workspace).workspace)
    memory.claim(job, NIGHT)
    due = memory.claim(job, NIGHT + timedelta(days=1))
    assert due is not None
    memory.restore(job, due)
    assert memory.claim(job, NIGHT + timedelta(days=1, minutes=1)) == due
    assert memory.claim(job, NIGHT + timedelta(days=1, minutes=1)) is None


def test_a_job_that_is_still_running_is_not_started_twice_and_the_skip_is_noted(workspace: Any) -> None:
    job = job_of(workspace, cron="0 * * * *")
    skipped: list[tuple[DueRun, str]] = []
    scheduler = Scheduler(4, lambda start, why: skipped.append((start, why)))
    scheduler.collect_due([job], NIGHT)
    scheduler.collect_due([job], NIGHT + timedelta(hours=1))
    (start,) = scheduler.start_ready()
    scheduler.collect_due([job], NIGHT + timedelta(hours=2))
    assert scheduler.start_ready() == []
    assert [(one.due, why) for one, why in skipped] == [
        (NIGHT + timedelta(hours=2), "the run that was due at 2027-01-04 13:00 is still under way")
    ]
    scheduler.finish(start, 0)
    assert scheduler.start_ready() == []
    (row,) = schedule_rows([job], 1, NIGHT + timedelta(hours=2))
    assert row["skipped"] == "2027-01-04T14:00:00+00:00: the run that was due at 2027-01-04 13:00 is still under way"
    assert (row["how"], row["next"], row["cost_usd"]) == ("never ran", "2027-01-04T15:00:00+00:00", None)


def test_a_job_waits_for_the_job_whose_results_it_reads_and_is_not_started_where_that_fails(workspace: Any) -> None:
    above = job_of(workspace, "above")
    below = job_of(workspace, "below", source="{job: above, key: id}", sink="{parquet: out2}")
    further = job_of(workspace, "further", source="{job: below, key: id}", sink="{parquet: out3}")
    skipped: list[str] = []
    scheduler = Scheduler(4, lambda start, why: skipped.append(f"{start.job.name}: {why}"))
    jobs = [further, below, above]
    scheduler.collect_due(jobs, NIGHT)
    scheduler.collect_due(jobs, NIGHT + timedelta(days=1))
    (first,) = scheduler.start_ready()
    assert first.job.name == "above"
    scheduler.finish(first, 1)
    assert [start.job.name for start in scheduler.start_ready()] == ["below"]
    scheduler.finish(scheduler.running[below.key], 3)
    assert scheduler.start_ready() == []
    assert skipped == ["further: below, whose results it reads, ended with exit code 3"]


def test_no_more_jobs_than_allowed_run_at_the_same_time(workspace: Any) -> None:
    jobs = [job_of(workspace, name, sink=f"{{parquet: {name}}}") for name in ("a", "b", "c")]
    scheduler = Scheduler(2, lambda start, why: None)
    scheduler.collect_due(jobs, NIGHT)
    scheduler.collect_due(jobs, NIGHT + timedelta(days=1))
    first = scheduler.start_ready()
    assert [start.job.name for start in first] == ["a", "b"]
    assert scheduler.start_ready() == []
    scheduler.finish(first[0], 0)
    assert [start.job.name for start in scheduler.start_ready()] == ["c"]


def test_an_edited_file_is_read_again_and_a_mistake_in_it_leaves_the_schedules_as_they_were(workspace: Any) -> None:
    path = workspace.job("job", schedule='"30 2 * * *"')
    told: list[str] = []
    roster = ScheduledJobs(lambda: [path], frozenset([path]))
    roster.on_problem = told.append
    assert [job.cron for job in roster.jobs()] == ["30 2 * * *"]
    workspace.job("job", schedule='"30 12 * * *"')
    assert [job.cron for job in roster.jobs()] == ["30 12 * * *"]
    workspace.job("job", schedule='"30 2 * * * nonsense"')
    assert [job.cron for job in roster.jobs()] == ["30 12 * * *"]
    assert len(told) == 1
    assert "not a cron expression" in told[0]
    assert len(roster.jobs()) == 1
    assert len(told) == 1


def test_a_job_without_a_schedule_is_passed_over_in_a_folder_and_told_when_it_is_named(workspace: Any) -> None:
    path = workspace.job("job")
    assert load_scheduled_jobs([path], frozenset()) == []
    with pytest.raises(JobError, match="has no schedule"):
        load_scheduled_jobs([path], frozenset([path]))


def missed(path: Path) -> ScheduledJob:
    """The job, whose last due time was taken an hour ago."""
    (job,) = load_scheduled_jobs([path], frozenset())
    DueTimeStore(job.workspace).claim(job, datetime.now(UTC) - timedelta(hours=1))
    return job


def test_once_runs_what_was_missed_in_a_process_of_its_own_and_shows_it(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(3)
    missed(workspace.job("job", schedule='"* * * * *"'))
    # Neither of these folders may be taken for the package.
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


def test_once_ends_with_the_worst_exit_code_of_its_jobs(workspace: Any, provider: Any) -> None:
    workspace.csv(3)
    paths = [
        workspace.job("good", schedule='"* * * * *"'),
        workspace.job("bad", schedule='"* * * * *"', source="{csv: none.csv}", sink="{parquet: bad}"),
    ]
    for path in paths:
        missed(path)
    done = subprocess.run(
        [*rowmill_command(), "schedule", "run", *paths, "--once", "--log", "json"],
        cwd=workspace.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    ends = {event["job"]: event["exit_code"] for event in events if event["event"] == "schedule_end"}
    assert ends == {"good": 0, "bad": 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_the_running_job_end_and_its_due_time_counts_as_missed(
    workspace: Any, provider: Any, number: signal.Signals
) -> None:
    workspace.csv(50)
    path = workspace.job("job", schedule='"* * * * *"', limits="{concurrency: 2}")
    job = missed(path)
    provider.latency = 0.2
    process = subprocess.Popen(
        [*rowmill_command(), "schedule", "run", str(path)],
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
    # What was in flight has landed: nothing is unknown.
    assert 4 <= len(provider.answered) < 50
    (row,) = schedule_rows([job], 1, datetime.now(UTC))
    assert (row["how"], row["stopped"]) == ("interrupted", "interrupted")
    assert DueTimeStore(job.workspace).claim(job, datetime.now(UTC)) is not None


async def test_a_stop_while_nothing_runs_ends_with_zero(workspace: Any) -> None:
    path = workspace.job("job", schedule='"30 2 * * *"')
    shift = SchedulerDaemon(ScheduledJobs(lambda: [path], frozenset()))
    kept = asyncio.create_task(shift.run())
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await kept == 0


def test_the_crontab_block_replaces_the_one_before_and_leaves_other_lines_alone(workspace: Any) -> None:
    in_berlin(workspace)
    job = job_of(workspace)
    block = crontab_block([job], Path("/etc/keys 100%"))
    folder = job.workspace.folder
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    assert lines == [
        "CRON_TZ=Europe/Berlin",
        f"30 2 * * * cd {folder} && set -a && . '/etc/keys 100\\%' && set +a && mkdir -p {folder}/.rowmill/logs && "
        f"{sys.executable} -P -m pipelines.cli run {folder}/job.yaml --log json --json >> "
        f"{folder}/.rowmill/logs/job.log 2>&1",
    ]
    mine = "MAILTO=me\n0 1 * * * backup\n"
    once = merged_crontab(mine, {folder: block})
    assert once == mine + block
    assert merged_crontab(once + "5 5 * * * later\n", {folder: block}) == mine + "5 5 * * * later\n" + block
    with pytest.raises(JobError, match="is missing"):
        merged_crontab(block.splitlines()[0], {folder: block})


def test_crontab_is_written_only_when_asked(
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


def test_systemd_units_carry_the_time_zone_and_the_nights_that_systemd_would_pass_over(
    workspace: Any, cli: Any
) -> None:
    in_berlin(workspace)
    job = job_of(workspace)
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
    ("cron", "words"),
    [
        ("*/15 2-3 * * *", ["*-*-* 02,03:00,15,30,45:00"]),
        ("0 0 1 * 1", ["*-*-01 00:00:00", "Mon *-*-* 00:00:00"]),
        ("0 0 * 6 0,7", ["Sun *-06-* 00:00:00"]),
        ("0 0 */10 * 1", ["Mon *-*-01,11,21,31 00:00:00"]),
        ("5 4 1,15 * *", ["*-*-01,15 04:05:00"]),
    ],
)
def test_cron_in_the_words_of_systemd(workspace: Any, cron: str, words: list[str]) -> None:
    assert on_calendar(job_of(workspace, cron=cron)) == words


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
@pytest.mark.parametrize("cron", ["*/15 2-3 * * *", "0 0 * 6 0,7", "0 0 */10 * 1", "5 4 1,15 * *"])
def test_systemd_reads_the_same_times_as_cron(workspace: Any, cron: str) -> None:
    job = job_of(workspace, cron=cron)
    (spec,) = on_calendar(job)
    told = subprocess.run(
        ["systemd-analyze", "calendar", "--base-time=2027-01-04 12:00 UTC", "--iterations=5", f"{spec} UTC"],
        capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    )  # fmt: skip
    found = [
        line.split(": ", 1)[1].split()[1:3]
        for line in told.stdout.splitlines()
        if "UTC" in line and ":00 UTC" in line and ("elapse" in line or "Iter" in line)
    ]
    due, expected = NIGHT, []
    for _ in range(5):
        following = next_due(cron, due, UTC)
        assert following is not None
        due = following
        expected.append([f"{due:%Y-%m-%d}", f"{due:%H:%M:%S}"])
    assert found == expected


def test_words_that_only_our_clock_knows_are_refused_for_crontab_and_systemd(workspace: Any) -> None:
    for cron in ("0 2 L * *", "0 2 * * 1#1"):
        job = job_of(workspace, cron=cron)
        with pytest.raises(JobError, match="knows L and #"):
            crontab_block([job], None)
        with pytest.raises(JobError, match="knows L and #"):
            systemd_units(job, None, date(2027, 1, 1))


def test_the_latest_due_time_counts_now_itself() -> None:
    now = datetime(2027, 1, 5, 2, 30, tzinfo=UTC)
    assert latest_due("30 2 * * *", NIGHT, now, UTC) == now
    assert latest_due("30 2 * * *", now, now, UTC) is None
    assert latest_due("30 2 * * *", NIGHT, now - timedelta(seconds=1), UTC) is None
    assert latest_due("30 2 * * *", NIGHT, datetime(2027, 3, 28, 0, 59, 59, tzinfo=UTC), BERLIN) == datetime(
        2027, 3, 27, 1, 30, tzinfo=UTC
    )


def test_a_folder_that_is_emptied_meanwhile_leaves_the_schedules_as_they_were(workspace: Any) -> None:
    path = workspace.job("job", schedule='"30 2 * * *"')
    told: list[str] = []

    def files() -> list[Path]:
        if not path.exists():
            raise JobError("jobs", "holds no job file")
        return [path]

    roster = ScheduledJobs(files, frozenset())
    roster.on_problem = told.append
    roster.jobs()
    path.unlink()
    assert [job.name for job in roster.jobs()] == [job.name for job in roster.jobs()] == ["job"]
    assert told == ["jobs: holds no job file (the schedules go on as they were)"]
