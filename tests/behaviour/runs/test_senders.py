"""Memory of waiting senders, and answers that arrive while the files of others are written."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from pipelines.dispatch.media_files import write_files
from pipelines.dispatch.pending_requests import Submission
from pipelines.dispatch.request_types import RequestGroup

Read = Callable[..., list[dict[str, Any]]]
SOUND = b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(70_000)
"""What an mp3 begins with, and enough more for its file to be written in a thread."""


def live_objects(kind: type, before: Sequence[Any] = ()) -> list[Any]:
    """Return the objects of this type in memory, without those of `before`: other tests may have left some."""
    return [one for one in gc.get_objects() if type(one) is kind and all(one is not old for old in before)]


def happens(condition: Callable[[], bool]) -> bool:
    """Return whether the condition holds within ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_an_idle_sender_keeps_no_request_group_in_memory(workspace: Any, provider: Any, cli: Any) -> None:
    rows = 30
    workspace.csv(rows)
    are_freed: list[bool] = []
    before = live_objects(RequestGroup)

    async def last(path: str, body: Any, count: int) -> None:
        if body["messages"][-1]["content"] == f"text {rows}":
            # Only this one is still in flight.
            are_freed.append(await asyncio.to_thread(happens, lambda: len(live_objects(RequestGroup, before)) == 1))

    provider.script = last
    assert cli.run(workspace.job())["rows_ok"] == rows
    assert are_freed == [True]


def test_a_late_answer_may_arrive_while_the_files_of_others_are_written(
    workspace: Any, provider: Any, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 16
    workspace.csv(rows)
    writing = threading.Event()
    have_arrived: list[bool] = []
    before = live_objects(Submission)

    async def sound(path: str, body: Any, count: int) -> web.Response:
        if body["input"] == f"text {rows}":
            await asyncio.to_thread(writing.wait, 10)
        return web.Response(body=SOUND + body["input"].encode(), content_type="audio/mpeg")

    def slowly(*arguments: Any) -> None:
        writing.set()
        have_arrived.append(
            happens(lambda: not any(one.pending for one in live_objects(Submission, before) if not one.is_abandoned))
        )
        write_files(*arguments)

    provider.script = sound
    monkeypatch.setattr("pipelines.dispatch.step_runner.STRAGGLER_SECONDS", 0.05)
    monkeypatch.setattr("pipelines.dispatch.step_runner.write_files", slowly)
    steps = '[{name: say, endpoint: speech, provider: test, model: tts-1, voice: alloy, input: "{{ text }}"}]'
    report = cli.run(workspace.job(steps=steps))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, rows, rows)
    assert have_arrived == [True] * rows
    paths = [row["say"] for row in read(workspace.folder / "out")]
    assert sorted((workspace.folder / "out" / path).read_bytes() for path in paths) == sorted(
        SOUND + f"text {n}".encode() for n in range(1, rows + 1)
    )
