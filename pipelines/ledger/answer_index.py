"""Answer index: finds answers by their request fingerprints, and is written rarely.

Fingerprints are random: an index that follows each answer changes another page of its tree for each. Here the newest
answers are in the *tail* of the index, in order of arrival. From time to time a *merge* moves the tail into
the index in the order of the fingerprints, so that many entries share a page that is written once. An answer is always
in one of the two, in the same transaction as the answer itself. Readers look into both.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

ANSWERS_TABLE = """
create table {} (id integer primary key, fingerprint blob not null, leg integer not null,
    request blob, reply blob, file text, error text, at integer not null)
"""
"""SQL of the table of answers, for a name."""

MIN_TAIL = 20_000
"""Number of answers from which a small ledger is merged."""

MAX_TAIL = 700_000
"""Number of answers from which any ledger is merged; a process has 20 bytes of each in memory."""

TAIL_SHARE = 5
"""In between, a merge is due once the tail is one part in so many of the answers: the larger the index, the more
entries are needed for each of its pages."""

SLICE_ENTRIES = 10_000
"""Number of entries that one transaction of a merge moves: other writes wait for no more than these."""

LOOKUP_FINGERPRINTS = 512
"""Maximum number of fingerprints in one statement."""

LAST_ANSWER = (
    "max(coalesce((select max(id) from answers), 0), "
    "coalesce((select cast(value as integer) from meta where key = 'last_answer'), 0))"
)
"""SQL for the highest id that an answer has had. No id is used twice: those behind the last seen one are new."""

_KEEP_LAST_ANSWER = f"insert or replace into meta values ('last_answer', {LAST_ANSWER})"

_FILL_INDEX = "insert or replace into answer_index select fingerprint, id from answers order by fingerprint, id"

MAX_KEPT_SHARE = 1 / 2
"""If at most this share of all answers stays, they are copied and the table is dropped: deleting the others would take
longer and write more."""

DELETE_BATCH = 300_000
"""Number of answers deleted at a time, with some 50 MB of memory: each time, most of the answer index is written."""

DELETE_CACHE_KB = 32 << 10
"""Memory for pages while answers are deleted; what is sorted beyond it spills to disk."""

_DELETE = (
    # SQLite takes what follows `in` in its order: each page of the index is written once.
    "delete from answer_index where fingerprint in "
    "(select a.fingerprint from temp.deleted d cross join answers a on a.id = d.id) "
    "and id in (select id from temp.deleted)",
    "delete from answer_tail where id in (select id from temp.deleted)",
    "delete from answers where id in (select id from temp.deleted)",
)

PREFIX_BYTES = 8
"""Of a fingerprint in the copy of the tail; `select` compares the whole ones of the answers that it finds by them."""

_PREFIX = f"substr({{}}, 1, {PREFIX_BYTES})"
"""SQL of it."""


class AnswerLookup:
    """Finds answers through one connection, which has an indexed copy of the tail in memory."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """`db`: in autocommit mode; used by one thread at a time."""
        self._db = db
        self._first: int | None = None
        """Id of the first answer of the tail when it was last read."""
        self._last = 0
        """Id up to which it has been read."""
        db.execute("pragma temp_store = memory")
        db.execute("create temp table recent (prefix blob, id integer, primary key (prefix, id)) without rowid")

    def select(self, columns: str, fingerprints: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Return these columns of the answers `a` and their routes `l`, of those of these requests that have one."""
        rows: list[tuple[Any, ...]] = []
        # In one snapshot: otherwise a merge could move an answer from where it is sought next to where it was sought.
        with self._db:
            self._db.execute("begin")
            state = self._read_tail()
            for start in range(0, len(fingerprints), LOOKUP_FINGERPRINTS):
                chunk = _filled_up(fingerprints[start : start + LOOKUP_FINGERPRINTS])
                rows += self._db.execute(_selection(columns, len(chunk)), chunk)
        # After an error the copy is as it was before.
        self._first, self._last = state
        return rows

    def _read_tail(self) -> tuple[int | None, int]:
        """Bring the copy of the tail up to date; return the ids of its first and last answer."""
        first, last = _bounds(self._db)
        start = self._last
        if first != self._first:
            self._db.execute("delete from temp.recent")
            start = 0
        if last > start:
            self._db.execute(
                f"insert into temp.recent select {_PREFIX.format('fingerprint')}, id from answer_tail where id > ?",
                (start,),
            )
        return first, last


