"""The lanes of a run: each step with its provider's allowance, its price, and the bound of what a request can cost."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from connectors.contracts import Provider
from connectors.records import Request, RowError
from connectors.tokens import has_known_tokenizer
from pipelines.config.job import Job
from pipelines.config.workspace import LOCAL, Workspace
from pipelines.dispatch.provider_pool import ProviderPool
from pipelines.dispatch.request_types import Route, RunLedger
from pipelines.dispatch.step_runner import RunStep
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.preparation.prepared_job import PreparedStep
from pipelines.pricing.price_cache import cached_published_price
from pipelines.pricing.prices import FREE, Price, image_price, max_cost, resolve_price

TEXT_BYTES = 1 << 16
"""Bodies up to this size are text: their bytes bound their tokens. Larger ones carry media and count as estimated."""


REFUSED = RowError("bad_request", "response_format is not supported")
"""As a server words it that does not know this way to ask for typed output."""


class Laned(Protocol):
    """What is asked here of a ready job."""

    @property
    def job(self) -> Job: ...

    @property
    def workspace(self) -> Workspace: ...

    @property
    def steps(self) -> Sequence[PreparedStep]: ...


def build_routes(
    ready: Laned, ledger: RunLedger, run_id: str, allowances: dict[str, ProviderLimiter]
) -> Sequence[RunStep]:
    """The job's steps, ready to be travelled; fills in the allowance of each provider."""
    job = ready.job
    limits = job.limits
    of_job = ProviderLimiter(
        limits.requests_per_minute, limits.tokens_per_minute, None, job.retry.longest_hold, job.retry.longest_wait
    )
    steps: list[RunStep] = []
    for step in ready.steps:
        members = [_lane(ready, step, member, ledger, run_id, allowances, of_job) for member in step.members]
        lane = members[0]
        if step.is_pooled:
            pool = ProviderPool(members)
            lane = replace(lane, provider=step.provider, price=step_price(ready, step), max_cost=pool.max_cost, pool=pool)
        # In a batch, one row ahead would be a batch of its own: hours.
        known = (
            step.context.structured_mode is not None
            or job.delivery == "batch"
            or lane.endpoint.fallback_mode(REFUSED) is None
        )
        steps.append(RunStep(lane, step.when, _easier(step, ledger), known))
    return steps


def shared_limiters(ready: Laned, allowances: Mapping[str, ProviderLimiter]) -> dict[str, ProviderLimiter]:
    """The allowances that other processes of the workspace use as well, by name and address of the provider."""
    members = {member.name: member for step in ready.steps for member in step.members if member.name != LOCAL}
    return {f"{name} {member.base_url}": allowances[name] for name, member in members.items()}


def _lane(
    ready: Laned,
    step: PreparedStep,
    provider: Provider,
    ledger: RunLedger,
    run_id: str,
    allowances: dict[str, ProviderLimiter],
    of_job: ProviderLimiter,
) -> Route:
    job, model = ready.job, step.model
    own = allowances.get(provider.name)
    if own is None:
        own = allowances[provider.name] = ProviderLimiter(
            provider.requests_per_minute,
            provider.tokens_per_minute,
            provider.concurrency,
            job.retry.longest_hold,
            job.retry.longest_wait,
        )
    price = member_price(ready, step, provider)
    return Route(
        step=model.name,
        endpoint=step.endpoint,
        provider=provider,
        limiters=(own, of_job),
        price=price,
        max_cost=max_cost_function(price, model.model),
        route_id=ledger.register_route(run_id, job.name, model.name, provider.name, model.endpoint, model.model),
        is_last_step=step is ready.steps[-1],
    )


def step_price(ready: Laned, step: PreparedStep) -> Price | None:
    """What the step's model charges, in a pool at its dearest member; None where a member has no price for it."""
    prices = [member_price(ready, step, member) for member in step.members]
    known = [price for price in prices if price is not None]
    # By the rates of what models charge most often; what a request costs at most is reckoned for each member.
    return max(known, key=_dearness) if len(known) == len(prices) else None


def _dearness(price: Price) -> int:
    rates = (price.output_per_million, price.input_per_million, price.per_image, price.audio_per_minute)
    return sum(rate or 0 for rate in rates)


def member_price(ready: Laned, step: PreparedStep, provider: Provider) -> Price | None:
    """What the step's model charges at one provider; what runs embedded costs nothing."""
    if provider.name == LOCAL:
        return FREE
    known = ready.workspace.state / "prices.json"
    price = resolve_price(
        step.model.model,
        provider.prices,
        ready.workspace.prices,
        lambda model: cached_published_price(model, known),
    )
    terms = step.endpoint.image_terms
    return price if price is None or terms is None else image_price(price, *terms)


def max_cost_function(price: Price | None, model: str) -> Callable[[Request], int | None]:
    """The most that a request of the model can cost: its input counted, or bounded by its bytes where the model's
    tokenizer is not known; its output as bounded."""
    exact = has_known_tokenizer(model)

    def worst(request: Request) -> int | None:
        tokens = request.input_tokens
        if tokens and not exact and len(request.body) <= TEXT_BYTES:
            tokens = max(tokens, len(request.body))
        return max_cost(
            price,
            tokens,
            request.output_bound,
            audio_seconds=request.audio_seconds,
            characters=request.characters,
            images=request.images,
        )

    return worst


def _easier(step: PreparedStep, ledger: RunLedger) -> Callable[[Route, str], Awaitable[Route]]:
    async def ask_easier(lane: Route, way: str) -> Route:
        """The lane that asks in the simpler way, which is remembered for this provider's model."""
        endpoint = step.with_structured_mode(way)
        await ledger.write_queued(
            "insert or replace into modes (provider, model, structured) values (?, ?, ?)",
            (step.provider.tag, step.model.model, way),
        )
        return replace(lane, endpoint=endpoint)

    return ask_easier
