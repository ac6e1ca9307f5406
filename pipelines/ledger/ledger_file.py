"""SQLite file of the ledger: schema, migrations and opening; an unreadable file is reported and left untouched."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from connectors.errors import JobError, RowmillError, Stopped
from pipelines.ledger.answer_index import ANSWERS_TABLE
from pipelines.ledger.older_versions import jobs_of_older_versions

_ADDED = """
create table if not exists vector_sizes (provider text not null, model text not null, size integer not null,
    primary key (provider, model)) without rowid;
create table if not exists batches (mark text primary key, job text not null, leg integer not null,
    state text not null, file_id text, batch_id text, day text, at integer not null) without rowid;
create index if not exists batches_of_job on batches (job);
create table if not exists batch_lines (mark text not null, place integer not null, note integer not null,
    primary key (mark, place)) without rowid;
create index if not exists batch_lines_by_note on batch_lines (note);
create table if not exists schedule (job text primary key, cron text not null, last_due integer not null,
    skipped integer, why text) without rowid;
"""
"""Tables added while the version stayed 1: a file of that version has all, some or none of them."""

_SERVED = """
alter table exchanges add column service_tier text;
alter table exchanges add column tool_calls integer;
create table group_terms (provider text not null, model text not null, max_requests integer, encoding text,
    primary key (provider, model)) without rowid;
create table structured_modes (provider text not null, model text not null, schema blob not null, mode text not null,
    primary key (provider, model, schema)) without rowid;
drop table modes
"""
"""Version 4: what served an exchange, and what a provider's model accepts of a group of requests and of a schema."""

_LAST_ANSWERS = """
create table last_answers (job text not null, step text not null, request blob not null, key text not null,
    answer blob not null, primary key (job, step, request, key)) without rowid
"""
"""Version 5: the answer that a row ended with after repair turns, by the fingerprint of its first request."""

_PACKED_ANSWERS = """
create table packed_answers (fingerprint blob primary key, leg integer not null, answer blob not null,
    at integer not null) without rowid
"""
"""Version 6: packed answers of rows whose single answers, which will be theirs, are still to come."""

_CHILDREN = """
alter table commits add column emptied blob;
create table childless_rows (job text not null, sink text not null, key text not null, fingerprint text not null,
    primary key (job, sink, key)) without rowid
"""
"""Version 7: the source rows that an `each` step made no row of, which no table of results has."""

FIRST_WITH_ANSWER_INDEX = 8
"""Version with the tables of `answer_index`."""

_ANSWER_INDEX = """
create table answer_index (fingerprint blob primary key, id integer not null) without rowid;
create table answer_tail (id integer primary key, fingerprint blob not null);
insert into answer_index select fingerprint, id from answers order by fingerprint
"""
"""Version 8: the index of the answers is a separate table; `answers` has no other."""

MIGRATIONS: tuple[str, ...] = (_ADDED, "", _SERVED, _LAST_ANSWERS, _PACKED_ANSWERS, _CHILDREN, _ANSWER_INDEX)
"""Statements, separated by semicolons, that migrate a file from version 1 to 2, from 2 to 3 and so on. SCHEMA is that
of the newest version. Version 3 has the tables of 2, but an answer's `file` may be a shared one (`answer_files`)."""

VERSION = 1 + len(MIGRATIONS)
"""Schema version, stored in SQLite's user_version."""

Durability = Literal["process", "power"]
"""What a commit survives: the death of the process, or a power loss as well."""

CHECKPOINT_PAGES = 8192
"""Pages of 4 KB in the write-ahead log until they are moved to the file. The last pages of each table change in every
transaction: at SQLite's 1,000 pages they are moved more often, and a run writes 3 % more bytes."""

BUSY_SECONDS = 60.0
"""How long another process may lock the file."""

FOLDER_REMEDY = "see whether its folder is there and can be written to"
DAMAGE_REMEDY = (
    "nothing was changed: copy it and repair the copy with "
    "`(sqlite3 OLD .recover; echo 'delete from answer_index;') | sqlite3 NEW`, "
    "or move it away to start a new one (rows in the sink stay done)"
)
"""Remedy for a damaged ledger."""