def append_answers(db: sqlite3.Connection, answers: Sequence[tuple[Any, ...]]) -> Mapping[bytes, int]:
    """Insert answers (fingerprint, leg, request, reply, file, error, at) of new requests; return their ids."""
    ((last,),) = db.execute(f"select {LAST_ANSWER}")
    numbered = list(enumerate(answers, last + 1))
    db.executemany("insert into answers values (?, ?, ?, ?, ?, ?, ?, ?)", [(id_, *row) for id_, row in numbered])
    db.executemany("insert into answer_tail values (?, ?)", [(id_, row[0]) for id_, row in numbered])
    return {row[0]: id_ for id_, row in numbered}


def update_answers(db: sqlite3.Connection, answers: Sequence[tuple[Any, ...]]) -> None:
    """Replace answers (leg, request, reply, file, error, at, id)."""
    db.executemany(
        "update answers set leg = ?, request = ?, reply = ?, file = ?, error = ?, at = ? where id = ?", answers
    )


def delete_answers(db: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Delete these answers and their entries in one transaction. `db`: in autocommit mode.

    The more answers are deleted at a time, the fewer pages of the index are written for each.
    """
    db.execute("pragma temp_store = memory")
    _delete_listed(db, "values (?)", zip(ids))


def delete_selected(db: sqlite3.Connection, selection: str, values: Sequence[Any]) -> None:
    """Delete the answers whose ids a `select` returns: in one transaction if few others stay, else some at a time.

    `db`: in autocommit mode. Without `vacuum`, the file may still contain what was deleted.
    """
    db.execute(f"pragma cache_size = -{DELETE_CACHE_KB}")
    # Otherwise all pages would be written with zeros.
    db.execute("pragma secure_delete = off")
    db.execute("create temp table selected (id integer primary key)")
    db.execute(f"insert into temp.selected {selection}", values)
    ((selected, answers),) = db.execute("select (select count(*) from temp.selected), (select count(*) from answers)")
    if selected and answers - selected <= MAX_KEPT_SHARE * answers:
        _keep_others(db)
        return
    last, batch = 0, "select id from temp.selected where id > ? order by id limit ?"
    for _ in range(0, selected, DELETE_BATCH):
        _delete_listed(db, batch, [(last, DELETE_BATCH)])
        ((last,),) = db.execute("select max(id) from temp.deleted")


def _delete_listed(db: sqlite3.Connection, ids: str, values: Iterable[Sequence[Any]]) -> None:
    """Delete the answers whose ids a statement inserts, run once with each of the values."""
    db.execute("drop table if exists temp.deleted")
    db.execute("create temp table deleted (id integer primary key)")
    db.execute("begin immediate")
    db.executemany(f"insert into temp.deleted {ids}", values)
    db.execute(_KEEP_LAST_ANSWER)
    for statement in _DELETE:
        db.execute(statement)
    db.execute("commit")


def _keep_others(db: sqlite3.Connection) -> None:
    """Delete the answers in `temp.selected`: copy the others, drop the table and write the index again."""
    db.execute("begin immediate")
    db.execute(_KEEP_LAST_ANSWER)
    db.execute(ANSWERS_TABLE.format("kept_answers"))
    # Others may have been stored since the selection.
    db.execute("insert into kept_answers select * from answers where id not in (select id from temp.selected)")
    db.execute("drop table answers")
    db.execute("alter table kept_answers rename to answers")
    db.execute("delete from answer_tail")
    db.execute("delete from answer_index")
    db.execute(_FILL_INDEX)
    db.execute("commit")


def rebuild_lost_index(db: sqlite3.Connection) -> None:
    """Fill the index again if it is empty though there are answers before the tail, as in a repaired file."""
    ((is_lost,),) = db.execute(
        "select not exists (select 1 from answer_index) and exists (select 1 from answers where id < "
        "coalesce((select min(id) from answer_tail), (select max(id) + 1 from answers)))"
    )
    if is_lost:
        db.execute(_FILL_INDEX)


class IndexMerge:
    """Moves the tail into the index, a slice of the fingerprints in each transaction.

    The tail is emptied with the last slice. After a kill before that, the merge begins again: entries that are in the
    index already stay as they are. Several processes may merge at the same time.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        """`db`: in autocommit mode."""
        self._db = db
        self._until = 0
        """Id of the last answer that the merge in progress moves; 0: none is in progress."""
        self._slice = self._slices = 0

    def continue_if_due(self) -> None:
        """Move one slice if a merge is in progress or due."""
        if not self._until:
            first, last = _bounds(self._db)
            if first is None or last - first + 1 < min(MAX_TAIL, max(MIN_TAIL, last // TAIL_SHARE)):
                return
        self._move_slice()

    def finish(self) -> None:
        """Move the whole tail as it is now; other processes may append to it meanwhile."""
        self._until = 0
        if _bounds(self._db)[1]:
            self._move_slice()
        while self._until:
            self._move_slice()

    def _move_slice(self) -> None:
        with self._db:
            self._db.execute("begin immediate")
            until, place, slices = self._until, self._slice, self._slices
            if not until:
                first, until = _bounds(self._db)
                place, slices = 0, min(256, 1 + (until - (first or until)) // SLICE_ENTRIES)
            # By first bytes; fingerprints are random.
            low, high = (
                bytes([256 * edge // slices]) if edge < slices else b"\xff" * 32 for edge in (place, place + 1)
            )
            self._db.execute(
                "insert into answer_index select fingerprint, id from answer_tail "
                "where id <= ? and fingerprint >= ? and fingerprint < ? order by fingerprint "
                "on conflict (fingerprint) do update set id = excluded.id where excluded.id <> id",
                (until, low if place else b"", high),
            )
            place += 1
            if place == slices:
                self._db.execute("delete from answer_tail where id <= ?", (until,))
                until = 0
        self._until, self._slice, self._slices = until, place, slices


@cache
def _selection(columns: str, count: int) -> str:
    """Return the statement that selects these columns of the answers to so many requests."""
    sought = [f"?{number}" for number in range(1, count + 1)]
    whole, prefixes = ",".join(sought), ",".join(map(_PREFIX.format, sought))
    # An entry that belongs to no answer, or to that of another request, finds nothing.
    return (
        f"select {columns} from (select id from answer_index where fingerprint in ({whole}) "
        f"union select id from temp.recent where prefix in ({prefixes})) i cross join answers a "
        f"on a.id = i.id and a.fingerprint in ({whole}) cross join legs l on l.id = a.leg"
    )


def _filled_up(fingerprints: Sequence[bytes]) -> Sequence[bytes]:
    """Return as many as the next power of two, the last one repeated: SQLite compiles few statements."""
    missing = (1 << (len(fingerprints) - 1).bit_length()) - len(fingerprints)
    return [*fingerprints, *[fingerprints[-1]] * missing] if missing else fingerprints


def _bounds(db: sqlite3.Connection) -> tuple[int | None, int]:
    """Return the ids of the first answer of the tail, or None, and of the last one, or 0."""
    ((first, last),) = db.execute("select (select min(id) from answer_tail), (select max(id) from answer_tail)")
    return first, last or 0
