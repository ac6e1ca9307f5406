"""The pace that a provider's answers and refusals show where it states no limit, or keeps to less than it states."""

from dataclasses import dataclass
from math import inf, sqrt

from pipelines.limits.sliding_window import SlidingWindow

EASED = 0.985
"""After refusals the pace is this share of what passed just before them."""

FALLS = 0.5
"""One refusal lowers the pace to no less than this share of what it was."""

LEAST = 0.01
"""Of the most that passed in ten seconds, a second: no refusals bring the pace below it, whatever they are for. Less
than what is left of a limit counted by the minute whose whole passed in one burst."""

USELESS = 3
"""After so many lowerings in a row that prevented nothing, refusals have another cause than the pace."""

LOW = 0.75
"""Refused as before at this share of the pace at which they began, it is not the pace."""

MEASURED = 3.0
"""Seconds of it."""

HELPED = 0.5
"""A lowering that left less than this share of the refusals was of use."""

FEW = 0.03
"""A limit counted over minutes refuses no more than this share of what is sent at the right pace."""

ENOUGH = 60
"""Requests that it takes to tell."""

ENOUGH_REFUSED = 6

UNEVEN = 10.0
"""Seconds."""

CHANCE = 3
"""Refusals in ten seconds that still may be chance, above one and a half times the usual share."""

KNOWN_FOR = 60.0
"""Seconds for which refusals of another cause are believed to be such; doubled each time that it is found again."""

FIRST_PLATEAU = 4.0
"""Seconds for which a pace that was found is kept before more is tried; doubled each time that more was refused."""

PLATEAU_REQUESTS = 500
"""The longest plateau: so many requests, so that those refused for trying more stay few."""

PLATEAU_SECONDS = (30.0, 300.0)
"""At least and at most, whatever the pace."""

RECOVERED = 0.95
"""A pace that was raised to this share of what it was before it was lowered has recovered."""

SAME = 1.25
"""Refused below so many times the pace that was found, the limit is still the same."""

RECENT = 5.0
"""Seconds after a refusal in which what passed since it tells the limit exactly: both times nothing was left."""

RAISED = 0.005
"""A second without a refusal raises the pace by this share, up to where it was refused before."""

FASTER_EVERY = 4.0
"""Seconds after which a pace that has passed its last refusal is raised twice as fast."""

FASTEST = 0.1

CAREFUL = 0.02
"""The same for a limit counted over minutes, which refuses late and then for long."""

BLOCKED = 2.0
"""Seconds of nothing but refusals that tell of a limit counted over a longer time, such as a sliding minute."""

HARDLY = 5

MISSED = 0.2

SUSTAINED = 0.9
"""A limit counted over minutes is tried further only when the minute before came this close to the pace."""

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class LearnedRate:
    """What refusals have shown of a key, as it is kept for the next run and told to other processes."""

    per_second: float | None
    """None: no limit was found."""
    ceiling: float
    """Requests a second that were too many."""
    plateau: float
    """Seconds until more is tried."""
    over_minutes: bool
    """Whether the limit is counted over a long time."""


NO_LEARNED_RATE = LearnedRate(None, 0.0, FIRST_PLATEAU, False)


