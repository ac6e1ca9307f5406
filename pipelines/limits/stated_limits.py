"""The limits of a key that are stated: by rowmill.yaml, and by the provider's headers where those are lower."""

LITTLE_LEFT = 0.003
"""Where less than this share of a limit is left, somebody else uses the key as well."""

PLENTY = 0.1
"""Only where once more than this share was left: a provider that counts by the second never has as much."""

KINDS = ("requests", "tokens")

RateLimits = tuple[float | None, float | None]
"""Requests and tokens, a minute or what is left of them; None: unknown."""


class StatedLimits:
    """What is kept to, of what was configured and stated, whichever is lower."""

    def __init__(self, configured: RateLimits) -> None:
        self._configured = configured
        self._told: dict[object, RateLimits] = {}
        self._plenty: set[str] = set()
        self.per_minute = configured

    def update(self, limits: RateLimits, of: object) -> bool:
        """From headers; whether that is news. `of`: what they are told for, such as a model: where they differ, the
        lowest counts."""
        if limits == (None, None) or self._told.get(of) == limits:
            return False
        self._told[of] = limits
        requests = lowest(self._configured[0], *(told[0] for told in self._told.values()))
        tokens = lowest(self._configured[1], *(told[1] for told in self._told.values()))
        self.per_minute = (requests, tokens)
        return True

    def is_shared_with_others(self, limits: RateLimits, left: RateLimits) -> bool:
        """Whether so little is left of what there once was plenty of that somebody else uses the key as well."""
        others = False
        for kind, limit, remaining in zip(KINDS, limits, left, strict=True):
            if limit is None or remaining is None:
                continue
            if remaining > PLENTY * limit:
                self._plenty.add(kind)
            else:
                others |= kind in self._plenty and remaining < LITTLE_LEFT * limit
        return others

    def is_stated_by_provider(self, kind: str) -> bool:
        """Whether the provider itself states the limit that is kept to."""
        place = KINDS.index(kind)
        kept = self.per_minute[place]
        return kept is not None and kept != self._configured[place]


def lowest(*limits: float | None) -> float | None:
    """The lowest of those that are known."""
    return min((limit for limit in limits if limit is not None), default=None)
