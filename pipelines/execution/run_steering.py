"""What `rowmill control` may do to a run: its settings, put in force and logged."""

import os

from connectors.errors import JobError
from pipelines.control.run_control import RunControl
from pipelines.control.run_settings import RunSettings
from pipelines.engines.local_engine import Engine
from pipelines.execution.budget_checks import check_budget
from pipelines.monitoring.json_log import log_event, print_problem
from pipelines.monitoring.run_view import RunView
from pipelines.preparation.prepared_job import PreparedJob
from pipelines.pricing.prices import PICO
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.run_options import RunOptions
from pipelines.runtime.run_report import ControlEvent


def steer_run(
    ready: PreparedJob, options: RunOptions, run_id: str, engine: Engine, view: RunView, budget: RunBudget
) -> RunControl:
    """Return the control of a run whose engine is ready."""
    job, clock = ready.job, view.time_breakdown
    if clock is not None:
        engine.dispatcher.state.on_pause(clock.record_pause)

    def check(settings: RunSettings) -> None:
        if settings.limits != job.limits and job.delivery == "batch" and job.deadline is None:
            found = "a run with delivery: batch has no limits; the provider sets its pace"
            raise JobError("set limits", found, "set budget.usd, or run with --delivery online")
        if settings.budget is None or settings.budget == control.settings.budget:
            return
        if options.is_on_ray and job.budget is None:
            raise JobError("set budget.usd", "a run on Ray that began without a budget takes none", "run again with it")
        check_budget(ready)

    def apply(settings: RunSettings) -> str | None:
        if clock is not None and settings.limits.concurrency != control.settings.limits.concurrency:
            clock.set_concurrency(settings.limits.concurrency)
        usd = None if settings.budget is None else round(settings.budget.usd * PICO)
        return engine.set_limits(settings.limits, usd)

    def print_event(event: ControlEvent) -> None:
        if options.is_quiet:
            return
        if options.log == "json":
            log_event("control", job.name, run_id, "info", **event.to_json())
        else:
            print_problem(f"{job.name}: {event}", as_json=False)

    control = RunControl(job.name, run_id, view, budget, RunSettings.of_job(job), check, apply, print_event)
    return control


async def serve_control(ready: PreparedJob, options: RunOptions, run_id: str, control: RunControl) -> None:
    """Serve the run's control socket until cancelled; without one the run goes on, with a warning."""
    try:
        await control.serve(ready.workspace.state)
    except OSError as exc:
        if not options.is_quiet:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
            message = (
                f"{ready.job.name}: no socket in {ready.workspace.state} ({reason}); `rowmill control` has no effect"
            )
            print_problem(message, options.log == "json", ready.job.name, run_id, level="warning")
