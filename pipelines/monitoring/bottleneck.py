"""What bounds a run: where its senders' time went, which part of it weighs most, and what would change that."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.workspace import LOCAL
from pipelines.dispatch.counters import RunCounters
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.run_budget import RunBudget

LAG_SAMPLE_SECONDS = 0.1
"""Seconds between two looks at how late the event loop is."""
MIN_RUN_SECONDS = 1.0
MIN_RUN_REQUESTS = 20
"""Of shorter runs nothing is said: most of their time is the start."""
BUSY_THREAD_SHARE = 0.8
"""The share of its time from which on a thread counts as the bound."""
LATE_LOOP_MS = 5.0
"""So late on average, the loop waits for others of its process."""


LEDGER = ("the ledger's disk", "put `state` of rowmill.yaml on a faster one")
FAR_LEDGER = (
    "the ledger, which one process writes for all workers, and the way to it",
    "give the machine of the driver more cores, or split the job among workspaces",
)
BUDGET = (
    "the budget, of which every request in flight sets its worst case aside",
    "raise budget.usd, or lower max_tokens",
)
CLOSING = ("writing what came last to the sink", "nothing to raise: that is once a run, however many rows it has")
"""What bounds the run, and what to do."""


SLOW_TURN_SHARE = 0.5
"""The share of the time on the network from which on answers wait for this process rather than for the provider."""
SENDER_STATES = ("limits", "network", "ledger", "turn", "budget", "idle")
"""What a sender's time goes into."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What a run would have to have more of, to be faster."""

    what: str
    advice: str
    share: float
    """Of the run's time."""

    def __str__(self) -> str:
        return f"{self.what} ({100 * self.share:.0f} % of the time); {self.advice}"


@dataclass(slots=True)
class RemoteTimings:
    """What senders in other processes tell of themselves."""

    workers: int
    """Their processes."""
    cpu_seconds: float = 0.0
    """Seconds of CPU of one of them, on average."""
    ledger_seconds: float = 0.0
    """Seconds that exchanges waited for the ledger, added up over all of them, the way to it included."""
    startup_seconds: float = 0.0
    """Seconds until the first of them could send."""


