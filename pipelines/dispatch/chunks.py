"""Chunks: rows on their way through the steps, and the failures among them."""

from collections.abc import Sequence

import pyarrow as pa
from msgspec import Struct, field
from msgspec.structs import replace

from connectors.records import RowError


class RowFailure(Struct):
    """A row that failed, for the errors table."""

    row: int
    step: str
    error: RowError
    attempts: int
    run_id: str
    at: int
    """Microseconds since 1970, UTC."""
    is_new: bool = True
    """Whether it is another outcome than the errors table has, or this invocation sent a request for it."""
    answers: Sequence[bytes | None] = ()
    """The fingerprints of answers that the row, or its children, had before; see `Chunk.answers`."""


class Chunk(Struct):
    """Rows on their way through the steps: `table` has the source's columns and the outputs of finished steps."""

    table: pa.Table
    keys: list[str]
    answers: list[list[bytes | None]]
    """For each row the fingerprints of the answers that its outputs in the results came from, one a step."""
    asked: list[bool]
    """Whether the row needed an exchange of this invocation."""
    step: int = 0
    row_bytes: int = 0
    """Mean size of a row when it was submitted."""
    is_rendering: bool = False
    """Whether its first requests are not queued yet."""
    straggling_step: int | None = None
    """The step whose requests other chunks have submitted before for these rows."""
    rung: int = 0
    """The place of the rung that requests these rows in this step; 0: the step as declared."""
    tried_rungs: frozenset[int] = frozenset()
    """The rungs of this step that have requested these rows, by `Ladder.same_as`, this one included."""
    repairs: Sequence[int] = ()
    """The repair turns that each row has taken in this step before this rung; empty: none."""
    failures: list[RowFailure] = field(default_factory=list)
    """Their `row` is an index into the concatenated `failed` tables."""
    failed: list[pa.Table] = field(default_factory=list)
    childless: list[pa.Table] = field(default_factory=list)
    """Finished source rows of which an `each` step made no row; with the source's columns."""
    childless_reused: int = 0
    """Those of them that needed no exchange of this invocation."""

    def select(self, rows: Sequence[int]) -> "Chunk":
        """Return a chunk of these rows at the same step, without the failures."""
        if len(rows) == len(self.keys):
            return replace(self, failures=[], failed=[])
        return Chunk(
            self.table.take(pa.array(rows, pa.int64())),
            [self.keys[row] for row in rows],
            [self.answers[row] for row in rows],
            [self.asked[row] for row in rows],
            self.step,
            self.row_bytes,
            rung=self.rung,
            tried_rungs=self.tried_rungs,
            repairs=[self.repairs[row] for row in rows] if self.repairs else (),
        )
