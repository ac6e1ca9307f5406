"""What the keys of one step must not say against each other."""

from connectors.contracts import StepModel
from pipelines.mistakes import Misfit

_NEVER_SENT = frozenset({"endpoint", "dialect", "structured", "split", "output"})
"""Keys of endpoints that are no parameters of the API."""


def check_step(step: StepModel) -> None:
    """Misfit, its path relative to the step, for what would be passed over or would spoil the request."""
    typed = isinstance(getattr(step, "output", None), dict)
    if getattr(step, "structured", "auto") != "auto" and not typed:
        raise Misfit(
            ("structured",),
            "says how a typed output is asked for, and there is none; write output: {name: {type: ...}}",
        )
    fields = type(step).model_fields.keys()
    own = (fields - StepModel.model_fields.keys() - _NEVER_SENT) | {"model", "stream"}
    for name in step.extra_body:
        if name in own:
            where = "at the step" if name in fields else "below params where the endpoint takes it"
            raise Misfit(("extra_body", name), f"Rowmill itself goes by it; write {name}: {where}")
        if name in step.params:
            raise Misfit(("extra_body", name), "stands in params as well; leave out one of both")
        if typed and name in ("response_format", "text"):
            raise Misfit(("extra_body", name), "a typed output brings its own; leave it out")
        if name == "n":
            raise Misfit(("extra_body", name), "the columns depend on it; write it below params")
