"""Each: one row becomes many, the pieces of its text or the elements of its list."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from connectors.errors import JobError, KeyPath, did_you_mean, dotted
from connectors.records import RowError
from pipelines.config.sql_predicate import bisect_rows
from pipelines.config.steps.local_steps import EachStep, ElementOptions, PieceOptions
from pipelines.transforms.sql_expressions import ROW_INDEX, SqlExpressions, row_indexes


class Expansion:
    """The children of some rows: how many each row has, and any range of them, row after row."""

    def __init__(self, counts: Sequence[int], errors: Mapping[int, RowError]) -> None:
        """`counts`: the children of each row; 0 for the rows in `errors`, whose values make no children."""
        self.counts = counts
        self.errors = errors
        self._ends = list(accumulate(counts))

    @property
    def total(self) -> int:
        """The number of all children."""
        return self._ends[-1] if self._ends else 0

    def values(self, first: int, last: int) -> list[pa.Array]:
        """Return the columns of the children from `first` to before `last`, without their index."""
        raise NotImplementedError

    def parents(self, first: int, last: int) -> tuple[list[int], list[int]]:
        """Return for each child of a range the place of its row, and its index among the children of that row."""
        rows: list[int] = []
        indexes: list[int] = []
        begin = 0
        for row, end in enumerate(self._ends):
            if end > first and begin < last:
                places = range(max(first, begin), min(last, end))
                rows += [row] * len(places)
                indexes += [place - begin for place in places]
            begin = end
        return rows, indexes


class _Pieces(Expansion):
    """Pieces of texts: only their offsets are in memory until they are asked for."""

    def __init__(self, texts: Sequence[str | None], options: PieceOptions) -> None:
        from pipelines.transforms.splitter import split_text  # 10 ms, and not for every run

        self._texts = texts
        self._offsets: list[tuple[int, int, int]] = []
        counts: list[int] = []
        for row, text in enumerate(texts):
            before = len(self._offsets)
            if text:
                pieces = split_text(text, options.tokens, options.overlap, options.model)
                self._offsets += ((row, piece.start, piece.end) for piece in pieces)
            counts.append(len(self._offsets) - before)
        super().__init__(counts, {})

    def values(self, first: int, last: int) -> list[pa.Array]:
        """Return the text of each piece, its start and its end."""
        chosen = self._offsets[first:last]
        pieces = [(self._texts[row] or "")[start:end] for row, start, end in chosen]
        starts, ends = ([offsets[place] for offsets in chosen] for place in (1, 2))
        return [pa.array(pieces, pa.string()), pa.array(starts, pa.int64()), pa.array(ends, pa.int64())]


class _Elements(Expansion):
    """Elements of lists."""

    def __init__(self, lists: pa.Array, errors: Mapping[int, RowError]) -> None:
        super().__init__([count or 0 for count in pc.list_value_length(lists).to_pylist()], errors)
        self._elements = pc.list_flatten(lists)

    def values(self, first: int, last: int) -> list[pa.Array]:
        """Return the elements."""
        return [self._elements.slice(first, last - first)]


class _ListExpression(Struct, frozen=True):
    expressions: SqlExpressions
    where: KeyPath

    def expand(self, rows: pa.Table) -> Expansion:
        """Evaluate the list of each row."""
        errors: dict[int, RowError] = {}
        kind = self.expressions.fields[0].type
        made: list[pa.Array] = []

        def evaluate(part: pa.Table, first: int) -> None:
            made.extend(self.expressions.evaluate(part).column(0).chunks)

        def refuse(row: int, words: str) -> None:
            errors[row] = RowError("input", f"{dotted(self.where)}: {words}")
            made.append(pa.nulls(1, kind))

        read = rows.select(sorted(self.expressions.columns)).append_column(ROW_INDEX, row_indexes(rows))
        bisect_rows(read, evaluate, refuse)
        return _Elements(pa.concat_arrays(made) if made else pa.nulls(0, kind), errors)


class Each:
    """The children that one `each` step makes of rows."""

    def __init__(self, model: EachStep, schema: pa.Schema, where: KeyPath) -> None:
        """`schema`: of the row before it. JobError below `where` for a column or an expression that makes no list."""
        self.index = f"{model.name}_index"
        """The column with the place of a child among those of its row."""
        self._options = model.each
        self._list: _ListExpression | None = None
        where = (*where, "each")
        extra: list[pa.Field] = []
        if isinstance(model.each, ElementOptions):
            expressions = SqlExpressions({model.name: model.each.list}, schema, (*where, "list"), has_keys=False)
            kind = expressions.fields[0].type
            if not isinstance(kind, pa.ListType | pa.FixedSizeListType):
                expressions.close()
                raise JobError((*where, "list"), f"its type is {kind}", "write the SQL of a list, e.g. [a, b]")
            self._list = _ListExpression(expressions, (*where, "list"))
            self.columns, element = expressions.columns, kind.value_type
        else:
            element = _text_column(model.each.split, schema, (*where, "split"))
            self.columns = frozenset({model.each.split})
            extra = [pa.field(f"{model.name}_{end}", pa.int64()) for end in ("start", "end")]
        self.fields: tuple[pa.Field, ...] = (
            pa.field(model.name, element),
            pa.field(self.index, pa.int64()),
            *extra,
        )
        """The columns of a child that its row does not have."""

    def close(self) -> None:
        """Close what evaluates the SQL."""
        if self._list is not None:
            self._list.expressions.close()

    def expand(self, rows: pa.Table) -> Expansion:
        """Find the children of the rows."""
        if self._list is not None:
            return self._list.expand(rows)
        assert isinstance(self._options, PieceOptions)
        return _Pieces(rows.column(self._options.split).to_pylist(), self._options)

    def children(self, expansion: Expansion, first: int, last: int) -> tuple[list[int], pa.Table]:
        """Return for each child of a range the place of its row, and the columns of `fields`."""
        rows, indexes = expansion.parents(first, last)
        element, *others = expansion.values(first, last)
        columns = [element, pa.array(indexes, pa.int64()), *others]
        return rows, pa.table(columns, schema=pa.schema(list(self.fields)))


def _text_column(name: str, schema: pa.Schema, where: KeyPath) -> pa.DataType:
    if name not in schema.names:
        raise JobError(where, f"no column {name} here", did_you_mean(name, schema.names))
    kind = schema.field(name).type
    if not pa.types.is_string(kind):
        raise JobError(where, f"{name} is {kind}, and only text is split", "write each: {list: ...}, or cast it")
    return kind
