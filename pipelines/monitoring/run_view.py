"""What may be looked at while a run is under way."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.dispatch.counters import Tally
from pipelines.dispatch.request_types import Sending
from pipelines.limits.provider_limiter import Allowance
from pipelines.monitoring.bottleneck import RunClock
from pipelines.pricing.run_budget import Purse


@dataclass(slots=True)
class Watch:
    """The moving parts of a run, to be read only."""

    tally: Tally
    fanout: Sending
    allowances: Mapping[str, Allowance]
    """By provider."""
    purse: Purse
    clock: RunClock | None = None
    """None where the senders are elsewhere."""

    def held(self) -> str | None:
        """What makes the run wait, and for how long where that is known; None where nothing does."""
        if self.fanout.waiting_for is not None:
            return self.fanout.waiting_for
        for provider, allowance in self.allowances.items():
            if allowance.left_out is not None:
                continue
            if allowance.open_circuit:
                return (
                    f"{provider} has not answered for {allowance.silent_for():.0f} s: "
                    f"trying it again in {allowance.held_for:.0f} s"
                )
            if allowance.held_for > 1:
                return f"{provider} asks to wait {allowance.held_for:.0f} s"
        out = [f"{name} is left out ({one.left_out})" for name, one in self.allowances.items() if one.left_out]
        return "; ".join(out) or None
