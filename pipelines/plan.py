"""A plan: what a run would do and cost, told before anything is sent."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from connectors.exchange import Request
from connectors.ledger import Ledger
from connectors.prices import batch_price, usd, worst_cost
from connectors.tokens import is_exact
from pipelines.invoke import opened_ledger
from pipelines.jobfile import load_job
from pipelines.lanes import step_price
from pipelines.overrides import Overrides
from pipelines.prepare import ReadyJob, ReadyStep, placed, prepared
from pipelines.workspace import find_workspace

SAMPLE = 2000
"""Rows that are rendered to see how long their requests are."""
USUAL_ANSWER = 150
"""Output tokens of an answer, where no earlier answer of the step tells better."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step would send. Money in US dollars; None where the model has no price."""

    step: str
    provider: str
    model: str
    requests: int
    in_ledger: int
    """Rows of these whose answer the ledger has: they cost nothing."""
    input_tokens: int
    output_tokens: int
    exact_tokens: bool
    """Whether the model's own tokenizer counted; else estimated."""
    low_usd: float | None
    expected_usd: float | None
    high_usd: float | None
    batch_usd: float | None
    seconds: float | None
    """At the limits that are known; None where none is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of one job would do."""

    job: str
    rows: int
    new: int
    changed: int
    done: int
    failed_before: int
    steps: Sequence[StepPlan]
    disk_bytes: int
    examples: Sequence[Any]
    """The first requests as they would be sent."""

    def total(self, field: str) -> float | None:
        """The sum over the steps; None where one is not known."""
        amounts = [getattr(step, field) for step in self.steps]
        return None if None in amounts else sum(amounts)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def plan_of(path: Path, overrides: Overrides) -> Plan:
    """The plan of one job. Later steps are reckoned as if every row that may reach them did."""
    loaded = load_job(path, overrides)
    workspace = find_workspace(path)
    with opened_ledger(workspace) as ledger, prepared(loaded, workspace, ledger) as ready:
        ready.selection.see(ready.sink if ready.sink.present() and ready.job.sink.write != "replace" else None)
        with placed(loaded):
            ready.selection.check_keys()
        counts = ready.selection.counts()
        asked = counts.new + counts.changed
        rows = _sample(ready)
        steps: list[StepPlan] = []
        examples: list[Any] = []
        for step in ready.steps:
            steps.append(_step(ready, step, ledger, rows, asked, examples))
        answer_bytes = sum(step.output_tokens * 8 for step in steps)
        return Plan(
            ready.job.name,
            counts.rows,
            counts.new,
            counts.changed,
            counts.done,
            counts.failed_before,
            steps,
            answer_bytes + asked * 400 * len(steps),
            examples,
        )


def _sample(ready: ReadyJob) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in ready.selection.batches(512, frozenset()):
        rows.extend(batch.to_pylist())
        if len(rows) >= SAMPLE:
            break
    return rows


def _step(
    ready: ReadyJob,
    step: ReadyStep,
    ledger: Ledger,
    rows: Sequence[dict[str, Any]],
    asked: int,
    examples: list[Any],
) -> StepPlan:
    requests = _requests(step, rows)
    for request in requests[: max(0, 2 - len(examples))]:
        examples.append({"step": step.model.name, "request": orjson.loads(request.body)})
    unique = {request.fingerprint: request for request in requests}
    kept = ledger.lookup(list(unique))
    fresh = [request for mark, request in unique.items() if mark not in kept]
    scale = asked / len(rows) if rows else 0.0
    packs = sum(1 for _ in step.endpoint.packs(fresh))
    usual = _usual_output(ledger, ready.job.name, step)
    bound = step.endpoint.output_bound
    given = round(sum(request.input_tokens for request in fresh) * scale)
    made = round(len(fresh) * scale * (min(usual, bound) if bound is not None else usual)) if bound != 0 else 0
    price = step_price(ready, step)
    count = round(len(fresh) * scale)
    most = None if bound is None else bound * count
    prices = None if price is None else (price, batch_price(price))
    return StepPlan(
        step=step.model.name,
        provider=step.provider.name,
        model=step.model.model,
        requests=round(packs * scale),
        in_ledger=round((len(unique) - len(fresh)) * scale),
        input_tokens=given,
        output_tokens=made,
        exact_tokens=is_exact(step.model.model),
        low_usd=None if prices is None else _dollars(worst_cost(prices[0], given, count if bound != 0 else 0)),
        expected_usd=None if prices is None else _dollars(worst_cost(prices[0], given, made)),
        high_usd=None if prices is None else _dollars(worst_cost(prices[0], given, most)),
        batch_usd=None if prices is None else _dollars(worst_cost(prices[1], given, made)),
        seconds=_seconds(ready, step, round(packs * scale), given + made),
    )


def _requests(step: ReadyStep, rows: Sequence[dict[str, Any]]) -> list[Request]:
    """The sample's requests; columns that earlier steps are yet to make stand for a usual answer."""
    made: list[Request] = []
    for row in rows:
        values = {name: row.get(name, "answer " * 10) for name in step.endpoint.uses}
        request = step.endpoint.request(values, row["_key"])
        if isinstance(request, Request):
            made.append(request)
    return made


def _usual_output(ledger: Ledger, job: str, step: ReadyStep) -> float:
    ((mean,),) = ledger.query(
        "select avg(e.output_tokens) from exchanges e join legs l on l.id = e.leg "
        "where l.job = ? and l.step = ? and l.model = ? and e.output_tokens is not null",
        (job, step.model.name, step.model.model),
    )
    return USUAL_ANSWER if mean is None else float(mean)


def _seconds(ready: ReadyJob, step: ReadyStep, requests: int, tokens: int) -> float | None:
    limits = ready.job.limits
    of_requests = [limit for limit in (limits.requests_per_minute, step.provider.requests_per_minute) if limit]
    of_tokens = [limit for limit in (limits.tokens_per_minute, step.provider.tokens_per_minute) if limit]
    times = [60 * requests / min(of_requests)] if of_requests else []
    times += [60 * tokens / min(of_tokens)] if of_tokens else []
    return max(times, default=None)


def _dollars(pico: int | None) -> float | None:
    return None if pico is None else usd(pico)
