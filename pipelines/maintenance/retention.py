"""Housekeeping of a workspace's ledger: what it holds and weighs, and dropping answers that nobody needs any more."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from connectors.errors import JobError
from pipelines.config.workspace import Workspace
from pipelines.config.yaml_reader import read_yaml
from pipelines.ledger.answer_files import SHARED_FILE_BYTES_SQL, file_name
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.projection import ANSWERS, decode_table
from pipelines.pricing.prices import usd
from pipelines.reporting.status_queries import iso_time
from pipelines.runtime.locks import job_lock

AT_ONCE = 500
"""Answers that are deleted together."""

_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What was (or, on trial, would be) dropped."""

    answers: int
    commits: int
    """Notes of what was committed, from which `rebuild` writes rows again."""
    freed_bytes: int
    """By which the ledger and its files became smaller; on trial, what the answers take."""
    protected_jobs: tuple[str, ...]
    """Jobs whose answers stay, since a run of theirs is open."""


def ledger_summary(ledger: Ledger) -> dict[str, Any]:
    """What the ledger holds, as a whole and by job."""
    ((answers, answer_bytes, oldest, in_files),) = ledger.query(
        "select count(*), sum(coalesce(length(request), 0) + coalesce(length(reply), 0)), min(at), count(file) "
        "from answers"
    )
    file_bytes = sum(size for _, size in ledger.files.names())
    ((exchanges,),) = ledger.query("select count(*) from exchanges")
    by_job = ledger.query(
        "with a as (select l.job, count(*) n, "
        f"sum(coalesce(length(a.request), 0) + coalesce(length(a.reply), {SHARED_FILE_BYTES_SQL}, 0)) b, "
        "min(a.at) o from answers a join legs l on l.id = a.leg group by 1), "
        "e as (select l.job, count(*) n, sum(e.cost) c, max(e.started_at) last from exchanges e "
        "join legs l on l.id = e.leg group by 1), "
        "r as (select job, count(*) n, sum(state = 'open') open from runs group by 1) "
        "select r.job, r.n, r.open, e.n, e.c, e.last, a.n, a.b, a.o from r left join e on e.job = r.job "
        "left join a on a.job = r.job order by r.job"
    )
    return {
        "path": str(ledger.path),
        "ledger_bytes": _ledger_bytes(ledger),
        "files_bytes": file_bytes,
        "answers": answers,
        "answers_in_files": in_files,
        "bytes_per_answer": round(((answer_bytes or 0) + file_bytes) / answers) if answers else None,
        "oldest_answer": None if oldest is None else iso_time(oldest),
        "exchanges": exchanges,
        "jobs": [
            {
                "job": job,
                "runs": runs,
                "open_runs": open_runs,
                "exchanges": sent or 0,
                "cost_usd": None if cost is None else usd(cost),
                "last_request": None if last is None else iso_time(last),
                "answers": count or 0,
                "answer_bytes": size or 0,
                "oldest_answer": None if first is None else iso_time(first),
            }
            for job, runs, open_runs, sent, cost, last, count, size, first in by_job
        ],
    }


def age_seconds(age: str) -> int:
    """The seconds of `90d`, `12h` or `6w`."""
    found = re.fullmatch(r"(\d{1,6})([hdw])", age)
    if found is None:
        raise JobError(f"--older-than {age}", "no age", "write hours, days or weeks, e.g. 90d")
    return int(found[1]) * _UNITS[found[2]]


def orphaned_jobs(workspace: Workspace, ledger: Ledger) -> list[str]:
    """Jobs of the ledger that no file of the workspace describes any more."""
    there: set[str] = set()
    for path in _yaml_files(workspace):
        try:
            name = read_yaml(path, str(path)).values.get("name")
        except JobError as exc:
            # It may be the file of one of them.
            raise JobError(
                exc.where, exc.found, f"{exc.remedy} (until then it is not known which jobs are gone)"
            ) from exc
        if isinstance(name, str):
            there.add(name)
    return [job for (job,) in ledger.query("select distinct job from runs order by job") if job not in there]


