"""The steps of a run in order: those that send requests by their routes, and local ones between them."""

from collections.abc import Sequence

from pipelines.dispatch.local_steps.local_run import in_thread
from pipelines.dispatch.step_runner import AnyRunStep, RunStep
from pipelines.preparation.prepared_job import AnyPreparedStep, PreparedStep, result_steps


def all_run_steps(steps: Sequence[AnyPreparedStep], requesting: Sequence[RunStep]) -> Sequence[AnyRunStep]:
    """Return all steps, ready to run; `requesting`: those that send requests, in order."""
    stored = {step.model.name for step in result_steps(steps)}
    routes = iter(requesting)
    ready: list[AnyRunStep] = []
    for step in steps:
        if not isinstance(step, PreparedStep):
            ready.append(in_thread(step.model.name, step.transform.apply))
            continue
        run_step = next(routes)
        for one in (run_step, *run_step.rungs):
            one.is_stored = step.model.name in stored
        ready.append(run_step)
    return ready
