"""Circuit breaker for a provider that fails every request: sending stops, single requests probe whether it is back."""

FAILURES_TO_OPEN = 20
"""So many failures in a row, without an answer in between, open the circuit."""

CONNECTION_FAILURE_WEIGHT = 10
"""A failed connection counts as so many failures: no row causes it."""

FIRST_PROBE_SECONDS = 0.5
"""Time until the first probe; doubled after each failed probe."""

SHORT_PAUSE_SECONDS = 1.0
"""A sender waits out a pause of this length even if another provider is available."""


class ProviderPaused(Exception):
    """The provider is paused for longer than the caller wants to wait."""


class CircuitBreaker:
    """Counter of failures in a row, with the time of the next probe."""

    def __init__(self, longest_wait: float, longest_hold: float) -> None:
        """In seconds: `longest_wait` between probes, `longest_hold` until the run gives up."""
        self._longest_wait = longest_wait
        self._longest_hold = longest_hold
        self.failures = 0
        self.paused_until = 0.0
        self.silent_since: float | None = None
        """Since when an answer is missing: the circuit opened, or a request was refused; None while requests end."""
        self._run_paused_at: float | None = None
        self._probes = 0

    @property
    def is_open(self) -> bool:
        return self.failures >= FAILURES_TO_OPEN

    def silence(self, now: float) -> float:
        """Return the seconds for which the provider has refused every request or kept the circuit open; else 0.

        A pause of the run does not count: the provider got no request. Nor do failures while the circuit is closed:
        they use attempts, so rows end, however long each of them takes.
        """
        if self.silent_since is None:
            return 0.0
        return max(0.0, (now if self._run_paused_at is None else self._run_paused_at) - self.silent_since)

    def record_run_pause(self, now: float, is_paused: bool) -> None:
        """Record that the run is paused, or goes on."""
        if is_paused:
            self._run_paused_at = now
        elif self._run_paused_at is not None:
            if self.silent_since is not None:
                self.silent_since += now - max(self.silent_since, self._run_paused_at)
            self._run_paused_at = None

    def record_reply(self) -> None:
        """Close the circuit: the provider answered."""
        self.failures = self._probes = 0
        self.paused_until = 0.0
        self.silent_since = None

    def record_refusal(self, now: float) -> None:
        """Record a 429."""
        if self.silent_since is None:
            self.silent_since = now

    def record_failure(self, now: float, no_server: bool, stale: bool) -> bool:
        """Record a failure; return whether the circuit was open, in which case the request is not to blame.

        `stale`: sent before the circuit opened, so not a probe.
        """
        was_open = self.is_open
        self.failures += CONNECTION_FAILURE_WEIGHT if no_server else 1
        if not self.is_open:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = now
        if self.is_open and not (was_open and stale):
            wait = min(self._longest_wait, FIRST_PROBE_SECONDS * 2.0 ** min(self._probes, 20))
            # The last probe is sent when the time is up, not long after.
            left = self._longest_hold - self.silence(now)
            self.paused_until = now + min(wait, left + 0.001) if left > 0 else now
            self._probes += 1
        return was_open
