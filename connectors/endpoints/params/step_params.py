"""Parameters that all rows of a step share: from the step, its `params` and its `extra_body`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from connectors.contracts import UNFINGERPRINTED_KEYS, StepModel, TextFile
from connectors.endpoints.params.checks import ParamCheck, check_params
from connectors.errors import JobError, KeyPath
from connectors.templating.template_tree import TemplateTree, compile_text, plain_json


def fixed_params(
    step: StepModel, step_keys: Sequence[str], table: Mapping[str, ParamCheck], where: KeyPath
) -> dict[str, Any]:
    """Return the parameters by name, `model` first; JobError for one that does not fit or is set twice.

    `step_keys`: the step's keys that are parameters. `table`: every parameter that `params` may contain.
    """
    fields = set(type(step).model_fields)
    for name in step.params:
        if name in fields and name not in table:
            raise JobError((*where, "params", name), "is a key of the step", "write it on the step, not in params")
    check_params(step.params, table, where)
    params: dict[str, Any] = {"model": step.model, **step.params}
    for name in step_keys:
        value = getattr(step, name)
        if value is None:
            continue
        if name in step.params:
            raise JobError((*where, name), "is also in params", "write it in one place")
        params[name] = value
    return {name: plain_json(value, (*where, name)) for name, value in (params | step.extra_body).items()}


def optional_template(source: str | TextFile | None, columns: Iterable[str], where: KeyPath) -> TemplateTree | None:
    """Compile a text of the step; None if the step has none."""
    return None if source is None else compile_text(checked_text(source, where), columns, where)


def checked_text(source: str | TextFile, where: KeyPath) -> str:
    """Return a text of the step; JobError for a file: only loading a job, which knows its workspace, reads it."""
    if isinstance(source, TextFile):
        raise JobError(where, f"{source.file} was not read", "load the job by its file, or run it from Python")
    return source


def step_config_bytes(step: StepModel) -> bytes:
    """Return canonical bytes of a step without detail; the row fingerprint has the provider separately."""
    config = step.model_dump(exclude=set(UNFINGERPRINTED_KEYS))
    return orjson.dumps(config, option=orjson.OPT_SORT_KEYS)
