"""Where the time of a job's last invocation went, as a section of its report."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipelines.monitoring.bottleneck import SENDER_STATES
from pipelines.reporting.html import Safe, fact, figures, number, table

NAMES = {
    "limits": "waiting for a limit of the provider or the job",
    "network": "waiting for answers",
    "ledger": "writing to the ledger",
    "turn": "waiting for this process, which does one thing at a time",
    "budget": "waiting for money set aside by others",
    "idle": "nothing to send",
}
ON_RAY = NAMES | {
    "ledger": "writing to the ledger, and the way there",
    "turn": "waiting for their worker, which does one thing at a time",
    "idle": "nothing to send, or no worker yet",
}


def where_the_time_went(runs: Sequence[Mapping[str, Any]]) -> Safe | None:
    """What the senders did, what went on beside them, and what bounds the run; None where nothing was sent."""
    times = runs[0]["times"] if runs else None
    if times is None or not times["network"]:
        return None
    whole = times["senders"] * times["sending"]
    workers = times.get("workers")
    names = NAMES if workers is None else ON_RAY
    rows = [
        (
            names[name],
            _bar(times[name] / whole, fact(f"times.{name}", times[name], f"{100 * times[name] / whole:.0f} %")),
            f"{number(round(times[name] / times['senders'], 3))} s",
        )
        for name in sorted(SENDER_STATES, key=lambda name: -times[name])
    ]
    words = "" if times["bound_by"] is None else f"<p>Bound by {escape(times['bound_by'])}.</p>"
    who = f"{times['senders']:,} senders" + ("" if workers is None else f" on {workers:,} workers")
    caption = f"What {who} did in {number(times['sending'])} s, when the job was run last"
    beside = {
        "in flight on average": fact("times.in_flight", times["network"] / times["sending"]),
        "reading the source": _seconds("reading", times),
        "committing": _seconds("committing", times),
        "CPU, of one core": fact("times.cpu", times["cpu"], f"{100 * times['cpu'] / times['sending']:.0f} %"),
    }
    if workers is None:
        beside |= {
            "loop late, mean": fact("times.lag_mean_ms", times["lag_mean_ms"], f"{times['lag_mean_ms']:.1f} ms"),
            "loop late, most": fact("times.lag_max_ms", times["lag_max_ms"], f"{times['lag_max_ms']:.0f} ms"),
        }
    else:
        beside = {"until the first worker began": _seconds("starting", times), **beside}
        beside["CPU of a worker, of one core"] = beside.pop("CPU, of one core")
    return Safe(words + table(("what", "share", "each"), rows, caption, frozenset({1, 2})) + figures(beside))


def _bar(share: float, told: Safe) -> Safe:
    drawn = f'<span class="track"><span class="share" style="width:{100 * min(1.0, share):.1f}%"></span></span>'
    return Safe(f'<span class="shared">{drawn}{told}</span>')


def _seconds(name: str, times: Mapping[str, Any]) -> Safe:
    return fact(f"times.{name}", times[name], f"{number(round(times[name], 3))} s")
