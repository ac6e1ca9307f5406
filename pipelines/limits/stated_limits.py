"""Stated limits of a key: those of rowmill.yaml, or of the provider's headers if these are lower."""

MIN_REMAINING_SHARE = 0.003
"""With less than this share of a limit left, another program uses the key as well."""

PLENTY_SHARE = 0.1
"""This holds only if more than this share was left before: a provider that counts by the second never has as much."""

KINDS = ("requests", "tokens")

RateLimits = tuple[float | None, float | None]
"""Requests and tokens, a minute or remaining; None: unknown."""


class StatedLimits:
    """The lower of the configured and the stated limits."""

    def __init__(self, configured: RateLimits) -> None:
        self._configured = configured
        self._by_scope: dict[object, RateLimits] = {}
        self._plenty: set[str] = set()
        self.per_minute = configured

    def update(self, limits: RateLimits, of: object) -> bool:
        """Apply limits from headers; return whether they are new. `of`: their scope, such as a model; if scopes
        differ, the lowest limit counts."""
        if limits == (None, None) or self._by_scope.get(of) == limits:
            return False
        self._by_scope[of] = limits
        self._update()
        return True

    def set_configured(self, limits: RateLimits) -> None:
        """Replace the configured limits."""
        self._configured = limits
        self._update()

    def _update(self) -> None:
        requests = lowest(self._configured[0], *(stated[0] for stated in self._by_scope.values()))
        tokens = lowest(self._configured[1], *(stated[1] for stated in self._by_scope.values()))
        self.per_minute = (requests, tokens)

    def is_shared_with_others(self, limits: RateLimits, left: RateLimits) -> bool:
        """Whether so little is left of a limit that another program uses the key as well."""
        is_shared = False
        for kind, limit, remaining in zip(KINDS, limits, left, strict=True):
            if limit is None or remaining is None:
                continue
            if remaining > PLENTY_SHARE * limit:
                self._plenty.add(kind)
            else:
                is_shared |= kind in self._plenty and remaining < MIN_REMAINING_SHARE * limit
        return is_shared

    def is_stated_by_provider(self, kind: str) -> bool:
        """Whether the limit in force comes from the provider's headers."""
        place = KINDS.index(kind)
        limit = self.per_minute[place]
        return limit is not None and limit != self._configured[place]


def lowest(*limits: float | None) -> float | None:
    """Return the lowest of the known limits."""
    return min((limit for limit in limits if limit is not None), default=None)
