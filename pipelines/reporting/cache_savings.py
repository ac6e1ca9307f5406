"""Savings by a provider's prompt cache, at today's prices."""

from collections.abc import Iterable, Mapping
from typing import Any

from connectors.errors import JobError
from pipelines.config.workspace import Workspace
from pipelines.dispatch.provider_routes import model_price
from pipelines.pricing.prices import usd


def cache_savings(workspace: Workspace, steps: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the US dollars that cached input tokens cost less than others; None if a price is not known.

    `steps`: each with provider, model and cached_tokens.
    """
    saved = 0
    for step in steps:
        if not step["cached_tokens"]:
            continue
        try:
            price = model_price(workspace, step["model"], workspace.provider(step["provider"]))
        except JobError:
            # The provider has left the workspace, or its key is not set here.
            return None
        if price is None or price.input_per_million is None:
            return None
        cached = price.input_per_million if price.cached_input_per_million is None else price.cached_input_per_million
        saved += step["cached_tokens"] * (price.input_per_million - cached) // 10**6
    return usd(saved)
