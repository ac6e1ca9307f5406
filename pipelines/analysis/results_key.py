"""The key of a results table: that of the source, and after an `each` the number of the child."""

from msgspec import Struct

from connectors.sql import identifier, identifier_list, key_text
from pipelines.config.job import Job
from pipelines.config.steps.local_steps import EachStep, FoldStep
from pipelines.preparation.source_reader import ROW_KEY


class ResultsKey(Struct, frozen=True):
    """The key of a results table."""

    source: tuple[str, ...]
    """Key columns of the source."""
    child_index: str | None = None
    """The column that numbers the rows which `each` makes of one source row."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.source if self.child_index is None else (*self.source, self.child_index)

    @property
    def source_rows(self) -> str:
        """SQL of the number of source rows among errors; each rejected line of the source, which has no key, counts."""
        if self.child_index is None:
            return "count(*)"
        has_key = f"{identifier(self.source[0])} is not null"
        return (
            f"(count(distinct ({identifier_list(self.source)})) filter ({has_key}) + count(*) filter (not {has_key}))"
        )

    @property
    def text(self) -> str:
        """SQL of the key as text, as `rowmill show` takes it; of a source row that failed as a whole, its own key."""
        whole = key_text(self.columns)
        if self.child_index is None:
            return whole
        return f"case when {identifier(self.child_index)} is null then {key_text(self.source)} else {whole} end"


def results_key(job: Job) -> ResultsKey:
    """Return the key of a job's results: after an `each` without `fold`, several rows have one source key."""
    index: str | None = None
    for step in job.steps:
        if isinstance(step, EachStep):
            index = f"{step.name}_index"
        elif isinstance(step, FoldStep):
            index = None
    return ResultsKey(job.key or (ROW_KEY,), index)
