"""The columns of results that steps have made, and the values that the job file allows for them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from connectors.registry import StepConfig
from pipelines.config.job import Job
from pipelines.config.steps.local_steps import LocalStep, SelectStep

HIDDEN_COLUMNS = ("_run_id", "_row_fingerprint")


def carried_columns(job: Job, names: Iterable[str]) -> list[str]:
    """Return which of the result columns come from the source, without the key."""
    if job.sink.columns != "all":
        return list(job.sink.columns)
    own = {*job.key, *HIDDEN_COLUMNS}
    return [name for name in names if name not in own and not any(_makes(step, name) for step in job.steps)]


def output_columns(job: Job, names: Sequence[str]) -> list[str]:
    """Return which of the result columns steps have made."""
    others = {*job.key, *carried_columns(job, names), *HIDDEN_COLUMNS}
    return [name for name in names if name not in others]


def allowed_values(job: Job, column: str) -> Sequence[Any]:
    """Return the `enum` of an output, or of the elements of its list; empty if it has none."""
    for step in job.steps:
        output = getattr(step, "output", None)
        spec = output.get(column) if isinstance(output, Mapping) else None
        for schema in (spec, spec.get("items") if isinstance(spec, Mapping) else None):
            if isinstance(schema, Mapping) and isinstance(schema.get("enum"), list | tuple):
                return [value for value in schema["enum"] if value is not None]
    return ()


def _makes(step: StepConfig | LocalStep, column: str) -> bool:
    """Whether a step makes the column."""
    if isinstance(step, SelectStep):
        return column in step.select
    output = getattr(step, "output", None)
    own = output if isinstance(output, Mapping) else (output or step.name,)
    return column in own or column.startswith(f"{step.name}_")
