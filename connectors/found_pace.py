"""The pace that a provider's answers and refusals show where it states no limit, or keeps to less than it states."""

from collections import deque

EASED = 0.97
"""After refusals the pace is this share of what passed just before them."""

MANY = 0.15
"""Where this share was refused, the pace was much too high, and what passed tells how much."""

SOON = 2.5
"""Seconds: refusals of few that come sooner after a lowering were not prevented by it."""

USELESS = 6
"""After so many lowerings of no use the few that are refused have another cause: they lower the pace no further."""

FALLS = 0.5
"""One refusal lowers the pace to no less than this share of what it was."""

LEAST = 0.1
"""Of the most that passed in ten seconds, a second: no refusals bring the pace below it, whatever they are for. Less
than what is left of a limit counted by the minute whose whole passed in one burst."""

RAISED = 0.005
"""A second without a refusal raises the pace by this share, up to where it was refused before."""

FASTER_EVERY = 4.0
"""Seconds after which a pace that has passed its last refusal is raised twice as fast."""

FASTEST = 0.1

BLOCKED = 2.0
"""Seconds of nothing but refusals that tell of a limit counted over a longer time, such as a sliding minute."""

MISSED = 0.2

SUSTAINED = 0.9
"""A limit counted over minutes is tried further only when the minute before came this close to the pace."""

MINUTE = 60.0


class FoundPace:
    """Lowered by refusals to what passes, raised slowly while it is used and nothing is refused."""

    def __init__(self, now: float) -> None:
        self.per_second: float | None = None
        """None as long as nothing was refused."""
        self._seconds: deque[list[float]] = deque()
        """[second, requests that were sent in it and not refused, those refused] of the last minute."""
        self._began = now
        self._ceiling = 0.0
        self._passed_at: float | None = None
        self._raised_at = now
        self._lowered_at = now
        self._refused_at = now
        self._useless = 0
        self._most = 0.0
        self._seen_at_resume = 0.0
        self._last = now
        self._seen_before_gap = 0.0
        self._over_minutes = False
        """Whether the limit was seen to be counted over a long time."""

    def sent(self, now: float) -> None:
        """One more has left."""
        self._second(now)[1] += 1

    def refused(self, now: float, first: bool) -> None:
        """One that has left did not pass; `first`: of those that were refused together."""
        if first:
            self._refused_at = now
        second = self._second(now)
        second[1] -= 1
        second[2] += 1

    def answered(self, now: float) -> float:
        """One more answer; the seconds since the one before it."""
        gap = now - self._last
        if gap >= BLOCKED:
            self._seen_before_gap = self._seen(self._last, now)
        self._last = now
        return gap

    def lower(self, now: float, pace: float | None) -> None:
        """After a refusal, when sending again; `pace`: that which was kept to, None where none was."""
        self.tried(now)
        self._most = max(self._most, self._count(now - 10, 1) / 10)
        # Up to the refusal: nothing was sent since.
        span = min(2.0, max(1.0, self._refused_at - max(self._lowered_at, self._began)))
        since = self._refused_at - span
        passed, refused = self._count(since, 1), self._count(since, 2)
        seen = passed / span
        if pace is None:
            # Where nothing has passed yet there is nothing to go by.
            if seen > 0:
                self._set(now, EASED * seen, seen)
        elif refused >= MANY * (passed + refused):
            self._set(now, max(FALLS * pace, EASED * min(pace, seen)), pace)
        elif now - self._lowered_at >= 1.0:
            self._useless = self._useless + 1 if now - self._lowered_at < SOON else 0
            if self._useless < USELESS:
                self._set(now, EASED * pace, pace)
            else:
                self._lowered_at = now

    def tried(self, now: float) -> None:
        """After a refusal something is sent again: if it passes, this is what passed before it."""
        self._seen_at_resume = self._seen(now, now)

    def anew(self, now: float) -> None:
        """Another pace is kept to from now on: what was refused before says nothing about it."""
        self._lowered_at = now
        self._useless = 0

    def ease(self, now: float, pace: float, least: float) -> None:
        """Little is left of the allowance, somebody else uses it too: a little slower, at most once a second."""
        if now - self._lowered_at >= 1.0 and pace > least:
            self._set(now, max(least, EASED * pace), pace)

    def unblocked(self, now: float, gap: float) -> None:
        """The first answer after refusals, `gap` seconds after the answer before it: where that is long, the limit is
        counted over a long time, and what passed in a minute shows it."""
        seen = self._seen_at_resume
        if gap >= max(BLOCKED, 0.0 if self.per_second is None else 10 / self.per_second):
            self._over_minutes = True
            if seen < MISSED * self._seen_before_gap:
                # It let nothing pass until all that it had counted was forgotten: what it had counted is its limit.
                seen = self._seen_before_gap
            self._set(now, EASED * seen, seen)

    def raise_slowly(self, now: float, stated: float | None) -> bool:
        """Once a second; whether it changed. `stated`: the provider's own limit a second: reached, nothing is found."""
        elapsed = now - self._raised_at
        if self.per_second is None or elapsed < 1.0:
            return False
        self._raised_at = now
        # A pace that is not used shows nothing about the limit.
        if self._count(now - 2.0, 1) / 2.0 < 0.7 * self.per_second:
            return False
        step = RAISED
        if self.per_second >= self._ceiling:
            if self._over_minutes and self._seen(now, now) < SUSTAINED * self.per_second:
                # Such a limit refuses only after a minute: until then, that nothing is refused shows nothing.
                return False
            self._passed_at = self._passed_at or now
            step = min(FASTEST, RAISED * 2.0 ** ((now - self._passed_at) / FASTER_EVERY))
        self.per_second *= 1 + step * min(elapsed, 2.0)
        if stated is not None and self.per_second >= stated:
            self.per_second = None
        return True

    def _set(self, now: float, per_second: float, ceiling: float) -> None:
        self._ceiling = ceiling
        self.per_second = max(per_second, LEAST * self._most, 1 / MINUTE)
        self._lowered_at = now
        self._passed_at = None

    def _seen(self, until: float, now: float) -> float:
        """What passed a second in the minute before `until`, or since the beginning."""
        since = max(self._began, until - MINUTE)
        return self._count(since, 1) / min(MINUTE, max(now - since, 0.5))

    def _second(self, now: float) -> list[float]:
        """The counts of this second."""
        second = now // 1.0
        if not self._seconds or self._seconds[-1][0] < second:
            while self._seconds and self._seconds[0][0] < second - 2 * MINUTE:
                self._seconds.popleft()
            self._seconds.append([second, 0.0, 0.0])
        return self._seconds[-1]

    def _count(self, since: float, of: int) -> float:
        total = 0.0
        for counts in reversed(self._seconds):
            if (covered := counts[0] + 1 - since) <= 0:
                break
            total += counts[of] * min(1.0, covered)
        return total
