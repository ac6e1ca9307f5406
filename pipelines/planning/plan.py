"""A plan: what a run would do and cost, told before anything is sent."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import orjson
import pyarrow as pa

from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace import LOCAL
from pipelines.planning.dry_run import Looked, Reckoned, look
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep, prepare_job, with_location
from pipelines.preparation.schema_evolution import has_keys, schema_refusal, sink_types
from pipelines.pricing.prices import usd
from pipelines.runtime.services import open_workspace_ledger

LEDGER_BYTES = 420
"""What the ledger and the usage table take for one exchange, besides request and answer."""
TOKEN_BYTES = 4.5


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step would send. Money in US dollars; None where it is not known."""

    step: str
    endpoint: str
    provider: str
    model: str
    requests: int
    """HTTP exchanges, if none has to be tried again."""
    rows: int
    """Rows that an answer is asked for; equal requests count once."""
    in_ledger: int
    """Rows whose answer the ledger has: they cost nothing."""
    skipped: int
    """Rows that `when` leaves out."""
    perhaps: int
    """Rows of which only the run will tell whether `when` lets them pass."""
    unaskable: int
    """Rows whose values make no request: they will fail as `input`."""
    fetched: int
    """Rows that name a URL: what is there is not looked at now, and counts as an average."""
    input_tokens: int
    output_tokens: int
    exact_tokens: bool
    """Whether the model's own tokenizer counted whole requests; else estimated."""
    answers_seen: int
    """Earlier answers that tell how long the next will be; 0: estimated."""
    guessed_answer: int | None
    """Tokens that an answer is taken to have, where nothing at all tells its length; None where something does."""
    latency_ms: float | None
    """What answers took so far: the step's own, else those of the same model elsewhere; None where there is none."""
    audio_seconds: float
    characters: int
    images: int
    free: bool
    """It runs on this machine, in Rowmill itself."""
    low_usd: float | None
    expected_usd: float | None
    high_usd: float | None
    """Every answer as long as it may be and, where it has a type, asked to be mended once."""
    batch_usd: float | None
    """As expected, by the Batch API."""
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
    reckoned_rows: int
    """Rows that the steps were reckoned on; fewer than new and changed where those are many: then scaled up."""
    steps: Sequence[StepPlan]
    requests: int
    input_tokens: int
    output_tokens: int
    low_usd: float | None
    expected_usd: float | None
    high_usd: float | None
    batch_usd: float | None
    seconds: float | None
    """At the limits that are known, for all steps together; None where none is."""
    bound_by: str | None
    """What the time is bound by, in words."""
    delivery: str
    """online or batch: which of both costs is the run's."""
    budget_usd: float | None
    refused: str | None
    """Why a run would be refused until it is told what to do with the sink's tables, which have other columns."""
    disk_bytes: int
    examples: Sequence[Any]
    """The first requests as they would be sent."""

    @property
    def whole(self) -> bool:
        """Whether every row was looked at."""
        return self.reckoned_rows >= self.new + self.changed

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def plan_of(loaded: LoadedJob) -> Plan:
    """The plan of one job; no call is made."""
    workspace = loaded.workspace
    with (
        open_workspace_ledger(workspace) as ledger,
        prepare_job(loaded, ledger, exact_tokens=True, sink_types=sink_types) as ready,
    ):
        refused = schema_refusal(ready)
        ready.selection.load_sink_state(ready.sink if ready.job.sink.write != "replace" and has_keys(ready) else None)
        with with_location(loaded):
            ready.selection.check_keys()
        counts = ready.selection.counts()
        asked = counts.new + counts.changed
        looked = asyncio.run(look(ready, ledger, asked))
        scale = asked / looked.rows if looked.rows else 0.0
        steps = [_step(ready, reckoned, scale) for reckoned in looked.steps]
        seconds, bound_by = _time(ready, steps)
        return Plan(
            job=ready.job.name,
            rows=counts.rows,
            new=counts.new,
            changed=counts.changed,
            done=counts.done,
            failed_before=counts.failed_before,
            reckoned_rows=looked.rows,
            steps=steps,
            requests=sum(step.requests for step in steps),
            input_tokens=sum(step.input_tokens for step in steps),
            output_tokens=sum(step.output_tokens for step in steps),
            low_usd=_sum([step.low_usd for step in steps]),
            expected_usd=_sum([step.expected_usd for step in steps]),
            high_usd=_sum([step.high_usd for step in steps]),
            batch_usd=_sum([step.batch_usd for step in steps]),
            seconds=seconds,
            bound_by=bound_by,
            delivery=ready.job.delivery,
            budget_usd=None if ready.job.budget is None else ready.job.budget.usd,
            refused=None if refused is None else str(refused),
            disk_bytes=round(_disk(looked) * scale),
            examples=[{"step": name, "request": orjson.loads(request.body)} for name, request in looked.examples],
        )


