"""Routes: limiters, prices, and the most that a request can cost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.contracts import Provider
from connectors.records import BillingTerms, Request
from pipelines.config.workspace_file import LOCAL
from pipelines.dispatch.provider_routes import (
    TEXT_BYTES,
    build_job_limiter,
    build_routes,
    max_cost_function,
    member_price,
    shared_limiters,
    step_price,
)
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.prices import FREE, Price, PriceEntry

CHEAP = PriceEntry(input_per_million=1, output_per_million=2)
EXPENSIVE = PriceEntry(input_per_million=10, output_per_million=20)


class ScriptedLedger:
    """Numbers routes in the order of their registration, and records statements."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, ...]] = []
        self.statements: list[Any] = []

    def register_route(self, *names: str) -> int:
        self.routes.append(names)
        return len(self.routes)

    def has_answers(self, job: str, step: str, provider: str, model: str) -> tuple[bool, bool]:
        return False, False

    async def write_queued(self, sql: str, values: Any) -> None:
        self.statements.append(values)


def provider_of(name: str, price: PriceEntry | None = CHEAP, **limits: Any) -> Provider:
    return Provider(name, f"http://{name}", prices={} if price is None else {"m": price}, **limits)


def step_of(name: str, *members: Provider, fallback_mode: str | None = None, mode: str | None = None) -> Any:
    endpoint = SimpleNamespace(
        image_terms=None,
        shares_exchanges=False,
        billing_terms=BillingTerms(),
        fallback_mode=lambda error: fallback_mode,
    )
    pooled = len(members) > 1
    model = SimpleNamespace(
        name=name, model="m", provider="p", params={}, rescue=(), endpoint="chat", schema_digest=b"schema"
    )
    model.with_rungs = (model,)
    step = SimpleNamespace(
        model=model,
        endpoint=endpoint,
        provider=provider_of("both") if pooled else members[0],
        members=members,
        is_pooled=pooled,
        context=SimpleNamespace(structured_mode=mode, sent_model=lambda model: model),
        when=None,
        quality=None,
        repairs=1,
        has_repairs=True,
        with_structured_mode=lambda mode: f"endpoint in mode {mode}",
        rung_field=None,
    )
    step.with_rungs = (step,)
    return step


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    return SimpleNamespace(state=tmp_path, prices={})


@pytest.fixture
def job() -> Any:
    return SimpleNamespace(
        name="job",
        delivery="online",
        limits=SimpleNamespace(requests_per_minute=600, tokens_per_minute=None),
        retry=SimpleNamespace(longest_hold=900, longest_wait=60),
    )


def test_steps_at_one_provider_share_its_limiter_and_all_share_the_jobs(job: Any, workspace: Any) -> None:
    provider = provider_of("test", concurrency=7)
    limiters: dict[str, ProviderLimiter] = {}
    ledger: Any = ScriptedLedger()
    steps = [step_of("first", provider), step_of("second", provider)]
    first, second = (
        step.route for step in build_routes(job, workspace, steps, ledger, "run", limiters, build_job_limiter(job))
    )
    assert first.limiters[0] is second.limiters[0] is limiters["test"]
    assert first.limiters[1] is second.limiters[1]
    assert (limiters["test"].concurrency, first.limiters[1].requests_per_minute) == (7, 600)
    assert [(one.step, one.route_id, one.is_last_step) for one in (first, second)] == [
        ("first", 1, False),
        ("second", 2, True),
    ]
    assert ledger.routes[0] == ("run", "job", "first", "test", "chat", "m")


def test_the_route_of_a_pool_has_a_route_for_each_member_and_the_highest_price(job: Any, workspace: Any) -> None:
    members = (provider_of("cheap"), provider_of("costly", EXPENSIVE))
    limiters: dict[str, ProviderLimiter] = {}
    ledger: Any = ScriptedLedger()
    (step,) = build_routes(
        job, workspace, [step_of("answer", *members)], ledger, "run", limiters, build_job_limiter(job)
    )
    route = step.route
    assert (route.provider.name, [member.provider.name for member in route.members]) == ("both", ["cheap", "costly"])
    request = Request(b"f" * 16, b"{}", 100, 100, ("1",))
    assert route.max_cost(request) == route.members[1].max_cost(request)
    assert route.price == route.members[1].price


@pytest.mark.parametrize(
    ("fallback_mode", "mode", "delivery", "is_known"),
    [(None, None, "online", True), ("prompt", None, "online", False), ("prompt", "schema", "online", True),
     ("prompt", None, "batch", True)],
)  # fmt: skip
async def test_one_row_probes_the_structured_mode_unless_it_is_known_or_a_batch(
    job: Any, workspace: Any, fallback_mode: str | None, mode: str | None, delivery: str, is_known: bool
) -> None:
    job.delivery = delivery
    ledger: Any = ScriptedLedger()
    prepared = step_of("answer", provider_of("test"), fallback_mode=fallback_mode, mode=mode)
    (step,) = build_routes(job, workspace, [prepared], ledger, "run", {}, build_job_limiter(job))
    assert step.is_mode_known == is_known
    assert (step.mode, step.fall_back(step.route, "prompt").endpoint) == (mode, "endpoint in mode prompt")
    await step.learn_mode("prompt")
    assert ledger.statements == [("test@there", "m", b"schema", "prompt")]


def test_the_embedded_provider_is_free_and_its_limiter_is_not_shared(workspace: Any) -> None:
    step = step_of("answer", provider_of(LOCAL, None))
    assert member_price(workspace, step, step.provider) == FREE
    remote = step_of("answer", provider_of("test"))
    limiters = {name: ProviderLimiter(None, None, None, 900, 60) for name in (LOCAL, "test")}
    assert shared_limiters([step, remote], limiters) == {"test http://test": limiters["test"]}


def test_a_step_has_no_price_if_a_member_has_none(workspace: Any) -> None:
    assert step_price(workspace, step_of("answer", provider_of("test"), provider_of("other", None))) is None


def test_the_maximum_cost_counts_tokens_or_bytes_if_the_tokenizer_is_unknown() -> None:
    price = Price(input_per_million=1_000_000, output_per_million=1_000_000)
    request = Request(b"f" * 16, bytes(500), 100, 50, ("1",))
    assert max_cost_function(price, "gpt-4o")(request) == 100 + 50
    assert max_cost_function(price, "unknown")(request) == 500 + 50
    media = Request(b"f" * 16, bytes(TEXT_BYTES + 1), 100, 50, ("1",))
    assert max_cost_function(price, "unknown")(media) == 100 + 50
    assert max_cost_function(price, "unknown")(Request(b"f" * 16, b"", 1, None, ("1",))) is None
    assert max_cost_function(None, "unknown")(request) is None
