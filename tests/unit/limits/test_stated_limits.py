"""Limits that a provider states in its headers are kept to where they are lower than what was configured."""

from pipelines.limits.provider_limiter import ProviderLimiter


def allowance(requests: float | None = None) -> ProviderLimiter:
    return ProviderLimiter(requests, None, None, longest_hold=900, longest_wait=60)


def test_a_lower_limit_that_the_provider_states_is_kept_and_a_higher_one_is_not() -> None:
    told = allowance(600)
    told.update_from_headers((300, 1200))
    assert (told.requests_per_minute, told.tokens_per_minute) == (300, 1200)
    told.update_from_headers((6000, None))
    assert (told.requests_per_minute, told.tokens_per_minute) == (600, None)


def test_where_the_models_of_a_key_have_limits_of_their_own_the_lowest_is_kept() -> None:
    told = allowance()
    told.update_from_headers((10000, None), of=1)
    told.update_from_headers((500, None), of=2)
    told.update_from_headers((10000, None), of=1)
    assert told.requests_per_minute == 500
