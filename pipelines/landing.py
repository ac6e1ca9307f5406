"""What became of a chunk's rows in one step: their values, their failures, and what is still to be asked."""

from dataclasses import dataclass, field

from connectors.records import Request, RowError, Values

Wanted = dict[bytes, tuple[Request, list[int]]]
"""By fingerprint the requests of a chunk, each with the rows that it answers for."""


@dataclass(slots=True)
class Failure:
    """A row that failed, for the errors table."""

    row: int
    step: str
    error: RowError
    attempts: int
    run_id: str
    at: int


@dataclass(slots=True)
class Landing:
    """What became of a chunk's rows in one step."""

    values: list[Values | None]
    answers: list[bytes | None]
    done: list[bool]
    failures: list[Failure] = field(default_factory=list)

    def arrived(self) -> list[int]:
        """The rows that have done the step."""
        failed = {failure.row for failure in self.failures}
        return [row for row, done in enumerate(self.done) if done and row not in failed]


@dataclass(slots=True)
class Reading:
    """What is still to be asked after a wave was read, a part of it at a time."""

    further: Wanted = field(default_factory=dict)
    easier: dict[str, list[int]] = field(default_factory=dict)
    """Rows to be asked in a simpler way."""
