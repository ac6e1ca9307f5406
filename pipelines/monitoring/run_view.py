"""What may be looked at while a run is under way."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.request_types import DispatchControl
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.monitoring.bottleneck import TimeBreakdown
from pipelines.pricing.run_budget import RunBudget


@dataclass(slots=True)
class RunView:
    """The moving parts of a run, to be read only."""

    tally: RunCounters
    fanout: DispatchControl
    allowances: Mapping[str, ProviderLimiter]
    """By provider."""
    purse: RunBudget
    time_breakdown: TimeBreakdown | None = None
    """None where the senders are elsewhere."""

    def hold_reason(self) -> str | None:
        """What makes the run wait, and for how long where that is known; None where nothing does."""
        if self.fanout.waiting_for is not None:
            return self.fanout.waiting_for
        for provider, allowance in self.allowances.items():
            if allowance.excluded_reason is not None:
                continue
            if allowance.is_circuit_open:
                return (
                    f"{provider} has not answered for {allowance.seconds_without_reply():.0f} s: "
                    f"trying it again in {allowance.pause_seconds:.0f} s"
                )
            if allowance.pause_seconds > 1:
                return f"{provider} asks to wait {allowance.pause_seconds:.0f} s"
        out = [
            f"{name} is left out ({one.excluded_reason})"
            for name, one in self.allowances.items()
            if one.excluded_reason
        ]
        return "; ".join(out) or None
