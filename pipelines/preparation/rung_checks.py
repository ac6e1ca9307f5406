"""Checks of the rungs of `rescue`: each changes the requests of its step, and none of its outputs."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from connectors.contracts import Endpoint
from connectors.errors import JobError
from connectors.registry import StepConfig


@contextlib.contextmanager
def located_in_rung(step: StepConfig, place: int) -> Iterator[None]:
    """Give errors of a step that a rung causes the key path of the rung; `place` counts from 0."""
    try:
        yield
    except JobError as exc:
        if exc.key_path is None:
            raise
        rung, path = step.rescue[place], exc.key_path
        key = path[2:]
        is_own = (key[:1] == ("params",) and len(key) > 1 and key[1] in rung.params) or (
            key[:1] in (("provider",), ("model",)) and getattr(rung, str(key[0])) is not None
        )
        where = (*path[:2], "rescue", place, *(key if is_own else ()))
        raise JobError(where, exc.found, exc.remedy, text_line=exc.text_line) from exc


def check_rung(step: StepConfig, place: int, declared: Endpoint, rung: Endpoint, has_other_provider: bool) -> None:
    """Raise JobError for a rung that changes nothing, or changes the outputs of its step.

    `has_other_provider`: a flag has replaced the providers, which may leave a rung without effect.
    """
    where = ("steps", step.name, "rescue", place)
    one = step.rungs[place]
    if (one.provider, one.model, one.params) == (step.provider, step.model, step.params) and not (
        has_other_provider and step.rescue[place].provider is not None
    ):
        raise JobError(where, "changes nothing of the step", "give it other params, another provider or another model")
    if rung.fields == declared.fields or declared.dimensions_unknown:
        return
    size, expected = vector_size(rung), vector_size(declared)
    if size is not None and expected is not None:
        found = f"its vectors have {size:,} numbers, those of the step {expected:,}"
        raise JobError(where, found, f"add params: {{dimensions: {expected}}}, or choose another model")
    columns = ", ".join(f"{field.name} ({field.type})" for field in rung.fields)
    others = ", ".join(f"{field.name} ({field.type})" for field in declared.fields)
    raise JobError(where, f"would make the columns {columns}, the step makes {others}", "leave out what changes them")


def vector_size(endpoint: Endpoint) -> int | None:
    """Return the length of an endpoint's vectors; None if it makes none, or the length is unknown."""
    kinds = [field.type for field in endpoint.fields if pa.types.is_fixed_size_list(field.type)]
    return int(kinds[0].list_size) if kinds else None
