"""Allowances: how fast one provider's key may be used, as told, as found, and as the provider asks in between."""

import asyncio
import time
from collections.abc import Callable
from math import inf

from pipelines.limits.adaptive_rate import AdaptiveRate, LearnedRate
from pipelines.limits.circuit_breaker import SHORT_PAUSE_SECONDS, CircuitBreaker, ProviderPaused
from pipelines.limits.concurrency_limit import ConcurrencyLimit
from pipelines.limits.stated_limits import RateLimits, StatedLimits, lowest
from pipelines.limits.token_bucket import TokenBucket, wait_for_event

HEADROOM = 0.993
"""The share of a limit that is used: the rest is for the first burst, and for requests that bunch on the way."""

FIRST_REFUSAL_SECONDS = 0.1
"""Seconds to wait at least after a refusal, in which a provider's bucket fills as much as ours; without a time stated
it is doubled with each refusal in a row."""

MAX_REFUSAL_SECONDS = 5.0
"""Seconds between refusals that state no time: limits are counted by the minute, and nothing is billed for them."""


LEAST_SHARE = 0.01
"""Of a limit: a process that has less of it can tell nothing about the whole from what it sends."""


class ProviderLimiter(ConcurrencyLimit):
    """What one provider's key may send: waits are served in the order in which they came.

    `take` gives a permit; `done` follows it, and `succeeded`, `failed` or `refused` tells with it how it went.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        concurrency: int | None,
        longest_hold: float,
        longest_wait: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`longest_hold`, `longest_wait`: seconds, as in the job file. `now`: seconds of the running loop's clock."""
        super().__init__(concurrency, now)
        self._stated = StatedLimits((requests_per_minute, tokens_per_minute))
        self.concurrency = concurrency
        self.requests = TokenBucket()
        self.tokens = TokenBucket()
        self._share = (1.0, 1.0)
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()
        self._held_until = 0.0
        self._longest_wait = longest_wait
        self._circuit = CircuitBreaker(longest_wait, longest_hold)
        self._found = AdaptiveRate(now())
        self._number = 0
        """Of the last request that was permitted."""
        self._epoch = 0
        """Requests with lower numbers say nothing about the pace or the circuit of now."""
        self._refusals = 0
        """In a row: none of the requests sent after one was answered."""
        self._resumed = True
        """Whether anything was sent after the last refusal."""
        self._since = self._sent_since = self._refused_since = 0
        """The number at which sending was resumed, and what was sent and refused since."""
        self._refused_first = self._sent_after = self._refused_after = 0
        """The number of the first request of a burst that was refused; those sent and those refused after it."""
        self._probe: int | None = None
        self._why = "hold"
        self.excluded_reason: str | None = None
        """Why a pool asks this member nothing more; None while it does."""
        self._update_rates()

    # What others look at.

    @property
    def is_circuit_open(self) -> bool:
        """Whether the provider fails every request; single requests then try whether it is back."""
        return self._circuit.is_open

    @property
    def pause_seconds(self) -> float:
        """Seconds until the provider may be asked again."""
        return max(self.requested_pause, self._circuit.paused_until - self._now())

    @property
    def requested_pause(self) -> float:
        """Seconds of it that follow from a refusal."""
        return max(0.0, self._held_until - self._now())

    @property
    def requests_per_minute(self) -> float | None:
        """What is kept to, of what was configured and stated, whichever is lower."""
        return self._stated.per_minute[0]

    @property
    def tokens_per_minute(self) -> float | None:
        """The same of tokens."""
        return self._stated.per_minute[1]

    @property
    def learned_requests_per_minute(self) -> float | None:
        """The requests a minute that refusals have shown to pass, of them this process's part; None where none had to
        be found."""
        return None if self._found.per_second is None else self._found.per_second * 60 * self._share[0]

    @property
    def effective_requests_per_minute(self) -> float | None:
        """The requests a minute of the whole key that are kept to, stated or found."""
        found = self._found.per_second
        return lowest(self.requests_per_minute, None if found is None else found * 60)

    @property
    def learned_rate(self) -> LearnedRate:
        """What refusals have shown of the key, for the next run and for other processes."""
        return self._found.found

    @property
    def decreases(self) -> int:
        """How often refusals have lowered the pace here."""
        return self._found.lowerings

    def is_stated_by_provider(self, kind: str) -> bool:
        """Whether the provider itself states the limit that is kept to, of requests or of tokens."""
        return self._stated.is_stated_by_provider(kind)

    def seconds_without_reply(self) -> float:
        """Seconds since the last answer, while every request since then was refused or failed; 0 otherwise."""
        since = self._circuit.silent_since
        return 0.0 if since is None else self._now() - since

    @property
    def delay(self) -> float:
        """Seconds until `take` would give a permit; infinite where that takes an answer first."""
        if self._is_full or self._probe is not None or self._shut:
            return inf
        return max(self.pause_seconds, self.requests.delay, self.tokens.delay)

    @property
    def is_paused(self) -> bool:
        """Whether it holds all its senders for longer than a moment."""
        if not (self._held_until or self._refusals or self._circuit.failures):
            return False
        return self.pause_seconds > SHORT_PAUSE_SECONDS or (self._probe is not None and self.is_probing)

    @property
    def load(self) -> float:
        """How much of it is in use, to compare members of a pool: 0 nothing, 1 all."""
        # Where nothing limits the requests in flight, more of them still mean less that is left.
        busy = self.in_flight / (self._slots or self.in_flight + 64)
        return busy + (1.0 if self._circuit.failures else 0.0)

    # One request.

    async def acquire(self, tokens: int, longest: float = inf) -> int:
        """Wait until one request of so many tokens may be sent; the permit that `done` gives back.

        Held where the provider holds its senders for more than `longest` seconds, or for who knows how long.
        """
        if self._is_full:
            await self._acquire_slot()
        else:
            self.in_flight += 1
        try:
            if not self._clear:
                began = self._now()
                async with self._turn:
                    await self._may_send(longest)
                    await self._wait_for_tokens()
                    # A refusal may have come in while this one waited for its turn.
                    await self._may_send(longest)
                    self.requests.consume(1)
                    self.tokens.consume(tokens)
                    if not self._resumed:
                        self._resume()
                    if self.is_probing:
                        self._probe = self._epoch = self._number + 1
                self.wait_seconds[self._why] += self._now() - began
            else:
                self.requests.used += 1
                self.tokens.used += tokens
            self._number += 1
            permit = self._number
            self._sent_since += 1
            self._found.sent(self._now())
        except BaseException:
            self._release_slot()
            raise
        return permit

    def release(self, permit: int, reserved: int, used: int | None) -> None:
        """The request has ended; `used`: its tokens, None where the reply did not tell."""
        if used is not None:
            self.tokens.settle(reserved, used)
        if permit == self._probe:
            self._probe = None
        self._release_slot()

    def cancel(self, tokens: int) -> None:
        """What was permitted will not be sent after all."""
        self.requests.settle(1, 0)
        self.tokens.settle(tokens, 0)

    def record_success(self, permit: int) -> None:
        """A request was answered: the provider lives."""
        now = self._now()
        if self._circuit.silent_since is not None:
            self._circuit.record_reply()
            self._notify()
        gap = self._found.answered(now)
        if self._refusals and permit >= self._epoch:
            # Few that were sent after the refused one tell nothing: then by refusals in a row.
            blocked = self._refusals >= 3 if self._sent_after < 5 else 2 * self._refused_after >= self._sent_after
            self._refusals = 0
            self._found.unblocked(now, gap, blocked)
            self._update_rates()
            self._notify()
        elif self._found.per_second is not None and self._found.raise_slowly(now, self._stated_pace):
            self._update_rates()

    def record_failure(self, permit: int, no_server: bool = False) -> bool:
        """A request found no server or a failing one; whether that happened while the circuit was open."""
        was_open = self._circuit.record_failure(self._now(), no_server, stale=permit < self._epoch)
        if self._circuit.is_open and not was_open:
            self._epoch = self._number + 1
        self._notify()
        return was_open

    def record_refusal(self, permit: int, retry_after: float | None) -> None:
        """A 429: nobody sends until it is over. Without a time stated, the wait doubles with each in a row."""
        now = self._now()
        self._circuit.record_no_reply(now)
        fresh = permit >= self._epoch
        self._found.refused(now, first=fresh)
        self._refused_since += permit >= self._since
        self._refused_after += permit > self._refused_first
        if not fresh or (not self._refusals and self._found.unrelated(now)):
            # One burst lowers the pace once, and one without regard to the pace never; the longest wait counts.
            self.pause_for(retry_after or 0.0)
            return
        self._epoch = self._number + 1
        if not self._refusals:
            self._refused_first, self._refused_after, self._sent_after = permit, 0, self._number - permit
        self._refusals += 1
        self._resumed = False
        # Told a time, it is taken at its word three times; then it waits longer than told.
        doubled = self._refusals - (1 if retry_after is None else 3)
        least = min(self._longest_wait, MAX_REFUSAL_SECONDS, FIRST_REFUSAL_SECONDS * 2.0 ** min(max(doubled, 0), 20))
        self.pause_for(max(retry_after or 0.0, least))
        self._notify()

    def pause_for(self, seconds: float) -> None:
        """Send nothing for so long at least; that alone says nothing of the pace."""
        self._held_until = max(self._held_until, self._now() + seconds)

    # What the provider states, and what other processes leave.

    def update_from_headers(self, limits: RateLimits, left: RateLimits = (None, None), of: object = None) -> None:
        """The provider's own limits of requests and tokens a minute and what is left of them, from its headers.

        They are kept to where they are lower than what was configured. `of`: what they are told for, such as a model:
        where they differ, the lowest counts.
        """
        if self._stated.update(limits, of) and self._update_rates():
            self._found.anew(self._now())
            self._drain_burst()
        if left == (None, None) or not self._stated.is_shared_with_others(limits, left):
            return
        stated, pace = self._stated_pace, self._pace
        if stated is not None and pace is not None:
            self._found.ease(self._now(), pace, stated / 2)
            self._update_rates()

    def set_share(self, requests: float, tokens: float, slots: int | None) -> None:
        """The shares of the limits that this process may use, and how many requests it may have in flight."""
        if (requests, tokens) != self._share or slots != self._slots:
            self._share, self._slots = (requests, tokens), slots
            self._found.share = max(requests, LEAST_SHARE)
            self._update_rates()
            self._notify()

    def load_learned_rate(self, found: LearnedRate) -> None:
        """What refusals have shown to an earlier run or another process."""
        lower = (found.per_second or inf) < (self._found.per_second or inf)
        self._found.adopt(self._now(), found)
        self._update_rates()
        if lower:
            self._drain_burst()

    # Within.

    @property
    def _clear(self) -> bool:
        """Whether nothing paces, holds or doubts this provider."""
        return (
            self.requests.per_second is None
            and self.tokens.per_second is None
            and not self._refusals
            and not self._circuit.failures
            and not self._held_until
            and not self._turn.locked()
        )

    @property
    def _shut(self) -> bool:
        """Whether another process has the whole of a limit at the moment."""
        return self.requests.per_second == 0 or self.tokens.per_second == 0

    @property
    def is_probing(self) -> bool:
        """Whether single requests must show that something passes."""
        return self._circuit.is_open or self._refusals > 1 or (self._refusals == 1 and self.requests.per_second is None)

    @property
    def _stated_pace(self) -> float | None:
        limit = self.requests_per_minute
        return None if limit is None else limit / 60 * HEADROOM

    @property
    def _pace(self) -> float | None:
        """Requests a second of the whole key."""
        return lowest(self._stated_pace, self._found.per_second)

    def _resume(self) -> None:
        """The first request after a refusal leaves: by now all that were sent with the refused one have come back."""
        if 2 * self._refused_since < self._sent_since:
            # Most of what was sent after the refusal before passed: this one begins a new row.
            self._refusals = 1
        if self._refusals == 1:
            self._found.lower(self._now(), self._pace, self._sent_since, self._refused_since)
            self._update_rates()
        else:
            self._found.tried(self._now())
        self._resumed = True
        self._since, self._sent_since, self._refused_since = self._epoch, 0, 0

    async def _may_send(self, longest: float) -> None:
        while True:
            if longest < inf and self.is_paused:
                raise ProviderPaused
            self._moved.clear()
            if (pause := self.pause_seconds) > 0:
                self._why = "hold"
                await wait_for_event(self._moved, pause)
            elif self._shut or (self._probe is not None and self.is_probing):
                self._why = "hold"
                if self._shut:
                    self._why = "requests" if self.requests.per_second == 0 else "tokens"
                    self.contended.add(self._why)
                await wait_for_event(self._moved, None)
            else:
                self._held_until = 0.0
                return

    async def _wait_for_tokens(self) -> None:
        for kind, pace in (("requests", self.requests), ("tokens", self.tokens)):
            if not pace.is_ready:
                self.contended.add(kind)
                self._why = kind
                await pace.wait()

    def _update_rates(self) -> bool:
        """Keep to what is known now; whether that changed anything."""
        before = (self.requests.per_second, self.tokens.per_second)
        requests, tokens = self._pace, self.tokens_per_minute
        self.requests.per_second = None if requests is None else requests * self._share[0]
        self.tokens.per_second = None if tokens is None else tokens / 60 * HEADROOM * self._share[1]
        return before != (self.requests.per_second, self.tokens.per_second)

    def _drain_burst(self) -> None:
        """What was sent before at another pace says nothing about this one."""
        self._epoch = self._number + 1
        self.requests.drain()
        self.tokens.drain()

    def _notify(self) -> None:
        self._moved.set()
        super()._notify()
