"""How long a model's vectors are, where nobody has said it: seen in the sink, or asked with the first row."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import duckdb
import pyarrow as pa

from connectors.errors import Stopped
from connectors.records import OWN_CLASSES, Request
from connectors.sql import quoted
from connectors.transport.client import HttpTransport, Timeouts
from pipelines.dispatch.counters import StepTally, Tally
from pipelines.dispatch.dispatcher import FanOut
from pipelines.dispatch.provider_routes import lanes_of
from pipelines.dispatch.request_types import DayBudget, Tries
from pipelines.dispatch.step_runner import Step
from pipelines.ledger.ledger import Ledger
from pipelines.limits.provider_limiter import Allowance
from pipelines.preparation.prepared_job import ReadyJob, ReadyStep
from pipelines.pricing.prices import PICO
from pipelines.pricing.run_budget import Purse
from pipelines.runtime.run_records import OpenRun

MOST = 16
"""Rows that are asked one by one, at most."""

SAMPLE = "Rowmill"
"""Embedded where the step's text needs what earlier steps are yet to answer."""


def unsized(ready: ReadyJob) -> Sequence[ReadyStep]:
    """The steps whose vectors have no known length."""
    return [step for step in ready.steps if step.endpoint.unsized]


def seen_in_sink(ready: ReadyJob, ledger: Ledger) -> None:
    """Note the lengths of the vectors that the sink holds."""
    if not ready.sink.present():
        return
    with duckdb.connect() as db:
        ready.sink.attach(db)
        try:
            for step in unsized(ready):
                (column,) = (quoted(field.name) for field in step.endpoint.fields)
                query = f"select len({column}) from {ready.sink.results_sql()} where {column} is not null limit 1"
                for (size,) in db.execute(query).fetchall():
                    _note(ledger, step, size)
        except duckdb.BinderException:
            # The table has no such column yet: what to do about that is told when the sink is prepared.
            return
        finally:
            ready.sink.detach(db)


async def ask_sizes(ready: ReadyJob, ledger: Ledger, run: OpenRun, tally: Tally) -> None:
    """Ask each step's provider for one vector, that of the first row where that is possible: it is kept, and paid once.

    Counted in `tally`. Stopped where no vector comes.
    """
    job = ready.job
    tally.steps = {step.model.name: StepTally() for step in ready.steps}
    said = ready.workspace.budget
    transport = HttpTransport(Timeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total), 1)
    fanout = FanOut(
        ledger,
        transport,
        Purse(None if job.budget is None else round(job.budget.usd * PICO), run.spent),
        tally,
        Tries(job.retry.attempts, job.retry.longest_wait, job.retry.longest_hold),
        1,
        run.run_id,
        None if said is None else DayBudget(round(said.usd_per_day * PICO), ready.workspace.zone),
    )
    allowances: dict[str, Allowance] = {}
    lanes = lanes_of(ready, ledger, run.run_id, allowances)
    fanout.start()
    try:
        for step, lane in zip(ready.steps, lanes, strict=True):
            if step.endpoint.unsized:
                size = await _size(fanout, lane, itertools.islice(_requests(ready, step), MOST), tally.sized)
                if size is not None:
                    _note(ledger, step, size)
    finally:
        await fanout.close(0)
        await transport.close()


async def _size(fanout: FanOut, lane: Step, requests: Iterable[Request], sized: set[bytes]) -> int | None:
    """The length of the first vector that comes; None where there is no request. A row that is refused for a reason of
    its own will stand in errors, and the next one is asked. `sized` gets the request that was sent for it."""
    why: str | None = None
    for request in requests:
        wave = await fanout.submit(lane.lane, [request], lambda answer: True)
        await wave.landed.wait()
        fanout.unread.free(wave.nbytes)
        outcome = wave.outcomes.get(request.fingerprint)
        if outcome is not None and outcome.answer is not None:
            sized |= {request.fingerprint} if outcome.sent else set()
            return len(outcome.answer) // 4
        why = fanout.stopped if outcome is None or outcome.error is None else outcome.error.message
        if outcome is None or outcome.error is None or outcome.error.error_class not in OWN_CLASSES:
            break
    else:
        if why is None:
            return None
    raise Stopped(
        f"steps.{lane.lane.step}.dimensions: how long the model's vectors are could not be learned: {why}; "
        "run again, or add dimensions: N"
    )


def _requests(ready: ReadyJob, step: ReadyStep) -> Iterator[Request]:
    """Those of the first rows that the step is to ask for, as far as that can be told before earlier steps answer."""
    for batch in ready.selection.batches(64, frozenset()):
        known = step.when is not None and step.when.columns.issubset(batch.schema.names)
        mask = step.when.mask(pa.Table.from_batches([batch])) if step.when is not None and known else None
        for place, row in enumerate(batch.to_pylist()):
            if mask is not None and not mask[place]:
                continue
            values = {name: row.get(name, SAMPLE) for name in step.endpoint.uses}
            request = step.endpoint.request(values, row["_key"])
            if isinstance(request, Request):
                yield request


def _note(ledger: Ledger, step: ReadyStep, size: int) -> None:
    whose = (step.facts.provider_tag, step.model.model, size)
    ledger.write("insert or replace into vector_sizes values (?, ?, ?)", whose)
