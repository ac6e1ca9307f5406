"""Rate limiter of one API key: configured, stated and learned limits, Retry-After pauses and a circuit breaker."""

import asyncio
from collections.abc import Callable
from math import inf

from connectors.transport.awake_clock import AWAKE_CLOCK
from pipelines.limits.adaptive_rate import AdaptiveRate, LearnedRate
from pipelines.limits.circuit_breaker import SHORT_PAUSE_SECONDS, CircuitBreaker, ProviderPaused
from pipelines.limits.concurrency_limit import ConcurrencyLimit
from pipelines.limits.stated_limits import RateLimits, StatedLimits, lowest
from pipelines.limits.token_bucket import TokenBucket, wait_for_event

HEADROOM = 0.993
"""The share of a stated limit that is used: the rest is for the first burst, and for requests that bunch in transit."""

FIRST_REFUSAL_SECONDS = 0.1
"""Shortest pause after a refusal, in which the provider's bucket fills as much as ours. If the provider states no
time, it is doubled with each refusal in a row."""

MAX_REFUSAL_SECONDS = 5.0
"""Longest pause between refusals that state no time: limits are counted by the minute, and refusals are not billed."""

MIN_OBSERVED_SHARE = 0.01
"""A process with a smaller share of the limit cannot estimate the whole from what it sends."""


