"""What is the same for every row of a step: parameters named at the step itself, in `params` and in `extra_body`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from connectors.contracts import StepModel
from connectors.endpoints.params.checks import ParamCheck, check_params
from connectors.errors import JobError, KeyPath
from connectors.templating.template_tree import TemplateTree, compile_text, plain_json


def fixed_params(
    step: StepModel, own: Sequence[str], table: Mapping[str, ParamCheck], where: KeyPath
) -> dict[str, Any]:
    """The parameters by name, `model` first; JobError for one that does not fit or that stands in two places.

    `own`: the step's keys that are parameters as they stand. `table`: every parameter that `params` may hold.
    """
    fields = set(type(step).model_fields)
    for name in step.params:
        if name in fields and name not in table:
            raise JobError((*where, "params", name), "is a key of the step itself", "write it beside params")
    check_params(step.params, table, where)
    found: dict[str, Any] = {"model": step.model, **step.params}
    for name in own:
        value = getattr(step, name)
        if value is None:
            continue
        if name in step.params:
            raise JobError((*where, name), "stands in params as well", "write it in one place")
        found[name] = value
    return {name: plain_json(value, (*where, name)) for name, value in (found | step.extra_body).items()}


def optional_template(source: str | None, columns: Iterable[str], where: KeyPath) -> TemplateTree | None:
    """A text that each row fills in; None where the step names none."""
    return None if source is None else compile_text(source, columns, where)


def step_config_bytes(step: StepModel) -> bytes:
    """Canonical bytes of a step without limits and detail: the provider is told of beside it."""
    told = step.model_dump(exclude={"name", "provider", "when", "detail", "reuse"})
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
