"""A read-only view of a run in progress, for displays, logs and telemetry."""

from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct

from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.dispatch_state import INTERRUPTED
from pipelines.dispatch.dispatcher import DispatchControl
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import TimeBreakdown


class RunView(Struct):
    """The moving parts of a run."""

    counters: RunCounters
    dispatcher: DispatchControl
    limiters: Mapping[str, ProviderLimiter]
    """By provider."""
    time_breakdown: TimeBreakdown | None = None
    """None if the senders are in other processes."""

    def hold_reason(self) -> str | None:
        """Return what the run waits for, and for how long if that is known; None if it does not wait."""
        if self.dispatcher.state.stop_reason == INTERRUPTED:
            return "interrupted: waiting for requests in flight; Ctrl-C again exits at once"
        if (since := self.dispatcher.state.paused_since) is not None:
            return f"paused since {since:%H:%M:%S} UTC; resume it with: rowmill control JOB resume"
        if self.dispatcher.state.waiting_for is not None:
            return self.dispatcher.state.waiting_for
        for provider, limiter in self.limiters.items():
            if limiter.excluded_reason is not None:
                continue
            if limiter.is_circuit_open:
                silence, pause = limiter.seconds_without_reply(), limiter.pause_seconds
                return f"{provider} has not answered for {silence:.0f} s: next attempt in {pause:.0f} s"
            if limiter.pause_seconds > 1:
                return f"{provider} asks to wait {limiter.pause_seconds:.0f} s"
        excluded = ((name, limiter.excluded_reason) for name, limiter in self.limiters.items())
        return "; ".join(f"{name} is excluded ({reason})" for name, reason in excluded if reason) or None


FollowRun = Callable[[RunView], Awaitable[None]]
"""Shows or records a run until it is cancelled."""
