"""Counters of a run, updated as things happen; progress displays and the closing report read them."""

import time
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct, field

from connectors.records import Request, Usage
from pipelines.ledger.entries import SettledExchange


class StepCounters(Struct):
    """The rows and exchanges of one step, counted as answers arrive and not only when a chunk finishes."""

    exchanges: int = 0
    """Ended, those that are sent again included."""
    asked: int = 0
    """Rows whose request was queued."""
    answered: int = 0
    """Rows whose request an exchange has answered, or refused for good."""
    skipped: int = 0
    """Rows without an exchange: the ledger had their answer, another row has the same request, `when`
    excluded them, or their values make no request."""
    failed: int = 0
    """The answered and skipped rows that do not reach the next step."""
    schema_repairs: int = 0
    """Rows whose answer was requested again because it did not fit a schema that no message showed."""
    cost: int = 0
    busy_seconds: float = 0.0
    """Time that senders spent on its exchanges, from the request for a permit to the end of the reply."""
    requests_per_row: float = 1.0
    """Estimate until the first exchanges have ended."""

    def record_submitted(self, requests: Iterable[Request]) -> None:
        """Count requests that were queued."""
        for request in requests:
            self.asked += len(request.keys) if request.repair_of is None and not request.rung else 0
            self.schema_repairs += len(request.keys) if request.former is not None else 0

    def exchanges_left(self, rows: float) -> float:
        """Estimate the exchanges that are still to end if so many rows reach the step.

        Assumes as many groups, retries and rows without a request as so far.
        """
        seen = self.asked + self.skipped
        asked_share = self.asked / seen if seen else 1.0
        per_row = self.exchanges / self.answered if self.answered else self.requests_per_row
        return per_row * (max(0, self.asked - self.answered) + max(0.0, rows - seen) * asked_share)

    def record_outcome(self, request: Request, failed: bool) -> None:
        """Count a request that an exchange has answered, or refused for good."""
        if request.repair_of is None and not request.rung:
            self.answered += len(request.keys)
        self.failed += len(request.keys) if failed else 0

    def record_skipped(self, rows: int, failed: bool) -> None:
        """Count rows that needed no exchange."""
        self.skipped += rows
        self.failed += rows if failed else 0


class SenderTimes(Struct):
    """How the senders spent their time: seconds, added up over all of them."""

    limit_seconds: float = 0.0
    """Waiting for permits of the limiters."""
    network_seconds: float = 0.0
    """From sending a request to the end of its reply."""
    other_seconds: float = 0.0
    """The rest of an exchange: recording it in the ledger together with the previous outcome, and waiting for the event
    loop."""

    def add(self, wait_seconds: float, exchange_seconds: float, settled: SettledExchange | None) -> None:
        """Count one request that waited for its permits, and its exchange."""
        network = 0.0 if settled is None or settled.latency_ms is None else settled.latency_ms / 1000
        self.limit_seconds += wait_seconds
        self.network_seconds += network
        self.other_seconds += exchange_seconds - network


class RunCounters(Struct):
    """The counts of one invocation; money in pico-dollars."""

    rows: int = 0
    """After `where` and `limit`."""
    rows_ok: int = 0
    rows_reused: int = 0
    """The rows_ok that needed no request in this run."""
    rows_failed: int = 0
    failed_now: int = 0
    """The rows_failed of this invocation: rows whose outcome it was, and lines that no earlier run has rejected."""
    failed_by_class: Counter[str] = field(default_factory=Counter)
    """The rows that failed in this invocation, by error class."""
    has_children: bool = False
    """Whether steps count rows of which there are several for a row of the source."""
    failed_locally: int = 0
    """The rows that failed in a local step before the last request."""
    committed: int = 0
    """Rows and failures of this invocation that are in the sink."""
    settled: int = 0
    """Rows whose last outcome came from an exchange of this invocation."""
    settled_failed: int = 0
    requests: int = 0
    """HTTP exchanges sent."""
    retries: int = 0
    """Exchanges after the first of their request, 429s included."""
    rate_limited: int = 0
    """Exchanges that ended with a 429."""
    in_flight: int = 0
    answered: int = 0
    """Of those in flight: their replies are here, and wait for the ledger while their senders go on."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    unpriced: int = 0
    """Exchanges of unknown cost."""
    began: float = field(default_factory=time.monotonic)
    rows_done_before: int = 0
    """Rows that were done or had failed before anything was sent."""
    steps: dict[str, StepCounters] = field(default_factory=dict)
    """By name, in the order of the job."""
    probed_fingerprints: set[bytes] = field(default_factory=set)
    """Requests that were sent before the first chunk to learn the embedding dimensions."""
    times: SenderTimes = field(default_factory=SenderTimes)
    pack_verified: int = 0
    """Rows of packs that were also requested alone."""
    pack_agreed: int = 0
    """Those of them with the same answer."""
    notes: list[str] = field(default_factory=list)
    """What the closing summary names, one line each."""

    def add_note(self, note: str) -> None:
        """Let the closing summary name something, once."""
        if note not in self.notes:
            self.notes.append(note)

    def record_exchange(self, step: str, usage: Usage, cost: int | None) -> None:
        """Count what an exchange used and cost; None: of unknown cost."""
        self.steps[step].exchanges += 1
        self.steps[step].cost += cost or 0
        self.input_tokens += usage.input_tokens or 0
        self.output_tokens += usage.output_tokens or 0
        if cost is None:
            self.unpriced += 1
        else:
            self.cost += cost

    def too_many_failed(self, max_share: float) -> str | None:
        """Return the stop reason if more than `max_share` of at least 100 settled rows have failed."""
        if self.settled < 100 or self.settled_failed <= max_share * self.settled:
            return None
        return (
            f"failed_share: {self.settled_failed} of {self.settled} rows failed, "
            f"more than limits.failed_share {max_share} allows"
        )

    def record_timing(
        self, step: str, wait_seconds: float, exchange_seconds: float, settled: SettledExchange | None
    ) -> None:
        """Count how long an exchange of a step waited for its permits, and how long it took then."""
        self.times.add(wait_seconds, exchange_seconds, settled)
        self.steps[step].busy_seconds += wait_seconds + exchange_seconds

    @property
    def rows_left(self) -> int:
        return self.rows - self.rows_ok - self.rows_failed

    @property
    def rows_finished(self) -> int:
        """Rows that have passed all steps or have failed, also if their chunk is not finished."""
        if self.has_children:
            return self.rows_ok + self.rows_failed
        steps = list(self.steps.values())
        passed = steps[-1].answered + steps[-1].skipped if steps else 0
        finished = self.rows_done_before + passed + sum(step.failed for step in steps[:-1]) + self.failed_locally
        return min(self.rows, max(finished, self.rows_ok + self.rows_failed))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began
