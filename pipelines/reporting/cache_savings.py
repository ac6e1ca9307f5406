"""Savings by a provider's prompt cache, at today's prices."""

from collections.abc import Iterable, Mapping
from typing import Any

from connectors.errors import JobError
from pipelines.config.workspace import Workspace
from pipelines.dispatch.provider_routes import model_price
from pipelines.pricing.prices import batch_price, tier_price, usd


def cache_savings(workspace: Workspace, served: Iterable[Mapping[str, Any]], is_batch: bool) -> float | None:
    """Return the US dollars that cached input tokens cost less than others; None if a price is not known.

    `served`: each with provider, model, service_tier and cached_tokens. `is_batch`: at the prices of the Batch API.
    """
    saved = 0
    for one in served:
        if not one["cached_tokens"]:
            continue
        try:
            price = model_price(workspace, one["model"], workspace.provider(one["provider"]))
        except JobError:
            # The provider has left the workspace, or its key is not set here.
            return None
        if price is not None:
            price = batch_price(price) if is_batch else tier_price(price, one["service_tier"]) or price
        if price is None or price.input_per_million is None:
            return None
        cached = price.input_per_million if price.cached_input_per_million is None else price.cached_input_per_million
        saved += one["cached_tokens"] * (price.input_per_million - cached) // 10**6
    return usd(saved)
