"""`rowmill schedule`: run jobs on schedule, show past and next runs, export schedules to cron or systemd."""

import asyncio
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from connectors.errors import JobError
from pipelines.commands.options import NoJobFiles, job_argument, job_files
from pipelines.commands.output import as_json_option, print_rows

if TYPE_CHECKING:
    from pipelines.schedule.scheduler import ScheduledJob


@click.group("schedule")
def schedule_command() -> None:
    """Run jobs on schedule, or hand them to cron or systemd.

    The job key `schedule` is a cron expression in the workspace's time zone.

    \b
    Examples:
      rowmill schedule run jobs/
      rowmill schedule show
      rowmill schedule install jobs/ --as systemd
    """


@schedule_command.command("run")
@job_argument(many=True)
@click.option("--once", is_flag=True, help="Run the jobs that are due now, including missed runs, then exit.")
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    metavar="N",
    default=4,
    show_default=True,
    help="Maximum number of jobs at a time.",
)
@click.option(
    "--log", type=click.Choice(["plain", "json"]), default="plain", show_default=True, help="Log format on stderr."
)
def run_command(jobs: tuple[str, ...], once: bool, parallel: int, log: Literal["plain", "json"]) -> int:
    """Run each job when it is due, until stopped.

    The scheduler stays in the foreground and starts each job as a separate process.

    A job that became due while the scheduler was not running is started once. A job that is still running when it is
    due again is not started a second time. A job that reads another's results waits for that job. You can edit job
    files while the scheduler runs.

    On Ctrl-C or SIGTERM, running jobs finish their requests in flight. The exit code is then 130 if a job was
    interrupted, which the next start continues, else 0. With --once it is the worst exit code of the jobs.

    \b
    Examples:
      rowmill schedule run jobs/
      rowmill schedule run jobs/ --once
    """
    from pipelines.commands.jobs.run import WORST_FIRST
    from pipelines.schedule.daemon import SchedulerDaemon
    from pipelines.schedule.scheduler import ScheduledJobs

    daemon = SchedulerDaemon(ScheduledJobs(lambda: _files(jobs), _named(jobs)), log, parallel)
    chosen = daemon.scheduled_jobs.jobs()
    if not chosen:
        raise JobError(" ".join(jobs), "no job here has a schedule", 'add e.g. schedule: "0 2 * * *"')
    if not once:
        daemon.log_event("begin", f"scheduled: {', '.join(f'{job.name} ({job.cron})' for job in chosen)}")
    code = asyncio.run(daemon.run(once))
    if once and not daemon.exit_codes:
        daemon.log_event("idle", f"nothing is due: {', '.join(f'{job.name} ({job.cron})' for job in chosen)}")
    return code or (min(daemon.exit_codes, key=WORST_FIRST.index, default=0) if once else 0)


@schedule_command.command("show")
@click.argument("jobs", metavar="[JOB...]", nargs=-1)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Number of recent runs to show per job.",
)
@as_json_option
def show_command(jobs: tuple[str, ...], last: int, as_json: bool) -> None:
    """Show each job's last run, its cost and the next run.

    Times are in the workspace's zone.

    Without JOB: the jobs of this folder and of its folder jobs/.

    \b
    Examples:
      rowmill schedule show
      rowmill schedule show jobs/ --last 7 --json
    """
    from pipelines.schedule.history import schedule_rows

    rows = schedule_rows(_scheduled(jobs), last, datetime.now(UTC))
    if not as_json:
        columns = ("job", "next", "started", "how", "cost_usd", "skipped")
        rows = [{name: _shorten_time(row[name]) for name in columns} for row in rows]
    print_rows(rows, as_json, "no job here has a schedule")


@schedule_command.command("install")
@click.argument("jobs", metavar="[JOB...]", nargs=-1)
@click.option("--as", "kind", type=click.Choice(["crontab", "systemd"]), required=True, help="Target scheduler.")
@click.option("--write", is_flag=True, help="Install them. Default: only print.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Folder for systemd units. Default: the user's units."
)
@click.option("--env-file", type=click.Path(path_type=Path), help="File with NAME=VALUE lines, such as API keys.")
def install_command(jobs: tuple[str, ...], kind: str, write: bool, folder: Path | None, env_file: Path | None) -> None:
    """Show or install crontab lines or systemd units.

    They run the jobs on schedule. Without --write they are only printed.

    \b
    Examples:
      rowmill schedule install jobs/ --as crontab
      rowmill schedule install jobs/ --as systemd --write
    """
    chosen = _scheduled(jobs)
    if not chosen:
        raise JobError("schedule install", "no job here has a schedule", 'add e.g. schedule: "0 2 * * *"')
    env_file = None if env_file is None else env_file.absolute()
    if kind == "crontab":
        _crontab(chosen, env_file, write)
    else:
        _systemd(chosen, env_file, write, folder)


def _crontab(chosen: "list[ScheduledJob]", env_file: Path | None, write: bool) -> None:
    from pipelines.schedule.cron_systemd import crontab_block, merged_crontab, read_crontab, write_crontab

    folders = dict.fromkeys(job.workspace.folder for job in chosen)
    blocks = {
        folder: crontab_block([job for job in chosen if job.workspace.folder == folder], env_file) for folder in folders
    }
    click.echo("".join(blocks.values()), nl=False)
    if not write:
        click.echo("nothing was installed; add --write to install these lines", err=True)
        return
    write_crontab(merged_crontab(read_crontab(), blocks))
    click.echo("installed; show it with: crontab -l", err=True)


def _systemd(chosen: "list[ScheduledJob]", env_file: Path | None, write: bool, folder: Path | None) -> None:
    from pipelines.ledger.ledger_file import write_atomically
    from pipelines.schedule.cron_systemd import systemd_units

    target = folder if folder is not None else Path.home() / ".config/systemd/user"
    units = {name: text for job in chosen for name, text in systemd_units(job, env_file, date.today()).items()}
    for name, text in units.items():
        click.echo(f"# {target / name}\n{text}")
    if not write:
        click.echo("nothing was installed; add --write to write these files", err=True)
        return
    for name, text in units.items():
        write_atomically(target / name, text.encode())
    timers = " ".join(name for name in units if name.endswith(".timer"))
    click.echo(f"written; next: systemctl --user daemon-reload && systemctl --user enable --now {timers}", err=True)
    click.echo("without a login: loginctl enable-linger", err=True)


def _scheduled(jobs: tuple[str, ...]) -> "list[ScheduledJob]":
    from pipelines.schedule.scheduler import load_scheduled_jobs

    here = jobs or tuple(folder for folder in (".", "jobs") if _holds_jobs(Path(folder)))
    return load_scheduled_jobs(job_files(here), _named(jobs))


def _shorten_time(value: object) -> object:
    """Shorten a time to the minute; return other values as they are."""
    return value[:16].replace("T", " ") if isinstance(value, str) and value[10:11] == "T" else value


def _holds_jobs(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.suffix in (".yaml", ".yml") and path.stem != "rowmill" for path in folder.iterdir()
    )


def _files(jobs: tuple[str, ...]) -> list[Path]:
    """Return the job files; an empty folder is a JobError, which does not end the daemon."""
    try:
        return job_files(jobs)
    except NoJobFiles as exc:
        raise JobError(exc.folder, exc.found, exc.remedy) from exc


def _named(jobs: tuple[str, ...]) -> frozenset[Path]:
    return frozenset(Path(job) for job in jobs if not Path(job).is_dir())
