"""What one invocation has done so far: counted as it happens, read by progress and the closing report."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from connectors.records import Request, Usage
from pipelines.ledger.entries import SettledExchange


@dataclass(slots=True)
class StepCounters:
    """How far the rows are in one step, told as answers land and not only when a chunk of rows arrives."""

    exchanges: int = 0
    """Ended, those that are tried again included."""
    asked: int = 0
    """Rows whose request was queued."""
    answered: int = 0
    """Rows whose request was answered, or refused for good, by an exchange."""
    skipped: int = 0
    """Rows that needed none of their own: the ledger had their answer, another row asks the same, `when` left them
    out, or nothing could be asked."""
    failed: int = 0
    """The part of both that goes no further."""
    cost: int = 0
    busy_seconds: float = 0.0
    """Seconds that senders were taken up by its exchanges, from asking for an allowance to the end of the reply."""
    requests_per_row: float = 1.0
    """Exchanges for one row, as long as none has told it."""

    def record_submitted(self, requests: Iterable[Request]) -> None:
        """Requests have been queued."""
        self.asked += sum(len(request.keys) for request in requests if request.repair_of is None)

    def exchanges_left(self, rows: float) -> float:
        """Exchanges that are still to end where so many rows get to the step; packs, retries and rows without a
        request are reckoned in as they were so far."""
        seen = self.asked + self.skipped
        wanted = self.asked / seen if seen else 1.0
        each = self.exchanges / self.answered if self.answered else self.requests_per_row
        return each * (max(0, self.asked - self.answered) + max(0.0, rows - seen) * wanted)

    def record_outcome(self, request: Request, failed: bool) -> None:
        """An exchange has answered a request, or refused it for good."""
        if request.repair_of is None:
            self.answered += len(request.keys)
        self.failed += len(request.keys) if failed else 0

    def record_skipped(self, rows: int, failed: bool) -> None:
        """Rows that needed no exchange."""
        self.skipped += rows
        self.failed += rows if failed else 0


@dataclass(slots=True)
class SenderTimes:
    """Where the senders' time went: seconds, added up over all of them."""

    limit_seconds: float = 0.0
    """Waiting for allowances."""
    network_seconds: float = 0.0
    """From sending a request to the end of its reply."""
    other_seconds: float = 0.0
    """The rest of an exchange: noting it in the ledger, with the one before it being settled there, and waiting for the
    loop's turn."""

    def add(self, waited: float, exchange: float, ended: SettledExchange | None) -> None:
        """One request waited for its allowances, then for its exchange."""
        network = 0.0 if ended is None or ended.latency_ms is None else ended.latency_ms / 1000
        self.limit_seconds += waited
        self.network_seconds += network
        self.other_seconds += exchange - network


@dataclass(slots=True)
class RunCounters:
    """Counts of this invocation; money in pico-dollars."""

    rows: int = 0
    """After where and limit."""
    rows_ok: int = 0
    rows_reused: int = 0
    """The part of rows_ok that needed no request now."""
    rows_failed: int = 0
    committed: int = 0
    """Rows and failures of this invocation that are in the sink."""
    settled: int = 0
    """Rows whose last outcome came from an exchange of this invocation."""
    settled_failed: int = 0
    requests: int = 0
    """HTTP exchanges sent."""
    retries: int = 0
    """Those after the first of their request, 429s included."""
    rate_limited: int = 0
    """429s."""
    in_flight: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    unpriced: int = 0
    """Exchanges whose cost is not known."""
    began: float = field(default_factory=time.monotonic)
    rows_done_before: int = 0
    """Rows that were done or had failed before anything was sent."""
    steps: dict[str, StepCounters] = field(default_factory=dict)
    """By name, in the order of the job."""
    probed_fingerprints: set[bytes] = field(default_factory=set)
    """Requests that were sent before the rows set out, to learn how long vectors are."""
    times: SenderTimes = field(default_factory=SenderTimes)

    def record_exchange(self, step: str, usage: Usage, cost: int | None) -> None:
        """What an exchange of a step used and cost; None: not known."""
        self.steps[step].exchanges += 1
        self.steps[step].cost += cost or 0
        self.input_tokens += usage.input_tokens or 0
        self.output_tokens += usage.output_tokens or 0
        if cost is None:
            self.unpriced += 1
        else:
            self.cost += cost

    def too_many_failed(self, share: float) -> str | None:
        """Why the run is to stop, where more than this share of at least 100 rows settled has failed."""
        if self.settled < 100 or self.settled_failed <= share * self.settled:
            return None
        words = f"failed_share: {self.settled_failed} of {self.settled} rows failed"
        return f"{words}, more than limits.failed_share {share} allows"

    def record_timing(self, step: str, waited: float, exchange: float, ended: SettledExchange | None) -> None:
        """An exchange of a step waited so long for its allowances, then took so long."""
        self.times.add(waited, exchange, ended)
        self.steps[step].busy_seconds += waited + exchange

    @property
    def rows_left(self) -> int:
        return self.rows - self.rows_ok - self.rows_failed

    @property
    def rows_finished(self) -> int:
        """Rows that have gone through all steps or failed on the way, also those not handed on yet."""
        told = list(self.steps.values())
        through = told[-1].answered + told[-1].skipped if told else 0
        landed = self.rows_done_before + through + sum(step.failed for step in told[:-1])
        return min(self.rows, max(landed, self.rows_ok + self.rows_failed))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began
