"""Plan: what a run would do and cost, before anything is sent."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

import orjson
import pyarrow as pa
from msgspec import Struct, to_builtins

from connectors.contracts import Endpoint
from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.workspace_file import LOCAL
from pipelines.dispatch.request_types import total_cost
from pipelines.dispatch.rescue.rescued_rows import rescued_classes
from pipelines.execution.budget_checks import check_budget
from pipelines.ledger.projection import childless_rows
from pipelines.monitoring.json_log import print_problem
from pipelines.planning.dry_run import DryRun, StepEstimate, dry_run
from pipelines.planning.prompt_order import constant_tokens_after_rows, prompt_constants
from pipelines.preparation.job_warnings import job_warnings
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep, prepare_job
from pipelines.preparation.schema_evolution import has_keys, schema_refusal, sink_types
from pipelines.pricing.prices import usd
from pipelines.runtime.services import workspace_answers

LEDGER_BYTES = 420
"""Bytes of one exchange in the ledger and the usage table, without request and answer."""
TOKEN_BYTES = 4.5


class SingleRequests(Struct, frozen=True):
    """What the rows of a step with `pack` would take if each had a request of its own."""

    requests: int
    input_tokens: int
    output_tokens: int
    expected_usd: float | None


class StepPlan(Struct, frozen=True):
    """What one step would send. Money in US dollars; None if unknown."""

    step: str
    endpoint: str
    provider: str
    model: str
    requests: int
    """HTTP exchanges without retries."""
    rows: int
    """Rows that need an answer; equal requests count once."""
    in_ledger: int
    """Rows with an answer in the ledger: they cost nothing."""
    skipped: int
    """Rows excluded by `when`."""
    perhaps: int
    """Rows for which `when` depends on answers that do not exist yet."""
    unaskable: int
    """Rows whose values cannot make a request: they will fail as `input`."""
    fetched: int
    """Rows that name a URL: its content is not fetched now and counts as an average file."""
    input_tokens: int
    output_tokens: int
    exact_tokens: bool
    """Whether the model's own tokenizer counted whole requests; else estimated."""
    late_constant_tokens: int
    """Tokens of constant text after row text in each request: the provider cannot cache them; 0 if they are few."""
    answers_seen: int
    """Earlier answers on which the length of the next is based; 0: estimated."""
    guessed_answer: int | None
    """Default tokens of an answer if nothing is known of its length; None if something is."""
    model_limit: int | None
    """Tokens that the longest answer may have, if only the model bounds them; None if `params` does."""
    latency_ms: float | None
    """Mean latency of the step's answers, else of the same model's answers elsewhere; None if there are none."""
    audio_seconds: float
    characters: int
    images: int
    free: bool
    """Whether the embedded provider answers."""
    low_usd: float | None
    expected_usd: float | None
    high_usd: float | None
    """With the longest possible answers and one repair turn for each typed answer."""
    batch_usd: float | None
    """As expected, by the Batch API."""
    seconds: float | None
    """Time at the known limits; None if there is no limit."""
    rescued: int
    """Rows that failed before and that a rung of `rescue` requests; they are no part of `rows`."""
    rescue_usd: float | None
    """The most that rungs may add, if every row of `rows` fails and takes all of them; 0 without rungs."""
    unpacked: SingleRequests | None
    """None for a step without `pack`."""


class Plan(Struct, frozen=True):
    """What a run of one job would do."""

    job: str
    rows: int
    new: int
    changed: int
    done: int
    failed_before: int
    rescued: int
    """Failed before, and a rung of `rescue` may request them."""
    reckoned_rows: int
    """Rows that the estimates are based on; fewer than new and changed rows if those are many: then scaled up."""
    steps: Sequence[StepPlan]
    children: Mapping[str, int]
    """`each` step -> the rows that it will make, scaled up like the figures of the steps."""
    requests: int
    input_tokens: int
    output_tokens: int
    low_usd: float | None
    expected_usd: float | None
    high_usd: float | None
    batch_usd: float | None
    rescue_usd: float | None
    """The most that rungs may add to these, if every row fails and takes all of them; 0 without rungs."""
    seconds: float | None
    """Time of all steps at the known limits; None if there is no limit."""
    bound_by: str | None
    """What bounds the time."""
    delivery: str
    """online or batch: which of the two costs applies."""
    budget_usd: float | None
    refused: str | None
    """Why a run would be refused without `--schema-change`, since the sink's tables have other columns."""
    disk_bytes: int
    examples: Sequence[Any]
    """The first requests, as they would be sent."""
    warnings: Sequence[str] = ()
    """Lines about settings that are allowed, but probably a mistake."""
    unbounded: str | None = None
    """What bounds the highest cost, if nothing does so far; a budget would be refused."""

    @property
    def whole(self) -> bool:
        """Whether the estimates are based on every row."""
        return self.reckoned_rows >= self.new + self.changed + self.rescued

    def as_json(self) -> dict[str, Any]:
        """The object of `plan --json`."""
        values: dict[str, Any] = to_builtins(self)
        return values


