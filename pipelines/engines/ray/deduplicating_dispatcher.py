"""The dispatcher of a Ray worker: a request that another worker sends already is awaited, not sent again."""

import asyncio
from collections.abc import Sequence

from connectors.records import Request
from pipelines.dispatch.online_dispatcher import OnlineDispatcher
from pipelines.dispatch.pending_requests import IsUsable
from pipelines.dispatch.request_types import Outcome, Route
from pipelines.engines.ray.ledger import RemoteLedger


class DeduplicatingDispatcher:
    """An online dispatcher that sends only the requests that the ledger has assigned to its worker."""

    def __init__(self, online: OnlineDispatcher, ledger: RemoteLedger) -> None:
        self.pending = online.pending
        self.state = online.state
        self._online = online
        self._ledger = ledger
        self._waits: set[asyncio.Task[None]] = set()
        """For the outcomes of requests that other workers send."""
        self.stopped = asyncio.Event()
        self.pending.claim = self._claim
        self.pending.on_resolved = ledger.release
        self.state.on_stop(lambda reason: self.stopped.set())
        self.start = online.start
        self.stop = online.stop
        self.cancel = online.cancel
        self.register_route = online.register_route
        self.wait_for_capacity = online.wait_for_capacity
        self.wait_until_recorded = online.wait_until_recorded

    @property
    def has_capacity(self) -> bool:
        """See Dispatcher."""
        return self._online.has_capacity

    async def close(self, grace: float) -> None:
        """See Dispatcher."""
        for task in self._waits:
            task.cancel()
        await self._online.close(grace)

    def _claim(self, route: Route, requests: Sequence[Request], is_usable: IsUsable) -> Sequence[Request]:
        """Return the requests that this worker sends; wait for the others in the background."""
        elsewhere = self._ledger.take_elsewhere([request.fingerprint for request in requests])
        if not elsewhere:
            return requests
        waited_for = {request.fingerprint: request for request in requests if request.fingerprint in elsewhere}
        task = asyncio.create_task(self._wait_for_others(route, waited_for, is_usable))
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)
        return [request for request in requests if request.fingerprint not in elsewhere]

    async def _wait_for_others(self, route: Route, requests: dict[bytes, Request], is_usable: IsUsable) -> None:
        try:
            answers = await self._ledger.settled(list(requests))
        except OSError as exc:
            self.state.failure = self.state.failure or exc
            self.stop(str(exc))
            return
        for fingerprint, answer in answers.items():
            if is_usable(fingerprint, answer):
                keys = requests.pop(fingerprint).keys
                self.pending.record_skipped(route.step, len(keys), failed=answer.error is not None)
                outcome = Outcome(answer.reply, answer.error, 1, answer.run_id, answer.at, was_sent=True)
                self.pending.deliver(fingerprint, outcome)
        self.pending.send(route, list(requests.values()), is_usable)
        self.pending.end_abandoned()
