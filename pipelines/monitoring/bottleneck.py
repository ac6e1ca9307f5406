"""The bottleneck of a run: where its senders' time went, what took most of it, and how to remove that."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from pipelines.config.workspace_file import LOCAL
from pipelines.dispatch.counters import RunCounters
from pipelines.limits.provider_limiter import ProviderLimiter
from pipelines.pricing.run_budget import RunBudget

LAG_SAMPLE_SECONDS = 0.1
"""Interval at which the lag of the event loop is measured."""
MIN_RUN_SECONDS = 1.0
MIN_RUN_REQUESTS = 20
"""Shorter runs have no bottleneck: most of their time is start-up."""
BUSY_THREAD_SHARE = 0.8
"""A thread that is busy for this share of its time is a bottleneck."""
LATE_LOOP_MS = 5.0
"""An event loop with this mean lag waits for other threads of its process."""


LEDGER_DISK = ("the ledger's disk", "put `state` of rowmill.yaml on a faster one")
REMOTE_LEDGER = (
    "the ledger, which one process writes for all workers, and the network to it",
    "give the driver's machine more cores, or split the job among workspaces",
)
BUDGET = (
    "the budget, from which every request in flight reserves its maximum cost",
    "raise budget.usd, or lower max_tokens",
)
FINAL_COMMIT = ("the last commit to the sink", "nothing to raise: it happens once a run, however many rows there are")
"""Bottlenecks: what it is, and what to do."""


SLOW_TURN_SHARE = 0.5
"""With this ratio to the time on the network, answers wait for this process rather than for the provider."""
SENDER_STATES = ("limits", "network", "ledger", "turn", "budget", "idle")
"""What a sender's time is spent on; `turn` is waiting for the event loop."""


class Bottleneck(Struct, frozen=True):
    """What limits the speed of a run, and what to do about it."""

    what: str
    advice: str
    share: float
    """Of the run's time."""

    def __str__(self) -> str:
        return f"{self.what} ({100 * self.share:.0f} % of the time); {self.advice}"


class RemoteTimings(Struct):
    """Timings that senders in other processes report."""

    workers: int
    """Number of processes."""
    cpu_seconds: float = 0.0
    """CPU time of one process, on average."""
    ledger_seconds: float = 0.0
    """Time that exchanges waited for the ledger and the network to it, summed over all exchanges."""
    startup_seconds: float = 0.0
    """Time until the first process could send."""


