"""Adaptive rate limit of one key: multiplicative decrease after a refusal, a hold, then an increase.

It serves providers that state no limit, or that enforce less than they state.
"""

from math import inf, sqrt

from msgspec import Struct

from pipelines.limits.sliding_window import SlidingWindow

DECREASE_FACTOR = 0.985
"""A decrease sets the rate to this share of the throughput that passed before the refusal."""

MAX_DECREASE_FACTOR = 0.5
"""One decrease leaves at least this share of the rate."""

INCREASE_PER_SECOND = 0.005
"""A second without a refusal raises the rate by this share; above the last ceiling it doubles every 4 seconds."""

MAX_INCREASE_PER_SECOND = 0.1

FIRST_HOLD_SECONDS = 4.0
"""Time from a decrease to the next increase; doubled each time that the same ceiling refuses again."""

LONGEST_HOLD = (30.0, 500.0, 300.0)
"""The longest hold: at least so many seconds, so many requests (few of which are refused), at most so many seconds."""

TRIAL_RATE = 0.75
"""At this share of the rate at which a series of decreases began, its effect on the refusals is judged."""

LOWEST_TRIAL_RATE = 0.25
"""Share of that rate at which it is judged, as long as the refusals stay the same."""

MIN_TRIAL_REQUESTS = 60

MIN_TRIAL_REFUSALS = 3

MAX_TRIAL_REQUESTS = 2000

BACKGROUND_SECONDS = 60.0
"""How long refusals are taken as unrelated to the rate; doubled each time that they prove to be so."""

BLOCKED_SECONDS = 2.0
"""So long without an answer, a limit is counted over a minute rather than a second."""

MINUTE = 60.0

MEASURED_SECONDS = (2.0, 6.0, 20.0, MINUTE)
"""The time over which throughput is measured: as short as shows MIN_MEASURED_REQUESTS."""

MIN_MEASURED_REQUESTS = 10


class LearnedRate(Struct, frozen=True):
    """What refusals have shown of a key: stored for the next run and shared with other processes."""

    per_second: float | None
    """None: no limit was found."""
    ceiling: float
    """Requests a second that were refused."""
    plateau: float
    """Seconds for which the rate is held after a decrease."""
    over_minutes: bool
    """Whether the limit is counted over a minute rather than a second."""


NO_LEARNED_RATE = LearnedRate(None, 0.0, FIRST_HOLD_SECONDS, False)


