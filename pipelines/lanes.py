"""The lanes of a run: each step with its provider's allowance, its price, and the bound of what a request can cost."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from connectors.contracts import Provider
from connectors.exchange import Request
from connectors.ledger import Ledger
from connectors.limiter import Allowance
from connectors.price_cache import remembered_price
from connectors.prices import FREE, Price, image_price, price_of, worst_cost
from connectors.tokens import is_exact
from pipelines.packs import Lane
from pipelines.prepare import ReadyJob, ReadyStep
from pipelines.travel import Step

TEXT_BYTES = 1 << 16
"""Bodies up to this size are text: their bytes bound their tokens. Larger ones carry media and count as estimated."""


def lanes_of(ready: ReadyJob, ledger: Ledger, run_id: str, allowances: dict[str, Allowance]) -> Sequence[Step]:
    """The job's steps, ready to be travelled; fills in the allowance of each provider."""
    job = ready.job
    limits = job.limits
    of_job = Allowance(
        limits.requests_per_minute, limits.tokens_per_minute, None, job.retry.longest_hold, job.retry.longest_wait
    )
    steps: list[Step] = []
    for ready_step in ready.steps:
        provider = ready_step.provider
        own = allowances.get(provider.name)
        if own is None:
            own = allowances[provider.name] = Allowance(
                provider.requests_per_minute,
                provider.tokens_per_minute,
                provider.concurrency,
                job.retry.longest_hold,
                job.retry.longest_wait,
            )
        price = step_price(ready, ready_step)
        lane = Lane(
            step=ready_step.model.name,
            endpoint=ready_step.endpoint,
            provider=provider,
            allowances=(own, of_job),
            price=price,
            worst=worst_of(price, ready_step.model.model),
            leg=ledger.leg(
                run_id,
                job.name,
                ready_step.model.name,
                provider.name,
                ready_step.model.endpoint,
                ready_step.model.model,
            ),
            last=ready_step is ready.steps[-1],
        )
        steps.append(Step(lane, ready_step.when, _easier(ready_step, provider, ledger)))
    return steps


def step_price(ready: ReadyJob, step: ReadyStep) -> Price | None:
    """What the step's model charges; None where nobody has a price for it. What runs embedded costs nothing."""
    if step.provider.name == "local":
        return FREE
    known = ready.workspace.state / "prices.json"
    price = price_of(
        step.model.model,
        step.provider.prices,
        ready.workspace.prices,
        lambda model: remembered_price(model, known),
    )
    terms = step.endpoint.image_terms
    return price if price is None or terms is None else image_price(price, *terms)


def worst_of(price: Price | None, model: str) -> Callable[[Request], int | None]:
    """The most that a request of the model can cost: its input counted, or bounded by its bytes where the model's
    tokenizer is not known; its output as bounded."""
    exact = is_exact(model)

    def worst(request: Request) -> int | None:
        tokens = request.input_tokens
        if tokens and not exact and len(request.body) <= TEXT_BYTES:
            tokens = max(tokens, len(request.body))
        return worst_cost(
            price,
            tokens,
            request.output_bound,
            audio_seconds=request.audio_seconds,
            characters=request.characters,
            images=request.images,
        )

    return worst


def _easier(step: ReadyStep, provider: Provider, ledger: Ledger) -> Callable[[Lane, str], Awaitable[Lane]]:
    async def ask_easier(lane: Lane, way: str) -> Lane:
        """The lane that asks in the simpler way, which is remembered for this provider's model."""
        endpoint = step.rebuilt(way)
        await ledger.write_queued(
            "insert or replace into modes (provider, model, structured) values (?, ?, ?)",
            (provider.tag, step.model.model, way),
        )
        return replace(lane, endpoint=endpoint)

    return ask_easier
