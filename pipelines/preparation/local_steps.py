"""Prepared local steps: those that send no request, over the columns before them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from connectors.errors import KeyPath
from pipelines.config.steps.local_steps import EachStep, FoldStep, LocalStep, ReadStep, SelectStep
from pipelines.transforms.each import Each
from pipelines.transforms.fold import Fold
from pipelines.transforms.read import Read
from pipelines.transforms.select import Select

Transform = Select | Read | Each | Fold
"""What a local step does to rows."""


@dataclass(frozen=True, slots=True)
class PreparedLocalStep:
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
