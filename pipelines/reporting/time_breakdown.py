"""The report's section on where the time of a job's last invocation went."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.monitoring.bottleneck import SENDER_STATES
from pipelines.reporting.page.page_values import Fact, Figures, Share, Table, fact, format_number, table

STATE_NAMES = {
    "limits": "waiting for a rate limit of the provider or the job",
    "network": "waiting for answers",
    "ledger": "writing to the ledger",
    "turn": "waiting for CPU time of this process",
    "budget": "waiting for money that other requests have reserved",
    "idle": "nothing to send",
}
STATE_NAMES_ON_RAY = STATE_NAMES | {
    "ledger": "sending to and writing to the ledger",
    "turn": "waiting for CPU time of their worker",
    "idle": "nothing to send, or no worker yet",
}


def time_breakdown(runs: Sequence[Mapping[str, Any]]) -> Sequence[str | Table | Figures]:
    """Return the bottleneck, a table of what the senders did, and further figures; empty if nothing was sent."""
    times = runs[0]["times"] if runs else None
    if times is None or not times["network"]:
        return ()
    total = times["senders"] * times["sending"]
    workers = times.get("workers")
    names = STATE_NAMES if workers is None else STATE_NAMES_ON_RAY
    rows = [
        (
            names[name],
            _share(f"times.{name}", times[name], times[name] / total),
            f"{format_number(round(times[name] / times['senders'], 3))} s",
        )
        for name in sorted(SENDER_STATES, key=lambda name: -times[name])
    ]
    senders = f"{times['senders']:,} senders" + ("" if workers is None else f" on {workers:,} workers")
    caption = f"What {senders} did in the {format_number(times['sending'])} s of the last run"
    figures = {
        "requests in flight, mean": fact("times.in_flight", times["network"] / times["sending"]),
        "reading the source": _seconds("reading", times),
        "writing the tables": _seconds("committing", times),
        "CPU used, of one core": fact("times.cpu", times["cpu"], f"{100 * times['cpu'] / times['sending']:.0f} %"),
    }
    if workers is None:
        figures |= {
            "delay in this process, mean": fact(
                "times.lag_mean_ms", times["lag_mean_ms"], f"{times['lag_mean_ms']:.1f} ms"
            ),
            "delay in this process, longest": fact(
                "times.lag_max_ms", times["lag_max_ms"], f"{times['lag_max_ms']:.0f} ms"
            ),
        }
    else:
        figures = {"until the first worker started": _seconds("starting", times), **figures}
        figures["CPU used by a worker, of one core"] = figures.pop("CPU used, of one core")
    bottleneck = [] if times["bound_by"] is None else [f"Bottleneck: {times['bound_by']}."]
    return (
        *bottleneck,
        table(("activity", "share", "per sender"), rows, caption, frozenset({1, 2})),
        Figures(figures),
    )


def _share(name: str, value: float, share: float) -> Share:
    return Share(fact(name, value, f"{100 * share:.0f} %"), round(100 * min(1.0, share), 1))


def _seconds(name: str, times: Mapping[str, Any]) -> Fact:
    return fact(f"times.{name}", times[name], f"{format_number(round(times[name], 3))} s")
