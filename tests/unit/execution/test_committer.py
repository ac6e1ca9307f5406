"""One commit at a time, also where the one who asked for it waits no longer."""

import asyncio
import threading
from typing import Any

import pytest

from pipelines.execution.committer import Committer
from pipelines.ledger.ledger import Ledger


class SlowSink:
    """Writes usage only, as long as the test lets it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.at_a_time = 0
        self.most_at_a_time = 0

    def usage_marks(self) -> list[Any]:
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        self.begun.set()
        assert self.may_end.wait(10)
        self.at_a_time -= 1
        return []


async def test_a_commit_whose_caller_is_cancelled_keeps_its_turn_to_the_end(tmp_path: Any) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    sink = SlowSink()
    committer = Committer("job", sink, "out", None, ledger, None, "run")  # type: ignore[arg-type]
    first = asyncio.create_task(committer.commit())
    assert await asyncio.to_thread(sink.begun.wait, 10)
    first.cancel()
    second = asyncio.create_task(committer.commit())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not first.done()
    sink.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    ledger.close()
    assert sink.most_at_a_time == 1
