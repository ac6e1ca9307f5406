"""The routes of a run: each step with its provider's limiter, its price, and the most that a request can cost."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from connectors.contracts import Provider
from connectors.records import BillingTerms, Request, RowError
from connectors.tokens import context_window, has_known_tokenizer, shares_tokenizer
from pipelines.config.job import Job
from pipelines.config.workspace import Workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.dispatch.packing.packing import Packing, packing_of
from pipelines.dispatch.provider_pool import ProviderPool
from pipelines.dispatch.request_types import RequestGroup, Route, RunLedger
from pipelines.dispatch.rescue.ladder import Ladder
from pipelines.dispatch.step_runner import RunStep
from pipelines.limits.group_limits import GroupLimits
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.preparation.prepared_job import PreparedStep
from pipelines.pricing.price_cache import cached_published_price
from pipelines.pricing.prices import FREE, Price, image_price, max_cost, most_token_rates, tokens_cost
from pipelines.pricing.published_prices import resolve_price

TEXT_BYTES = 1 << 16
"""Bodies up to this size are text: their bytes bound their tokens. Larger ones carry media and count as estimated."""

_NO_TERMS = BillingTerms()

_UNSUPPORTED_MODE = RowError("bad_request", "response_format is not supported")
"""As a server words it that does not know a structured mode."""


def build_job_limiter(job: Job) -> ProviderLimiter:
    """Return the limiter of the job's own limits."""
    limits, retry = job.limits, job.retry
    return ProviderLimiter(
        limits.requests_per_minute, limits.tokens_per_minute, None, retry.longest_hold, retry.longest_wait
    )


def build_routes(
    job: Job,
    workspace: Workspace,
    steps: Sequence[PreparedStep],
    ledger: RunLedger,
    run_id: str,
    limiters: dict[str, ProviderLimiter],
    job_limiter: ProviderLimiter,
) -> Sequence[RunStep]:
    """Return the steps that send requests, ready to run; adds the limiter of each provider to `limiters`."""
    builder = _RouteBuilder(job, workspace, ledger, run_id, limiters, job_limiter)
    return [builder.step_with_rungs(step, is_last=step is steps[-1]) for step in steps]


class _RouteBuilder:
    """Builds the routes of one run: those to one provider share its limiter, those to one model its group limits."""

    def __init__(
        self,
        job: Job,
        workspace: Workspace,
        ledger: RunLedger,
        run_id: str,
        limiters: dict[str, ProviderLimiter],
        job_limiter: ProviderLimiter,
    ) -> None:
        self._job = job
        self._workspace = workspace
        self._ledger = ledger
        self._run_id = run_id
        self._limiters = limiters
        self._job_limiter = job_limiter
        self._group_limits: dict[tuple[str, str, str, int], GroupLimits[RequestGroup]] = {}

    def step_with_rungs(self, step: PreparedStep, is_last: bool) -> RunStep:
        """Return a step with the rungs of its `rescue`."""
        learn_mode = partial(_learn_mode, step, self._ledger)
        # The members of a pool share it.
        packing = packing_of(step.endpoint, learn_mode, can_halve=self._job.delivery == "online")
        declared, *rungs = (
            self._run_step(one, rung, is_last, packing if rung == 0 else None)
            for rung, one in enumerate(step.with_rungs)
        )
        column = None if step.rung_field is None else step.rung_field.name
        ladder = Ladder.of(step.model)
        for one in (declared, *rungs):
            one.rung_column, one.ladder, one.rungs = column, ladder, rungs
            one.quality, one.repairs = step.quality, step.repairs
            one.job = self._job.name if step.has_repairs else None
        return declared

    def _run_step(self, step: PreparedStep, rung: int, is_last: bool, packing: Packing | None) -> RunStep:
        members = [self._route(step, member, rung, is_last, packing) for member in step.members]
        route = members[0]
        if step.is_pooled:
            pool = ProviderPool(members)
            price = step_price(self._workspace, step)
            route = replace(route, provider=step.provider, price=price, max_cost=pool.max_cost, pool=pool)
        is_mode_known = (
            step.context.structured_mode is not None
            # In a batch, one row that goes first would be a separate batch: hours.
            or self._job.delivery == "batch"
            or route.endpoint.fallback_mode(_UNSUPPORTED_MODE) is None
        )
        return RunStep(
            route,
            step.when,
            partial(_fall_back, step),
            partial(_learn_mode, step, self._ledger),
            step.model.model,
            mode=step.context.structured_mode,
            is_mode_known=is_mode_known,
        )

    def _route(
        self, step: PreparedStep, provider: Provider, rung: int, is_last: bool, packing: Packing | None
    ) -> Route:
        job, model, ledger = self._job, step.model, self._ledger
        price = member_price(self._workspace, step, provider)
        is_model_proven, is_step_proven = ledger.has_answers(job.name, model.name, provider.name, model.model)
        return Route(
            step=model.name,
            endpoint=step.endpoint,
            provider=provider,
            limiters=(self._limiter(provider), self._job_limiter),
            price=price,
            max_cost=max_cost_function(
                price,
                provider.sent_model(model.model),
                step.context.sent_model(model.model),
                step.endpoint.billing_terms,
            ),
            route_id=ledger.register_route(
                self._run_id, job.name, model.name, provider.name, model.endpoint, model.model
            ),
            is_last_step=is_last,
            group_limits=self._limits_of_groups(step, rung),
            packing=packing,
            model=model.model,
            rung=rung,
            is_model_proven=is_model_proven,
            is_step_proven=is_step_proven,
        )

    def _limiter(self, provider: Provider) -> ProviderLimiter:
        if provider.name not in self._limiters:
            retry = self._job.retry
            self._limiters[provider.name] = ProviderLimiter(
                provider.requests_per_minute,
                provider.tokens_per_minute,
                provider.concurrency,
                retry.longest_hold,
                retry.longest_wait,
            )
        return self._limiters[provider.name]

    def _limits_of_groups(self, step: PreparedStep, rung: int) -> GroupLimits[RequestGroup] | None:
        """Return the group limits of the step's model; None if each of its requests is sent alone."""
        if not step.endpoint.shares_exchanges:
            return None
        key = (step.provider.tag, step.model.model)
        # A rung may have other parameters, which the endpoint of the limits writes.
        shared_by = (*key, step.model.name if rung else "", rung)

        async def store(max_requests: int | None, encoding: str | None) -> None:
            await self._ledger.write_queued(
                "insert or replace into group_terms (provider, model, max_requests, encoding) values (?, ?, ?, ?)",
                (*key, max_requests, encoding),
            )

        facts = step.context.embedding
        limits: GroupLimits[RequestGroup] = GroupLimits(step.endpoint, facts.max_texts, facts.encoding, store)
        return self._group_limits.setdefault(shared_by, limits)


