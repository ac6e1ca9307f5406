"""Group limits: how many requests a provider's model accepts in one exchange, and in which encoding."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

from connectors.contracts import Endpoint
from connectors.records import Request, RowError


class Group(Protocol):
    """Requests that share an exchange."""

    @property
    def requests(self) -> tuple[Request, ...]: ...


G = TypeVar("G", bound=Group)

StoreLimits = Callable[[int | None, str | None], Coroutine[Any, Any, None]]
"""Stores the most requests in a group, and the encoding if it is not the usual one, for later runs."""


class GroupLimits(Generic[G]):
    """What is known of one provider's model; the steps that use the model share it.

    A group that is larger than every accepted one goes first, alone: only it can be refused for its size. A refusal
    that blames the size, by its words, lowers the limit. One that blames nothing halves it, until a smaller group is
    accepted; if in the end one request alone is refused, this request was the reason, and the limit is lifted.
    """

    def __init__(self, endpoint: Endpoint, max_requests: int | None, encoding: str | None, store: StoreLimits) -> None:
        """`max_requests` and `encoding`: as an earlier run has learned them; `endpoint` follows this encoding."""
        self.endpoint = endpoint
        """Writes the exchanges, in the encoding that the provider takes."""
        self.max_requests = max_requests
        self._store = store
        self._encoding = encoding
        self._largest_accepted = 0
        self._is_encoding_accepted = False
        self._usual_endpoint: Endpoint | None = None
        """While a simpler encoding is tried."""
        self._suspected_limit: int | None = None
        self._suspects: set[bytes] = set()
        """Fingerprints of the requests in refused groups: one of them, or their number, is the reason."""
        self._first: G | None = None
        """The group that goes first."""
        self._is_again = False
        """Whether the first group is sent again."""
        self._waiting: list[G] = []

    def parts(self, requests: tuple[Request, ...]) -> Sequence[tuple[Request, ...]]:
        """Return the requests of a group, in parts if there are more than the limit."""
        limits = [limit for limit in (self.max_requests, self._suspected_limit) if limit is not None]
        limit = min(limits, default=len(requests))
        if len(requests) <= limit:
            return (requests,)
        return [requests[start : start + limit] for start in range(0, len(requests), limit)]

    def begin(self, group: G) -> bool:
        """Return whether the group may be sent now; otherwise `end` of the first group returns it."""
        if len(group.requests) <= self._largest_accepted and self._is_encoding_accepted:
            return True
        if self._first is None or self._first is group:
            self._first, self._is_again = group, False
            return True
        self._waiting.append(group)
        return False

    def end(self, group: G) -> Sequence[G]:
        """Return the groups that have waited for this one."""
        if self._first is not group or self._is_again:
            return ()
        self._first = None
        waiting, self._waiting = self._waiting, []
        return waiting

    def end_split(self, group: G) -> Sequence[G]:
        """Return the groups that have waited for this one, which is replaced by its parts."""
        if self._first is group:
            self._is_again = False
        return self.end(group)

    def record_accepted(self, group: G) -> Coroutine[Any, Any, None] | None:
        """Learn from an accepted group; return the write to the ledger that follows, if any."""
        is_changed = self._usual_endpoint is not None
        if is_changed:
            self._encoding, self._usual_endpoint = "float", None
        self._is_encoding_accepted = True
        self._largest_accepted = max(self._largest_accepted, len(group.requests))
        if self._suspects:
            self._suspects.difference_update(request.fingerprint for request in group.requests)
            if not self._suspects:
                self.max_requests, self._suspected_limit, is_changed = self._suspected_limit, None, True
        return self._store(self.max_requests, self._encoding) if is_changed else None

    def record_stated_refusal(self, group: G, error: RowError) -> Coroutine[Any, Any, None] | None:
        """Learn from a refusal whose words name the encoding or the size of the group.

        Return the write to the ledger that follows; its requests are to be sent again. None for any other refusal.
        """
        plain = self.endpoint.plain_encoding(error)
        if plain is not None and plain[1]:
            self.endpoint, self._encoding, self._usual_endpoint = plain[0], "float", None
            return self._store(self.max_requests, self._encoding)
        limit = self.endpoint.group_limit(error, len(group.requests))
        if limit is None:
            return None
        self.max_requests = min(limit, self.max_requests or limit)
        self._suspected_limit, self._suspects = None, set()
        return self._store(self.max_requests, self._encoding)

    def record_refused(self, group: G, error: RowError) -> tuple[bool, Coroutine[Any, Any, None] | None]:
        """Learn from a refused group.

        Return whether its requests are to be sent again, and the write to the ledger that follows, if any.
        """
        size, plain = len(group.requests), self.endpoint.plain_encoding(error)
        if plain is not None and not plain[1] and not self._is_encoding_accepted:
            self._is_again = self._first is group
            self._usual_endpoint, self.endpoint = self.endpoint, plain[0]
            return True, None
        if self._usual_endpoint is not None:
            # The encoding was not the reason; this is not tried again.
            self.endpoint, self._usual_endpoint, self._is_encoding_accepted = self._usual_endpoint, None, True
        if (write := self.record_stated_refusal(group, error)) is not None:
            self._is_again = self._first is group
            return True, write
        fingerprints = {request.fingerprint for request in group.requests}
        if size > max(1, self._largest_accepted):
            self._suspected_limit = min(size // 2, self._suspected_limit or size)
            self._suspects |= fingerprints
            return True, None
        if size == 1 and not self._suspects.isdisjoint(fingerprints):
            self._suspected_limit, self._suspects = None, set()
        return False, None
