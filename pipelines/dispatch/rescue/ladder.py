"""The ladder of a step: its rungs in order, and which of them follows a failure."""

from collections.abc import Sequence
from typing import Self

from msgspec import Struct

from connectors.registry import StepConfig


class Ladder(Struct, frozen=True):
    """The rungs of one step; a rung's place counts from 1."""

    classes: tuple[frozenset[str], ...] = ()
    """The error classes after which each rung is taken."""
    same_as: tuple[int, ...] = ()
    """For each rung the place of the first one with the same requests; 0: its requests are those of the step."""

    @classmethod
    def of(cls, step: StepConfig) -> Self:
        """Return the ladder of a step."""
        requests = [(one.provider, one.model, one.params) for one in step.with_rungs]
        return cls(
            tuple(frozenset(rung.on) for rung in step.rescue),
            tuple(requests.index(one) for one in requests[1:]),
        )

    def next_place(self, error_class: str, tried: frozenset[int] = frozenset()) -> int | None:
        """Return the place of the rung that follows an error; None if none is left. `tried`: places of `same_as`."""
        return next((place for place, classes in self._untried(tried) if error_class in classes), None)

    def rescued_classes(self, tried: frozenset[int] = frozenset()) -> frozenset[str]:
        """Return the error classes that a rung follows."""
        return frozenset().union(*(classes for _, classes in self._untried(tried)))

    def with_tried(self, tried: frozenset[int], place: int) -> frozenset[int]:
        """Return the rungs that are tried once the one at `place` is, too."""
        return tried | {self.same_as[place - 1]}

    def _untried(self, tried: frozenset[int]) -> Sequence[tuple[int, frozenset[str]]]:
        rungs = enumerate(zip(self.classes, self.same_as, strict=True), 1)
        return [(place, classes) for place, (classes, same) in rungs if same and same not in tried]


NO_RUNGS = Ladder()
