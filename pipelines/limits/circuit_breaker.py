"""The circuit of a provider that fails every request: it is held, and single requests try whether it is back."""

FAILURES_TO_OPEN = 20
"""So many failures in a row, without one answer between them, open the circuit."""

CONNECTION_FAILURE_WEIGHT = 10
"""A connection that cannot be made counts as so many failures: no row is to blame for it."""

FIRST_PROBE_SECONDS = 0.5
"""Seconds until the first probe; doubled with each that fails."""

SHORT_PAUSE_SECONDS = 1.0
"""Seconds of a hold for which a sender waits even where it could send to another provider."""


class ProviderPaused(Exception):
    """The provider holds all its senders for longer than this one wants to wait."""


class CircuitBreaker:
    """Counts failures in a row, and says how long to wait for the next probe."""

    def __init__(self, longest_wait: float, longest_hold: float) -> None:
        """Seconds: `longest_wait` between probes, `longest_hold` until the run gives up."""
        self._longest_wait = longest_wait
        self._longest_hold = longest_hold
        self.failures = 0
        self.paused_until = 0.0
        self.silent_since: float | None = None
        """Since when nothing was answered; None while answers come."""
        self._probes = 0

    @property
    def is_open(self) -> bool:
        return self.failures >= FAILURES_TO_OPEN

    def record_reply(self) -> None:
        """The provider lives."""
        self.failures = self._probes = 0
        self.paused_until = 0.0
        self.silent_since = None

    def record_no_reply(self, now: float) -> None:
        """A refusal or a failure: no answer."""
        if self.silent_since is None:
            self.silent_since = now

    def record_failure(self, now: float, no_server: bool, stale: bool) -> bool:
        """A failure; whether it came while the circuit was open, so that it says nothing about its request.

        `stale`: sent before the circuit opened, so no probe.
        """
        was_open = self.is_open
        self.record_no_reply(now)
        self.failures += CONNECTION_FAILURE_WEIGHT if no_server else 1
        if self.is_open and not (was_open and stale):
            wait = min(self._longest_wait, FIRST_PROBE_SECONDS * 2.0 ** min(self._probes, 20))
            # The last probe is made when the time is up, not long after.
            left = self._longest_hold - (now - (self.silent_since or now))
            self.paused_until = now + min(wait, left + 0.001) if left > 0 else now
            self._probes += 1
        return was_open
