"""Deadlines of the exchanges of a transport, checked by one timer; a suspension counts for none of them."""

import asyncio
from math import inf
from types import TracebackType
from typing import Literal, Self

from connectors.transport.awake_clock import AWAKE_CLOCK, TICK_SECONDS, AwakeClock

DeadlineKind = Literal["total", "idle"]


class DeadlineExceeded(TimeoutError):
    """The end of an exchange that took too long, or that was silent for too long."""

    def __init__(self, kind: DeadlineKind) -> None:
        super().__init__(kind)
        self.kind: DeadlineKind = kind


class Deadline:
    """A context manager around one exchange; it raises DeadlineExceeded when one of its times has passed.

    A task may be inside only once at a time.
    """

    __slots__ = ("_cancellations", "_expired", "_idle_at", "_owner", "_task", "_total_at")

    def __init__(self, owner: "Deadlines") -> None:
        self._owner = owner
        self._expired: DeadlineKind | None = None
        self._idle_at = self._total_at = inf

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancellations = task, task.cancelling()
        self.restart_total()
        self._owner.pending.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.pending.discard(self)
        # If somebody else cancelled the task as well, it stays cancelled.
        is_ours = self._expired is not None and self._task.uncancel() <= self._cancellations
        if self._expired is not None and is_ours and kind is asyncio.CancelledError:
            raise DeadlineExceeded(self._expired) from exc

    def restart_total(self) -> None:
        """Let the total time begin again: part of a file has been sent."""
        self._total_at = self._owner.now() + self._owner.total_s

    def end_total(self) -> None:
        """End the total time: from now on only silence ends the exchange."""
        self._total_at = inf

    def restart_idle(self) -> None:
        """Let the idle time begin, or begin again: a part of the reply has arrived."""
        self._idle_at = self._owner.now() + self._owner.idle_s

    def expire(self, now: float) -> None:
        """Cancel the exchange if one of its times has passed."""
        if self._expired is None and now > min(self._total_at, self._idle_at):
            self._expired = "total" if now > self._total_at else "idle"
            self._task.cancel()


class Deadlines:
    """The deadlines of one transport, checked every TICK_SECONDS while it is open, and more often if they are short."""

    def __init__(self, total_s: float | None, idle_s: float | None, clock: AwakeClock = AWAKE_CLOCK) -> None:
        """Seconds; None: never. Requires a running event loop."""
        self.total_s, self.idle_s = total_s or inf, idle_s or inf
        self.now = clock.now
        self.pending: set[Deadline] = set()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tick_seconds = min(TICK_SECONDS, self.total_s / 4, self.idle_s / 4)
        clock.start_watch()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(self._tick_seconds, self._tick)

    def start(self) -> Deadline:
        """Return the deadline of an exchange, which begins when it is entered."""
        return Deadline(self)

    def close(self) -> None:
        """End the checks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._clock.end_watch()

    def check(self) -> None:
        """Cancel the exchanges whose time has passed, unless a suspension has just ended."""
        now = self._clock.now()
        if self._clock.is_resuming:
            return
        for deadline in self.pending:
            deadline.expire(now)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._tick_seconds, self._tick)
        self.check()
