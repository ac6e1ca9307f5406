"""How long a model's vectors are, where nobody has said it: seen in the sink, or asked with the first row."""

from collections.abc import Sequence

import duckdb

from connectors.errors import Stopped
from connectors.exchange import Request
from connectors.ledger import Ledger
from connectors.limiter import Allowance
from connectors.prices import PICO
from connectors.sql_text import quoted
from connectors.transport import HttpTransport, Timeouts
from pipelines.fanout import FanOut
from pipelines.lanes import lanes_of
from pipelines.packs import DayBudget, Tries
from pipelines.prepare import ReadyJob, ReadyStep
from pipelines.purse import Purse
from pipelines.runs import OpenRun
from pipelines.tally import StepTally, Tally
from pipelines.travel import Step

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


async def ask_sizes(ready: ReadyJob, ledger: Ledger, run: OpenRun) -> Tally:
    """Ask each step's provider for one vector, that of the first row where that is possible: it is kept, and paid once.

    Stopped where no vector comes.
    """
    job, tally = ready.job, Tally(steps={step.model.name: StepTally() for step in ready.steps})
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
            if step.endpoint.unsized and (request := _first_request(ready, step)) is not None:
                _note(ledger, step, await _size(fanout, lane, request))
    finally:
        await fanout.close(0)
        await transport.close()
    return tally


async def _size(fanout: FanOut, lane: Step, request: Request) -> int:
    wave = await fanout.ask(lane.lane, [request], lambda answer: True)
    await wave.landed.wait()
    outcome = wave.outcomes.get(request.fingerprint)
    if outcome is None or outcome.answer is None:
        why = fanout.stopped if outcome is None or outcome.error is None else outcome.error.message
        raise Stopped(
            f"steps.{lane.lane.step}.dimensions: how long the model's vectors are could not be learned: {why}; "
            "run again, or add dimensions: N"
        )
    return len(outcome.answer) // 4


def _first_request(ready: ReadyJob, step: ReadyStep) -> Request | None:
    """Of the first row that makes one; None where no row is to be asked."""
    for batch in ready.selection.batches(64, frozenset()):
        for row in batch.to_pylist():
            values = {name: row.get(name, SAMPLE) for name in step.endpoint.uses}
            request = step.endpoint.request(values, row["_key"])
            if isinstance(request, Request):
                return request
    return None


def _note(ledger: Ledger, step: ReadyStep, size: int) -> None:
    whose = (step.facts.provider_tag, step.model.model, size)
    ledger.write("insert or replace into vector_sizes values (?, ?, ?)", whose)