def build_plan(loaded: LoadedJob) -> Plan:
    """Plan one job; nothing is sent."""
    workspace = loaded.workspace
    with (
        workspace_answers(workspace) as ledger,
        prepare_job(loaded, ledger, exact_tokens=True, sink_types=sink_types) as ready,
    ):
        for warning in ready.reader.warnings:
            print_problem(warning, as_json=False)
        refused = schema_refusal(ready)
        ready.selection.rescued = rescued_classes(ready, ledger)
        ready.selection.load_sink_state(
            ready.sink if ready.job.sink.write != "replace" and has_keys(ready) else None,
            childless_rows(ledger, ready.job.name, ready.sink_name),
        )
        ready.selection.check_keys()
        counts = ready.selection.counts()
        requested = counts.new + counts.changed + counts.rescued
        estimates = asyncio.run(dry_run(ready, ledger, requested))
        scale = requested / estimates.rows if estimates.rows else 0.0
        steps = [_step(ready, estimate, scale) for estimate in estimates.steps]
        seconds, bound_by = _time(ready, steps)
        high_usd = _sum([step.high_usd for step in steps])
        return Plan(
            job=ready.job.name,
            rows=counts.rows,
            new=counts.new,
            changed=counts.changed,
            done=counts.done,
            failed_before=counts.failed_before,
            rescued=counts.rescued,
            reckoned_rows=estimates.rows,
            steps=steps,
            children={name: round(count * scale) for name, count in estimates.children.items()},
            requests=sum(step.requests for step in steps),
            input_tokens=sum(step.input_tokens for step in steps),
            output_tokens=sum(step.output_tokens for step in steps),
            low_usd=_sum([step.low_usd for step in steps]),
            expected_usd=_sum([step.expected_usd for step in steps]),
            high_usd=high_usd,
            batch_usd=_sum([step.batch_usd for step in steps]),
            rescue_usd=_sum([step.rescue_usd for step in steps]),
            seconds=seconds,
            bound_by=bound_by,
            delivery=ready.job.delivery,
            budget_usd=None if ready.job.budget is None else ready.job.budget.usd,
            refused=None if refused is None else str(refused),
            disk_bytes=round(_disk(estimates) * scale),
            examples=[{"step": name, "request": orjson.loads(request.body)} for name, request in estimates.examples],
            warnings=job_warnings(ready),
            unbounded=None if high_usd is not None else _budget_remedy(ready),
        )


def _budget_remedy(ready: PreparedJob) -> str:
    """Return what a budget would lack."""
    try:
        check_budget(ready)
    except JobError as exc:
        return exc.remedy
    return "add params: {max_tokens: N}"


def _model_limit(endpoint: Endpoint) -> int | None:
    is_limited = not isinstance(endpoint, ConversationEndpoint) or endpoint.token_limits
    return None if is_limited else endpoint.output_bound


