"""SharedTimeout: a single timer, and every task has its whole time."""

import asyncio

import pytest

from connectors.transport.shared_timeout import SharedTimeout


async def wait_within(shared: SharedTimeout, event: asyncio.Event) -> float:
    """Wait for the event; return the loop's time of the timeout, 0 without one."""
    try:
        with shared:
            await event.wait()
    except TimeoutError:
        return asyncio.get_running_loop().time()
    return 0.0


async def test_each_task_has_its_whole_time_though_one_timer_serves_all() -> None:
    timeout, never = SharedTimeout(0.05), asyncio.Event()
    loop = asyncio.get_running_loop()
    starts: list[float] = []
    tasks: list[asyncio.Task[float]] = []
    for _ in range(3):
        starts.append(loop.time())
        tasks.append(asyncio.create_task(wait_within(timeout, never)))
        await asyncio.wait([tasks[0]], timeout=0.02)
    ends = await asyncio.gather(*tasks)
    assert all(end - start >= 0.049 for start, end in zip(starts, ends, strict=True))
    assert all(task.cancelling() == 0 for task in tasks)


async def test_a_task_that_finishes_in_time_does_not_disturb_the_timeout_of_later_ones() -> None:
    timeout, done, never = SharedTimeout(0.05), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(wait_within(timeout, done))
    await asyncio.wait([first], timeout=0.01)
    done.set()
    assert await first == 0.0
    assert await wait_within(timeout, never) > 0


async def test_a_task_that_is_cancelled_from_outside_stays_cancelled() -> None:
    timeout, never = SharedTimeout(30), asyncio.Event()
    task = asyncio.create_task(wait_within(timeout, never))
    await asyncio.wait([task], timeout=0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_none_never_expires() -> None:
    done = asyncio.Event()
    task = asyncio.create_task(wait_within(SharedTimeout(None), done))
    await asyncio.wait([task], timeout=0.01)
    done.set()
    assert await task == 0.0
