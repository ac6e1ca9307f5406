"""Deadlines: total and idle time of an exchange, and what a suspension does to them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from connectors.transport.awake_clock import MAX_GAP_SECONDS, RESUME_SECONDS, AwakeClock
from connectors.transport.deadlines import DeadlineExceeded, Deadlines


class Monotonic:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


@pytest.fixture
async def deadlines(monotonic: Monotonic) -> AsyncIterator[Deadlines]:
    """A total time of 600 s and an idle time of 60 s, checked only when a test does."""
    made = Deadlines(600, 60, AwakeClock(monotonic))
    made._tick = lambda: None  # type: ignore[method-assign]
    yield made
    made.close()


async def end_of(task: asyncio.Task[str]) -> str:
    """Let the task run, and return what it came to."""
    await asyncio.wait([task], timeout=0.01)
    return task.result() if task.done() else "pending"


async def exchange(deadlines: Deadlines, answer: asyncio.Event, parts: "asyncio.Queue[str] | None" = None) -> str:
    """Wait for an answer, and begin the idle time with each part of it."""
    try:
        with deadlines.start() as deadline:
            while parts is not None and await parts.get():
                deadline.restart_idle()
            await answer.wait()
    except DeadlineExceeded as exc:
        return exc.kind
    return "answer"


def pass_time(deadlines: Deadlines, monotonic: Monotonic, seconds: float) -> None:
    """Let time pass while the process runs."""
    until = monotonic.seconds + seconds
    while monotonic.seconds < until:
        monotonic.seconds += min(MAX_GAP_SECONDS / 2, until - monotonic.seconds)
        deadlines.check()


async def test_before_the_reply_begins_only_the_total_time_counts(deadlines: Deadlines, monotonic: Monotonic) -> None:
    task = asyncio.create_task(exchange(deadlines, asyncio.Event()))
    assert await end_of(task) == "pending"
    pass_time(deadlines, monotonic, 599)
    assert await end_of(task) == "pending"
    pass_time(deadlines, monotonic, 2)
    assert await end_of(task) == "total"


async def test_silence_within_the_reply_ends_it_and_each_part_begins_the_idle_time_again(
    deadlines: Deadlines, monotonic: Monotonic
) -> None:
    parts: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(exchange(deadlines, asyncio.Event(), parts))
    for _ in range(3):
        parts.put_nowait("part")
        assert await end_of(task) == "pending"
        pass_time(deadlines, monotonic, 59)
    assert await end_of(task) == "pending"
    pass_time(deadlines, monotonic, 2)
    assert await end_of(task) == "idle"


async def test_a_suspension_counts_for_no_deadline(deadlines: Deadlines, monotonic: Monotonic) -> None:
    parts, answer = asyncio.Queue[str](), asyncio.Event()
    parts.put_nowait("part")
    waiting = asyncio.create_task(exchange(deadlines, answer, parts))
    total = asyncio.create_task(exchange(deadlines, answer))
    await end_of(waiting)
    pass_time(deadlines, monotonic, 59.5)
    monotonic.seconds += 8 * 3600
    deadlines.check()
    assert (await end_of(waiting), await end_of(total)) == ("pending", "pending")
    pass_time(deadlines, monotonic, 1)
    assert (await end_of(waiting), await end_of(total)) == ("pending", "pending")
    answer.set()
    parts.put_nowait("")
    assert (await end_of(waiting), await end_of(total)) == ("answer", "answer")


async def test_a_deadline_expires_after_a_suspension_if_nothing_has_arrived_meanwhile(
    deadlines: Deadlines, monotonic: Monotonic
) -> None:
    task = asyncio.create_task(exchange(deadlines, asyncio.Event()))
    await end_of(task)
    pass_time(deadlines, monotonic, 599.5)
    monotonic.seconds += 100
    pass_time(deadlines, monotonic, RESUME_SECONDS - 0.5)
    assert await end_of(task) == "pending"
    pass_time(deadlines, monotonic, 1)
    assert await end_of(task) == "total"


async def test_an_exchange_that_begins_right_after_a_suspension_has_its_usual_time(
    deadlines: Deadlines, monotonic: Monotonic
) -> None:
    monotonic.seconds += 8 * 3600
    task = asyncio.create_task(exchange(deadlines, asyncio.Event()))
    await end_of(task)
    pass_time(deadlines, monotonic, 601)
    assert await end_of(task) == "total"


async def test_the_timer_checks_without_help() -> None:
    deadlines, loop = Deadlines(0.05, None), asyncio.get_running_loop()
    began = loop.time()
    assert await exchange(deadlines, asyncio.Event()) == "total"
    assert loop.time() - began >= 0.049
    deadlines.close()


async def test_a_task_that_is_cancelled_from_outside_stays_cancelled(deadlines: Deadlines) -> None:
    task = asyncio.create_task(exchange(deadlines, asyncio.Event()))
    await end_of(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert deadlines.pending == set()


async def test_a_task_that_is_cancelled_from_outside_as_it_expires_stays_cancelled(
    deadlines: Deadlines, monotonic: Monotonic
) -> None:
    task = asyncio.create_task(exchange(deadlines, asyncio.Event()))
    await end_of(task)
    pass_time(deadlines, monotonic, 601)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_expired_exchange_leaves_its_task_uncancelled(deadlines: Deadlines, monotonic: Monotonic) -> None:
    task = asyncio.create_task(exchange(deadlines, asyncio.Event()))
    await end_of(task)
    pass_time(deadlines, monotonic, 601)
    assert (await end_of(task), task.cancelling()) == ("total", 0)


def test_a_clock_that_nobody_watches_counts_every_second(monotonic: Monotonic) -> None:
    clock = AwakeClock(monotonic)
    monotonic.seconds += 3600
    assert (clock.now(), clock.is_resuming) == (4600, False)
    clock.start_watch()
    monotonic.seconds += 3600
    assert (clock.now(), clock.is_resuming) == (4600, True)
    clock.end_watch()
    monotonic.seconds += 3600
    assert (clock.now(), clock.is_resuming) == (8200, False)
