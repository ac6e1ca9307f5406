"""Batches in the ledger: recorded with their lines before anything is uploaded, kept until every line is settled."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Literal

import orjson
from msgspec import Struct, field

from connectors.endpoints.conversation.structured.structured_modes import StructuredMode
from pipelines.ledger.ledger import Ledger, now_us

State = Literal["noted", "uploaded", "created", "cancelled"]
"""`cancelled`: created, and then cancelled by this job."""


class BatchLine(Struct, frozen=True):
    """One request of a batch's file, for one or several rows: recorded in the ledger, and not answered yet."""

    exchange_id: int
    keys: bytes
    """JSON list of the rows' keys as text."""
    row_fingerprints: bytes
    """16 bytes for each of `keys`: the fingerprint of the request for that row."""
    fingerprints: tuple[bytes, ...]
    """Of its requests, in order."""
    attempt: int
    max_cost: int | None
    pack_mode: StructuredMode | None = None
    """Of a pack: the structured mode of its schema; None: unknown, as in batches of an earlier invocation."""

    def keys_by_request(self) -> Sequence[tuple[str, ...]]:
        """Return the keys of the rows of each request."""
        keys: dict[bytes, list[str]] = {fingerprint: [] for fingerprint in self.fingerprints}
        for place, key in enumerate(orjson.loads(self.keys)):
            keys[self.row_fingerprints[16 * place : 16 * place + 16]].append(key)
        return [tuple(keys[fingerprint]) for fingerprint in self.fingerprints]


class Batch(Struct):
    """An open batch, and its lines that are not settled yet, by their place in the file."""

    mark: str
    route_id: int
    step: str
    provider: str
    endpoint: str
    recorded_at: int
    """Microseconds since 1970, UTC."""
    day: str | None
    """The date in whose budget it is reserved."""
    state: State = "noted"
    file_id: str | None = None
    batch_id: str | None = None
    lines: dict[int, BatchLine] = field(default_factory=dict)
    input_tokens: int = 0
    """As counted here; an estimate for batches of an earlier invocation."""
    model: str = ""
    """Of a batch that an earlier invocation has left."""
    is_uncertain: bool = False
    """Whether the provider may have its file, or the batch itself, although no reply confirmed that."""

    @property
    def is_created(self) -> bool:
        """Whether the provider has it."""
        return self.state in ("created", "cancelled")


class BatchLedger:
    """The batches of one job."""

    def __init__(self, ledger: Ledger, job: str) -> None:
        self.ledger = ledger
        self._job = job

    def has_open_batches(self) -> bool:
        """Whether earlier invocations have left open batches."""
        return bool(self.ledger.query("select 1 from batches where job = ? limit 1", (self._job,)))

    def open_batches(self) -> list[Batch]:
        """Return the batches that earlier invocations have left: their lines may still be answered."""
        batches: list[Batch] = []
        for mark, route_id, step, provider, endpoint, model, state, file_id, batch_id, day, at in self.ledger.query(
            "select b.mark, b.leg, l.step, l.provider, l.endpoint, l.model, b.state, b.file_id, b.batch_id, b.day, "
            "b.at "
            "from batches b join legs l on l.id = b.leg where b.job = ? order by b.at",
            (self._job,),
        ):
            lines = {
                place: BatchLine(
                    exchange_id, keys.encode(), fingerprints, tuple(_distinct(fingerprints)), attempt, max_cost
                )
                for place, exchange_id, keys, fingerprints, attempt, max_cost in self.ledger.query(
                    "select b.place, n.id, n.keys, n.fingerprints, n.attempt, n.reserved from batch_lines b "
                    "join noted n on n.id = b.note where b.mark = ?",
                    (mark,),
                )
            }
            batches.append(
                Batch(
                    mark,
                    route_id,
                    step,
                    provider,
                    endpoint,
                    at,
                    day,
                    state,
                    file_id,
                    batch_id,
                    lines,
                    model=model,
                    is_uncertain=True,
                )
            )
        return batches

    async def record_pending(self, batch: Batch, day_limit: int | None) -> bool:
        """Record that the batch is about to be uploaded; False if the daily budget has no room for it.

        `day_limit`: pico-dollars.
        """
        reserved = sum(line.max_cost or 0 for line in batch.lines.values())

        def write(db: sqlite3.Connection) -> bool:
            if batch.day is not None and day_limit is not None:
                if _spent(db, batch.day) + reserved > day_limit:
                    return False
                _add_to_day(db, batch.day, reserved)
            db.executemany(
                "insert into noted values (?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        line.exchange_id,
                        batch.route_id,
                        line.attempt,
                        line.keys.decode(),
                        line.row_fingerprints,
                        line.max_cost,
                        batch.recorded_at,
                    )
                    for line in batch.lines.values()
                ),
            )
            db.executemany(
                "insert into batch_lines values (?, ?, ?)",
                ((batch.mark, place, line.exchange_id) for place, line in batch.lines.items()),
            )
            db.execute(
                "insert into batches values (?, ?, ?, 'noted', null, null, ?, ?)",
                (batch.mark, self._job, batch.route_id, batch.day, batch.recorded_at),
            )
            return True

        return await self.ledger.write_together(write)

    async def record_state(self, batch: Batch) -> None:
        """Record the state of the batch and its ids at the provider."""
        await self.ledger.write_queued(
            "update batches set state = ?, file_id = ?, batch_id = ? where mark = ?",
            (batch.state, batch.file_id, batch.batch_id, batch.mark),
        )

    async def cancel_lines(self, batch: Batch, lines: Mapping[int, BatchLine]) -> None:
        """Remove lines that were not answered and never will be: they count as not sent."""
        reserved = sum(line.max_cost or 0 for line in lines.values())

        def write(db: sqlite3.Connection) -> None:
            db.executemany("delete from noted where id = ?", ((line.exchange_id,) for line in lines.values()))
            db.executemany("delete from batch_lines where mark = ? and place = ?", ((batch.mark, p) for p in lines))
            if batch.day is not None:
                _add_to_day(db, batch.day, -reserved)

        await self.ledger.write_together(write)

    async def delete(self, batch: Batch) -> None:
        """Delete a batch that is settled, and of which the provider holds nothing."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("delete from batch_lines where mark = ?", (batch.mark,))
            db.execute("delete from batches where mark = ?", (batch.mark,))

        await self.ledger.write_together(write)

    def remaining_daily_budget(self, day: str, limit: int) -> int:
        """Return the pico-dollars that may still be reserved on this day."""
        ((spent,),) = self.ledger.query("select coalesce((select spent from days where day = ?), 0)", (day,))
        return limit - int(spent)


def new_mark(ledger: Ledger, exchange_id: int) -> str:
    """Return a name that no other batch has, here or elsewhere, from the ledger and an unused exchange id."""
    return f"{ledger.identity}-{exchange_id:x}-{now_us():x}"


def _distinct(fingerprints: bytes) -> dict[bytes, None]:
    return dict.fromkeys(fingerprints[start : start + 16] for start in range(0, len(fingerprints), 16))


def _spent(db: sqlite3.Connection, day: str) -> int:
    row = db.execute("select spent from days where day = ?", (day,)).fetchone()
    return int(row[0]) if row else 0


def _add_to_day(db: sqlite3.Connection, day: str, pico: int) -> None:
    db.execute(
        "insert into days values (?, ?) on conflict (day) do update set spent = spent + excluded.spent", (day, pico)
    )