def _step(ready: PreparedJob, estimate: StepEstimate, scale: float) -> StepPlan:
    step, cost = estimate.step, estimate.cost
    costs = [cost, *estimate.rescued_costs]
    requests = ceil(estimate.requests * scale)
    input_tokens = round(sum(one.input_tokens for one in costs) * scale)
    output_tokens = round(sum(one.output_tokens for one in costs) * scale)
    return StepPlan(
        step=step.model.name,
        endpoint=step.model.endpoint,
        provider=step.provider.name,
        model=step.model.model,
        requests=requests,
        rows=round(estimate.asked * scale),
        in_ledger=round(estimate.in_ledger * scale),
        skipped=round(estimate.skipped * scale),
        perhaps=round(estimate.perhaps * scale),
        unaskable=round(estimate.unaskable * scale),
        fetched=round(estimate.fetched * scale),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        exact_tokens=cost.rates.is_exact and not estimate.estimated_inputs,
        late_constant_tokens=constant_tokens_after_rows(
            estimate.prompts, step.model.model, prompt_constants(step.model)
        ),
        answers_seen=estimate.answer.seen,
        guessed_answer=round(estimate.answer.expected_tokens) if estimate.answer.is_guess else None,
        model_limit=_model_limit(step.endpoint),
        latency_ms=estimate.answer.latency_ms,
        audio_seconds=round(cost.audio_seconds * scale, 3),
        characters=round(cost.characters * scale),
        images=round(cost.images * scale),
        free=step.provider.name == LOCAL,
        low_usd=_dollars(total_cost(one.low for one in costs), scale),
        expected_usd=_dollars(total_cost(one.expected for one in costs), scale),
        high_usd=_dollars(total_cost(one.high for one in costs), scale),
        batch_usd=_dollars(total_cost(one.batch for one in costs), scale),
        seconds=_at_limits(
            (step.provider.requests_per_minute, ready.job.limits.requests_per_minute),
            (step.provider.tokens_per_minute, ready.job.limits.tokens_per_minute),
            requests,
            input_tokens + output_tokens,
        ),
        rescued=round(estimate.rescued * scale),
        rescue_usd=_dollars(total_cost(one.high for one in estimate.rung_costs), scale),
        unpacked=_unpacked(estimate, scale),
    )


def _unpacked(estimate: StepEstimate, scale: float) -> SingleRequests | None:
    alone = estimate.alone
    if alone is None:
        return None
    return SingleRequests(
        requests=ceil(estimate.asked * scale),
        input_tokens=round(alone.input_tokens * scale),
        output_tokens=round(alone.output_tokens * scale),
        expected_usd=_dollars(alone.expected, scale),
    )


def _time(ready: PreparedJob, steps: Sequence[StepPlan]) -> tuple[float | None, str | None]:
    """(seconds, reason): the longest time required by the job's limits, a provider's limits, or latency."""
    limits = ready.job.limits
    times = list(_at_limits_of("the job's limit", limits.requests_per_minute, limits.tokens_per_minute, steps))
    for own in {step.provider.name: step.provider for step in ready.steps}.values():
        whose = [plan for plan in steps if plan.provider == own.name]
        times += _at_limits_of(f"the limit of {own.name}", own.requests_per_minute, own.tokens_per_minute, whose)
    # Steps without earlier answers are left out: the time is a lower bound.
    seen = [(plan, step) for plan, step in zip(steps, ready.steps, strict=True) if plan.latency_ms is not None]
    waits = [plan.requests * (plan.latency_ms or 0) / 1000 / _senders(step, limits.concurrency) for plan, step in seen]
    if requests := sum(plan.requests for plan, _ in seen):
        mean = sum(plan.requests * (plan.latency_ms or 0) for plan, _ in seen) / requests
        senders = min(_senders(step, limits.concurrency) for _, step in seen)
        times.append((sum(waits), f"answers that take {mean:,.0f} ms, {senders:,} at a time"))
    return max(times, default=(None, None), key=lambda time: time[0] or 0.0)


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


def _disk(estimates: DryRun) -> float:
    """Estimated bytes of ledger and tables for the processed rows."""
    total = estimates.carried_bytes * 0.5
    for estimate in estimates.steps:
        width = sum(
            field.type.list_size * 4
            for field in estimate.step.endpoint.fields
            if pa.types.is_fixed_size_list(field.type)
        )
        answer = estimate.answer.expected_tokens * TOKEN_BYTES
        total += estimate.body_bytes + estimate.asked * (2 * answer + 2 * width) + estimate.requests * LEDGER_BYTES
        # About 1,000 bytes of MP3 for each character spoken, 1.5 MB for an image; the ledger stores both too.
        total += 2 * estimate.cost.images * 1.5e6
        total += 2 * 1000 * estimate.cost.characters if estimate.step.model.endpoint == "speech" else 0
    return total


def _sum(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _dollars(pico: int | None, scale: float) -> float | None:
    return None if pico is None else usd(round(pico * scale))
