"""Adaptive rate: unknown limits are found and followed; refusals that are unrelated to the rate do not lower it."""

import random
from collections.abc import Callable

import pytest

from pipelines.limits.adaptive_rate import NO_LEARNED_RATE, AdaptiveRate, LearnedRate
from tests.support.exhaustive import marks
from tests.support.simulated_key import RandomlyRefusingKey, SimulatedKey, simulate

STATES_WAIT = pytest.mark.parametrize("states_wait", [True, False], ids=["retry-after", "silent"])


def set_limit(requests: int) -> Callable[[SimulatedKey], None]:
    def change(key: SimulatedKey) -> None:
        key.requests = requests

    return change


@STATES_WAIT
@pytest.mark.parametrize(("limit", "senders"), [(3000, 64), pytest.param(30000, 300, marks=marks(True))])
def test_an_unknown_limit_is_found_with_few_refusals(limit: int, senders: int, states_wait: bool) -> None:
    traffic = simulate(SimulatedKey(requests=limit), 60, senders=senders, states_wait=states_wait)
    assert traffic.used_share(limit, 20, 60) >= 0.95
    assert sum(1 for at in traffic.refused if at >= 20) <= 0.005 * len(traffic.passed)


@STATES_WAIT
def test_an_unknown_limit_of_a_sliding_minute_is_found_after_the_first_burst(states_wait: bool) -> None:
    key = SimulatedKey(requests=3000, window=True)
    traffic = simulate(key, 240, senders=200, states_wait=states_wait)
    # Nothing passes for most of the first minute, because the first burst uses its whole limit.
    assert traffic.used_share(3000, 90, 240) >= 0.85
    assert traffic.refused_share <= 0.03


@STATES_WAIT
def test_a_limit_that_only_refusals_reveal_is_followed_down_and_up(states_wait: bool) -> None:
    changes = ((30, set_limit(1500)), (90, set_limit(3000)))
    key = SimulatedKey(requests=3000)
    traffic = simulate(key, 170, configured=(3000, None), states_wait=states_wait, changes=changes)
    assert traffic.used_share(1500, 40, 90) >= 0.95
    assert traffic.used_share(3000, 150, 170) >= 0.95
    assert traffic.refused_share <= 0.005


@pytest.mark.parametrize("share", [pytest.param(0.05, marks=marks(True)), 0.1, pytest.param(0.3, marks=marks(True))])
@STATES_WAIT
def test_random_refusals_do_not_lower_the_rate_for_long(share: float, states_wait: bool) -> None:
    traffic = simulate(RandomlyRefusingKey(share=share), 60, senders=100, states_wait=states_wait)
    # 100 senders that need 0.21 s for each request.
    assert traffic.used_share(60, 20, 60) >= 0.9 * 100 / 0.21
    assert traffic.refused_share <= share + 0.02


@pytest.mark.parametrize(("share", "seed"), [(0.05, 4), (0.2, 3)])
@STATES_WAIT
def test_random_refusals_do_not_lower_the_rate_of_slow_answers(share: float, seed: int, states_wait: bool) -> None:
    # Not one request a second: the throughput of two seconds says nothing.
    key = RandomlyRefusingKey(share=share, rng=random.Random(seed))
    traffic = simulate(key, 2000, senders=8, states_wait=states_wait, answer_seconds=(8, 12))
    assert traffic.used_share(60 * 8 / 10, 0, 2000) >= 0.65
    assert traffic.refused_share <= share + 0.02


def test_random_refusals_cost_no_more_than_the_pause_they_request() -> None:
    traffic = simulate(RandomlyRefusingKey(retry_after=0.5), 60, senders=100)
    # After each pause 100 requests leave at once, and some of them are refused.
    assert traffic.used_share(60, 20, 60) >= 0.7 * 100 / 0.71


@pytest.mark.parametrize("share", [pytest.param(0.01, marks=marks(True)), 0.02, pytest.param(0.05, marks=marks(True))])
@STATES_WAIT
def test_random_refusals_do_not_hide_a_limit(share: float, states_wait: bool) -> None:
    traffic = simulate(RandomlyRefusingKey(requests=3000, share=share), 150, senders=64, states_wait=states_wait)
    assert traffic.used_share(3000, 20, 150) >= 0.7
    assert traffic.refused_share <= share + 0.03


def test_a_provider_that_refused_everything_at_first_is_used_at_full_speed_once_it_answers() -> None:
    start: list[float] = []

    class LateKey(SimulatedKey):
        def wait(self, now: float, tokens: float) -> float:
            start.append(now)
            return 2.0 if now < start[0] + 10 else 0.0

    traffic = simulate(LateKey(), 30, senders=20)
    assert traffic.used_share(60, 15, 30) >= 0.9 * 20 / 0.21


def test_a_demand_little_above_the_limit_is_not_taken_for_random_refusals() -> None:
    # 140 senders that need 0.21 s each ask for a third more than the limit.
    traffic = simulate(SimulatedKey(requests=30000), 60, senders=140)
    assert traffic.used_share(30000, 20, 60) >= 0.95
    assert traffic.refused_share <= 0.005


def test_a_limit_that_falls_to_a_tenth_is_not_taken_for_random_refusals() -> None:
    traffic = simulate(SimulatedKey(requests=30000), 90, senders=200, changes=((30, set_limit(3000)),))
    assert traffic.used_share(3000, 60, 90) >= 0.95
    assert sum(at >= 30 for at in traffic.refused) <= 500


def test_a_process_with_half_of_the_key_finds_the_limit_of_the_whole() -> None:
    traffic = simulate(SimulatedKey(requests=1500), 60, senders=64, share=0.5)
    assert traffic.requests_per_minute == pytest.approx(3000, rel=0.1)
    assert traffic.used_share(1500, 20, 60) >= 0.95


def test_the_longer_a_limit_holds_the_less_often_it_is_probed() -> None:
    traffic = simulate(SimulatedKey(requests=3000), 240, senders=64)
    assert traffic.used_share(3000, 20, 240) >= 0.98
    assert sum(at >= 20 for at in traffic.refused) <= 0.002 * len(traffic.passed)
    assert sum(at >= 120 for at in traffic.refused) <= 10
    # Including those refused until the limit was known.
    assert traffic.refused_share <= 0.005


def test_a_single_refusal_is_not_stored_because_it_may_have_any_cause() -> None:
    rate = AdaptiveRate(0.0)
    for second in range(10):
        rate.record_sent(second / 10)
    rate.record_refusal(1.0, is_first=True)
    rate.decrease(1.1, None)
    assert rate.per_second is not None
    assert rate.learned == NO_LEARNED_RATE


def test_a_loaded_rate_applies_at_once_and_ends_at_the_stated_limit() -> None:
    rate = AdaptiveRate(0.0)
    rate.load(0.0, LearnedRate(49.0, 50.0, 4.0, False))
    assert rate.learned.per_second == 49.0
    for tick in range(600):
        rate.record_sent(tick / 100)
    assert rate.increase(6.0, stated=49.1)
    assert rate.per_second is None


def test_an_unused_rate_is_not_increased() -> None:
    rate = AdaptiveRate(0.0)
    rate.load(0.0, LearnedRate(49.0, 50.0, 4.0, False))
    assert not rate.increase(100.0, None)
    assert rate.per_second == 49.0