class TimeBreakdown:
    """Measures one invocation beside its senders; made, read and ended on the event loop's own thread."""

    def __init__(
        self,
        tally: RunCounters,
        concurrency: int,
        delivery: str,
        allowances: Mapping[str, ProviderLimiter],
        purse: RunBudget,
        ledger_busy: Callable[[], float],
        elsewhere: RemoteTimings | None = None,
    ) -> None:
        """`allowances`: by provider, under "" that of the job. `ledger_busy`: seconds that the ledger's thread has
        written so far. `elsewhere`: None where the senders are in this process."""
        self._tally = tally
        self._concurrency = concurrency
        self._delivery = delivery
        self._allowances = allowances
        self._purse = purse
        self._ledger_busy = ledger_busy
        self._elsewhere = elsewhere
        self.reading_seconds = 0.0
        """Seconds that the run waited for rows of the source."""
        self.rendering_seconds = 0.0
        """Seconds in which no more rows were taken up, as those before were being rendered and looked up."""
        self.committing_seconds = 0.0
        """Seconds of commits to the sink, most of them beside the sending."""
        self._ticks = 0
        self._late = self._latest = 0.0
        self._began = self._now()
        self._sent: tuple[float, float, float] | None = None

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), time.thread_time()

    async def measure_loop_lag(self) -> None:
        """Measure how late the loop is, until cancelled."""
        while True:
            due = time.perf_counter() + LAG_SAMPLE_SECONDS
            await asyncio.sleep(LAG_SAMPLE_SECONDS)
            late = max(0.0, time.perf_counter() - due)
            self._ticks += 1
            self._late += late
            self._latest = max(self._latest, late)

    def end_sending(self) -> None:
        """Nothing is sent any more: what follows is writing."""
        self._sent = self._now()

    def to_json(self) -> dict[str, Any]:
        """The figures so far, in seconds; `limits`, `network`, `ledger`, `turn` (of the event loop), `budget` and
        `idle` are added up over all senders, and together make `senders` times `sending`. With what bounds the run, in
        words, where that can be told."""
        now = self._now()
        sending, cpu, loop = (until - begun for until, begun in zip(self._sent or now, self._began, strict=True))
        times, writing, far = self._tally.times, self._ledger_busy(), self._elsewhere
        # While the ledger's thread writes, all may be waiting for it; what is left of an exchange went into waiting for
        # the loop, which reads and answers one at a time.
        ledger = min(max(0.0, times.beside), self._concurrency * writing if far is None else far.ledger_seconds)
        if far is not None:
            cpu = loop = far.cpu_seconds
        waits = {
            "limits": times.limits,
            "network": times.network,
            "ledger": ledger,
            "turn": max(0.0, times.beside - ledger),
            "budget": self._purse.waited_seconds,
        }
        told: dict[str, Any] = {
            "seconds": now[0] - self._began[0],
            "sending": sending,
            "senders": self._concurrency,
            **waits,
            "idle": max(0.0, self._concurrency * sending - sum(waits.values())),
            "reading": self.reading_seconds,
            "setting_out": self.rendering_seconds,
            "committing": self.committing_seconds,
            "ledger_thread": writing,
            "cpu": cpu,
            "loop": loop,
            "lag_mean_ms": 1000 * self._late / max(1, self._ticks),
            "lag_max_ms": 1000 * self._latest,
        }
        if far is not None:
            told |= {"workers": far.workers, "starting": far.startup_seconds}
        rounded = {name: value if isinstance(value, int) else round(value, 4) for name, value in told.items()}
        bound = self.bottleneck(told)
        return rounded | {"bound_by": None if bound is None else str(bound)}

    def bottleneck(self, told: Mapping[str, Any]) -> Bottleneck | None:
        """What weighs most in these facts; None where too little happened to tell."""
        if told["seconds"] < MIN_RUN_SECONDS or self._tally.requests < MIN_RUN_REQUESTS:
            return None
        seconds, sending = told["seconds"], told["sending"]
        # What all senders waited for, as a share of the whole run's time.
        senders = max(1e-9, told["senders"] * seconds)
        shares = {name: told[name] / senders for name in SENDER_STATES}
        shares["closing"] = (seconds - sending) / seconds
        name = max(shares, key=lambda name: shares[name])
        share = min(1.0, shares[name])
        busy = sum(shares[name] for name in SENDER_STATES if name != "idle")
        if name == "idle" and shares["limits"] > 0.5 * busy:
            # The others have nothing to send since all that is left waits for the limit.
            name, share = "limits", shares["limits"] / busy * sending / seconds
        if name in ("network", "turn", "idle") and (name == "turn" or _loop_is_full(told)):
            core = min(told["cpu"], sending) / seconds
            return Bottleneck(*self._machine(), max(core, min(1.0, shares["network"] + shares["turn"])))
        if name == "limits":
            return Bottleneck(*self._limit(), share)
        if name == "network":
            return Bottleneck(*self._network(told), share)
        if name == "idle":
            return Bottleneck(*self._idle(told), share)
        ledger = LEDGER if self._elsewhere is None else FAR_LEDGER
        return Bottleneck(*{"ledger": ledger, "budget": BUDGET, "closing": CLOSING}[name], share)

    def _machine(self) -> tuple[str, str]:
        if self._elsewhere is not None:
            return f"the {self._elsewhere.workers} workers, each of which has one core", "give the cluster more cores"
        if LOCAL in self._allowances:
            return (
                "this machine, where the embedded provider works too",
                "give that a process of its own: rowmill serve",
            )
        return "this process, which has one core", "split the source among several jobs, or use --engine ray"

    def _limit(self) -> tuple[str, str]:
        waits = [
            (who, kind, spent) for who, one in self._allowances.items() for kind, spent in one.wait_seconds.items()
        ]
        who, kind, seconds = max(waits, key=lambda one: one[2])
        if not seconds:
            return "the pool's members, all busy or held", "raise their limits in rowmill.yaml, or add a member"
        allowance = self._allowances[who]
        owner = f"the limit of {who}" if who else "the job's limit"
        file = "rowmill.yaml" if who else "the job"
        more = "or add a provider (a pool)"
        if kind == "hold":
            words = f"{who}, which refused {self._tally.refused:,} requests and asks to wait"
            return words, f"lower its requests_per_minute in rowmill.yaml to what it takes, {more}"
        if kind == "slots":
            many = "" if allowance.concurrency == 1 else "s"
            return f"{owner}, {allowance.concurrency:,} request{many} in flight", f"raise its concurrency in {file}"
        found = allowance.learned_requests_per_minute
        if kind == "requests" and found is not None and found <= (allowance.requests_per_minute or found):
            return f"what {who} takes before it refuses, {found:,.0f} requests a minute", f"ask for more, {more}"
        amount = allowance.requests_per_minute if kind == "requests" else allowance.tokens_per_minute
        what = f"{owner}, {amount or 0:,.0f} {kind} a minute"
        if not who:
            return what, "raise it if the key allows more"
        if allowance.is_stated_by_provider(kind):
            return what, f"ask for a higher one, {more}"
        return what, f"raise it in rowmill.yaml if the key allows more, {more}"

    def _network(self, told: Mapping[str, Any]) -> tuple[str, str]:
        latency = 1000 * told["network"] / max(1, self._tally.requests)
        return f"answers that take {latency:,.0f} ms, {told['senders']:,} at a time", "raise limits.concurrency"

    def _idle(self, told: Mapping[str, Any]) -> tuple[str, str]:
        if self._delivery == "batch":
            return "the provider's Batch API", "use --delivery online where it has to be sooner"
        share = 0.5 * told["idle"] / told["senders"]
        if self._tally.retries > 0.2 * self._tally.requests:
            return (
                f"waits before {self._tally.retries:,} failed requests were tried again",
                "see what failed in the report",
            )
        if told.get("starting", 0.0) > share:
            return "the start of the workers on Ray", "nothing to raise: that is once a run, however many rows it has"
        if told["reading"] > share:
            return "reading the source", "convert it to Parquet, or narrow `where`"
        if told["setting_out"] > share:
            return "rows being rendered, and their files fetched", "keep the files on this machine, templates short"
        busy = told["network"] / max(1e-9, told["sending"])
        return "too few requests at a time", f"nothing to raise: {busy:,.0f} of {told['senders']:,} senders were busy"


def _loop_is_full(told: Mapping[str, Any]) -> bool:
    sending = max(told["sending"], 1e-9)
    # The embedded provider, say, has threads of its own that the loop waits for.
    crowded = told["cpu"] / sending >= BUSY_THREAD_SHARE and told["lag_mean_ms"] >= LATE_LOOP_MS
    return bool(
        told["loop"] / sending >= BUSY_THREAD_SHARE or crowded or told["turn"] > SLOW_TURN_SHARE * told["network"]
    )