_FIRST = """
create table meta (key text primary key, value text not null) without rowid;
create table runs (run_id text primary key, job text not null, state text not null, started_at integer not null,
    ended_at integer, exit_code integer, stopped text, report text) without rowid;
create index runs_of_job on runs (job, started_at);
create table legs (id integer primary key, run_id text not null, job text not null, step text not null,
    provider text not null, endpoint text not null, model text not null,
    unique (run_id, step, provider, endpoint, model));
create table noted (id integer primary key, leg integer not null, attempt integer not null, keys text not null,
    fingerprints blob not null, reserved integer, started_at integer not null);
create table exchanges (writer integer not null, seq integer not null, leg integer not null, attempt integer not null,
    keys text not null, fingerprints blob not null, http_status integer, error_class text, input_tokens integer,
    cached_tokens integer, output_tokens integer, reasoning_tokens integer, audio_seconds real, characters integer,
    images integer, model_version text, finish_reason text, cost integer, started_at integer not null,
    latency_ms real, first_token_ms real, request_id text, message text, primary key (writer, seq)) without rowid;
create index exchanges_of_leg on exchanges (leg);
create table answers (id integer primary key, fingerprint blob not null unique, leg integer not null,
    request blob, reply blob, file text, error text, at integer not null);
create table commits (id integer primary key, job text not null, sink text not null, at integer not null,
    rows blob, errors blob, cleared blob, removed blob);
create index commits_of_sink on commits (job, sink, id);
create table modes (provider text not null, model text not null, structured text not null,
    primary key (provider, model)) without rowid;
create table days (day text primary key, spent integer not null) without rowid;
"""

_UNINDEXED_ANSWERS = f"drop table answers;{ANSWERS_TABLE.format('answers')}"
"""In a new file. That of an older one is altered by `_drop_unique_index`."""

SCHEMA = f"{_FIRST}{_ADDED}{_SERVED};{_LAST_ANSWERS};{_PACKED_ANSWERS};{_CHILDREN};{_ANSWER_INDEX};{_UNINDEXED_ANSWERS}"
"""The tables of a new file. Times are microseconds since 1970, money is in pico-dollars.

runs            a run of a job, and the report of its last invocation
legs            a route of a run: step, provider, endpoint and model; other tables refer to it as `leg`
noted           pending exchanges: recorded before their request is sent, deleted when they are settled
exchanges       settled exchanges: status, usage, cost and message
answers         replies by request fingerprint; large ones are in the file that `file` names
answer_index    fingerprint -> answer; the newest are in answer_tail
commits         rows and errors that were committed to a sink, and keys that were removed from it
batches         submitted batches of the Batch API; batch_lines has the pending exchange (`note`) of each line
days            what was spent on a day, for the budget of a workspace
schedule        the last due time of each scheduled job
vector_sizes, group_terms, structured_modes   what was learned of a provider's model
last_answers, packed_answers, childless_rows  see `_LAST_ANSWERS` and below
"""

_DROP_UNIQUE_INDEX = """
pragma writable_schema = on;
update sqlite_master set sql = replace(sql, 'fingerprint blob not null unique', 'fingerprint blob not null')
    where type = 'table' and name = 'answers';
update sqlite_master set name = 'answers_by_fingerprint',
    sql = 'create unique index answers_by_fingerprint on answers (fingerprint)'
    where name = 'sqlite_autoindex_answers_1';
pragma writable_schema = reset;
drop index answers_by_fingerprint
"""


def open_ledger_file(path: Path, durability: Durability = "process") -> sqlite3.Connection:
    """Return a connection to the ledger, which is created if missing; JobError if it is newer or unreadable."""
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        enable_wal(db, BUSY_SECONDS)
        db.execute(f"pragma synchronous = {'full' if durability == 'power' else 'normal'}")
        db.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
        if durability == "power":
            # Of macOS, whose fsync leaves the content in the cache of the drive.
            db.execute("pragma fullfsync = on")
        version = _version(db)
        if version < VERSION:
            _migrate(db, path)
        elif version > VERSION:
            raise newer_ledger(path, version)
        if is_new and durability == "power":
            sync_folders(path.parent, path.parent.parent)
    except (sqlite3.DatabaseError, OSError) as exc:
        raise ledger_error(path, exc) from exc
    return db


def newer_ledger(path: Path, version: int) -> JobError:
    """Return the error for a ledger of a version that is not known here."""
    return JobError(
        path,
        f"this ledger was written by a newer Rowmill (schema {version}, known here: {VERSION})",
        "upgrade with: pip install --upgrade rowmill",
    )