class TimeBreakdown:
    """How one invocation spends its time; created, read and ended on the thread of the event loop."""

    def __init__(
        self,
        counters: RunCounters,
        concurrency: int,
        delivery: str,
        limiters: Mapping[str, ProviderLimiter],
        budget: RunBudget,
        ledger_busy: Callable[[], float],
        remote: RemoteTimings | None = None,
    ) -> None:
        """`limiters`: by provider, the job's own under "". `ledger_busy`: seconds of writing by the ledger's thread.

        `remote`: None if the senders are in this process.
        """
        self._counters = counters
        self._concurrency = concurrency
        self._sender_seconds = 0.0
        self._delivery = delivery
        self._limiters = limiters
        self._budget = budget
        self._ledger_busy = ledger_busy
        self._remote = remote
        self.reading_seconds = 0.0
        """Time that the run waited for rows of the source."""
        self.rendering_seconds = 0.0
        """Time in which no more rows were read because earlier ones were being rendered and looked up."""
        self.committing_seconds = 0.0
        """Time of commits to the sink, most of it in parallel to sending."""
        self._lag_samples = 0
        self._lag_sum = self._max_lag = 0.0
        self._began = self._now()
        self._concurrency_since = self._began[0]
        self._sending_ended: tuple[float, float, float] | None = None
        self._paused_seconds = 0.0
        self._paused_at: float | None = None

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), time.thread_time()

    async def measure_loop_lag(self) -> None:
        """Measure the lag of the event loop until cancelled."""
        while True:
            due = time.perf_counter() + LAG_SAMPLE_SECONDS
            await asyncio.sleep(LAG_SAMPLE_SECONDS)
            lag = max(0.0, time.perf_counter() - due)
            self._lag_samples += 1
            self._lag_sum += lag
            self._max_lag = max(self._max_lag, lag)

    def set_concurrency(self, concurrency: int) -> None:
        """Count with so many senders from now on."""
        now = time.perf_counter()
        self._sender_seconds += self._concurrency * (now - self._concurrency_since)
        self._concurrency, self._concurrency_since = concurrency, now

    def record_pause(self, is_paused: bool) -> None:
        """Record that the run is paused, or goes on: a pause is no time in which it was slow."""
        self._paused_seconds = self.paused_seconds
        self._paused_at = time.perf_counter() if is_paused else None

    @property
    def paused_seconds(self) -> float:
        """Time that the run was paused."""
        return self._paused_seconds + (0.0 if self._paused_at is None else time.perf_counter() - self._paused_at)

    def end_sending(self) -> None:
        """Record that nothing is sent any more: the rest is writing."""
        self._sending_ended = self._now()

    def to_json(self) -> dict[str, Any]:
        """Return the figures so far, in seconds without pauses, and the bottleneck as text.

        Those of SENDER_STATES are summed over all senders: together they make `senders` times `sending`.
        """
        now, paused = self._now(), self.paused_seconds
        sending, cpu, loop = (end - start for end, start in zip(self._sending_ended or now, self._began, strict=True))
        sending -= paused
        since_change = self._concurrency * (now[0] - self._concurrency_since)
        senders = round((self._sender_seconds + since_change) / max(1e-9, now[0] - self._began[0]))
        times, ledger_thread, remote = self._counters.times, self._ledger_busy(), self._remote
        # While the ledger's thread writes, all senders may wait for it. The rest of an exchange is waiting for the
        # event loop, which handles one reply at a time.
        ledger = min(
            max(0.0, times.other_seconds),
            senders * ledger_thread if remote is None else remote.ledger_seconds,
        )
        if remote is not None:
            cpu = loop = remote.cpu_seconds
        waits = {
            "limits": times.limit_seconds,
            "network": times.network_seconds,
            "ledger": ledger,
            "turn": max(0.0, times.other_seconds - ledger),
            "budget": self._budget.waited_seconds,
        }
        figures: dict[str, Any] = {
            "seconds": now[0] - self._began[0] - paused,
            "sending": sending,
            "senders": senders,
            **waits,
            "idle": max(0.0, senders * sending - sum(waits.values())),
            "reading": self.reading_seconds,
            "setting_out": self.rendering_seconds,
            "committing": self.committing_seconds,
            "ledger_thread": ledger_thread,
            "cpu": cpu,
            "loop": loop,
            "lag_mean_ms": 1000 * self._lag_sum / max(1, self._lag_samples),
            "lag_max_ms": 1000 * self._max_lag,
        }
        if paused:
            figures["paused"] = paused
        if remote is not None:
            figures |= {"workers": remote.workers, "starting": remote.startup_seconds}
        rounded = {name: value if isinstance(value, int) else round(value, 4) for name, value in figures.items()}
        bottleneck = self.bottleneck(figures)
        return rounded | {"bound_by": None if bottleneck is None else str(bottleneck)}

    def bottleneck(self, figures: Mapping[str, Any]) -> Bottleneck | None:
        """Return what took most of the time in these figures; None if the run was too short to judge."""
        if figures["seconds"] < MIN_RUN_SECONDS or self._counters.requests < MIN_RUN_REQUESTS:
            return None
        seconds, sending = figures["seconds"], figures["sending"]
        # Time of all senders, as a share of the whole run.
        senders = max(1e-9, figures["senders"] * seconds)
        shares = {name: figures[name] / senders for name in SENDER_STATES}
        shares["closing"] = (seconds - sending) / seconds
        name = max(shares, key=lambda name: shares[name])
        share = min(1.0, shares[name])
        busy = sum(shares[name] for name in SENDER_STATES if name != "idle")
        if name == "idle" and shares["limits"] > 0.5 * busy:
            # Idle senders have nothing to send because all remaining requests wait for the limit.
            name, share = "limits", shares["limits"] / busy * sending / seconds
        if name in ("network", "turn", "idle") and (name == "turn" or _is_loop_full(figures)):
            core = min(figures["cpu"], sending) / seconds
            return Bottleneck(*self._machine(), max(core, min(1.0, shares["network"] + shares["turn"])))
        if name == "limits":
            return Bottleneck(*self._limit(), share)
        if name == "network":
            return Bottleneck(*self._network(figures), share)
        if name == "idle":
            return Bottleneck(*self._idle(figures), share)
        ledger = LEDGER_DISK if self._remote is None else REMOTE_LEDGER
        return Bottleneck(*{"ledger": ledger, "budget": BUDGET, "closing": FINAL_COMMIT}[name], share)

    def _machine(self) -> tuple[str, str]:
        if self._remote is not None:
            return f"the {self._remote.workers} workers, each of which has one core", "give the cluster more cores"
        if LOCAL in self._limiters:
            return (
                "this machine, which also runs the embedded provider",
                "run it as a separate process: rowmill serve",
            )
        return "this process, which has one core", "split the source among several jobs, or use --engine ray"

    def _limit(self) -> tuple[str, str]:
        waits = [
            (seconds, provider, kind)
            for provider, limiter in self._limiters.items()
            for kind, seconds in limiter.wait_seconds.items()
        ]
        seconds, provider, kind = max(waits)
        if not seconds:
            return "the pool's members, all busy or paused", "raise their limits in rowmill.yaml, or add a member"
        limiter = self._limiters[provider]
        owner = f"the limit of {provider}" if provider else "the job's limit"
        file = "rowmill.yaml" if provider else "the job"
        more = "or add a provider (a pool)"
        if kind == "hold" and not self._counters.rate_limited:
            return f"{provider}, which fails or does not answer", f"see whether it works and can be reached, {more}"
        if kind == "hold":
            refusals = f"{provider}, which refused {self._counters.rate_limited:,} requests and asks to wait"
            return refusals, f"lower its requests_per_minute in rowmill.yaml to what it accepts, {more}"
        if kind == "slots":
            many = "" if limiter.concurrency == 1 else "s"
            return f"{owner}, {limiter.concurrency:,} request{many} in flight", f"raise its concurrency in {file}"
        learned = limiter.learned_requests_per_minute
        if kind == "requests" and learned is not None and learned <= (limiter.requests_per_minute or learned):
            return (
                f"the rate at which {provider} refuses, {learned:,.0f} requests a minute",
                f"ask for a higher limit, {more}",
            )
        amount = limiter.requests_per_minute if kind == "requests" else limiter.tokens_per_minute
        limit = f"{owner}, {amount or 0:,.0f} {kind} a minute"
        if not provider:
            return limit, "raise it if the key allows more"
        if limiter.is_stated_by_provider(kind):
            return limit, f"ask for a higher limit, {more}"
        return limit, f"raise it in rowmill.yaml if the key allows more, {more}"

    def _network(self, figures: Mapping[str, Any]) -> tuple[str, str]:
        latency = 1000 * figures["network"] / max(1, self._counters.requests)
        return f"answers that take {latency:,.0f} ms, {figures['senders']:,} at a time", "raise limits.concurrency"

    def _idle(self, figures: Mapping[str, Any]) -> tuple[str, str]:
        if self._delivery == "batch":
            return "the provider's Batch API", "use --delivery online if you need the answers sooner"
        share = 0.5 * figures["idle"] / figures["senders"]
        if self._counters.retries > 0.2 * self._counters.requests:
            return (
                f"back-off before {self._counters.retries:,} retries",
                "see the errors in the report",
            )
        if figures.get("starting", 0.0) > share:
            return (
                "the start of the workers on Ray",
                "nothing to raise: it happens once a run, however many rows there are",
            )
        if figures["reading"] > share:
            return "reading the source", "convert it to Parquet, or narrow `where`"
        if figures["setting_out"] > share:
            return "rendering rows and fetching their files", "keep files on this machine and templates short"
        busy = figures["network"] / max(1e-9, figures["sending"])
        return (
            "too few rows ready to send",
            f"nothing to raise: on average, {busy:,.0f} of {figures['senders']:,} requests were in flight",
        )


def _is_loop_full(figures: Mapping[str, Any]) -> bool:
    sending = max(figures["sending"], 1e-9)
    # Other threads, such as those of the embedded provider, may keep the loop from running.
    is_crowded = figures["cpu"] / sending >= BUSY_THREAD_SHARE and figures["lag_mean_ms"] >= LATE_LOOP_MS
    return bool(
        figures["loop"] / sending >= BUSY_THREAD_SHARE
        or is_crowded
        or figures["turn"] > SLOW_TURN_SHARE * figures["network"]
    )
