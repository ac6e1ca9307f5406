"""The table of pending requests: who waits for which request. Equal requests are looked up and sent once."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from connectors.records import Request, RowError, Values, is_rescued
from pipelines.dispatch.counters import RunCounters
from pipelines.dispatch.dispatch_state import DispatchState
from pipelines.dispatch.read_buffer import EARLY_READ_BYTES, ReadBuffer
from pipelines.dispatch.request_types import Outcome, RequestGroup, Route, RunLedger
from pipelines.ledger.entries import StoredAnswer
from pipelines.ledger.ledger import now_us

IsUsable = Callable[[bytes, StoredAnswer], bool]
"""Whether the stored answer of a request, by its fingerprint, may be used instead of a new request."""

ClaimRequests = Callable[[Route, Sequence[Request], IsUsable], Sequence[Request]]
"""Returns the requests that this process must send; the others are sent elsewhere, and resolved from there."""


class Submission(Struct):
    """Requests that one caller waits for, and the outcomes that it has not read yet."""

    pending: set[bytes]
    """Fingerprints of the requests without an outcome."""
    read_buffer: ReadBuffer
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)
    unread_bytes: int = 0
    """Of the answers in `outcomes`. They count in the read buffer once the submission is ready."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no more outcomes will come."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the outcomes should be read: all are there, or their answers are large."""
    is_abandoned: bool = False
    """Whether the caller no longer waits for the rest."""

    def resolve(self, fingerprint: bytes, outcome: Outcome) -> None:
        """Add the outcome of one request."""
        self.resolve_all({fingerprint: outcome}, 0 if outcome.answer is None else len(outcome.answer))

    def resolve_all(self, outcomes: Mapping[bytes, Outcome], size: int) -> None:
        """Add the outcomes of requests, by fingerprint; `size`: the bytes of their answers."""
        if self.is_abandoned:
            return
        self.outcomes.update(outcomes)
        self.pending.difference_update(outcomes)
        self.unread_bytes += size
        if self.ready.is_set():
            self.read_buffer.add(size)
        elif not self.pending or self.unread_bytes >= EARLY_READ_BYTES:
            self.ready.set()
            self.read_buffer.add(self.unread_bytes)
        if not self.pending:
            self.done.set()

    def end(self) -> None:
        """Wake the caller: no more outcomes will come."""
        if not self.ready.is_set():
            self.read_buffer.add(self.unread_bytes)
        self.ready.set()
        self.done.set()

    def drain(self) -> tuple[dict[bytes, Outcome], int]:
        """Return the outcomes since the last call, and their bytes: release these from `read_buffer` after reading."""
        if not self.ready.is_set():
            self.read_buffer.add(self.unread_bytes)
        drained = self.outcomes, self.unread_bytes
        self.outcomes, self.unread_bytes = {}, 0
        if not self.done.is_set():
            self.ready.clear()
        return drained


class PendingRequests:
    """The submitted requests of one process that have no outcome yet; shared by the dispatchers that resolve them."""

    def __init__(
        self,
        ledger: RunLedger,
        counters: RunCounters,
        state: DispatchState,
        run_id: str,
        max_failed_share: float | None = None,
    ) -> None:
        """`max_failed_share`: the run stops if a larger share of its rows fails."""
        self.read_buffer = ReadBuffer()
        self.state = state
        self.counters = counters
        self.open_batches = 0
        """Batches that may still resolve requests, besides the exchanges in flight."""
        self.enqueue: Callable[[RequestGroup], None]
        """Set by the dispatcher: sends a group of requests that are not in the ledger."""
        self.claim: ClaimRequests | None = None
        self.on_request: Callable[[bytes], None] | None = None
        """Called with the fingerprint of every request that is submitted."""
        self.on_resolved: Callable[[bytes], None] | None = None
        """Called with each fingerprint that has an outcome."""
        self._ledger = ledger
        self._run_id = run_id
        self._max_failed_share = max_failed_share
        self._started_at = now_us()
        self._submissions: dict[bytes, list[Submission]] = {}
        self._followers: dict[bytes, list[tuple[str, int]]] = {}
        """Fingerprint -> step and number of the rows that wait for another row's exchange."""
        self._expected: Counter[bytes] = Counter()
        """Fingerprint -> how many will submit it again."""
        self._late_errors: dict[bytes, Outcome] = {}
        """Errors of expected requests: unlike answers, the ledger may not have them."""
        self._part_tasks: set[asyncio.Task[None]] = set()
        state.on_stop(lambda reason: self.end_abandoned())

    def __contains__(self, fingerprint: bytes) -> bool:
        return fingerprint in self._submissions

    async def submit(
        self, route: Route, requests: Iterable[Request], is_usable: IsUsable, is_first: bool = True
    ) -> Submission:
        """Look the requests up in the ledger and enqueue those without a usable answer.

        `is_first`: their rows are not counted yet.
        """
        submission = Submission(set(), self.read_buffer)
        fresh: dict[bytes, Request] = {}
        late: dict[bytes, Outcome] = {}
        for request in requests:
            submission.pending.add(request.fingerprint)
            if not is_first and (outcome := self._claim_late_error(request.fingerprint)) is not None:
                late[request.fingerprint] = outcome
                continue
            if self.on_request is not None:
                self.on_request(request.fingerprint)
            waiting = self._submissions.get(request.fingerprint)
            if waiting is None:
                fresh[request.fingerprint] = request
                self._submissions[request.fingerprint] = [submission]
                continue
            if is_first:
                self._followers.setdefault(request.fingerprint, []).append((route.step, len(request.keys)))
            waiting.append(submission)
        if late:
            submission.resolve_all(late, 0)
        if not submission.pending:
            submission.end()
        # Others that submit the same request from now on wait for this one: it cannot be sent twice.
        stored = await self.lookup(list(fresh)) if fresh else {}
        for fingerprint, answer in stored.items():
            if is_usable(fingerprint, answer):
                request = fresh.pop(fingerprint)
                if is_first:
                    failed = answer.error is not None and not is_rescued(request, answer.error)
                    self.record_skipped(route.step, len(request.keys), failed)
                outcome = Outcome(answer.reply, answer.error, 1, answer.run_id, answer.at, was_sent=False)
                self.deliver(fingerprint, outcome)
        if fresh and route.packing is not None:
            route.packing.restore(await asyncio.to_thread(self._ledger.packed_answers, list(fresh)))
        self.send(route, list(fresh.values()), is_usable)
        self.end_abandoned()
        return submission

    def expect_again(self, fingerprints: Iterable[bytes]) -> None:
        """Record that requests under way will be submitted again, although nothing waits for them until then."""
        self._expected.update(fingerprints)

    def _claim_late_error(self, fingerprint: bytes) -> Outcome | None:
        """Return the error with which an expected request has ended before it is submitted again."""
        if fingerprint not in self._expected:
            return None
        self._expected[fingerprint] -= 1
        if self._expected[fingerprint]:
            return self._late_errors.get(fingerprint)
        del self._expected[fingerprint]
        return self._late_errors.pop(fingerprint, None)

    async def lookup(self, fingerprints: Sequence[bytes]) -> dict[bytes, StoredAnswer]:
        """Return fingerprint -> answer for those of these requests that have one in the ledger."""
        return await asyncio.to_thread(self._ledger.lookup, fingerprints)

    async def last_answers(self, job: str, step: str, requests: Sequence[bytes]) -> dict[tuple[bytes, str], bytes]:
        """Return (first request, key) -> last answer, all as fingerprints, of rows that took repair turns."""
        return await asyncio.to_thread(self._ledger.last_answers, job, step, requests)

    async def record_last_answers(self, job: str, step: str, rows: Sequence[tuple[bytes, str, bytes]]) -> None:
        """Record the last answers of rows as (first request, key, answer)."""
        statement = "insert or replace into last_answers (job, step, request, key, answer) values (?, ?, ?, ?, ?)"
        await asyncio.gather(*(self._ledger.write_queued(statement, (job, step, *row)) for row in rows))

    def is_new(self, answer: StoredAnswer) -> bool:
        """Whether this invocation has paid for a stored answer."""
        return answer.run_id == self._run_id and answer.at >= self._started_at

    def send(self, route: Route, requests: Sequence[Request], is_usable: IsUsable) -> None:
        """Enqueue requests in the groups of their endpoint, unless another process sends them."""
        if self.claim is not None:
            requests = self.claim(route, requests, is_usable)
        self.counters.steps[route.step].record_submitted(requests)
        for group in route.groups([request for request in requests if not request.parts]):
            self.enqueue(group)
        for request in requests:
            if request.parts:
                task = asyncio.create_task(self._send_parts(route, request, is_usable))
                self._part_tasks.add(task)
                task.add_done_callback(self._part_tasks.discard)
                task.add_done_callback(self.state.on_task_done)

    async def _send_parts(self, route: Route, request: Request, is_usable: IsUsable) -> None:
        """Send the parts of a request; the answer that they make together is stored as its own."""
        parts = tuple(replace(part, keys=request.keys) for part in request.parts)
        submission = await self.submit(route, parts, is_usable)
        await submission.done.wait()
        self.read_buffer.release(submission.unread_bytes)
        if submission.pending:
            return
        outcomes = [submission.outcomes[part.fingerprint] for part in parts]
        outcome = next((one for one in outcomes if one.error is not None), None)
        if outcome is None:
            answer = route.endpoint.merge_parts(request, [one.answer or b"" for one in outcomes])
            await self._ledger.store_answer(request.fingerprint, route.route_id, request.body, answer)
            attempts = max(one.attempts for one in outcomes)
            was_sent = any(one.was_sent for one in outcomes)
            outcome = Outcome(answer, None, attempts, self._run_id, now_us(), was_sent)
        self.deliver(request.fingerprint, outcome)

    def resolve(
        self,
        group: RequestGroup,
        results: Sequence[bytes | RowError | None],
        values: Sequence[Values | None] = (),
    ) -> None:
        """Give each request of a group its answer or its error, after an exchange; those without any wait on.

        `values`: of the answers, if they were read already.
        """
        route, now, endpoint, attempts = group.route, now_us(), group.route.endpoint, group.attempts
        step, run_id, packing = self.counters.steps[route.step], self._run_id, route.packing
        verified = None if packing is None or not packing.is_verifying else packing
        outcomes: dict[bytes, Outcome] = {}
        is_last, settled, settled_failed = route.is_last_step, 0, 0
        for request, result, read in zip(group.requests, results, values or [None] * len(results), strict=True):
            if result is None:
                continue
            if verified is not None and (is_equal := verified.verify(request, result)) is not None:
                self.counters.pack_verified += 1
                self.counters.pack_agreed += is_equal
            answer, error = (None, result) if isinstance(result, RowError) else (result, None)
            rows, failed = len(request.keys), error is not None and not is_rescued(request, error)
            step.record_outcome(request, failed)
            settled += rows if failed or (error is None and is_last) else 0
            settled_failed += rows if failed else 0
            outcomes[request.fingerprint] = Outcome(answer, error, attempts, run_id, now, True, read, endpoint)
        if route.settles_rows and settled:
            self.record_settled(settled, settled_failed)
        self._deliver(outcomes)

    def resolve_with_error(self, group: RequestGroup, error: RowError) -> None:
        """Give each request of a group the same error."""
        self.resolve(group, [error] * len(group.requests))

    def deliver(self, fingerprint: bytes, outcome: Outcome) -> None:
        """Pass an outcome to everyone who waits for it."""
        self._deliver({fingerprint: outcome})

    def _deliver(self, outcomes: Mapping[bytes, Outcome]) -> None:
        if self._followers:
            for fingerprint, outcome in outcomes.items():
                for step, rows in self._followers.pop(fingerprint, ()):
                    self.record_skipped(step, rows, failed=outcome.error is not None)
        # Neighbours usually belong to the same submission.
        waiting: Submission | None = None
        own: dict[bytes, Outcome] = {}
        nbytes, submissions = 0, self._submissions
        for fingerprint, outcome in outcomes.items():
            if outcome.error is not None and fingerprint in self._expected:
                self._late_errors[fingerprint] = outcome
            size = 0 if outcome.answer is None else len(outcome.answer)
            for submission in submissions.pop(fingerprint, ()):
                if submission is not waiting:
                    if waiting is not None:
                        waiting.resolve_all(own, nbytes)
                    waiting, own, nbytes = submission, {}, 0
                own[fingerprint] = outcome
                nbytes += size
        if waiting is not None:
            waiting.resolve_all(own, nbytes)
        if self.on_resolved is not None:
            for fingerprint in outcomes:
                self.on_resolved(fingerprint)

    def end_abandoned(self) -> None:
        """End the submissions if the run has stopped and nothing can resolve them any more."""
        if self.state.stop_reason is not None and self.counters.in_flight == 0 and not self.open_batches:
            for submission in [one for waiting in self._submissions.values() for one in waiting]:
                submission.end()
            self._submissions.clear()
            self._followers.clear()

    def is_from_this_run(self, outcome: Outcome) -> bool:
        """Whether an answer was paid for by this invocation, also if another row has asked for it first."""
        return outcome.was_sent or (outcome.run_id == self._run_id and outcome.at >= self._started_at)

    def record_skipped(self, step: str, rows: int, failed: bool = False) -> None:
        """Count rows without an exchange in a step."""
        self.counters.steps[step].record_skipped(rows, failed)

    def record_settled(self, rows: int, failed: int) -> None:
        """Count rows for `limits.failed_share`, and stop if too many have failed."""
        counters = self.counters
        counters.settled += rows
        counters.settled_failed += failed
        if self._max_failed_share is None or not failed:
            return
        if (reason := counters.too_many_failed(self._max_failed_share)) is not None:
            self.state.stop(reason)
