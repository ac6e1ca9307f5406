"""Select: columns that SQL expressions make of each row."""

import pyarrow as pa

from connectors.errors import KeyPath, dotted
from connectors.records import RowError
from pipelines.config.sql_predicate import Predicate, bisect_rows
from pipelines.config.steps.local_steps import SelectStep
from pipelines.transforms.sql_expressions import ROW_INDEX, SqlExpressions, row_indexes


class Select:
    """The outputs of one `select` step."""

    def __init__(self, model: SelectStep, schema: pa.Schema, where: KeyPath) -> None:
        """`schema`: of the row before it. JobError below `where` for an expression or a predicate that is none."""
        self._when = None if model.when is None else Predicate(model.when, schema, (*where, "when"))
        self._expressions = SqlExpressions(model.select, schema, (*where, "select"))
        self._where = where
        self.fields = self._expressions.fields
        """The columns that it adds, all nullable."""
        when = frozenset() if self._when is None else self._when.columns
        self.columns: frozenset[str] = self._expressions.columns | when
        """The columns that it reads."""

    def close(self) -> None:
        """Close what evaluates the SQL."""
        self._expressions.close()
        if self._when is not None:
            self._when.close()

    def apply(self, rows: pa.Table) -> tuple[pa.Table, dict[int, RowError]]:
        """Return the columns of each row, and the errors of rows whose values break the SQL; those rows are null."""
        wanted, errors = ([True] * rows.num_rows, {}) if self._when is None else self._when.evaluate(rows)
        places = [row for row, is_wanted in enumerate(wanted) if is_wanted]
        made: list[pa.Table] = []
        sources: list[int | None] = [None] * rows.num_rows

        def evaluate(part: pa.Table, first: int) -> None:
            found = self._expressions.evaluate(part)
            before = sum(table.num_rows for table in made)
            made.append(found)
            for index in range(found.num_rows):
                sources[places[first + index]] = before + index

        def refuse(row: int, words: str) -> None:
            errors[places[row]] = RowError("input", f"{dotted(self._where)}: {words}")

        # A table without a column would have no rows.
        read = rows.select(sorted(self._expressions.columns)).append_column(ROW_INDEX, row_indexes(rows))
        bisect_rows(read.take(pa.array(places, pa.int64())), evaluate, refuse)
        whole = pa.concat_tables(made) if made else pa.schema(list(self.fields)).empty_table()
        return whole.take(pa.array(sources, pa.int64())), errors
