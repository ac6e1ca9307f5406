"""`rowmill schedule install`: a job's schedule as a line for crontab, or as a service and a timer for systemd."""

import hashlib
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path

from cronsim import CronSim

from connectors.errors import JobError
from pipelines.runtime.child_process import rowmill_command
from pipelines.schedule.scheduler import ScheduledJob

YEARS = 10
"""Of which systemd is told the nights when the clock is put forward."""

_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def crontab_block(jobs: Sequence[ScheduledJob], env_file: Path | None) -> str:
    """The lines of one workspace's jobs, between marks by which they are found again."""
    workspace = jobs[0].workspace
    lines = [
        _first_mark(workspace.folder),
        "# Written by `rowmill schedule install`. Lines of your own go above this block.",
        f"# Times are of {workspace.settings.time_zone}. Cron catches up no missed run.",
        "# Debian's and Ubuntu's cron pass over CRON_TZ and take the machine's time zone: use systemd's timers there.",
    ]
    if env_file is None:
        lines.append("# Cron hands on almost no environment: jobs that need a key need --env-file FILE.")
    lines.append(f"CRON_TZ={workspace.settings.time_zone}")
    for job in jobs:
        _plain_cron(job)
        log = workspace.state / "logs" / f"{job.name}.log"
        command = f"cd {shlex.quote(str(workspace.folder))} && "
        if env_file is not None:
            command += f"set -a && . {shlex.quote(str(env_file))} && set +a && "
        command += f"mkdir -p {shlex.quote(str(log.parent))} && {shlex.join(_run_command(job))}"
        command += f" >> {shlex.quote(str(log))} 2>&1"
        # Cron takes a bare % for the end of the line.
        lines.append(f"{job.cron} {command.replace('%', chr(92) + '%')}")
    lines.append(_last_mark(workspace.folder))
    return "\n".join(lines) + "\n"


def merged_crontab(there: str, blocks: Mapping[Path, str]) -> str:
    """The crontab with each workspace's block in place of the one before, all at the end: CRON_TZ holds for every line
    below it."""
    kept: list[str] = []
    inside: str | None = None
    lasts = {_first_mark(folder): _last_mark(folder) for folder in blocks}
    for line in there.splitlines():
        if inside is None and line in lasts:
            inside = lasts[line]
        elif inside is None:
            kept.append(line)
        elif line == inside:
            inside = None
    if inside is not None:
        raise JobError("crontab", f"the line `{inside}` is missing", "mend it with: crontab -e")
    text = "\n".join(kept).rstrip("\n")
    return (f"{text}\n" if text else "") + "".join(blocks.values())


def read_crontab() -> str:
    """The user's crontab; empty where there is none."""
    found = _crontab(["-l"], None)
    # Without a crontab it ends with 1 and says so on stderr.
    if found.returncode and "no crontab" not in found.stderr.lower():
        raise JobError("crontab", f"{found.stderr.strip() or 'cannot be read'}", "try --as systemd")
    return found.stdout if found.returncode == 0 else ""


def write_crontab(text: str) -> None:
    """Put the text in place of the user's crontab."""
    done = _crontab(["-"], text)
    if done.returncode:
        raise JobError("crontab", f"{done.stderr.strip() or 'was refused'}", "nothing was changed")


def systemd_units(job: ScheduledJob, env_file: Path | None, today: date) -> dict[str, str]:
    """File name -> content: the service that runs the job, the timer that starts it."""
    folder = job.workspace.folder
    mark = hashlib.blake2b(str(folder).encode(), digest_size=3).hexdigest()
    name = f"rowmill-{job.name}-{mark}"
    environment = [] if env_file is None else [f"EnvironmentFile={_path(env_file)}"]
    service = [
        "[Unit]",
        f"Description=Rowmill job {job.name}",
        "",
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={_path(folder)}",
        *environment,
        f"ExecStart={' '.join(_word(word) for word in _run_command(job))}",
        "# The first signal lets what is in flight land.",
        "KillMode=mixed",
        "TimeoutStopSec=60",
    ]
    zone, left = job.workspace.settings.time_zone, left_out(job, today)
    timer = [
        "[Unit]",
        f"Description=Schedule of Rowmill job {job.name}",
        "",
        "[Timer]",
        *(f"OnCalendar={spec} {zone}" for spec in on_calendar(job)),
        *(["# Times that the clock leaves out when it is put forward: systemd would pass over them."] if left else []),
        *(f"OnCalendar={moment} {zone}" for moment in left),
        "# A time that was missed is caught up once.",
        "Persistent=true",
        f"Unit={name}.service",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return {f"{name}.service": "\n".join(service) + "\n", f"{name}.timer": "\n".join(timer) + "\n"}


def on_calendar(job: ScheduledJob) -> list[str]:
    """The schedule in systemd's words; two of them where cron runs on a day of the month or a day of the week."""
    parsed = _plain_cron(job)
    clock = f"{_numbers(parsed.hours, range(24))}:{_numbers(parsed.minutes, range(60))}:00"
    months = _numbers(parsed.months, range(1, 13))
    weekdays = {int(str(day)) % 7 for day in parsed.weekdays}
    days = _numbers(parsed.days, range(1, 32))
    week = "" if len(weekdays) == 7 else ",".join(_DAYS[day] for day in sorted(weekdays)) + " "
    if parsed.day_and or days == "*" or not week:
        return [f"{week}*-{months}-{days} {clock}"]
    return [f"*-{months}-{days} {clock}", f"{week}*-{months}-* {clock}"]


def left_out(job: ScheduledJob, today: date) -> list[str]:
    """The moments of the next years at which the job is due because the clock has left out its time."""
    parsed = _plain_cron(job)
    found: list[str] = []
    for days in range(YEARS * 366):
        noon = datetime.combine(today + timedelta(days=days), time(12), job.zone)
        before = noon - timedelta(days=1)
        if (noon.utcoffset() or timedelta()) <= (before.utcoffset() or timedelta()):
            continue
        for due in CronSim(job.cron, before):
            if due > noon:
                break
            if due.hour not in parsed.hours or due.minute not in parsed.minutes:
                found.append(f"{due:%Y-%m-%d %H:%M}:00")
    return found


def _plain_cron(job: ScheduledJob) -> CronSim:
    """The schedule, where it has no words that only we understand."""
    parsed = CronSim(job.cron, datetime(2000, 1, 1))
    if any(not isinstance(day, int) for day in parsed.weekdays) or min(parsed.days) < 0:
        raise JobError(
            job.path, f"schedule {job.cron}: only `rowmill schedule run` knows L and #", "use that, or write numbers"
        )
    return parsed


def _numbers(values: Iterable[int], every: range) -> str:
    chosen = sorted(values)
    return "*" if chosen == list(every) else ",".join(f"{value:02d}" for value in chosen)


def _run_command(job: ScheduledJob) -> list[str]:
    return [*rowmill_command(), "run", str(job.path.absolute()), "--log", "json", "--json"]


def _first_mark(folder: Path) -> str:
    return f"# >>> rowmill {folder} >>>"


def _last_mark(folder: Path) -> str:
    return f"# <<< rowmill {folder} <<<"


def _path(path: Path) -> str:
    return str(path).replace("%", "%%")


def _word(word: str) -> str:
    """A word of ExecStart: quoted, with systemd's own signs doubled."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or any(sign in word for sign in " '\t;") else word


def _crontab(arguments: list[str], text: str | None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["crontab", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise JobError(
            "crontab", "there is no such command here", "use --as systemd, or `rowmill schedule run`"
        ) from exc