def shared_limiters(
    steps: Sequence[PreparedStep], limiters: Mapping[str, ProviderLimiter]
) -> dict[str, ProviderLimiter]:
    """Return the limiters that other processes of the workspace use too, by name and address of the provider."""
    requested = [one for step in steps for one in step.with_rungs]
    members = {member.name: member for step in requested for member in step.members if member.name != LOCAL}
    return {f"{name} {member.base_url}": limiters[name] for name, member in members.items()}


def step_price(workspace: Workspace, step: PreparedStep) -> Price | None:
    """Return the price of the step's model, in a pool the highest; None if a member has no price for it."""
    prices = [member_price(workspace, step, member) for member in step.members]
    known = [price for price in prices if price is not None]
    # Compared by the rates that models charge most often; the maximum cost of a request is computed for each member.
    return max(known, key=_price_order) if len(known) == len(prices) else None


def _price_order(price: Price) -> int:
    rates = (price.output_per_million, price.input_per_million, price.per_image, price.audio_per_minute)
    return sum(rate or 0 for rate in rates)


def member_price(workspace: Workspace, step: PreparedStep, provider: Provider) -> Price | None:
    """Return the price of the step's model at one provider."""
    price = model_price(workspace, step.model.model, provider)
    if price is None:
        return None
    terms, tier = step.endpoint.image_terms, step.endpoint.billing_terms.service_tier
    return replace(price if terms is None else image_price(price, *terms), requested_tier=tier)


def model_price(workspace: Workspace, model: str, provider: Provider) -> Price | None:
    """Return the price of a model, as the job names it, at one provider; the embedded provider is free."""
    if provider.name == LOCAL:
        return FREE
    cache = workspace.state / "prices.json"
    return resolve_price(
        provider.sent_model(model),
        provider.prices,
        workspace.prices,
        lambda name: cached_published_price(name, cache),
    )


def uncounted_input_tokens(terms: BillingTerms, model: str) -> int | None:
    """Return the most input tokens of all turns of a request whose input only the provider counts; None: no bound.

    The results of a hosted tool's call are input of the next turn, at most the model's context window in each.
    """
    window = context_window(model)
    if not terms.hosted_tools:
        return window
    return None if window is None or terms.max_tool_calls is None else window * (terms.max_tool_calls + 1)


def max_cost_function(
    price: Price | None, model: str, counted_as: str | None = None, terms: BillingTerms = _NO_TERMS
) -> Callable[[Request], int | None]:
    """Return a function for the most that a request of the model can cost, in pico-dollars.

    Its input is counted, or bounded by its bytes if the model's tokenizer is unknown; its output is bounded.
    `counted_as`: the model whose tokenizer has counted, if it is another one.
    """
    is_exact = has_known_tokenizer(model) if counted_as is None else shares_tokenizer(model, counted_as)
    is_uncounted = bool(terms.hosted_tools) or terms.has_documents
    is_billed = is_uncounted and price is not None and not price.is_free
    turns_tokens = uncounted_input_tokens(terms, model) if is_billed else 0
    rates = None if price is None or is_uncounted else most_token_rates(price)
    input_rates = None if price is None or is_uncounted else most_token_rates(price, has_output=False)

    def request_max_cost(request: Request) -> int | None:
        tokens, bound = request.input_tokens, request.output_bound
        if tokens and not is_exact and len(request.body) <= TEXT_BYTES:
            tokens = max(tokens, len(request.body))
        known = rates if bound else input_rates
        if known is not None and bound is not None and request.has_only_tokens:
            return tokens_cost(known, tokens, bound)
        if turns_tokens is None:
            return None
        return max_cost(
            price,
            max(tokens, turns_tokens),
            bound,
            audio_seconds=request.audio_seconds,
            characters=request.characters,
            images=request.images,
            hosted_tools=terms.hosted_tools,
            max_tool_calls=terms.max_tool_calls or 0,
        )

    return request_max_cost


def _fall_back(step: PreparedStep, route: Route, mode: str) -> Route:
    """Return the route with a simpler structured mode."""
    return replace(route, endpoint=step.with_structured_mode(mode))


async def _learn_mode(step: PreparedStep, ledger: RunLedger, mode: str) -> None:
    """Remember the structured mode that this provider's model accepts for the step's schema."""
    await ledger.write_queued(
        "insert or replace into structured_modes (provider, model, schema, mode) values (?, ?, ?, ?)",
        (step.provider.tag, step.model.model, step.model.schema_digest, mode),
    )
