"""Retention of answers: summary of a ledger, and deletion of answers that are no longer needed."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct

from connectors.contracts import TableShape
from connectors.documents.document_store import prune_documents, stored_documents
from connectors.errors import JobError
from pipelines.config.workspace import Workspace
from pipelines.config.yaml_reader import read_yaml
from pipelines.ledger.answer_files import SHARED_FILE_BYTES_SQL, file_name
from pipelines.ledger.answer_index import DELETE_BATCH
from pipelines.ledger.ledger import Ledger, now_us
from pipelines.ledger.ledger_reader import AnswerReads
from pipelines.ledger.projection import ANSWERS, decode_table
from pipelines.ledger.rebuilt_tables import answers_of_failed_rows
from pipelines.pricing.prices import usd
from pipelines.reporting.status_queries import iso_time
from pipelines.runtime.locks import job_lock

COPIES = 2
"""Of what stays: `vacuum` writes it to a temporary file and to the write-ahead log."""

LOOKUP_BATCH = 500
"""Number of answers looked up at a time."""

_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


class PruneResult(Struct, frozen=True):
    """What was deleted, or would be deleted by a dry run."""

    answers: int
    commits: int
    """Commit records, from which `rebuild` writes rows again."""
    documents: int
    """Texts of documents, which are read again if a step needs them."""
    freed_bytes: int
    """Reduction of the ledger, its files and the texts; in a dry run, the size of the answers and texts."""
    needed_bytes: int
    """Free space that it needs meanwhile for what stays in the ledger, which is written again."""
    protected_jobs: tuple[str, ...]
    """Jobs whose answers stay, because they have an open run."""


def ledger_summary(workspace: Workspace, ledger: AnswerReads) -> dict[str, Any]:
    """Return the contents of the ledger, in total and by job, and the size of the documents' texts."""
    documents, document_bytes = stored_documents(workspace.documents)
    ((answers, answer_bytes, oldest, in_files),) = ledger.query(
        "select count(*), sum(coalesce(length(request), 0) + coalesce(length(reply), 0)), min(at), count(file) "
        "from answers"
    )
    file_bytes = sum(size for _, size in ledger.files.names())
    ((exchanges,),) = ledger.query("select count(*) from exchanges")
    # Through another connection, which sorts on disk. SQLite sorts what a subquery with `limit` returns, and whole
    # answers without.
    by_job = ledger.stream(
        "with sizes as (select leg, at, coalesce(length(request), 0) + "
        f"coalesce(length(reply), {SHARED_FILE_BYTES_SQL}, 0) size from answers limit -1), "
        "al as (select leg, count(*) n, sum(size) b, min(at) o from sizes group by 1), "
        "a as (select l.job, sum(al.n) n, sum(al.b) b, min(al.o) o from al join legs l on l.id = al.leg group by 1), "
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
        "documents": documents,
        "documents_bytes": document_bytes,
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
    """Return the seconds of `90d`, `12h` or `6w`."""
    match = re.fullmatch(r"(\d{1,6})([hdw])", age)
    if match is None:
        raise JobError(f"--older-than {age}", "not an age", "write hours, days or weeks, e.g. 90d")
    return int(match[1]) * _UNITS[match[2]]


def orphaned_jobs(workspace: Workspace, ledger: Ledger) -> list[str]:
    """Return the jobs of the ledger that no file of the workspace describes any more."""
    described: set[str] = set()
    for path in _yaml_files(workspace):
        try:
            name = read_yaml(path, str(path)).values.get("name")
        except JobError as exc:
            # This may be the file of one of them.
            raise JobError(
                exc.where, exc.found, f"{exc.remedy} (until then it is not known which jobs are gone)"
            ) from exc
        if isinstance(name, str):
            described.add(name)
    return [job for (job,) in ledger.query("select distinct job from runs order by job") if job not in described]


def prune(
    workspace: Workspace,
    ledger: Ledger,
    older_than: timedelta | None,
    jobs: Sequence[str] | None,
    answers_only: bool,
    dry_run: bool,
) -> PruneResult:
    """Delete answers and commit records; Locked while a run is active. `jobs` None: of all jobs."""
    known = [job for (job,) in ledger.query("select distinct job from runs order by job")]
    for job in jobs or ():
        if job not in known:
            raise JobError(f"--job {job}", "the ledger knows no such job", "see them: rowmill ledger show")
    before = now_us() - (0 if older_than is None else round(older_than.total_seconds() * 1e6))
    with contextlib.ExitStack() as locks:
        # Of all jobs, because VACUUM rewrites the whole file.
        for job in sorted({*known, *(path.stem for path in (workspace.state / "locks").glob("*.lock"))}):
            locks.enter_context(job_lock(workspace.state, job))
        open_jobs = {job for (job,) in ledger.query("select distinct job from runs where state = 'open'")}
        chosen = [job for job in (known if jobs is None else jobs) if job not in open_jobs]
        protected = tuple(sorted(open_jobs.intersection(known if jobs is None else jobs)))
        size_before = _total_bytes(ledger)
        commits = 0
        answers, in_rows, freed = _old_answers(ledger, chosen, before)
        needed = COPIES * max(0, _ledger_bytes(ledger) - in_rows)
        if answers and not dry_run:
            ledger.delete_selected_answers(f"select a.id {_old_answers_sql(chosen)}", (*chosen, before))
        for job in chosen:
            if not dry_run:
                ledger.write(
                    "delete from packed_answers where at < ? and leg in (select id from legs where job = ?)",
                    (before, job),
                )
            if not answers_only:
                commits += _old_commits(ledger, job, before, dry_run)
        if not dry_run:
            for name, _ in list(ledger.files.names()):
                # Of answers that were just deleted, or written by a process that was killed before it recorded it.
                if not _is_needed(ledger, name):
                    ledger.files.remove(name)
            ledger.write("vacuum")
            ledger.write("pragma wal_checkpoint(truncate)")
            freed = size_before - _total_bytes(ledger)
        documents = document_bytes = 0
        # They belong to no job.
        if jobs is None:
            documents, document_bytes = prune_documents(workspace.documents, before / 1e6, dry_run)
    return PruneResult(answers, commits, documents, max(0, freed) + document_bytes, needed, protected)


def drop_committed(ledger: Ledger, job: str, sink_name: str, shape: TableShape, scratch: Path) -> int:
    """Delete the answers of rows that are in the sink (`keep_answers: committed`); return their number.

    Call it after a run has closed: during a run, equal requests of later rows still use the answer. Answers of failed
    rows stay, because `retry` needs them, those that they share with other rows too.
    """
    dropped = 0
    needed: set[bytes] | None = None
    answers: dict[int, str | None] = {}
    emptied: list[int] = []
    commits = ledger.query("select id from commits where job = ? and sink = ? and rows is not null", (job, sink_name))
    for place, (commit,) in enumerate(commits, start=1):
        ((rows,),) = ledger.query("select rows from commits where id = ?", (commit,))
        fingerprints = {
            mark for row in decode_table(rows).column(ANSWERS).to_pylist() for mark in row if mark is not None
        }
        if needed is None:
            needed = answers_of_failed_rows(ledger, job, sink_name, shape, scratch)
        fingerprints -= needed
        for batch in _batches(sorted(fingerprints)):
            found = ledger.select_answers("a.id, a.file, a.error", batch)
            answers |= {answer: file for answer, file, error in found if error is None}
        emptied.append(commit)
        if len(answers) >= DELETE_BATCH or place == len(commits):
            _delete(ledger, list(answers.items()))
            dropped += len(answers)
            # Without answers it cannot be rebuilt; its errors and deletions stay.
            ledger.write_all([("update commits set rows = null where id = ?", [(one,) for one in emptied])])
            answers, emptied = {}, []
    return dropped


def _old_answers_sql(jobs: Sequence[str]) -> str:
    """SQL of the older answers `a` of jobs; its values are these, and the time before which an answer is old."""
    return f"from answers a join legs l on l.id = a.leg where l.job in ({','.join('?' * len(jobs))}) and a.at < ?"


def _old_answers(ledger: Ledger, jobs: Sequence[str], before: int) -> tuple[int, int, int]:
    """Return the number of the jobs' older answers, their bytes in the ledger, and these with those in files."""
    chosen, values = _old_answers_sql(jobs), (*jobs, before)
    ((count, in_rows),) = ledger.query(
        f"select count(*), sum(coalesce(length(a.request), 0) + coalesce(length(a.reply), 0)) {chosen}", values
    )
    files = ledger.stream(f"select a.file {chosen} and a.file is not null", values)
    return int(count), in_rows or 0, (in_rows or 0) + sum(ledger.files.size(file) for (file,) in files)


def _old_commits(ledger: Ledger, job: str, before: int, dry_run: bool) -> int:
    ((count,),) = ledger.query("select count(*) from commits where job = ? and at < ?", (job, before))
    if count and not dry_run:
        ledger.write("delete from commits where job = ? and at < ?", (job, before))
    return int(count)


def _delete(ledger: Ledger, answers: Sequence[tuple[int, str | None]]) -> None:
    """Delete these answers (id, file)."""
    ids = [answer for answer, _ in answers]
    # Files first: an answer without its file counts as missing, but a file without its answer would stay for long.
    for name in {file_name(file) for _, file in answers if file is not None}:
        if not _is_needed(ledger, name, frozenset(ids)):
            ledger.files.remove(name)
    ledger.delete_answers(ids)


def _is_needed(ledger: Ledger, name: str, without: frozenset[int] = frozenset()) -> bool:
    """Return whether a file contains an answer of the ledger, besides the ids in `without`."""
    return any(
        file is not None and file_name(file) == name and answer not in without
        for batch in _batches(ledger.files.fingerprints(name))
        for answer, file in ledger.select_answers("a.id, a.file", batch)
    )


def _total_bytes(ledger: Ledger) -> int:
    return _ledger_bytes(ledger) + sum(size for _, size in ledger.files.names())


def _ledger_bytes(ledger: AnswerReads) -> int:
    return sum(_file_size(ledger.path.with_name(ledger.path.name + ending)) for ending in ("", "-wal"))


def _file_size(path: Path) -> int:
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


def _batches(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(values), LOOKUP_BATCH):
        yield values[start : start + LOOKUP_BATCH]
