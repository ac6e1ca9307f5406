"""Deadlines: one timer for many tasks, and each of them is ended when its own time is over."""

import asyncio

import pytest

from connectors.transport.shared_timeout import SharedTimeout


async def within(deadlines: SharedTimeout, until: asyncio.Event) -> float:
    """The loop's time at which it was over."""
    try:
        with deadlines:
            await until.wait()
    except TimeoutError:
        return asyncio.get_running_loop().time()
    return 0.0


async def test_each_task_has_its_whole_time_though_one_timer_serves_all() -> None:
    deadlines, never = SharedTimeout(0.05), asyncio.Event()
    loop = asyncio.get_running_loop()
    began: list[float] = []
    tasks: list[asyncio.Task[float]] = []
    for _ in range(3):
        began.append(loop.time())
        tasks.append(asyncio.create_task(within(deadlines, never)))
        await asyncio.wait([tasks[0]], timeout=0.02)
    ends = await asyncio.gather(*tasks)
    assert all(end - start >= 0.049 for start, end in zip(began, ends, strict=True))
    assert all(task.cancelling() == 0 for task in tasks)


async def test_what_is_done_in_time_is_left_alone_and_later_ones_are_ended_all_the_same() -> None:
    deadlines, done, never = SharedTimeout(0.05), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(within(deadlines, done))
    await asyncio.wait([first], timeout=0.01)
    done.set()
    assert await first == 0.0
    assert await within(deadlines, never) > 0


async def test_a_task_that_somebody_else_cancels_is_cancelled_and_not_late() -> None:
    deadlines, never = SharedTimeout(30), asyncio.Event()
    task = asyncio.create_task(within(deadlines, never))
    await asyncio.wait([task], timeout=0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_without_a_time_nothing_is_ever_late() -> None:
    done = asyncio.Event()
    task = asyncio.create_task(within(SharedTimeout(None), done))
    await asyncio.wait([task], timeout=0.01)
    done.set()
    assert await task == 0.0
