"""How long a model's vectors are, where nobody has said it: seen in the sink, or asked with the first row."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa

from connectors.errors import Stopped
from connectors.records import ROW_ERROR_CLASSES, Request
from connectors.sql import quoted
from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.dispatch.counters import RunCounters, StepCounters
from pipelines.dispatch.dispatcher import OnlineDispatcher
from pipelines.dispatch.provider_routes import build_routes
from pipelines.dispatch.request_types import DailyBudget, RetryLimits
from pipelines.dispatch.step_runner import RunStep
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep
from pipelines.pricing.prices import PICO
from pipelines.pricing.run_budget import RunBudget
from pipelines.runtime.run_records import OpenRun

MAX_PROBED_ROWS = 16
"""Rows that are asked one by one, at most."""

SAMPLE = "Rowmill"
"""Embedded where the step's text needs what earlier steps are yet to answer."""


def missing_dimensions(ready: PreparedJob) -> Sequence[PreparedStep]:
    """The steps whose vectors have no known length."""
    return [step for step in ready.steps if step.endpoint.dimensions_unknown]


def dimensions_from_sink(ready: PreparedJob, ledger: Ledger) -> None:
    """Note the lengths of the vectors that the sink holds."""
    if not ready.sink.exists():
        return
    with duckdb.connect() as db:
        ready.sink.attach(db)
        try:
            for step in missing_dimensions(ready):
                (column,) = (quoted(field.name) for field in step.endpoint.fields)
                query = f"select len({column}) from {ready.sink.results_sql()} where {column} is not null limit 1"
                for (size,) in db.execute(query).fetchall():
                    _store_dimensions(ledger, step, size)
        except duckdb.BinderException:
            # The table has no such column yet: what to do about that is told when the sink is prepared.
            return
        finally:
            ready.sink.detach(db)


async def probe_dimensions(ready: PreparedJob, ledger: Ledger, run: OpenRun, tally: RunCounters) -> None:
    """Ask each step's provider for one vector, that of the first row where that is possible: it is kept, and paid once.

    Counted in `tally`. Stopped where no vector comes.
    """
    job = ready.job
    tally.steps = {step.model.name: StepCounters() for step in ready.steps}
    said = ready.workspace.budget
    transport = HttpTransport(RequestTimeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total), 1)
    fanout = OnlineDispatcher(
        ledger,
        transport,
        RunBudget(None if job.budget is None else round(job.budget.usd * PICO), run.spent),
        tally,
        RetryLimits(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold),
        1,
        run.run_id,
        None if said is None else DailyBudget(round(said.usd_per_day * PICO), ready.workspace.zone),
    )
    allowances: dict[str, ProviderLimiter] = {}
    lanes = build_routes(ready, ledger, run.run_id, allowances)
    fanout.start()
    try:
        for step, lane in zip(ready.steps, lanes, strict=True):
            if step.endpoint.dimensions_unknown:
                size = await _probe_step(
                    fanout, lane, itertools.islice(_requests(ready, step), MAX_PROBED_ROWS), tally.sized
                )
                if size is not None:
                    _store_dimensions(ledger, step, size)
    finally:
        await fanout.close(0)
        await transport.close()


async def _probe_step(
    fanout: OnlineDispatcher, lane: RunStep, requests: Iterable[Request], sized: set[bytes]
) -> int | None:
    """The length of the first vector that comes; None where there is no request. A row that is refused for a reason of
    its own will stand in errors, and the next one is asked. `sized` gets the request that was sent for it."""
    why: str | None = None
    for request in requests:
        wave = await fanout.submit(lane.lane, [request], lambda answer: True)
        await wave.done.wait()
        fanout.read_buffer.release(wave.nbytes)
        outcome = wave.outcomes.get(request.fingerprint)
        if outcome is not None and outcome.answer is not None:
            sized |= {request.fingerprint} if outcome.sent else set()
            return len(outcome.answer) // 4
        why = fanout.stopped if outcome is None or outcome.error is None else outcome.error.message
        if outcome is None or outcome.error is None or outcome.error.error_class not in ROW_ERROR_CLASSES:
            break
    else:
        if why is None:
            return None
    raise Stopped(
        f"steps.{lane.lane.step}.dimensions: how long the model's vectors are could not be learned: {why}; "
        "run again, or add dimensions: N"
    )


def _requests(ready: PreparedJob, step: PreparedStep) -> Iterator[Request]:
    """Those of the first rows that the step is to ask for, as far as that can be told before earlier steps answer."""
    for batch in ready.selection.batches(64, frozenset()):
        known = step.when is not None and step.when.columns.issubset(batch.schema.names)
        mask = step.when.mask(pa.Table.from_batches([batch])) if step.when is not None and known else None
        for place, row in enumerate(batch.to_pylist()):
            if mask is not None and not mask[place]:
                continue
            values = {name: row.get(name, SAMPLE) for name in step.endpoint.input_columns}
            request = step.endpoint.request(values, row["_key"])
            if isinstance(request, Request):
                yield request


def _store_dimensions(ledger: Ledger, step: PreparedStep, size: int) -> None:
    whose = (step.context.provider_tag, step.model.model, size)
    ledger.write("insert or replace into vector_sizes values (?, ?, ?)", whose)