def enable_wal(db: sqlite3.Connection, timeout_seconds: float) -> None:
    """Put the file in WAL mode; wait so many seconds for another process that is creating it."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            db.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as exc:
            # SQLite does not always wait here, whatever its busy timeout.
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def ledger_error(path: Path, exc: sqlite3.Error | OSError) -> RowmillError:
    """Return an error for the user with the remedy."""
    if not isinstance(exc, sqlite3.OperationalError | OSError):
        return JobError(path, f"the ledger cannot be read ({exc})", DAMAGE_REMEDY)
    if "full" in str(exc):
        return Stopped(f"{path}: disk full; make room and run again")
    return JobError(path, f"the ledger cannot be opened ({exc})", FOLDER_REMEDY)


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Convert SQLite's errors into errors for the user."""
    try:
        yield
    except sqlite3.DatabaseError as exc:
        raise ledger_error(path, exc) from exc


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("pragma user_version").fetchone()
    return int(version)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Create the tables, or migrate those of an older version, in one transaction.

    JobError while an older Rowmill runs a job: it could not store the answers that it is waiting for.
    """
    db.execute("begin immediate")
    try:
        # Another process may have done it first.
        version = _version(db)
        if 0 < version < VERSION and (jobs := jobs_of_older_versions(path.parent, VERSION)):
            raise JobError(
                path,
                f"an older Rowmill is still running {', '.join(jobs)} with it",
                "wait for the end of that run, or stop it with one Ctrl-C; then repeat this command",
            )
        steps = (SCHEMA,) if version == 0 else MIGRATIONS[version - 1 :]
        for statement in (statement for step in steps for statement in step.split(";")):
            db.execute(statement)
        if 0 < version < FIRST_WITH_ANSWER_INDEX <= VERSION:
            _drop_unique_index(db)
        db.execute(f"pragma user_version = {max(version, VERSION)}")
        db.execute("commit")
    except (sqlite3.Error, JobError):
        # A full disk has ended it already.
        if db.in_transaction:
            db.execute("rollback")
        raise


def _drop_unique_index(db: sqlite3.Connection) -> None:
    """Drop the unique index on the fingerprints of the answers; their table is not copied, which may be large.

    SQLite has no statement for an index that belongs to a constraint: the constraint becomes an index by name first.
    """
    db.execute("savepoint unique_index")
    try:
        for statement in _DROP_UNIQUE_INDEX.split(";"):
            db.execute(statement)
    except sqlite3.OperationalError:
        if not db.in_transaction:
            # The disk is full, for example.
            raise
        # SQLite was built to refuse changes of its schema. With the index all works, with more bytes written.
        db.execute("rollback to unique_index")
        db.execute("pragma writable_schema = off")
    db.execute("release unique_index")


def get_or_set_meta(db: sqlite3.Connection, key: str, default: str) -> str:
    """Return the value of a key of the `meta` table; store and return `default` if it is missing."""
    db.execute("insert or ignore into meta values (?, ?)", (key, default))
    (value,) = db.execute("select value from meta where key = ?", (key,)).fetchone()
    return str(value)


def file_id(path: Path) -> tuple[int, int] | None:
    """Return what identifies the file at this path; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino)


def lost_file(path: Path) -> Stopped:
    """Return the error for a file or folder of a run in progress that another program took away."""
    return Stopped(f"{path}: was removed, moved or replaced while the run was using it; run again to continue")


def place_without_overwriting(written: Path, path: Path, other_stem: str) -> Path:
    """Move a finished file to `path`, or if another file is there, next to it under `other_stem`; return where."""
    try:
        path.hardlink_to(written)
    except FileExistsError:
        path = path.with_stem(other_stem)
        written.replace(path)
    else:
        written.unlink()
    return path


def write_atomically(path: Path, content: bytes, durability: Durability = "process") -> None:
    """Write a file so that it exists completely or not at all."""
    is_new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    with unfinished.open("wb") as file:
        file.write(content)
        if durability == "power":
            file.flush()
            os.fsync(file.fileno())
    unfinished.replace(path)
    if durability == "power":
        sync_folders(path.parent, *((path.parent.parent, path.parent.parent.parent) if is_new_folder else ()))


def sync_folders(*folders: Path) -> None:
    """Wait until the names in these folders are on the disk."""
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
