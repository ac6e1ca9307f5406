"""Prepared local steps: those that send no request, over the columns before them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from connectors.errors import KeyPath
from pipelines.config.steps.local_steps import LocalStep, SelectStep
from pipelines.transforms.select import Select

Transform = Select
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
    def kind(self) -> str:
        """The key of the job file that names what it does."""
        return "select"


def prepare_local_step(model: LocalStep, row: pa.Schema) -> PreparedLocalStep:
    """Check a local step against the columns of the row before it; JobError below `steps.NAME`."""
    where: KeyPath = ("steps", model.name)
    assert isinstance(model, SelectStep)
    return PreparedLocalStep(model, Select(model, row, where))