class ProviderLimiter(ConcurrencyLimit):
    """Rate, token and concurrency limit of one provider's key, first in, first out.

    `acquire` returns a permit, `release` returns it; in between, `record_success`, `record_failure` or
    `record_refusal` reports the outcome.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        concurrency: int | None,
        longest_hold: float,
        longest_wait: float,
        now: Callable[[], float] = AWAKE_CLOCK.now,
    ) -> None:
        """`longest_hold`, `longest_wait`: seconds, as in the job file. `now`: seconds, without suspensions: after one
        nobody has been silent for long, and what was sent before it counts as recent."""
        super().__init__(concurrency, now)
        self.concurrency = concurrency
        self.requests = TokenBucket()
        self.tokens = TokenBucket()
        self.excluded_reason: str | None = None
        """Why a pool no longer uses this member; None while it does."""
        self._stated = StatedLimits((requests_per_minute, tokens_per_minute))
        self._rate = AdaptiveRate(now())
        self._circuit = CircuitBreaker(longest_wait, longest_hold)
        self._share = (1.0, 1.0)
        self._longest_wait = longest_wait
        self._paused_until = 0.0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._number = 0
        """Of the last permit."""
        self._epoch = 0
        """Outcomes of permits with lower numbers say nothing about the present rate or circuit."""
        self._refusals = 0
        """In a row: none of the requests sent after one was answered."""
        self._has_resumed = True
        """Whether anything was sent after the last refusal."""
        self._burst_start = self._burst_answered = self._burst_refused = 0
        """Permit of the first refused request of a burst; how many later ones were answered and refused."""
        self._probe: int | None = None
        self._wait_reason = "hold"
        self._update_rates()

    # State, for pools, screens and leases.

    @property
    def is_circuit_open(self) -> bool:
        """Whether the provider fails every request; single requests then probe whether it is back."""
        return self._circuit.is_open

    @property
    def pause_seconds(self) -> float:
        """Seconds until the provider may be called again."""
        return max(self.requested_pause, self._circuit.paused_until - self._now())

    @property
    def requested_pause(self) -> float:
        """Seconds of the pause that follow from a refusal."""
        return max(0.0, self._paused_until - self._now())

    @property
    def requests_per_minute(self) -> float | None:
        """The configured or the stated limit, whichever is lower."""
        return self._stated.per_minute[0]

    @property
    def tokens_per_minute(self) -> float | None:
        """The same for tokens."""
        return self._stated.per_minute[1]

    @property
    def learned_requests_per_minute(self) -> float | None:
        """This process's share of the learned rate; None if no rate was learned."""
        return None if self._rate.per_second is None else self._rate.per_second * 60 * self._share[0]

    @property
    def effective_requests_per_minute(self) -> float | None:
        """The limit of the whole key in force, stated or learned."""
        learned = self._rate.per_second
        return lowest(self.requests_per_minute, None if learned is None else learned * 60)

    @property
    def learned_rate(self) -> LearnedRate:
        """What refusals have shown of the key, for the next run and for other processes."""
        return self._rate.learned

    @property
    def decreases(self) -> int:
        """How often this process has decreased the learned rate."""
        return self._rate.decreases

    def is_stated_by_provider(self, kind: str) -> bool:
        """Whether the limit of requests or of tokens in force comes from the provider's headers."""
        return self._stated.is_stated_by_provider(kind)

    def seconds_without_reply(self) -> float:
        """Seconds for which the provider has refused every request or kept the circuit open; else 0."""
        return self._circuit.silence(self._now())

    def record_run_pause(self, is_paused: bool) -> None:
        """Record that the run is paused, or goes on: its pause is no silence of the provider."""
        self._circuit.record_run_pause(self._now(), is_paused)

    def set_configured(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        """Replace the configured limits; None: unlimited."""
        self._stated.set_configured((requests_per_minute, tokens_per_minute))
        if self._update_rates():
            self._drain_burst()
        self._notify()

    @property
    def delay(self) -> float:
        """Seconds until `acquire` would return a permit; infinite if an answer must arrive first."""
        if self._is_full or self._probe is not None or self._has_no_share:
            return inf
        return max(self.pause_seconds, self.requests.delay, self.tokens.delay)

    @property
    def is_paused(self) -> bool:
        """Whether all senders wait for longer than a moment."""
        if not (self._paused_until or self._refusals or self._circuit.failures):
            return False
        return self.pause_seconds > SHORT_PAUSE_SECONDS or (self._probe is not None and self.is_probing)

    @property
    def is_probing(self) -> bool:
        """Whether single requests must show that something passes."""
        return self._circuit.is_open or self._refusals > 1 or (self._refusals == 1 and self.requests.per_second is None)

    @property
    def load(self) -> float:
        """How busy it is, to compare members of a pool: 0 idle, 1 full."""
        # Without a concurrency limit, more requests in flight still mean less free capacity.
        busy = self.in_flight / (self._slots or self.in_flight + 64)
        return busy + (1.0 if self._circuit.failures else 0.0)

    # One request.

    async def pay_off(self) -> None:
        """Pay off what was sent, without waiting: for pools, whose senders wait at none of their members."""
        await self.requests.pay_off()
        await self.tokens.pay_off()

    async def acquire(self, tokens: int, longest: float = inf) -> int:
        """Wait until a request of so many tokens may be sent; return its permit.

        ProviderPaused if the provider is paused for more than `longest` seconds, or for an unknown time.
        """
        if (permit := self.acquire_free(tokens)) is not None:
            return permit
        if self._is_full:
            await self._acquire_slot()
        else:
            self.in_flight += 1
        try:
            if self._is_unrestricted:
                self.requests.used += 1
                self.tokens.used += tokens
            else:
                began = self._now()
                async with self._turn:
                    await self._wait_for_pause(longest)
                    await self._wait_for_tokens()
                    # A refusal may have arrived in the meantime.
                    await self._wait_for_pause(longest)
                    self.requests.consume(1)
                    self.tokens.consume(tokens)
                    if not self._has_resumed:
                        self._resume()
                    if self.is_probing:
                        self._probe = self._epoch = self._number + 1
                self.wait_seconds[self._wait_reason] += self._now() - began
            self._number += 1
            self._rate.record_sent(self._now())
        except BaseException:
            self._release_slot()
            raise
        return self._number

    def acquire_free(self, tokens: int) -> int | None:
        """Return a permit if nothing limits, pauses or probes this provider, as `acquire` would at once; else None."""
        slots = self._slots
        if slots is not None and (self.in_flight >= slots or self._waiters):
            return None
        if not self._is_unrestricted:
            return None
        self.in_flight += 1
        self.requests.used += 1
        self.tokens.used += tokens
        self._number += 1
        self._rate.record_sent(self._now())
        return self._number

    def release(self, permit: int, reserved: int, used: int | None) -> None:
        """Return the permit of a finished request; `used`: its tokens, None if the reply did not report them."""
        if used is not None:
            self.tokens.settle(reserved, used)
        if permit == self._probe:
            self._probe = None
        self.in_flight -= 1
        # Who waits for a pause to end holds the turn.
        if self._waiters or self.watchers or self._turn.locked():
            self._notify()

    def cancel(self, tokens: int) -> None:
        """Refund a permitted request that is not sent after all."""
        self.requests.settle(1, 0)
        self.tokens.settle(tokens, 0)

    def record_success(self, permit: int) -> None:
        """Record an answer: the provider is alive."""
        now = self._now()
        if self._circuit.failures or self._circuit.silent_since is not None:
            self._circuit.record_reply()
            self._notify()
        self._burst_answered += permit > self._burst_start
        is_first = self._refusals > 0 and permit >= self._epoch
        self._rate.record_reply(now, is_first and self._burst_refused >= self._burst_answered)
        if is_first:
            self._refusals = 0
            self._update_rates()
            self._notify()
        elif self._rate.increase(now, self._stated_rate):
            self._update_rates()

    def record_failure(self, permit: int, no_server: bool = False) -> bool:
        """Record that a request found no server or a failing one; return whether the circuit was open before."""
        was_open = self._circuit.record_failure(self._now(), no_server, stale=permit < self._epoch)
        if self._circuit.is_open and not was_open:
            self._epoch = self._number + 1
        self._notify()
        return was_open

    def record_refusal(self, permit: int, retry_after: float | None) -> None:
        """Record a 429 and pause the key. Without `retry_after`, the pause doubles with each refusal in a row."""
        now = self._now()
        self._circuit.record_refusal(now)
        is_current = permit >= self._epoch
        self._rate.record_refusal(now, is_first=is_current)
        self._burst_refused += permit > self._burst_start
        if not is_current or (not self._refusals and self._rate.is_unrelated(now)):
            # One burst decreases the rate once, unrelated refusals never; the longest pause counts.
            self.pause_for(retry_after or 0.0)
            return
        self._epoch = self._number + 1
        if not self._refusals:
            self._burst_start, self._burst_answered, self._burst_refused = permit, 0, 0
        self._refusals += 1
        self._has_resumed = False
        # A stated time is trusted three times; then the pause grows beyond it.
        doublings = self._refusals - (1 if retry_after is None else 3)
        pause = FIRST_REFUSAL_SECONDS * 2.0 ** min(max(doublings, 0), 20)
        self.pause_for(max(retry_after or 0.0, min(self._longest_wait, MAX_REFUSAL_SECONDS, pause)))
        self._notify()

    def pause_for(self, seconds: float) -> None:
        """Send nothing for at least so long; this leaves the rate as it is."""
        self._paused_until = max(self._paused_until, self._now() + seconds)

    # What the provider states, and what other processes leave.

    def update_from_headers(self, limits: RateLimits, left: RateLimits = (None, None), of: object = None) -> None:
        """Apply the limits of requests and tokens a minute from response headers, and what is `left` of them.

        They apply if they are lower than the configured ones. `of`: what they are stated for, such as a model; if
        they differ, the lowest counts.
        """
        if self._stated.update(limits, of) and self._update_rates():
            self._rate.reset(self._now())
            self._drain_burst()
        if left == (None, None) or not self._stated.is_shared_with_others(limits, left):
            return
        stated, rate = self._stated_rate, self._effective_rate
        if stated is not None and rate is not None:
            self._rate.slow_down(self._now(), rate, stated / 2)
            self._update_rates()

    def set_share(self, requests: float, tokens: float, slots: int | None) -> None:
        """Set the shares of the limits that this process may use, and how many requests it may have in flight."""
        if (requests, tokens) != self._share or slots != self._slots:
            self._share, self._slots = (requests, tokens), slots
            self._rate.share = max(requests, MIN_OBSERVED_SHARE)
            self._update_rates()
            self._notify()

    def load_learned_rate(self, learned: LearnedRate) -> None:
        """Adopt what an earlier run or another process has learned."""
        is_lower = (learned.per_second or inf) < (self._rate.per_second or inf)
        self._rate.load(self._now(), learned)
        self._update_rates()
        if is_lower:
            self._drain_burst()

    # Internal.

    @property
    def _is_unrestricted(self) -> bool:
        """Whether nothing limits, pauses or probes this provider."""
        return (
            self.requests.per_second is None
            and self.tokens.per_second is None
            and not self._refusals
            and not self._circuit.failures
            and not self._paused_until
            and not self._turn.locked()
        )

    @property
    def _has_no_share(self) -> bool:
        """Whether other processes hold the whole of a limit at the moment."""
        return self.requests.per_second == 0 or self.tokens.per_second == 0

    @property
    def _stated_rate(self) -> float | None:
        limit = self.requests_per_minute
        return None if limit is None else limit / 60 * HEADROOM

    @property
    def _effective_rate(self) -> float | None:
        """Requests a second of the whole key."""
        return lowest(self._stated_rate, self._rate.per_second)

    def _resume(self) -> None:
        """Send the first request after a refusal: all that were sent with the refused one have come back by now."""
        if self._refusals == 1:
            self._rate.decrease(self._now(), self._effective_rate)
            self._update_rates()
        self._has_resumed = True

    async def _wait_for_pause(self, longest: float) -> None:
        while True:
            if longest < inf and self.is_paused:
                raise ProviderPaused
            self._changed.clear()
            if (pause := self.pause_seconds) > 0:
                self._wait_reason = "hold"
                await wait_for_event(self._changed, pause)
            elif self._has_no_share:
                self._wait_reason = "requests" if self.requests.per_second == 0 else "tokens"
                self.contended.add(self._wait_reason)
                await wait_for_event(self._changed, None)
            elif self._probe is not None and self.is_probing:
                self._wait_reason = "hold"
                await wait_for_event(self._changed, None)
            else:
                self._paused_until = 0.0
                return

    async def _wait_for_tokens(self) -> None:
        for kind, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if not bucket.is_ready:
                self.contended.add(kind)
                self._wait_reason = kind
                await bucket.wait()

    def _update_rates(self) -> bool:
        """Set the rates of both buckets; return whether that changed anything."""
        before = (self.requests.per_second, self.tokens.per_second)
        requests, tokens = self._effective_rate, self.tokens_per_minute
        self.requests.per_second = None if requests is None else requests * self._share[0]
        self.tokens.per_second = None if tokens is None else tokens / 60 * HEADROOM * self._share[1]
        return before != (self.requests.per_second, self.tokens.per_second)

    def _drain_burst(self) -> None:
        """Start a new epoch without a burst: what was sent at another rate says nothing about this one."""
        self._epoch = self._number + 1
        self.requests.drain()
        self.tokens.drain()

    def _notify(self) -> None:
        self._changed.set()
        super()._notify()
