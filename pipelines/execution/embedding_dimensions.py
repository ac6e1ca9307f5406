"""Embedding dimensions that the job does not state: read from the sink, or probed with the first row."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa

from connectors.error_classes import ROW_ERROR_CLASSES
from connectors.errors import Stopped
from connectors.records import Request
from connectors.sql import identifier
from connectors.templating.row_values import row_values
from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.online_dispatcher import OnlineDispatcher
from pipelines.dispatch.pending_requests import PendingRequests
from pipelines.dispatch.provider_routes import build_job_limiter, build_routes
from pipelines.dispatch.request_types import DailyBudget, RetryLimits
from pipelines.dispatch.step_runner import RunStep
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep
from pipelines.pricing.prices import PICO
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.run_records import OpenRun

MAX_PROBED_ROWS = 16
"""Rows that a probe requests one by one."""

SAMPLE = "Rowmill"
"""Stands in for outputs of earlier steps, which have no answers yet."""


def missing_dimensions(ready: PreparedJob) -> Sequence[PreparedStep]:
    """Return the steps whose vectors have no known dimensions."""
    return [step for step in ready.steps if step.endpoint.dimensions_unknown]


def dimensions_from_sink(ready: PreparedJob, ledger: Ledger) -> None:
    """Store the dimensions of the vectors in the sink."""
    if not ready.sink.exists():
        return
    with duckdb.connect() as db:
        ready.sink.attach(db)
        try:
            for step in missing_dimensions(ready):
                (column,) = (identifier(field.name) for field in step.endpoint.fields)
                query = f"select len({column}) from {ready.sink.results_sql()} where {column} is not null limit 1"
                for (size,) in db.execute(query).fetchall():
                    _store_dimensions(ledger, step, size)
        except duckdb.BinderException:
            # The table has no such column yet; preparing the sink reports that.
            return
        finally:
            ready.sink.detach(db)


async def probe_dimensions(ready: PreparedJob, ledger: Ledger, run: OpenRun, counters: RunCounters) -> None:
    """Request one vector from each step's provider, for the first row if possible: it is stored and paid for once.

    Adds to `counters`. Raises Stopped if no vector arrives.
    """
    job = ready.job
    counters.steps = {step.model.name: StepCounters() for step in ready.steps}
    daily = ready.workspace.budget
    transport = HttpTransport(RequestTimeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total), 1)
    dispatcher = OnlineDispatcher(
        PendingRequests(ledger, counters, DispatchState(), run.run_id),
        ledger,
        transport,
        RunBudget(None if job.budget is None else round(job.budget.usd * PICO), run.spent),
        RetryLimits(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold),
        1,
        None if daily is None else DailyBudget(round(daily.usd_per_day * PICO), ready.workspace.zone),
    )
    limiters: dict[str, ProviderLimiter] = {}
    routes = build_routes(job, ready.workspace, ready.steps, ledger, run.run_id, limiters, build_job_limiter(job))
    dispatcher.start()
    try:
        for step, step_route in zip(ready.steps, routes, strict=True):
            if step.endpoint.dimensions_unknown:
                dimensions = await _probe_step(
                    dispatcher,
                    step_route,
                    itertools.islice(_requests_of_first_rows(ready, step), MAX_PROBED_ROWS),
                    counters.probed_fingerprints,
                )
                if dimensions is not None:
                    _store_dimensions(ledger, step, dimensions)
    finally:
        await dispatcher.close(0)
        await transport.close()


async def _probe_step(
    dispatcher: OnlineDispatcher, step_route: RunStep, requests: Iterable[Request], probed: set[bytes]
) -> int | None:
    """Return the dimensions of the first vector that arrives; None if no row makes a request.

    After a row that fails for a reason of its own the next one is requested. Adds the fingerprint sent to `probed`.
    """
    reason: str | None = None
    for request in requests:
        submission = await dispatcher.pending.submit(
            step_route.route, [request], lambda fingerprint, answer: answer.error is None
        )
        await submission.done.wait()
        dispatcher.pending.read_buffer.release(submission.unread_bytes)
        outcome = submission.outcomes.get(request.fingerprint)
        if outcome is not None and outcome.answer is not None:
            probed |= {request.fingerprint} if outcome.was_sent else set()
            return len(outcome.answer) // 4
        reason = dispatcher.state.stop_reason if outcome is None or outcome.error is None else outcome.error.message
        if outcome is None or outcome.error is None or outcome.error.error_class not in ROW_ERROR_CLASSES:
            break
    else:
        if reason is None:
            return None
    stopped = dispatcher.state.stop_reason
    if stopped is not None and stopped.startswith("setup:"):
        # No dimensions in the job would help.
        raise Stopped(stopped)
    raise Stopped(
        f"steps.{step_route.route.step}.dimensions: "
        f"the dimensions of the model's vectors could not be determined: {reason}; "
        "run again, or add dimensions: N"
    )


def _requests_of_first_rows(ready: PreparedJob, step: PreparedStep) -> Iterator[Request]:
    """Yield the step's requests for the first rows, without the outputs of earlier steps."""
    for batch in ready.selection.batches(64, frozenset()):
        known = step.when is not None and step.when.columns.issubset(batch.schema.names)
        mask = step.when.mask(pa.Table.from_batches([batch])) if step.when is not None and known else None
        for place, row in enumerate(row_values(batch)):
            if mask is not None and not mask[place]:
                continue
            values = {name: row.get(name, SAMPLE) for name in step.endpoint.input_columns}
            request = step.endpoint.request(values, row["_key"])
            if isinstance(request, Request):
                yield request


def _store_dimensions(ledger: Ledger, step: PreparedStep, dimensions: int) -> None:
    parameters = (step.context.provider_tag, step.model.model, dimensions)
    ledger.write("insert or replace into vector_sizes values (?, ?, ?)", parameters)
