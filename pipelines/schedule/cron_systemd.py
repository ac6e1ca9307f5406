"""Export of schedules by `rowmill schedule install`: crontab lines, or systemd services and timers."""

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

CLOCK_CHANGE_YEARS = 10
"""Years for which the systemd timer lists the due times that a clock change skips."""

_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def crontab_block(jobs: Sequence[ScheduledJob], env_file: Path | None) -> str:
    """Return the lines of one workspace's jobs, between marker comments."""
    workspace = jobs[0].workspace
    lines = [
        _start_marker(workspace.folder),
        "# Written by `rowmill schedule install`. Put other lines above this block.",
        f"# Time zone: {workspace.settings.time_zone}. Cron does not catch up missed runs.",
        "# Debian's and Ubuntu's cron ignore CRON_TZ and use the machine's time zone: use systemd timers there.",
    ]
    if env_file is None:
        lines.append("# Cron passes almost no environment: jobs that need an API key need --env-file FILE.")
    lines.append(f"CRON_TZ={workspace.settings.time_zone}")
    for job in jobs:
        _plain_cron(job)
        log = workspace.state / "logs" / f"{job.name}.log"
        command = f"cd {shlex.quote(str(workspace.folder))} && "
        if env_file is not None:
            command += f"set -a && . {shlex.quote(str(env_file))} && set +a && "
        command += f"mkdir -p {shlex.quote(str(log.parent))} && {shlex.join(_run_command(job))}"
        command += f" >> {shlex.quote(str(log))} 2>&1"
        # Cron reads an unescaped % as the end of the line.
        lines.append(f"{job.cron} {command.replace('%', chr(92) + '%')}")
    lines.append(_end_marker(workspace.folder))
    return "\n".join(lines) + "\n"


def merged_crontab(present: str, blocks: Mapping[Path, str]) -> str:
    """Return the crontab with each workspace's block replaced, at the end: CRON_TZ applies to every line below it."""
    others: list[str] = []
    inside: str | None = None
    ends = {_start_marker(folder): _end_marker(folder) for folder in blocks}
    for line in present.splitlines():
        if inside is None and line in ends:
            inside = ends[line]
        elif inside is None:
            others.append(line)
        elif line == inside:
            inside = None
    if inside is not None:
        raise JobError("crontab", f"the line `{inside}` is missing", "fix it with: crontab -e")
    text = "\n".join(others).rstrip("\n")
    return (f"{text}\n" if text else "") + "".join(blocks.values())


def read_crontab() -> str:
    """Return the user's crontab; empty if there is none."""
    result = _crontab(["-l"], None)
    # Without a crontab the command exits with 1 and a message on stderr.
    if result.returncode and "no crontab" not in result.stderr.lower():
        raise JobError("crontab", result.stderr.strip() or "cannot be read", "try --as systemd")
    return result.stdout if result.returncode == 0 else ""


def write_crontab(text: str) -> None:
    """Replace the user's crontab."""
    result = _crontab(["-"], text)
    if result.returncode:
        raise JobError("crontab", result.stderr.strip() or "was refused", "nothing was changed")


def systemd_units(job: ScheduledJob, env_file: Path | None, today: date) -> dict[str, str]:
    """Return file name -> content: the service that runs the job, and its timer."""
    folder = job.workspace.folder
    suffix = hashlib.blake2b(str(folder).encode(), digest_size=3).hexdigest()
    name = f"rowmill-{job.name}-{suffix}"
    environment = [] if env_file is None else [f"EnvironmentFile={_escape_path(env_file)}"]
    service = [
        "[Unit]",
        f"Description=Rowmill job {job.name}",
        "",
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={_escape_path(folder)}",
        *environment,
        f"ExecStart={' '.join(_quote_word(word) for word in _run_command(job))}",
        "# The first signal lets requests in flight finish.",
        "KillMode=mixed",
        "TimeoutStopSec=60",
    ]
    zone, skipped = job.workspace.settings.time_zone, skipped_times(job, today)
    timer = [
        "[Unit]",
        f"Description=Schedule of Rowmill job {job.name}",
        "",
        "[Timer]",
        *(f"OnCalendar={spec} {zone}" for spec in on_calendar(job)),
        *(["# Times that the clock skips when it goes forward: systemd would not run them."] if skipped else []),
        *(f"OnCalendar={moment} {zone}" for moment in skipped),
        "# A missed run is caught up once.",
        "Persistent=true",
        f"Unit={name}.service",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return {f"{name}.service": "\n".join(service) + "\n", f"{name}.timer": "\n".join(timer) + "\n"}


def on_calendar(job: ScheduledJob) -> list[str]:
    """Return the schedule in systemd's syntax; two entries if cron runs on a day of the month or of the week."""
    parsed = _plain_cron(job)
    clock = f"{_format_numbers(parsed.hours, range(24))}:{_format_numbers(parsed.minutes, range(60))}:00"
    months = _format_numbers(parsed.months, range(1, 13))
    weekdays = {int(str(day)) % 7 for day in parsed.weekdays}
    days = _format_numbers(parsed.days, range(1, 32))
    week = "" if len(weekdays) == 7 else ",".join(_DAYS[day] for day in sorted(weekdays)) + " "
    if parsed.day_and or days == "*" or not week:
        return [f"{week}*-{months}-{days} {clock}"]
    return [f"*-{months}-{days} {clock}", f"{week}*-{months}-* {clock}"]


def skipped_times(job: ScheduledJob, today: date) -> list[str]:
    """Return the due times of the next years that a clock change moves."""
    parsed = _plain_cron(job)
    times: list[str] = []
    for days in range(CLOCK_CHANGE_YEARS * 366):
        noon = datetime.combine(today + timedelta(days=days), time(12), job.zone)
        before = noon - timedelta(days=1)
        if (noon.utcoffset() or timedelta()) <= (before.utcoffset() or timedelta()):
            continue
        for due in CronSim(job.cron, before):
            if due > noon:
                break
            if due.hour not in parsed.hours or due.minute not in parsed.minutes:
                times.append(f"{due:%Y-%m-%d %H:%M}:00")
    return times


def _plain_cron(job: ScheduledJob) -> CronSim:
    """Parse the schedule; JobError if it uses syntax that only Rowmill supports."""
    parsed = CronSim(job.cron, datetime(2000, 1, 1))
    if any(not isinstance(day, int) for day in parsed.weekdays) or min(parsed.days) < 0:
        raise JobError(
            job.path, f"schedule {job.cron}: only `rowmill schedule run` supports L and #", "use that, or write numbers"
        )
    return parsed


def _format_numbers(values: Iterable[int], every: range) -> str:
    chosen = sorted(values)
    return "*" if chosen == list(every) else ",".join(f"{value:02d}" for value in chosen)


def _run_command(job: ScheduledJob) -> list[str]:
    return [*rowmill_command(), "run", str(job.path.absolute()), "--fail-on", "new", "--log", "json", "--json"]


def _start_marker(folder: Path) -> str:
    return f"# >>> rowmill {folder} >>>"


def _end_marker(folder: Path) -> str:
    return f"# <<< rowmill {folder} <<<"


def _escape_path(path: Path) -> str:
    return str(path).replace("%", "%%")


def _quote_word(word: str) -> str:
    """Quote a word of ExecStart and double systemd's special characters."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or any(character in word for character in " '\t;") else word


def _crontab(arguments: list[str], text: str | None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["crontab", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise JobError(
            "crontab", "there is no such command here", "use --as systemd, or `rowmill schedule run`"
        ) from exc