def prune(
    workspace: Workspace,
    ledger: Ledger,
    older_than: timedelta | None,
    jobs: Sequence[str] | None,
    answers_only: bool,
    dry_run: bool,
) -> PruneResult:
    """Drop answers, and the notes of commits as old; Locked while a run is under way. `jobs` None: of all jobs."""
    known = [job for (job,) in ledger.query("select distinct job from runs order by job")]
    for job in jobs or ():
        if job not in known:
            raise JobError(f"--job {job}", "the ledger knows no such job", "see them: rowmill ledger show")
    before = now_us() - (0 if older_than is None else round(older_than.total_seconds() * 1e6))
    with contextlib.ExitStack() as locks:
        # Of all jobs: the file is written anew as a whole.
        for job in sorted({*known, *(path.stem for path in (workspace.state / "locks").glob("*.lock"))}):
            locks.enter_context(job_lock(workspace.state, job))
        open_jobs = {job for (job,) in ledger.query("select distinct job from runs where state = 'open'")}
        chosen = [job for job in (known if jobs is None else jobs) if job not in open_jobs]
        spared = tuple(sorted(open_jobs.intersection(known if jobs is None else jobs)))
        weighed = _weight(ledger)
        answers = taken = commits = 0
        for job in chosen:
            for old, nbytes in _old_answers(ledger, job, before):
                answers += len(old)
                taken += nbytes
                if not dry_run:
                    _delete(ledger, old)
            if not answers_only:
                commits += _old_commits(ledger, job, before, dry_run)
        if not dry_run:
            for name, _ in list(ledger.files.names()):
                # Written by a process that was killed before its ledger knew of it.
                if not _needed(ledger, name):
                    ledger.files.remove(name)
            ledger.write("vacuum")
            ledger.write("pragma wal_checkpoint(truncate)")
            taken = weighed - _weight(ledger)
    return PruneResult(answers, commits, max(0, taken), spared)


def drop_committed(ledger: Ledger, job: str, sink_name: str) -> int:
    """`keep_answers: committed`: drop the answers of rows that are in the sink; how many there were.

    To be called when a run has closed: within a run, equal requests of later rows still find the answer. Answers of
    rows that failed stay, and with them what a `retry` needs.
    """
    dropped = 0
    for (commit,) in ledger.query(
        "select id from commits where job = ? and sink = ? and rows is not null", (job, sink_name)
    ):
        ((rows,),) = ledger.query("select rows from commits where id = ?", (commit,))
        marks = {mark for row in decode_table(rows).column(ANSWERS).to_pylist() for mark in row if mark is not None}
        found: list[tuple[int, str | None]] = []
        for some in _groups(sorted(marks)):
            found += ledger.query(
                f"select id, file from answers where error is null and fingerprint in ({_marks(some)})", some
            )
        # Those that lie in one file go together.
        found.sort(key=lambda answer: answer[1] or "")
        for start in range(0, len(found), AT_ONCE):
            _delete(ledger, found[start : start + AT_ONCE])
        dropped += len(found)
        # Without answers nothing can be written again from it; its errors and removals are kept.
        ledger.write("update commits set rows = null where id = ?", (commit,))
    return dropped


def _old_answers(ledger: Ledger, job: str, before: int) -> Iterator[tuple[list[tuple[int, str | None]], int]]:
    """((id, file) of each, bytes) of the job's answers from before then, some at a time."""
    last = 0
    while True:
        rows = ledger.query(
            "select a.id, a.file, coalesce(length(a.request), 0) + coalesce(length(a.reply), 0) from answers a "
            "join legs l on l.id = a.leg where l.job = ? and a.at < ? and a.id > ? order by a.id limit ?",
            (job, before, last, AT_ONCE),
        )
        if not rows:
            return
        last = rows[-1][0]
        nbytes = sum(size if file is None else size + ledger.files.size(file) for _, file, size in rows)
        yield [(answer, file) for answer, file, _ in rows], nbytes


def _old_commits(ledger: Ledger, job: str, before: int, dry_run: bool) -> int:
    ((count,),) = ledger.query("select count(*) from commits where job = ? and at < ?", (job, before))
    if count and not dry_run:
        ledger.write("delete from commits where job = ? and at < ?", (job, before))
    return int(count)


def _delete(ledger: Ledger, answers: Sequence[tuple[int, str | None]]) -> None:
    """Drop these (id, file)."""
    ids = [answer for answer, _ in answers]
    # Files first: an answer without its file counts as not kept, a file without its answer would stay for long.
    for name in {file_name(file) for _, file in answers if file is not None}:
        if not _needed(ledger, name, frozenset(ids)):
            ledger.files.remove(name)
    ledger.write(f"delete from answers where id in ({_marks(ids)})", ids)


def _needed(ledger: Ledger, name: str, without: frozenset[int] = frozenset()) -> bool:
    """Whether a file holds an answer that is kept, other than those without which it is to be thought."""
    return any(
        file_name(file) == name and answer not in without
        for some in _groups(ledger.files.fingerprints(name))
        for answer, file in ledger.query(
            f"select id, file from answers where file is not null and fingerprint in ({_marks(some)})", some
        )
    )


def _weight(ledger: Ledger) -> int:
    return _ledger_bytes(ledger) + sum(size for _, size in ledger.files.names())


def _ledger_bytes(ledger: Ledger) -> int:
    return sum(_size(ledger.path.with_name(ledger.path.name + ending)) for ending in ("", "-wal"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _yaml_files(workspace: Workspace) -> Iterator[Path]:
    for folder, folders, files in os.walk(workspace.folder):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(folder, name) != workspace.state]
        for name in files:
            if name.endswith((".yaml", ".yml")) and Path(name).stem != "rowmill":
                yield Path(folder, name)


def _groups(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(values), AT_ONCE):
        yield values[start : start + AT_ONCE]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
