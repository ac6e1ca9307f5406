"""The server of a control socket: what clients may do to it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pipelines.control import server
from pipelines.control.protocol import ControlReply, ControlRequest
from pipelines.control.server import MAX_CONNECTIONS, serve
from pipelines.control.socket_file import listen


def echo(request: ControlRequest) -> ControlReply:
    return ControlReply({"command": request.command})


@asynccontextmanager
async def served(
    path: Path, answer: Callable[[ControlRequest], ControlReply] = echo
) -> "AsyncIterator[asyncio.Task[None]]":
    task = asyncio.create_task(serve(listen(path), answer))
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def ask(path: Path, line: bytes = b'{"command": "state"}\n') -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    reply = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return reply


async def test_a_connection_may_send_several_requests(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b'{"command": "pause"}\n{"command": "resume"}\n')
        replies = [await reader.readline(), await reader.readline()]
        writer.close()
    assert [ControlReply.from_line(line).state for line in replies] == [{"command": "pause"}, {"command": "resume"}]


async def test_with_too_many_connections_the_oldest_is_closed(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        opened = [await asyncio.open_unix_connection(str(tmp_path / "s")) for _ in range(MAX_CONNECTIONS)]
        assert await ask(tmp_path / "s")
        assert await asyncio.wait_for(opened[0][0].read(), 10) == b""
        opened[-1][1].write(b'{"command": "state"}\n')
        assert await asyncio.wait_for(opened[-1][0].readline(), 10)
        for _, writer in opened:
            writer.close()


async def test_a_line_that_does_not_come_in_time_ends_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.05)
    async with served(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b'{"command"')
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        reply = ControlReply.from_line(await ask(tmp_path / "s", b"x" * (65 << 10)))
    assert reply.error == "control: a line of more than 65,536 bytes; send shorter ones"


async def test_a_defect_is_printed_and_does_not_end_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(request: ControlRequest) -> ControlReply:
        raise ZeroDivisionError

    async with served(tmp_path / "s", fail) as task:
        for _ in range(2):
            assert ControlReply.from_line(await ask(tmp_path / "s")).error is not None
        assert not task.done()
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_other_users_are_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_foreign(connection: socket.socket) -> bool:
        return False

    monkeypatch.setattr(server, "is_from_own_user", is_foreign)
    async with served(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
