"""Stated limits: those of response headers apply if they are lower than the configured ones."""

from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.limits.stated_limits import StatedLimits


def limiter_with(requests: float | None = None) -> ProviderLimiter:
    return ProviderLimiter(requests, None, None, longest_hold=900, longest_wait=60)


def test_a_lower_stated_limit_applies_and_a_higher_one_does_not() -> None:
    limiter = limiter_with(600)
    limiter.update_from_headers((300, 1200))
    assert (limiter.requests_per_minute, limiter.tokens_per_minute) == (300, 1200)
    limiter.update_from_headers((6000, None))
    assert (limiter.requests_per_minute, limiter.tokens_per_minute) == (600, None)


def test_the_lowest_limit_applies_if_the_models_of_a_key_have_separate_limits() -> None:
    limiter = limiter_with()
    limiter.update_from_headers((10000, None), of=1)
    limiter.update_from_headers((500, None), of=2)
    limiter.update_from_headers((10000, None), of=1)
    assert limiter.requests_per_minute == 500


def test_a_nearly_used_limit_shows_another_program_only_if_more_was_left_before() -> None:
    stated = StatedLimits((None, None))
    assert not stated.is_shared_with_others((3000, None), (5, None))
    assert not stated.is_shared_with_others((3000, None), (2000, None))
    assert stated.is_shared_with_others((3000, None), (5, None))


def test_a_limit_is_stated_by_the_provider_if_it_differs_from_the_configured_one() -> None:
    stated = StatedLimits((600, None))
    stated.update((300, None), "model")
    assert (stated.is_stated_by_provider("requests"), stated.is_stated_by_provider("tokens")) == (True, False)
