"""Prepared local steps: those that send no request, over the columns before them."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
from msgspec import Struct

from connectors.errors import KeyPath
from pipelines.config.steps.local_steps import (
    EachStep,
    ElementOptions,
    FoldStep,
    LocalStep,
    ReadStep,
    SelectStep,
)
from pipelines.transforms.each import Each
from pipelines.transforms.fold import Fold
from pipelines.transforms.read import Read
from pipelines.transforms.select import Select

Transform = Select | Read | Each | Fold
"""What a local step does to rows."""


class PreparedLocalStep(Struct, frozen=True):
    """One local step, checked against the columns before it."""

    model: LocalStep
    transform: Transform

    @property
    def fields(self) -> Sequence[pa.Field]:
        """The columns that the step adds."""
        return self.transform.fields

    @property
    def input_columns(self) -> frozenset[str]:
        """The columns before it that the step reads."""
        return self.transform.columns

    @property
    def file_columns(self) -> frozenset[str]:
        """The columns among `input_columns` that name files."""
        return frozenset({self.transform.column}) if isinstance(self.transform, Read) else frozenset()

    @property
    def copied_columns(self) -> Mapping[str, str]:
        """Output -> the column before it whose value it has, or whose list's elements."""
        by_name = {name.lower(): name for name in self.input_columns}
        found = {output: by_name.get(_without_quotes(sql.strip()).lower()) for output, sql in self._expressions.items()}
        return {output: column for output, column in found.items() if column is not None}

    @property
    def computed_columns(self) -> frozenset[str]:
        """The outputs of SQL that is more than the name of a column."""
        return frozenset(self._expressions).difference(self.copied_columns)

    @property
    def _expressions(self) -> Mapping[str, str]:
        match self.model:
            case SelectStep():
                return self.model.select
            case EachStep(each=ElementOptions() as options):
                return {self.model.name: options.list}
        return {}

    @property
    def kind(self) -> str:
        """The key of the job file that names what it does."""
        match self.transform:
            case Select():
                return "select"
            case Read():
                return "read"
            case Each():
                return "each"
            case Fold():
                return "fold"


def prepare_local_step(model: LocalStep, row: pa.Schema) -> PreparedLocalStep:
    """Check a local step against the columns of the row before it; JobError below `steps.NAME`."""
    where: KeyPath = ("steps", model.name)
    match model:
        case SelectStep():
            return PreparedLocalStep(model, Select(model, row, where))
        case ReadStep():
            return PreparedLocalStep(model, Read(model, row, where))
        case EachStep():
            return PreparedLocalStep(model, Each(model, row, where))
        case FoldStep():
            return PreparedLocalStep(model, Fold(model, row, where))
    raise AssertionError(f"no transform for {type(model).__name__}")


def _without_quotes(sql: str) -> str:
    is_quoted = len(sql) > 2 and sql.startswith('"') and sql.endswith('"')
    return sql[1:-1].replace('""', '"') if is_quoted else sql
