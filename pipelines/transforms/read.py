"""Read: the text of the documents that rows name, as columns."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from connectors.documents.document import Document
from connectors.documents.document_reader import EXTRA
from connectors.errors import JobError, KeyPath
from connectors.media.multipart import check_file_column
from connectors.optional_packages import require_packages
from connectors.records import RowError
from pipelines.config.sql_predicate import Predicate
from pipelines.config.steps.local_steps import ReadStep

_PACKAGES = ("lxml", "pypdfium2", "python_calamine")


class Read:
    """The outputs of one `read` step."""

    def __init__(self, model: ReadStep, schema: pa.Schema, where: KeyPath) -> None:
        """`schema`: of the row before it. JobError below `where` for a column without files, or without the extra."""
        columns = dict(zip(schema.names, schema.types, strict=True))
        self.column = check_file_column(model.read, columns, (*where, "read"))
        if pa.types.is_nested(kind := columns[self.column]) and not pa.types.is_struct(kind):
            found, remedy = f"column {self.column} contains {kind}", "make a row of each file by an each: step"
            raise JobError((*where, "read"), found, remedy)
        require_packages(_PACKAGES, (*where, "read"), "read documents", EXTRA)
        self._when = None if model.when is None else Predicate(model.when, schema, (*where, "when"))
        self.max_bytes = int(model.largest)
        self.draws_pages = model.pages == "images"
        pages = [] if model.pages is None else [pa.field(f"{model.name}_pages", pa.list_(pa.string()))]
        self.fields = (
            pa.field(model.name, pa.string()),
            *pages,
            pa.field(f"{model.name}_media_type", pa.string()),
        )
        """The columns that it adds, all nullable."""
        when = frozenset() if self._when is None else self._when.columns
        self.columns: frozenset[str] = when | {self.column}
        """The columns that it reads."""

    def close(self) -> None:
        """Close what evaluates the SQL."""
        if self._when is not None:
            self._when.close()

    def wanted(self, rows: pa.Table) -> tuple[Sequence[bool], Mapping[int, RowError]]:
        """Return for each row whether `when` holds, and the errors of rows that break it."""
        return ([True] * rows.num_rows, {}) if self._when is None else self._when.evaluate(rows)

    def table(self, documents: Sequence[Document | None], files_prefix: str) -> pa.Table:
        """Return the columns of rows with these documents. `files_prefix`: of a picture's name in a results column."""
        found = [
            None if document is None else (document.text, *self._pages(document, files_prefix), document.media_type)
            for document in documents
        ]
        columns = [
            pa.array([None if row is None else row[place] for row in found], field.type)
            for place, field in enumerate(self.fields)
        ]
        return pa.table(columns, schema=pa.schema(self.fields))

    def _pages(self, document: Document, files_prefix: str) -> tuple[Sequence[str], ...]:
        if len(self.fields) == 2:
            return ()
        return ([files_prefix + name for name in document.pictures or ()] if self.draws_pages else document.pages,)