def _step(ready: PreparedJob, reckoned: Reckoned, scale: float) -> StepPlan:
    step, bill = reckoned.step, reckoned.bill
    requests = ceil(reckoned.requests * scale)
    given, made = round(bill.input_tokens * scale), round(bill.output_tokens * scale)
    return StepPlan(
        step=step.model.name,
        endpoint=step.model.endpoint,
        provider=step.provider.name,
        model=step.model.model,
        requests=requests,
        rows=round(reckoned.asked * scale),
        in_ledger=round(reckoned.in_ledger * scale),
        skipped=round(reckoned.skipped * scale),
        perhaps=round(reckoned.perhaps * scale),
        unaskable=round(reckoned.unaskable * scale),
        fetched=round(reckoned.fetched * scale),
        input_tokens=given,
        output_tokens=made,
        exact_tokens=bill.rates.exact and not reckoned.guessed,
        answers_seen=reckoned.likely.seen,
        guessed_answer=round(reckoned.likely.usual) if reckoned.likely.guess else None,
        latency_ms=reckoned.likely.latency_ms,
        audio_seconds=round(bill.audio_seconds * scale, 3),
        characters=round(bill.characters * scale),
        images=round(bill.images * scale),
        free=step.provider.name == LOCAL,
        low_usd=_dollars(bill.low, scale),
        expected_usd=_dollars(bill.expected, scale),
        high_usd=_dollars(bill.high, scale),
        batch_usd=_dollars(bill.batch, scale),
        seconds=_at_limits(
            (step.provider.requests_per_minute, ready.job.limits.requests_per_minute),
            (step.provider.tokens_per_minute, ready.job.limits.tokens_per_minute),
            requests,
            given + made,
        ),
    )


def _time(ready: PreparedJob, steps: Sequence[StepPlan]) -> tuple[float | None, str | None]:
    """The longest of what the job's limits, each provider's own, and the answers' latency ask for, and which it is."""
    limits = ready.job.limits
    times = list(_at_limits_of("the job's limit", limits.requests_per_minute, limits.tokens_per_minute, steps))
    for own in {step.provider.name: step.provider for step in ready.steps}.values():
        whose = [plan for plan in steps if plan.provider == own.name]
        times += _at_limits_of(f"the limit of {own.name}", own.requests_per_minute, own.tokens_per_minute, whose)
    # Steps of which no answer was seen take some time as well: then this is the least that it will be.
    seen = [(plan, step) for plan, step in zip(steps, ready.steps, strict=True) if plan.latency_ms is not None]
    waits = [plan.requests * (plan.latency_ms or 0) / 1000 / _senders(step, limits.concurrency) for plan, step in seen]
    if requests := sum(plan.requests for plan, _ in seen):
        mean = sum(plan.requests * (plan.latency_ms or 0) for plan, _ in seen) / requests
        senders = min(_senders(step, limits.concurrency) for _, step in seen)
        times.append((sum(waits), f"answers that take {mean:,.0f} ms, {senders:,} at a time"))
    return max(times, default=(None, None), key=lambda told: told[0] or 0.0)


def _at_limits_of(
    whose: str, of_requests: int | None, of_tokens: int | None, steps: Sequence[StepPlan]
) -> Iterator[tuple[float, str]]:
    requests, tokens = _load(steps)
    if of_requests:
        yield 60 * requests / of_requests, f"{whose}, {of_requests:,} requests a minute"
    if of_tokens:
        yield 60 * tokens / of_tokens, f"{whose}, {of_tokens:,} tokens a minute"


def _senders(step: PreparedStep, concurrency: int) -> int:
    return min(concurrency, step.provider.concurrency or concurrency)


def _load(steps: Sequence[StepPlan]) -> tuple[int, int]:
    return sum(step.requests for step in steps), sum(step.input_tokens + step.output_tokens for step in steps)


def _at_limits(
    of_requests: Sequence[int | None], of_tokens: Sequence[int | None], requests: int, tokens: int
) -> float | None:
    times = [60 * requests / limit for limit in of_requests if limit]
    times += [60 * tokens / limit for limit in of_tokens if limit]
    return max(times, default=None)


def _disk(looked: Looked) -> float:
    """Bytes of ledger and tables, roughly, for the rows that were looked at."""
    total = looked.carried_bytes * 0.5
    for reckoned in looked.steps:
        width = sum(
            field.type.list_size * 4
            for field in reckoned.step.endpoint.fields
            if pa.types.is_fixed_size_list(field.type)
        )
        answer = reckoned.likely.usual * TOKEN_BYTES
        total += reckoned.body_bytes + reckoned.asked * (2 * answer + 2 * width) + reckoned.requests * LEDGER_BYTES
        # An mp3 takes about 1,000 bytes for each character spoken; a picture about 1.5 MB, kept in the ledger too.
        total += 2 * reckoned.bill.images * 1.5e6
        total += 2 * 1000 * reckoned.bill.characters if reckoned.step.model.endpoint == "speech" else 0
    return total


def _sum(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _dollars(pico: int | None, scale: float) -> float | None:
    return None if pico is None else usd(round(pico * scale))