class AdaptiveRate:
    """Lowered by refusals to what passes, kept for a while, then raised slowly while it is used and nothing refused.

    All is reckoned for the whole key: what a process sends that has a part of it counts for the others' part too.
    """

    def __init__(self, now: float) -> None:
        self.per_second: float | None = None
        """None as long as nothing was refused."""
        self.share = 1.0
        """Of the key's limit, what this process may use."""
        self._confirmed = False
        """Whether more was tried and was refused again: one refusal alone may be for anything."""
        self.lowerings = 0
        """Since it was confirmed."""
        self._lately = SlidingWindow()
        self._passed = 0.0
        self._began = now
        self._ceiling = 0.0
        self._passed_at: float | None = None
        self._raised_at = now
        self._lowered_at = now
        self._raised_since = True
        """Whether the pace was raised after it was lowered last."""
        self._plateau = FIRST_PLATEAU
        self._refused_at = now
        self._emptied: tuple[float, float] | None = None
        """(when, passed until then) of an earlier refusal."""
        self._before: float | None = None
        """What is kept to again if the lowerings since the last raise prove to be of no use."""
        self._first: float | None = None
        """What the first of them lowered the pace to."""
        self._share_before = 0.0
        self._row_began = now
        self._row_pace = 0.0
        self._measured_from: float | None = None
        """Since when a pace is kept that is low enough to tell whether refusals are for it."""
        self._lowered = self._sent = self._refused = 0
        """Lowerings after that first one, and what was sent and refused meanwhile."""
        self._usual: float | None = None
        """The share that is refused whatever the pace; None: no such cause is known."""
        self._usual_until = now
        self._usual_for = KNOWN_FOR
        self._most = 0.0
        self._seen_at_resume = 0.0
        self._last = now
        self._seen_before_gap = 0.0
        self._over_minutes = False
        """Whether the limit was seen to be counted over a long time."""

    @property
    def found(self) -> LearnedRate:
        """To be kept and told."""
        if not self._confirmed:
            return NO_LEARNED_RATE
        return LearnedRate(self.per_second, self._ceiling, self._plateau, self._over_minutes)

    def adopt(self, now: float, found: LearnedRate) -> None:
        """What was found elsewhere; what was refused here before says nothing about it."""
        if (found.per_second or inf) < (self.per_second or inf):
            self.anew(now)
            self._passed_at = None
            self._row_pace = 0.0
        self.per_second, self._ceiling = found.per_second, found.ceiling
        self._plateau, self._over_minutes = found.plateau, found.over_minutes
        self._confirmed = found.per_second is not None

    def sent(self, now: float) -> None:
        """One more has left."""
        self._passed += 1 / self.share
        self._lately.add(now, 1 / self.share, 0.0)

    def refused(self, now: float, first: bool) -> None:
        """One that has left did not pass; `first`: of those that were refused together."""
        if first:
            self._refused_at = now
        self._passed -= 1 / self.share
        self._lately.add(now, -1 / self.share, 1 / self.share)

    def unrelated(self, now: float) -> bool:
        """Whether refusals have, for all that is known, nothing to do with the pace."""
        if self._usual is None:
            return False
        since = max(now - 10, self._lowered_at)
        passed, refused = self._lately.passed(since), self._lately.refused(since)
        too_many = refused > min(0.5, 1.5 * self._usual) * (passed + refused) + CHANCE / self.share
        if self.per_second is None and (too_many or now >= self._usual_until):
            self._usual = None
        # Where a pace is kept to beside it, what is too many is for the pace.
        return self._usual is not None and not too_many

    def answered(self, now: float) -> float:
        """One more answer; the seconds since the one before it."""
        gap = now - self._last
        if gap >= BLOCKED:
            self._seen_before_gap = self._seen(self._last, now)
        self._last = now
        return gap

    def lower(self, now: float, pace: float | None, sent: int, refused: int) -> None:
        """After a refusal, when sending again. `pace`: that which was kept to, None where none was; `sent` and of them
        `refused`: since the refusal before."""
        self.tried(now)
        self._most = max(self._most, self._lately.passed(now - 10) / 10)
        limit = self._shown(now)
        if self._emptied is None or self._refused_at - self._emptied[0] >= 1.0:
            self._emptied = (self._refused_at, self._passed)
        if self._raised_since:
            if pace is None or pace >= RECOVERED * self._row_pace:
                self._begin_row(now, None if pace is None else self.per_second, pace or limit, sent, refused)
            if pace is not None:
                least, most = PLATEAU_SECONDS
                longest = min(most, max(least, PLATEAU_REQUESTS / pace))
                again = pace < SAME * self._ceiling
                self._plateau = min(2 * self._plateau, longest) if again else FIRST_PLATEAU
                self._confirmed |= again
        if self._row_began != now and self._known_use(now, sent, refused):
            return
        if pace is None:
            # Where nothing has passed yet there is nothing to go by.
            if limit > 0:
                self._set(now, EASED * limit, limit)
        else:
            limit = min(pace, limit)
            # One that sends a small part of what the key takes has seen little.
            self._set(now, max(FALLS**self.share * pace, EASED * limit), limit)
        if self._lowered == 0:
            self._first = self.per_second
            if pace is not None and self._before is None:
                self._before = self.per_second
        elif (
            self._lowered >= USELESS
            and self._measured_from is None
            and not self._over_minutes
            and (self.per_second or inf) <= LOW * self._row_pace
        ):
            self._measured_from, self._sent, self._refused = now, 0, 0

    def _known_use(self, now: float, sent: int, refused: int) -> bool:
        """Refused once more in a row of lowerings: whether it is known, or being measured, what they are good for, so
        that the pace is not lowered for this one."""
        self._lowered += 1
        if self._lowered == 1:
            # The first refusal of all comes late: a provider lets some pass before it.
            self._share_before = max(self._share_before, refused / max(1, sent))
        else:
            self._sent += sent
            self._refused += refused
        if self._few(self._sent, self._refused):
            self._begin_row(now, self._first, self.per_second or 0.0, self._sent, self._refused)
            return False
        if self._few(sent, refused):
            self._begin_row(now, self.per_second, self.per_second or 0.0, sent, refused)
            return False
        if 2 * self._refused > self._sent:
            self._measured_from = None
            return False
        if self._over_minutes:
            # Where much passed at once the minute before, requests are refused for some seconds whatever the pace.
            if self._lowered < USELESS:
                return False
            if now - self._row_began >= UNEVEN and self._refused > FEW * self._sent:
                self._no_use(now)
            elif self.per_second is not None:
                self._set(now, EASED * self.per_second, self.per_second)
            return True
        if self._measured_from is None:
            return False
        self._lowered_at = now
        if now - self._measured_from >= MEASURED and (self._sent >= ENOUGH or self._refused >= ENOUGH_REFUSED):
            self._no_use(now)
        return True

    def _begin_row(self, now: float, before: float | None, pace: float, sent: int, refused: int) -> None:
        """Lowerings begin, from `pace`; if they are of no use, the pace is `before` again. What was refused of what was
        sent is what they are to prevent."""
        self._before, self._row_pace, self._row_began = before, pace, now
        self._share_before = refused / max(1, sent)
        self._lowered = self._sent = self._refused = 0
        self._measured_from = None

    def _few(self, sent: int, refused: int) -> bool:
        """Whether so many are few, compared with what was refused before the row; chance allowed for."""
        return refused + 2 * sqrt(refused) + 1 < HELPED * self._share_before * sent

    def tried(self, now: float) -> None:
        """After a refusal something is sent again: if it passes, this is what passed before it."""
        self._seen_at_resume = self._seen(now, now)

    def anew(self, now: float) -> None:
        """Another pace is kept to from now on: what was refused before says nothing about it."""
        self._lowered_at = now
        self._raised_since = True
        self._emptied = None

    def ease(self, now: float, pace: float, least: float) -> None:
        """Little is left of the allowance, somebody else uses it too: a little slower, at most once a second."""
        if now - self._lowered_at >= 1.0 and pace > least:
            self._set(now, max(least, 0.97 * pace), pace)

    def unblocked(self, now: float, gap: float, all_refused: bool) -> None:
        """The first answer after refusals, `gap` seconds after the answer before it: where that is long, and nothing
        passed that was sent after the refused one, the limit is counted over a long time, and what passed in a minute
        shows it."""
        seen = self._seen_at_resume
        # Where hardly anything has passed yet there is nothing to go by.
        if (
            all_refused
            and self._passed > HARDLY
            and gap >= max(BLOCKED, 0.0 if self.per_second is None else 10 / self.per_second)
        ):
            self._over_minutes = self._confirmed = True
            if seen < MISSED * self._seen_before_gap:
                # It let nothing pass until all that it had counted was forgotten: what it had counted is its limit.
                seen = self._seen_before_gap
            self._set(now, EASED * seen, seen)

    def raise_slowly(self, now: float, stated: float | None) -> bool:
        """Once a second; whether it changed. `stated`: the provider's own limit a second: reached, nothing is found."""
        elapsed = now - self._raised_at
        if self.per_second is None or elapsed < 1.0 or now - self._lowered_at < self._kept_for:
            return False
        self._raised_at = now
        # A pace that is not used shows nothing about the limit.
        if self._lately.passed(now - 2.0) / 2.0 < 0.7 * self.per_second:
            return False
        step = RAISED
        if self.per_second >= self._ceiling:
            if self._over_minutes and self._lately.passed(now - MINUTE) / MINUTE < SUSTAINED * self.per_second:
                # Such a limit refuses only after a minute: until then, that nothing is refused shows nothing.
                return False
            self._passed_at = self._passed_at or now
            fastest = CAREFUL if self._over_minutes else FASTEST
            step = min(fastest, RAISED * 2.0 ** ((now - self._passed_at) / FASTER_EVERY))
        if not self._raised_since:
            self._measure_usual(now)
        self._raised_since = True
        self.per_second *= 1 + step * min(elapsed, 2.0)
        if stated is not None and self.per_second >= stated:
            self.per_second = None
        return True

    def _measure_usual(self, now: float) -> None:
        """What was refused while the pace was kept below what was refused before is not for the pace."""
        passed, refused = self._lately.passed(self._lowered_at), self._lately.refused(self._lowered_at)
        if self._usual is not None and (passed + refused) * self.share >= ENOUGH:
            self._usual = refused / (passed + refused)

    @property
    def _kept_for(self) -> float:
        """Seconds for which a pace is kept before more is tried."""
        return max(self._plateau, min(MINUTE, ENOUGH / (self.per_second or 1.0)))

    def _shown(self, now: float) -> float:
        """The limit a second that the refusal shows, from what passed before it."""
        if self._over_minutes:
            return self._seen(self._refused_at, now)
        if self._emptied is not None and 0.1 < self._refused_at - self._emptied[0] <= RECENT:
            # What was left at the start of a time would count as limit: so from a moment in which nothing was left.
            return max(0.0, self._passed - self._emptied[1]) / (self._refused_at - self._emptied[0])
        # Nothing was sent since the refusal.
        span = min(2.0, max(1.0, self._refused_at - max(self._lowered_at, self._began)))
        return self._lately.passed(self._refused_at - span) / span

    def _no_use(self, now: float) -> None:
        """Back to where the lowerings that prevented nothing began: what is refused is refused for another reason."""
        self._usual = (self._refused + sqrt(self._refused)) / self._sent
        self._usual_until = now + self._usual_for
        self._usual_for *= 2
        self._over_minutes = False
        self.per_second = self._before
        self._confirmed &= self.per_second is not None
        self._lowered_at, self._raised_since = now, True

    def _set(self, now: float, per_second: float, ceiling: float) -> None:
        self._ceiling = ceiling
        self.per_second = max(per_second, LEAST * self._most, 1 / MINUTE)
        self._lowered_at = now
        self._raised_since = False
        self._passed_at = None
        self.lowerings += self._confirmed

    def _seen(self, until: float, now: float) -> float:
        """What passed a second in the minute before `until`, or since the beginning."""
        since = max(self._began, until - MINUTE)
        return self._lately.passed(since) / min(MINUTE, max(now - since, 0.5))
