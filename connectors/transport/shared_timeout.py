"""One and the same time for each of many tasks to do something in, kept by one timer for all of them."""

import asyncio
from types import TracebackType


class SharedTimeout:
    """`with deadlines:` raises TimeoutError in a task that is still within after `seconds`; None: never.

    As asyncio.timeout, for a fifth of its CPU time: what begins later is due later, so that the timer, which is set for
    the first of them, has to be set again once in `seconds` and not for each. A task is within once at a time.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[object], tuple[float, int]] = {}
        """By task, in the order in which they are due: (when, by the loop's clock; times it was cancelled before)."""
        self._late: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._seconds is None:
            return
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        when = loop.time() + self._seconds
        self._due[task] = when, task.cancelling()
        if self._timer is None:
            self._timer = loop.call_at(when, self._look, loop)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seconds is None:
            return
        task = asyncio.current_task()
        assert task is not None
        _, cancelled = self._due.pop(task)
        if task in self._late:
            self._late.discard(task)
            # Where somebody else cancelled it as well, it is cancelled.
            if task.uncancel() <= cancelled and kind is asyncio.CancelledError:
                raise TimeoutError from exc

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, (when, _) in self._due.items():
            if task in self._late:
                continue
            if when > loop.time():
                self._timer = loop.call_at(when, self._look, loop)
                return
            self._late.add(task)
            task.cancel()
