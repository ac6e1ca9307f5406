"""The state that the dispatchers of a run share."""

import asyncio

from pipelines.dispatch.dispatch_state import DispatchState


def test_the_first_stop_reason_stays_and_every_listener_gets_each_reason() -> None:
    state, reasons = DispatchState(), list[str]()
    state.on_stop(reasons.append)
    state.stop("budget")
    state.stop("interrupted")
    assert (state.stop_reason, reasons) == ("budget", ["budget", "interrupted"])


def test_the_first_failure_stops_the_run_under_its_name() -> None:
    state = DispatchState()
    first = OSError("disk full")
    state.fail(first)
    state.fail(ValueError("later"))
    assert (state.failure, state.stop_reason) == (first, "OSError: disk full")


async def test_a_failed_task_stops_the_run_and_a_cancelled_one_does_not() -> None:
    async def work(fails: bool) -> None:
        if fails:
            raise ValueError("a defect")
        await asyncio.sleep(10)

    state = DispatchState()
    cancelled, failed = asyncio.create_task(work(False)), asyncio.create_task(work(True))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, failed, return_exceptions=True)
    state.on_task_done(cancelled)
    assert state.stop_reason is None
    state.on_task_done(failed)
    assert state.stop_reason == "ValueError: a defect"


async def test_a_pause_lasts_until_it_is_resumed_and_each_change_is_announced_once() -> None:
    state, heard = DispatchState(), list[bool]()
    state.on_pause(heard.append)
    state.resume()
    state.pause()
    since = state.paused_since
    state.pause()
    assert (state.is_paused, state.paused_since, heard) == (True, since, [True])
    waiting = asyncio.create_task(state.wait_while_paused())
    await asyncio.sleep(0)
    assert not waiting.done()
    state.resume()
    await asyncio.wait_for(waiting, 10)
    assert (state.is_paused, heard) == (False, [True, False])


async def test_a_stop_ends_the_pause_and_no_other_begins() -> None:
    state = DispatchState()
    state.pause()
    state.stop("budget")
    await asyncio.wait_for(state.wait_while_paused(), 10)
    state.pause()
    assert not state.is_paused
