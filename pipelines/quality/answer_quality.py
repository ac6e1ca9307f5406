"""Answer quality: the evidence and the checks of one step, over the rows of a chunk with their answers."""

from collections.abc import Mapping, Sequence

import orjson
import pyarrow as pa

from connectors.errors import KeyPath
from connectors.records import TEXT_PREFIX, Values
from connectors.registry import StepConfig
from pipelines.quality.checks import CheckFailure, Checks
from pipelines.quality.evidence import EvidenceColumns


class AnswerQuality:
    """What a step does with its answers: places of quotations as further columns, and conditions."""

    def __init__(
        self, step: StepConfig, outputs: Sequence[pa.Field], columns: Mapping[str, pa.DataType], where: KeyPath
    ) -> None:
        """`outputs`: of the step's endpoint; `columns`: of the row before it. JobError below `where`."""
        self._outputs = outputs
        self._evidence = EvidenceColumns(step.evidence, outputs, columns, (*where, "evidence"))
        self.fields = self._evidence.fields
        """The columns of the evidence."""
        made = [*outputs, *self.fields]
        names = {field.name for field in made}
        schema = pa.schema([*(pa.field(name, kind) for name, kind in columns.items() if name not in names), *made])
        self._checks = Checks(step.check, schema, (*where, "check")) if step.check else None
        checked = frozenset() if self._checks is None else self._checks.columns
        self.columns: frozenset[str] = (checked | self._evidence.columns) - names
        """The columns that it reads besides the step's own."""
        self.digest = orjson.dumps(
            [step.name, [check.model_dump() for check in step.check], step.evidence], option=orjson.OPT_SORT_KEYS
        )
        """What identifies the checks and the evidence in row fingerprints."""

    def close(self) -> None:
        """Close what evaluates the checks."""
        if self._checks is not None:
            self._checks.close()

    def inputs(self, rows: pa.Table) -> pa.Table:
        """Return the columns before the step that it reads; any one if it reads none, since those have the rows."""
        return rows.select(self._read_columns(rows) or rows.column_names[:1])

    def _read_columns(self, rows: pa.Table) -> list[str]:
        texts = {TEXT_PREFIX + name for name in self.columns}.intersection(rows.column_names)
        return sorted({*self.columns, *texts})

    def evaluate(
        self, rows: pa.Table, outputs: Sequence[pa.Array]
    ) -> tuple[Sequence[Values], Mapping[int, CheckFailure]]:
        """Return the evidence of each row, and the rows whose answers fail a check.

        `rows`: one for each answer, with at least the columns of `inputs`. `outputs`: the step's own columns.
        """
        table = rows.select(self._read_columns(rows))
        for field, array in zip(self._outputs, outputs, strict=True):
            table = table.append_column(field, array)
        evidence = self._evidence.arrays(table)
        for field, array in zip(self.fields, evidence, strict=True):
            table = table.append_column(field, array)
        failures = {} if self._checks is None else self._checks.failures(table)
        if not evidence:
            return [()] * rows.num_rows, failures
        return list(zip(*(array.to_pylist() for array in evidence), strict=True)), failures

    def arrays(self, evidence: Sequence[Values | None]) -> list[pa.Array]:
        """Return the columns of the evidence; None gives nulls."""
        return [
            pa.array([None if row is None else row[place] for row in evidence], field.type)
            for place, field in enumerate(self.fields)
        ]


def answer_quality(
    step: StepConfig, outputs: Sequence[pa.Field], columns: Mapping[str, pa.DataType], where: KeyPath
) -> AnswerQuality | None:
    """Return the quality of a step's answers; None if it has neither checks nor evidence."""
    if not step.check and not step.evidence:
        return None
    return AnswerQuality(step, outputs, columns, where)