class AdaptiveRate:
    """The learned rate of a key. All figures are for the whole key, even if this process has only a share of it."""

    def __init__(self, now: float) -> None:
        self.per_second: float | None = None
        """None until a request is refused."""
        self.share = 1.0
        """Of the key's limit, what this process may use."""
        self.decreases = 0
        """Number of decreases, not counting the first: a single refusal may have any cause."""
        self._ceiling, self._hold_seconds = 0.0, FIRST_HOLD_SECONDS
        self._is_over_minutes = self._is_confirmed = False
        self._window = SlidingWindow()
        self._sent = self._refused = 0.0
        self._at_decrease = (0.0, 0.0)
        """(sent, refused) at the last decrease."""
        self._started_at = self._refused_at = self._decreased_at = self._increased_at = self._replied_at = now
        self._above_ceiling_since: float | None = None
        self._has_increased = True
        """Whether the rate went up since the last decrease."""
        self._empty_at: tuple[float, float] | None = None
        """(time, requests passed until then) of a refusal: the provider's bucket was empty."""
        self._rate_before: float | None = None
        """Restored if the present series of decreases has no effect on the refusals."""
        self._series_rate = 0.0
        """Rate at which the series began."""
        self._before = self._trial = (0.0, 0.0)
        """(sent, refused) while the rate was held above TRIAL_RATE of it, and below."""
        self._background: float | None = None
        """Share of requests that is refused at any rate; None: no such cause is known."""
        self._background_until, self._background_seconds = now, BACKGROUND_SECONDS

    @property
    def learned(self) -> LearnedRate:
        """The rate to be stored and shared."""
        if not self._is_confirmed:
            return NO_LEARNED_RATE
        return LearnedRate(self.per_second, self._ceiling, self._hold_seconds, self._is_over_minutes)

    def load(self, now: float, learned: LearnedRate) -> None:
        """Adopt what an earlier run or another process has learned."""
        if (learned.per_second or inf) < (self.per_second or inf):
            self.reset(now)
            self._above_ceiling_since = None
        self.per_second, self._ceiling = learned.per_second, learned.ceiling
        self._hold_seconds, self._is_over_minutes = learned.plateau, learned.over_minutes
        self._is_confirmed = learned.per_second is not None

    def reset(self, now: float) -> None:
        """Another rate applies from now on: earlier refusals say nothing about it."""
        self._mark_decrease(now)
        self._has_increased, self._empty_at = True, None

    def record_sent(self, now: float) -> None:
        """Count one request."""
        self._sent += 1 / self.share
        self._window.add(now, 1 / self.share, 0.0)

    def record_refusal(self, now: float, is_first: bool) -> None:
        """Count a sent request as refused; `is_first`: of those that are refused together."""
        if is_first:
            self._refused_at = now
        self._refused += 1 / self.share
        self._window.add(now, -1 / self.share, 1 / self.share)

    def record_reply(self, now: float, is_unblocked: bool) -> None:
        """Count an answer. `is_unblocked`: the first one after most of a burst was refused."""
        gap, self._replied_at = now - self._replied_at, now
        # With hardly any request passed there is nothing to measure.
        if is_unblocked and self._passed > 5 and gap >= max(BLOCKED_SECONDS, 10 / (self.per_second or inf)):
            self._is_over_minutes = self._is_confirmed = True
            self._set(now, DECREASE_FACTOR * self._throughput(now), self._throughput(now))
            self._begin_series(self.per_second, self.per_second or 0.0)

    def is_unrelated(self, now: float) -> bool:
        """Whether refusals have, as far as known, nothing to do with the rate."""
        if self._background is None:
            return False
        if self.per_second is None and now >= self._background_until:
            self._background = None
            return False
        since = max(now - 10, self._decreased_at)
        passed, refused = self._window.passed(since), self._window.refused(since)
        share = min(0.5, self._background * (1.5 if self.per_second is None else 1.1))
        return refused <= share * (passed + refused) + 3 / self.share

    def decrease(self, now: float, rate: float | None) -> None:
        """Lower the rate when sending resumes after a refusal; `rate`: the one in force, None if unlimited."""
        throughput = self._throughput(self._refused_at)
        if self._empty_at is None or self._refused_at - self._empty_at[0] >= 1.0:
            self._empty_at = (self._refused_at, self._passed)
        if not self._has_increased:
            self._add_evidence()
        elif rate is not None:
            is_same = rate < 1.25 * self._ceiling
            seconds, requests, longest = LONGEST_HOLD
            longest = min(longest, max(seconds, requests / rate))
            self._hold_seconds = min(2 * self._hold_seconds, longest) if is_same else FIRST_HOLD_SECONDS
            self._is_confirmed |= is_same
        if rate is None or (self._has_increased and rate >= 0.95 * self._series_rate):
            self._begin_series(None if rate is None else self.per_second, rate or throughput)
        if self._is_ineffective():
            self._restore(now)
        elif rate is not None:
            ceiling = min(rate, throughput)
            # A process with a small share of the key has seen little.
            lowest = max(MAX_DECREASE_FACTOR**self.share * rate, self._lowest_trial_rate())
            self._set(now, max(lowest, DECREASE_FACTOR * ceiling), ceiling)
        elif throughput > 0:
            self._set(now, DECREASE_FACTOR * throughput, throughput)

    def slow_down(self, now: float, rate: float, minimum: float) -> None:
        """Lower the rate a little, at most once a second: another program uses the key as well."""
        if now - self._decreased_at >= 1.0 and rate > minimum:
            self._set(now, max(minimum, 0.97 * rate), rate)

    def increase(self, now: float, stated: float | None) -> bool:
        """Raise the rate, at most once a second; whether it changed. At the `stated` limit none is learned."""
        elapsed = now - self._increased_at
        if self.per_second is None or elapsed < 1.0:
            return False
        if now - self._decreased_at < max(self._hold_seconds, min(MINUTE, MIN_TRIAL_REQUESTS / self.per_second)):
            return False
        self._increased_at = now
        # A rate that is not used shows nothing about the limit.
        if self._window.passed(now - 2.0) / 2.0 < 0.7 * self.per_second:
            return False
        step = INCREASE_PER_SECOND
        if self.per_second >= self._ceiling:
            # A limit counted over a minute refuses late and then for long.
            if self._is_over_minutes and self._window.passed(now - MINUTE) / MINUTE < 0.9 * self.per_second:
                return False
            self._above_ceiling_since = self._above_ceiling_since or now
            fastest = MAX_INCREASE_PER_SECOND / (5 if self._is_over_minutes else 1)
            step = min(fastest, step * 2.0 ** ((now - self._above_ceiling_since) / 4.0))
        if not self._has_increased:
            sent, refused = self._add_evidence()
            if self._background is not None and sent >= MIN_TRIAL_REQUESTS:
                self._background = refused / sent
        self._has_increased = True
        self.per_second *= 1 + step * min(elapsed, 2.0)
        if stated is not None and self.per_second >= stated:
            self.per_second = None
        return True

    # Whether a series of decreases has an effect on the refusals.

    def _begin_series(self, rate_before: float | None, rate: float) -> None:
        self._rate_before, self._series_rate = rate_before, rate
        self._before = self._trial = (0.0, 0.0)

    def _add_evidence(self) -> tuple[float, float]:
        """Count and return what was sent and refused while the rate was held."""
        sent, refused = self._sent - self._at_decrease[0], self._refused - self._at_decrease[1]
        if 2 * refused > sent >= 10:
            # A limit that low was exceeded by far.
            self._before, self._trial = (sent, refused), (0.0, 0.0)
        elif (self.per_second or inf) > TRIAL_RATE * self._series_rate:
            self._before = (self._before[0] + sent, self._before[1] + refused)
        else:
            self._trial = (self._trial[0] + sent, self._trial[1] + refused)
        return sent, refused

    def _is_ineffective(self) -> bool:
        """Whether requests are refused as before at a clearly lower rate: then the rate is not the cause."""
        sent, refused = self._trial
        if sent < MIN_TRIAL_REQUESTS:
            return False
        share_before = self._share_before
        # A standard deviation allows for chance.
        if sent > MAX_TRIAL_REQUESTS or refused + sqrt(refused) + 1 < 0.5 * share_before * sent:
            self._begin_series(self.per_second, self.per_second or 0.0)
            return False
        if refused < MIN_TRIAL_REFUSALS:
            return False
        self._background = max((refused + sqrt(refused)) / sent, min(share_before, 2 * refused / sent))
        return True

    def _lowest_trial_rate(self) -> float:
        """Return the rate below which nothing is tried before the series is judged: there it would take too long.

        0 if refusals become fewer with the rate, or are most of all.
        """
        (sent, refused), share_before = self._trial, self._share_before
        is_most = max(share_before, refused / max(1.0, sent)) > 0.5
        return 0.0 if is_most or refused + 1 < 0.8 * share_before * sent else LOWEST_TRIAL_RATE * self._series_rate

    @property
    def _share_before(self) -> float:
        """The share that was refused before the trial."""
        return self._before[1] / max(1.0, self._before[0])

    def _restore(self, now: float) -> None:
        """Return to the rate at which the series began."""
        self._background_until = now + self._background_seconds
        self._background_seconds *= 2
        self._is_over_minutes = False
        self.per_second = self._rate_before
        self._is_confirmed &= self.per_second is not None
        self.reset(now)

    def _set(self, now: float, per_second: float, ceiling: float) -> None:
        self.per_second, self._ceiling = max(per_second, 1 / MINUTE), ceiling
        self._mark_decrease(now)
        self._has_increased, self._above_ceiling_since = False, None
        self.decreases += self._is_confirmed

    def _mark_decrease(self, now: float) -> None:
        self._decreased_at, self._at_decrease = now, (self._sent, self._refused)

    @property
    def _passed(self) -> float:
        return self._sent - self._refused

    def _throughput(self, now: float) -> float:
        """Requests a second that passed before the refusal."""
        if self._is_over_minutes:
            since = max(self._started_at, self._refused_at - MINUTE)
            return self._window.passed(since) / min(MINUTE, max(now - since, 0.5))
        if self._empty_at is not None and 0.5 < self._refused_at - self._empty_at[0] <= 5.0:
            # The provider's bucket was empty both times: what passed in between is its exact rate.
            passed = self._passed - self._empty_at[1]
            if passed >= MIN_MEASURED_REQUESTS:
                return passed / (self._refused_at - self._empty_at[0])
        # A bucket may have held a second's worth.
        held = max(1.0, self._refused_at - max(self._decreased_at, self._started_at))
        for span in MEASURED_SECONDS:
            span = min(span, held)
            passed = self._window.passed(self._refused_at - span)
            if passed >= MIN_MEASURED_REQUESTS:
                break
        return passed / span
