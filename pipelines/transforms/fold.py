"""Fold: the children of one source row become one row again, by SQL aggregates."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import KeyPath, dotted
from connectors.records import RowError
from pipelines.config.sql_predicate import bisect_rows
from pipelines.config.steps.local_steps import FoldStep
from pipelines.transforms.sql_expressions import SqlExpressions

SOURCE = "_row_source"
"""The column of child rows with the number of their source row."""
_FOLD_MEMORY_LIMIT = "512MB"
"""An output may be the list of all children."""


class Fold:
    """The outputs of one `fold` step."""

    def __init__(self, model: FoldStep, schema: pa.Schema, where: KeyPath) -> None:
        """`schema`: of a child row. JobError below `where` for an expression that is no aggregate."""
        self._where = where
        self._expressions = SqlExpressions(
            model.fold, schema, (*where, "fold"), group_by=SOURCE, memory_limit=_FOLD_MEMORY_LIMIT
        )
        self.fields = self._expressions.fields
        """The columns that it adds to the source row, all nullable."""
        self.columns = self._expressions.columns
        """The columns that it reads, of the children and of their source row."""
        read = [schema.field(name) for name in sorted(self.columns)]
        self.no_children = pa.schema([pa.field(SOURCE, pa.int64()), *read]).empty_table()
        """What `apply` takes if no source row has children."""

    def close(self) -> None:
        """Close what evaluates the SQL."""
        self._expressions.close()

    def apply(self, children: pa.Table, sources: Sequence[int]) -> tuple[pa.Table, dict[int, RowError]]:
        """Return one row for each of these source rows, and the errors of those whose children break the SQL.

        `children`: with SOURCE, in the order in which lists have them; a source row may have none.
        """
        errors: dict[int, RowError] = {}
        made: list[pa.Table] = []
        whole = children.select([SOURCE, *sorted(self.columns)])
        schema = pa.schema(list(self.fields))

        def evaluate(part: pa.Table, first: int) -> None:
            numbers = part.column(SOURCE).combine_chunks()
            rows = whole if part.num_rows == len(sources) else whole.filter(pc.is_in(whole.column(SOURCE), numbers))
            found = self._expressions.aggregate(rows)
            if found.num_rows < part.num_rows:
                nothing = self._expressions.aggregate_nothing()
                found_columns = found.drop_columns([SOURCE])
                places = pc.index_in(numbers, found.column(SOURCE).combine_chunks()).fill_null(found.num_rows)
                made.append(pa.concat_tables([found_columns.cast(schema), nothing.cast(schema)]).take(places))
            else:
                columns = found.drop_columns([SOURCE]).cast(schema)
                # One row may be a list of all children: it is not copied in vain.
                if found.num_rows > 1:
                    columns = columns.take(pc.index_in(numbers, found.column(SOURCE).combine_chunks()))
                made.append(columns)

        def refuse(row: int, words: str) -> None:
            errors[row] = RowError("input", f"{dotted(self._where)}: {words}")
            made.append(pa.table([pa.nulls(1, field.type) for field in schema], schema=schema))

        if sources:
            bisect_rows(pa.table({SOURCE: pa.array(sources, pa.int64())}), evaluate, refuse)
        return (pa.concat_tables(made) if made else schema.empty_table()), errors
