"""What a run holds on to while it waits: no pack of an idle sender; and answers that come while others are read."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from pipelines.dispatch.media_files import write_files
from pipelines.dispatch.request_types import RequestGroup, Submission

Read = Callable[..., list[dict[str, Any]]]
SOUND = b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(70_000)
"""What an mp3 begins with, and enough more for its file to be written in a thread."""


def alive(kind: type, before: Sequence[Any] = ()) -> list[Any]:
    """The values of this type that somebody holds on to, without those of `before`: other tests may have left some."""
    return [found for found in gc.get_objects() if type(found) is kind and all(found is not old for old in before)]


def until(reached: Callable[[], bool]) -> bool:
    """Whether it came to that within ten seconds."""
    deadline = time.monotonic() + 10
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_a_sender_that_waits_holds_on_to_no_pack(workspace: Any, provider: Any, cli: Any) -> None:
    rows = 30
    workspace.csv(rows)
    let_go: list[bool] = []
    before = alive(RequestGroup)

    async def last(path: str, body: Any, count: int) -> None:
        if body["messages"][-1]["content"] == f"text {rows}":
            # Of all that were sent, this one alone is still under way.
            let_go.append(await asyncio.to_thread(until, lambda: len(alive(RequestGroup, before)) == 1))

    provider.script = last
    assert cli.run(workspace.job())["rows_ok"] == rows
    assert let_go == [True]


def test_an_answer_that_comes_late_may_land_while_the_files_of_others_are_written(
    workspace: Any, provider: Any, cli: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 16
    workspace.csv(rows)
    writing = threading.Event()
    landed: list[bool] = []
    before = alive(Submission)

    async def sound(path: str, body: Any, count: int) -> web.Response:
        if body["input"] == f"text {rows}":
            await asyncio.to_thread(writing.wait, 10)
        return web.Response(body=SOUND + body["input"].encode(), content_type="audio/mpeg")

    def slowly(*given: Any) -> None:
        writing.set()
        landed.append(until(lambda: not any(wave.missing for wave in alive(Submission, before) if not wave.left)))
        write_files(*given)

    provider.script = sound
    monkeypatch.setattr("pipelines.dispatch.step_runner.SPLIT_AFTER", 0.05)
    monkeypatch.setattr("pipelines.dispatch.step_runner.write_files", slowly)
    steps = '[{name: say, endpoint: speech, provider: test, model: tts-1, voice: alloy, input: "{{ text }}"}]'
    told = cli.run(workspace.job(steps=steps))
    assert (told["exit_code"], told["rows_ok"], told["requests"]) == (0, rows, rows)
    assert landed == [True] * rows
    paths = [row["say"] for row in read(workspace.folder / "out")]
    assert sorted((workspace.folder / "out" / path).read_bytes() for path in paths) == sorted(
        SOUND + f"text {n}".encode() for n in range(1, rows + 1)
    )
