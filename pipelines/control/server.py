"""The server of a run's control socket, on the event loop of the run: no client can disturb the run."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from connectors.errors import JobError
from pipelines.control.protocol import MAX_REQUEST_BYTES, ControlReply, ControlRequest
from pipelines.control.socket_file import is_from_own_user
from pipelines.monitoring.json_log import print_defect

MAX_CONNECTIONS = 16
"""One more closes the oldest: idle clients keep no other client out."""

IDLE_SECONDS = 30.0
"""Time for a whole line to arrive, or for a reply to be read; then the connection is closed."""

SECONDS_BETWEEN_REQUESTS = 0.05
"""Shortest time between two requests of a connection."""

SECONDS_BETWEEN_CONNECTIONS = 0.002
"""Shortest time between two connections."""

Answer = Callable[[ControlRequest], ControlReply]
"""Carries out a request, in no time; JobError if it is refused."""


async def serve(listener: socket.socket, answer: Answer) -> None:
    """Answer requests until cancelled, then close the listener and all connections."""
    loop = asyncio.get_running_loop()
    connections: dict[asyncio.Task[None], None] = {}
    try:
        while True:
            # Without a free file descriptor no client can connect until one is closed.
            with contextlib.suppress(OSError):
                connection, _ = await loop.sock_accept(listener)
                while len(connections) >= MAX_CONNECTIONS:
                    oldest = next(iter(connections))
                    del connections[oldest]
                    oldest.cancel()
                task = asyncio.create_task(_serve_connection(connection, answer))
                connections[task] = None
                task.add_done_callback(lambda done: connections.pop(done, None))
            await asyncio.sleep(SECONDS_BETWEEN_CONNECTIONS)
    finally:
        listener.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _serve_connection(connection: socket.socket, answer: Answer) -> None:
    if not is_from_own_user(connection):
        connection.close()
        return
    connection.setblocking(False)
    try:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_REQUEST_BYTES)
    except BaseException:
        connection.close()
        raise
    try:
        # The client may leave at any moment, or send anything.
        with contextlib.suppress(OSError, TimeoutError):
            await _answer_lines(reader, writer, answer)
    finally:
        writer.transport.abort()


async def _answer_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            reply = ControlReply(error=f"control: a line of more than {MAX_REQUEST_BYTES:,} bytes; send shorter ones")
            await _send(writer, reply)
            return
        await _send(writer, _reply(line, answer))
        await asyncio.sleep(SECONDS_BETWEEN_REQUESTS)


def _reply(line: bytes, answer: Answer) -> ControlReply:
    try:
        return answer(ControlRequest.from_line(line))
    except JobError as exc:
        return ControlReply(error=str(exc))
    except Exception as exc:  # noqa: BLE001 - it must not end the run, and is printed
        print_defect(exc, as_json=False, job="control", run_id=None)
        return ControlReply(error="control: a defect of Rowmill, printed by the run; the run goes on")


async def _send(writer: asyncio.StreamWriter, reply: ControlReply) -> None:
    writer.write(reply.to_line())
    async with asyncio.timeout(IDLE_SECONDS):
        await writer.drain()
