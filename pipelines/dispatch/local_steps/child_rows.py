"""Child rows of an `each` step in a run: expanded bit by bit, and gathered again for each source row.

The children of several source rows share chunks. A source row goes on when the last of its children has settled: as one
row if a `fold` follows, else with all its children to the committer.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, field
from msgspec.structs import replace

from connectors.records import KEPT_CHILDREN_PREFIX, KEPT_PREFIX, KEPT_ROW, TEXT_PREFIX, RowError
from connectors.tables.mapped_table import map_table, release_pages
from pipelines.dispatch.chunks import Chunk, RowFailure
from pipelines.ledger.ledger import now_us
from pipelines.preparation.child_outputs import outputs_of_children
from pipelines.transforms.child_keys import child_key_starts
from pipelines.transforms.each import Each, Expansion
from pipelines.transforms.fold import SOURCE, Fold

MAX_CHILD_CHUNK_BYTES = 4 << 20
"""A larger chunk of children has fewer rows."""
MAX_EXPANDED_ROWS = 64
"""Source rows whose children are found together."""
MAX_EXPANDED_BYTES = 1 << 20
"""Bytes of these rows, unless it is one."""
MAX_GATHERED_BYTES = 8 << 20
"""Finished children of one source row in memory; more are in a file until the last one has settled."""
MAX_RENDERING_CHUNKS = 3
"""Chunks of children whose first requests are being rendered and looked up at the same time."""
MAX_REPEATED_BYTES = 1 << 30
"""Of one source row, in the results of its children."""
MAX_FINISHED_BYTES = 256 << 20
"""Of source rows in the results of their children that are handed to the committer together, unless it is one."""
FOLD_SECONDS = 0.1
"""Time that folded rows wait for others, so that they share requests."""


class ChildRowsOwner(Protocol):
    """What the children need of the step runner."""

    def start(self, chunk: Chunk) -> None:
        """Run a chunk from its step on."""

    def finish(self, chunk: Chunk) -> None:
        """Hand finished rows and failures to the committer."""

    def release(self, chunk: Chunk, rows: int) -> None:
        """Rows of a chunk have become other rows."""

    def record_settled(self, rows: int, failed: int) -> None:
        """Source rows have settled whose children needed exchanges of this invocation."""

    async def wait_for_capacity(self) -> None:
        """Wait until more requests could be sent than are queued, or nothing more is sent."""

    def run_later(self, seconds: float, action: Any) -> None:
        """Call an action after some time, unless the run ends before."""

    @property
    def is_stopped(self) -> bool: ...


class EachRun(Struct, frozen=True):
    """An `each` step, ready to run, with the `fold` that ends it."""

    name: str
    each: Each
    fold: Fold | None
    fold_name: str
    """Of the fold step; empty without one."""
    fold_place: int
    """Of the fold among the steps; their number without one."""
    source_key: tuple[str, ...]
    child_columns: frozenset[str]
    """Columns of the source row that steps read before the fold."""
    gathered: tuple[str, ...]
    """Columns of children that the fold or the results need."""
    later_columns: frozenset[str]
    """Columns of the source row that the fold, later steps or the results need."""
    chunk_rows: int
    max_open_rows: int
    max_open_bytes: int
    scratch: Path
    """Folder for the children of source rows that have many."""


class _Span(Struct):
    """Rows side by side in the table of a chunk: copies of them, vectors above all, would take time and memory."""

    table: pa.Table
    begin: int
    end: int


class _Family(Struct):
    """A source row with its children."""

    number: int
    rows: pa.Table
    """The source rows of its chunk."""
    row: int
    """Its place among them."""
    answers: list[bytes | None]
    is_asked: bool
    """Whether it or one of its children needed an exchange of this invocation."""
    count: int | None = None
    """Its children; None until they are known."""
    settled: int = 0
    tables: list[pa.Table] = field(default_factory=list)
    """Finished children, in the order in which they finished."""
    span: "_Span | None" = None
    """Where they are instead if they have all finished side by side."""
    child_answers: list[tuple[int, list[bytes | None]]] = field(default_factory=list)
    """(index, answers) of finished children."""
    failures: list[tuple[int, RowFailure]] = field(default_factory=list)
    """(index, failure) of the others."""
    nbytes: int = 0
    """Of `tables`."""
    file: "_ChildFile | None" = None

    @property
    def source(self) -> pa.Table:
        return self.rows.slice(self.row, 1)

    def all_answers(self) -> list[bytes]:
        """Return the fingerprints of its answers and of those of its children, each once."""
        children = (answers for _, answers in self.child_answers)
        failed = (failure.answers for _, failure in self.failures)
        return list({one for some in (self.answers, *children, *failed) for one in some if one is not None})

    @property
    def is_complete(self) -> bool:
        return self.count is not None and self.settled == self.count


class _ChildFile:
    """Finished children of one source row in a file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)

    def write(self, tables: Sequence[pa.Table]) -> None:
        for table in tables:
            self._writer.write_table(table)

    def sorted_by(self, column: str) -> pa.Table:
        """Close the file and return its rows in order; they stay in a file, of which pages are read as needed."""
        self._writer.close()
        self._sink.close()
        table = map_table(self.path)
        order = pc.sort_indices(table.select([column]), sort_keys=[(column, "ascending")])
        target = self.path.with_suffix(".sorted")
        batches = table.to_batches()
        ends = list(accumulate(batch.num_rows for batch in batches))
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            step = max(1, MAX_CHILD_CHUNK_BYTES // max(1, table.nbytes // max(1, table.num_rows)))
            for start in range(0, table.num_rows, step):
                writer.write_table(_rows_at(batches, ends, order.slice(start, step).to_pylist()))
                release_pages()
        del table, batches
        self.path.unlink()
        found = map_table(target)
        target.unlink()
        return found


def _tables_of(families: Sequence[_Family]) -> list[pa.Table]:
    """Return tables that have the children of these together; what was side by side stays in one."""
    tables: list[pa.Table] = []
    last: _Span | None = None
    for family in families:
        span = family.span
        if span is not None and last is not None and span.table is last.table and span.begin == last.end:
            last.end = span.end
            continue
        if last is not None:
            tables.append(last.table.slice(last.begin, last.end - last.begin))
        last = None if span is None else replace(span)
        tables += family.tables
    if last is not None:
        tables.append(last.table.slice(last.begin, last.end - last.begin))
    return tables


def _rows_at(batches: Sequence[pa.RecordBatch], ends: Sequence[int], places: Sequence[int]) -> pa.Table:
    """Return the rows at these places of all batches; `ends`: the place after each."""
    # `take` of the whole table would copy all of it.
    rows_of: dict[int, list[int]] = {}
    found_at: dict[int, list[int]] = {}
    for at, place in enumerate(places):
        number = bisect_right(ends, place)
        rows_of.setdefault(number, []).append(place - ends[number] + batches[number].num_rows)
        found_at.setdefault(number, []).append(at)
    rows = pa.Table.from_batches([batches[number].take(pa.array(rows)) for number, rows in rows_of.items()])
    order = pc.sort_indices(pa.array([at for some in found_at.values() for at in some]))
    return rows.combine_chunks().take(order)


class ChildRows:
    """The children that one `each` step has under way."""

    def __init__(self, step: EachRun, place: int, owner: ChildRowsOwner, run_id: str) -> None:
        """`place`: of the step among the steps."""
        self._step = step
        self._place = place
        self._owner = owner
        self._run_id = run_id
        self._numbers = 0
        self._families: dict[int, _Family] = {}
        self._turn = asyncio.Lock()
        self._waiting = 0
        """Chunks of source rows whose children are not all found."""
        self._rest: list[tuple[pa.Table, list[str], list[list[bytes | None]]]] = []
        """Children that have not filled a chunk."""
        self._rest_rows = self._rest_bytes = 0
        self._open_rows = self._open_bytes = 0
        self._rendering = 0
        """Chunks of children whose first requests are not queued yet."""
        self._gathered_bytes = 0
        """Of finished children in memory."""
        self._room = asyncio.Event()
        self._folded: list[Chunk] = []
        self._folded_rows = 0
        self._is_flush_due = False

    # Source rows become children.

    async def expand(self, chunk: Chunk) -> None:
        """Start chunks with the children of source rows, as fast as earlier children settle."""
        self._waiting += 1
        keys = chunk.table.select(self._step.source_key)
        prefixes = await asyncio.to_thread(child_key_starts, keys)
        kept = [name for name in chunk.table.column_names if _is_needed(name, self._step.later_columns)]
        rows = chunk.table.select(kept)
        async with self._turn:
            at = 0
            while at < len(chunk.keys) and not self._owner.is_stopped:
                size = max(1, min(MAX_EXPANDED_ROWS, MAX_EXPANDED_BYTES // max(1, chunk.row_bytes)))
                part = chunk.table.slice(at, size)
                expansion = await asyncio.to_thread(self._step.each.expand, part)
                families = self._new_families(chunk, rows, at, expansion)
                await self._start_children(part, prefixes[at : at + size], families, expansion)
                self._owner.release(chunk, part.num_rows)
                at += part.num_rows
            self._waiting -= 1
            if not self._waiting:
                self._start_rest()

    def _new_families(self, chunk: Chunk, rows: pa.Table, at: int, expansion: Expansion) -> list[_Family]:
        families: list[_Family] = []
        for place, count in enumerate(expansion.counts):
            row = at + place
            family = _Family(self._numbers, rows, row, chunk.answers[row], chunk.asked[row], count)
            self._numbers += 1
            self._families[family.number] = family
            families.append(family)
            error = expansion.errors.get(place) or self._excess(family)
            if error is not None:
                family.count = 0
                family.failures.append((-1, RowFailure(0, self._step.name, error, 0, self._run_id, now_us())))
        self._complete([family for family in families if family.is_complete])
        return families

    def _excess(self, family: _Family) -> RowError | None:
        """Return the error of a source row whose columns would be repeated too often in the results."""
        count = family.count or 0
        if self._step.fold is not None or family.rows.nbytes * count <= MAX_REPEATED_BYTES:
            return None
        nbytes = family.source.nbytes
        if nbytes * count <= MAX_REPEATED_BYTES:
            return None
        found = f"each of {count:,} result rows would repeat {nbytes / 1e6:.1f} MB of its source row"
        return RowError("input", f"{found}; leave long columns out of the results (sink.columns, or keep: false)")

    async def _start_children(
        self, rows: pa.Table, key_starts: Sequence[str], families: Sequence[_Family], expansion: Expansion
    ) -> None:
        names = sorted(self._step.child_columns.intersection(rows.column_names))
        names += [TEXT_PREFIX + name for name in names if TEXT_PREFIX + name in rows.column_names]
        inherited = rows.select(names)
        row_bytes = inherited.nbytes // max(1, rows.num_rows)
        begin = 0
        while begin < expansion.total:
            while not self._owner.is_stopped and not self._has_room:
                self._room.clear()
                await self._room.wait()
            if self._owner.is_stopped:
                return
            fitting = max(1, (MAX_CHILD_CHUNK_BYTES - self._rest_bytes) // max(1, row_bytes))
            size = min(self._step.chunk_rows - self._rest_rows, fitting)
            places, children = await asyncio.to_thread(
                self._step.each.children, expansion, begin, min(begin + size, expansion.total)
            )
            begin += len(places)
            if any(families[place].failures for place in places):
                # Nothing is paid for the children of a source row that has failed.
                going = [at for at, place in enumerate(places) if not families[place].failures]
                places, children = [places[at] for at in going], children.take(pa.array(going, pa.int64()))
                if not places:
                    continue
            table = children.append_column(SOURCE, pa.array([families[place].number for place in places], pa.int64()))
            if names:
                for name, values in zip(names, inherited.take(pa.array(places, pa.int64())).columns, strict=True):
                    table = table.append_column(name, values)
            indexes = children.column(self._step.each.index).to_pylist()
            for name, values in outputs_of_children(rows, expansion.counts, places, indexes).items():
                table = table.append_column(name, values)
            keys = [f"{key_starts[place]}{index}]" for place, index in zip(places, indexes, strict=True)]
            self._rest.append((table, keys, [families[place].answers for place in places]))
            self._rest_rows += len(places)
            self._rest_bytes += table.nbytes
            if self._rest_rows >= self._step.chunk_rows or self._rest_bytes >= MAX_CHILD_CHUNK_BYTES:
                self._start_rest()
                # As rows are read: as many as can be sent, and not as many as fit into memory.
                await self._owner.wait_for_capacity()
            await asyncio.sleep(0)

    @property
    def _has_room(self) -> bool:
        if self._rendering >= MAX_RENDERING_CHUNKS:
            return False
        rows, nbytes = self._open_rows + self._rest_rows, self._open_bytes + self._rest_bytes + self._gathered_bytes
        return not self._open_rows or (rows < self._step.max_open_rows and nbytes < self._step.max_open_bytes)

    def _start_rest(self) -> None:
        """Start a chunk with the children that wait for one."""
        if not self._rest or self._owner.is_stopped:
            return
        tables, keys, answers = zip(*self._rest, strict=True)
        self._rest, self._rest_rows, self._rest_bytes = [], 0, 0
        table = pa.concat_tables(tables)
        chunk = Chunk(
            table,
            [key for some in keys for key in some],
            [list(row) for some in answers for row in some],
            [False] * table.num_rows,
            self._place + 1,
            row_bytes=table.nbytes // max(1, table.num_rows),
        )
        self._open_rows += table.num_rows
        self._open_bytes += table.num_rows * chunk.row_bytes
        self._rendering += 1
        chunk.is_rendering = True
        self._owner.start(chunk)

    def end_rendering(self) -> None:
        """Count a chunk of children whose first requests are queued."""
        self._rendering -= 1
        self._room.set()

    # Children become source rows.

    def settle(self, chunk: Chunk) -> None:
        """Gather children that have passed the last step, and the failures among them."""
        touched: dict[int, _Family] = {}
        if chunk.keys:
            self._gather(chunk, touched)
        if chunk.failures:
            failed = pa.concat_tables([table.select([SOURCE, self._step.each.index]) for table in chunk.failed])
            numbers, indexes = (column.to_pylist() for column in failed.columns)
            for failure in chunk.failures:
                family = self._families[numbers[failure.row]]
                family.failures.append((indexes[failure.row], failure))
                family.settled += 1
                family.is_asked = family.is_asked or failure.is_new
                touched[family.number] = family
        settled = len(chunk.keys) + len(chunk.failures)
        self._open_rows -= settled
        self._open_bytes -= settled * chunk.row_bytes
        self._complete([family for family in touched.values() if family.is_complete])
        self._room.set()

    def _gather(self, chunk: Chunk, touched: dict[int, _Family]) -> None:
        numbers = chunk.table.column(SOURCE).to_pylist()
        indexes = chunk.table.column(self._step.each.index).to_pylist()
        rows_of: dict[int, list[int]] = {}
        for row, number in enumerate(numbers):
            rows_of.setdefault(number, []).append(row)
        table = chunk.table.select([SOURCE, *self._step.gathered])
        for number, rows in rows_of.items():
            family = touched.setdefault(number, self._families[number])
            family.settled += len(rows)
            if len(rows) == family.count and rows[-1] - rows[0] + 1 == len(rows):
                family.span = _Span(table, rows[0], rows[-1] + 1)
            else:
                # Copied: a slice would keep the whole chunk until the last child has settled.
                part = table.take(pa.array(rows, pa.int64())).combine_chunks()
                family.tables.append(part)
                family.nbytes += part.nbytes
                self._gathered_bytes += part.nbytes
            family.is_asked = family.is_asked or any(chunk.asked[row] for row in rows)
            if self._step.fold is None:
                family.child_answers += ((indexes[row], chunk.answers[row]) for row in rows)
            if family.nbytes > MAX_GATHERED_BYTES:
                self._write_to_file(family)

    def _write_to_file(self, family: _Family) -> None:
        if family.file is None:
            path = self._step.scratch / f"children-{self._place}-{id(self):x}-{family.number}.arrow"
            family.file = _ChildFile(path, family.tables[0].schema)
        family.file.write(family.tables)
        self._gathered_bytes -= family.nbytes
        family.tables, family.nbytes = [], 0

    def _complete(self, families: Sequence[_Family]) -> None:
        """Let source rows go on whose children have all settled."""
        large = [family for family in families if family.file is not None]
        small = [family for family in families if family.file is None]
        for some in (*([one] for one in large), small):
            if some:
                self._go_on(some)
        if self._step.fold is not None and self._folded_rows:
            if self._folded_rows >= self._step.chunk_rows or not (self._open_rows or self._rest_rows or self._waiting):
                self._start_folded()
            elif not self._is_flush_due:
                self._is_flush_due = True
                self._owner.run_later(FOLD_SECONDS, self._start_folded)

    def _go_on(self, families: Sequence[_Family]) -> None:
        failed = [family for family in families if family.failures]
        done = [family for family in families if not family.failures]
        asked = [family for family in families if family.is_asked]
        for family in families:
            del self._families[family.number]
            self._gathered_bytes -= family.nbytes
        if self._step.fold is None:
            self._owner.record_settled(len(asked), sum(bool(family.failures) for family in asked))
            first, *others = _portions(done)
            self._owner.finish(self._finished_children(first, failed))
            for portion in others:
                self._owner.finish(self._finished_children(portion, ()))
        else:
            failed_asked = sum(bool(family.failures) for family in asked)
            self._owner.record_settled(failed_asked, failed_asked)
            self._fold(done, failed)

    def _finished_children(self, done: Sequence[_Family], failed: Sequence[_Family]) -> Chunk:
        """Return the children of finished source rows with the columns of these, and the failures of others."""
        filled = [family for family in done if family.count]
        childless = [family for family in done if not family.count]
        children = self._children_in_order(filled) if filled else None
        chunk = Chunk(pa.table({}), [], [], [])
        if children is not None:
            sources = pa.concat_tables([family.source for family in filled])
            places = {family.number: place for place, family in enumerate(filled)}
            row_places = [places[number] for number in children.column(SOURCE).to_pylist()]
            own = [name for name in sources.column_names if name not in children.column_names]
            table = children.drop_columns([SOURCE])
            for name, values in zip(own, sources.select(own).take(pa.array(row_places)).columns, strict=True):
                table = table.append_column(sources.schema.field(name), values)
            answers = [
                child for family in filled for _, child in sorted(family.child_answers, key=lambda answer: answer[0])
            ]
            asked = [filled[place].is_asked for place in row_places]
            chunk = Chunk(table, table.column("_key").to_pylist(), answers, asked)
        chunk.childless = [family.source for family in childless]
        chunk.childless_reused = sum(not family.is_asked for family in childless)
        for family in failed:
            # Listed once, not for each failing child.
            needed = family.all_answers()
            for index, failure in sorted(family.failures, key=lambda one: one[0]):
                values = pa.array([None if index < 0 else index], pa.int64())
                chunk.failures.append(replace(failure, row=len(chunk.failed), answers=needed))
                needed = []
                chunk.failed.append(family.source.append_column(self._step.each.index, values))
        return chunk

    def _fold(self, done: Sequence[_Family], failed: Sequence[_Family]) -> None:
        """Make one row of the children of each source row; its first failing child fails a source row."""
        fold = self._step.fold
        assert fold is not None
        problems = Chunk(pa.table({}), [], [], [])

        def fail(family: _Family, failure: RowFailure) -> None:
            problems.failures.append(replace(failure, row=len(problems.failed)))
            problems.failed.append(family.source)

        for family in failed:
            index, failure = min(family.failures, key=lambda one: one[0])
            fail(family, replace(failure, error=_with_index(failure.error, self._step.each.index, index)))
        if done:
            children = self._children_in_order(done, fold)
            made, errors = fold.apply(children, [family.number for family in done])
            for place, error in errors.items():
                failure = RowFailure(0, self._step.fold_name, error, 0, self._run_id, now_us())
                fail(done[place], replace(failure, answers=done[place].answers))
            rows = [place for place in range(len(done)) if place not in errors]
            if rows:
                table = pa.concat_tables([done[row].source for row in rows])
                if errors:
                    made = made.take(pa.array(rows, pa.int64()))
                for column, values in zip(fold.fields, made.columns, strict=True):
                    table = table.append_column(column, values)
                keys = table.column("_key").to_pylist()
                folded = Chunk(table, keys, [done[row].answers for row in rows], [done[row].is_asked for row in rows])
                self._folded.append(folded)
                self._folded_rows += len(rows)
        if problems.failures:
            self._owner.finish(problems)

    def _children_in_order(self, families: Sequence[_Family], fold: Fold | None = None) -> pa.Table:
        """Return the children of the source rows, in the order of these; for a fold with what it reads of them."""
        index = self._step.each.index
        if len(families) == 1 and (file := families[0].file) is not None:
            file.write(families[0].tables)
            children = file.sorted_by(index)
        else:
            tables = _tables_of(families)
            if not tables:
                assert fold is not None, "without a fold only source rows with children have an order"
                return fold.no_children
            children = pa.concat_tables(tables)
            places = {family.number: place for place, family in enumerate(families)}
            of_family = [places[number] for number in children.column(SOURCE).to_pylist()]
            keys = pa.table({"family": of_family, "index": children.column(index)})
            by = [("family", "ascending"), ("index", "ascending")]
            order = pc.sort_indices(keys, sort_keys=by)
            if not order.equals(pa.array(range(len(order)), order.type)):
                children = children.take(order)
        if fold is not None and (own := sorted(fold.columns.difference(children.column_names))):
            sources = pa.concat_tables([family.source.select(own) for family in families])
            numbers = pa.array([family.number for family in families], pa.int64())
            rows = pc.index_in(children.column(SOURCE), numbers)
            for name in own:
                children = children.append_column(name, _repeated(sources.column(name), rows.combine_chunks()))
        return children

    def _start_folded(self) -> None:
        """Start a chunk with the rows that were folded."""
        self._is_flush_due = False
        if not self._folded:
            return
        parts, self._folded, self._folded_rows = self._folded, [], 0
        table = pa.concat_tables([part.table for part in parts])
        self._owner.start(
            Chunk(
                table,
                [key for part in parts for key in part.keys],
                [list(row) for part in parts for row in part.answers],
                [asked for part in parts for asked in part.asked],
                self._step.fold_place + 1,
                row_bytes=table.nbytes // max(1, table.num_rows),
            )
        )


def _portions(families: Sequence[_Family]) -> list[list[_Family]]:
    """Divide source rows by what their columns take in the results of their children; one portion if it is little."""
    sizes = {id(family.rows): family.rows.nbytes for family in families}
    if sum(sizes[id(family.rows)] * (family.count or 0) for family in families) <= MAX_FINISHED_BYTES:
        return [list(families)]
    portions: list[list[_Family]] = [[]]
    total = 0
    for family in families:
        nbytes = family.source.nbytes * (family.count or 0)
        if portions[-1] and total + nbytes > MAX_FINISHED_BYTES:
            portions.append([])
            total = 0
        portions[-1].append(family)
        total += nbytes
    return portions


def _repeated(values: pa.ChunkedArray, rows: pa.Array) -> pa.Array | pa.ChunkedArray:
    """Return the values at these places. Texts and lists stay where they are: a long text may have many children."""
    # DuckDB does not read dictionaries of structs.
    if pa.types.is_string(values.type) or pa.types.is_binary(values.type) or pa.types.is_list(values.type):
        return pa.DictionaryArray.from_arrays(rows, values.combine_chunks())
    return values.take(rows)


def _is_needed(name: str, columns: frozenset[str]) -> bool:
    """Whether a column of source rows is used after their children; Rowmill's own ones are."""
    if name.startswith(TEXT_PREFIX):
        return name.removeprefix(TEXT_PREFIX) in columns
    if name == KEPT_ROW or name.startswith((KEPT_PREFIX, KEPT_CHILDREN_PREFIX)):
        return False
    return name.startswith("_") or name in columns


def _with_index(error: RowError, name: str, index: int) -> RowError:
    """Return the error with the place of the child that it failed in its details."""
    if index < 0:
        return error
    details: Any = {} if error.details is None else orjson.loads(error.details)
    kept: Mapping[str, Any] = details if isinstance(details, Mapping) else {"details": details}
    return replace(error, details=orjson.dumps({**kept, name: index}).decode())
