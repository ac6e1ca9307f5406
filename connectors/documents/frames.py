"""Frames between a run and its worker processes: JSON with its length before it, and open files with it."""

import array
import socket
import struct
from collections.abc import Sequence
from typing import Any

import orjson

_HEAD = struct.Struct("<Q")
_BLOCK_BYTES = 1 << 20


def send_frame(connection: socket.socket, content: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a frame; OSError if the other side is gone."""
    head = _HEAD.pack(len(content))
    if descriptors:
        connection.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
    else:
        connection.sendall(head)
    connection.sendall(content)


def receive_frame(connection: socket.socket) -> tuple[Any, list[int]] | None:
    """Return the next frame's value and open files; None if the other side has closed the connection."""
    head, descriptors, _, _ = socket.recv_fds(connection, _HEAD.size, 4)
    if len(head) < _HEAD.size:
        return None
    (size,) = _HEAD.unpack(head)
    content = bytearray()
    while len(content) < size:
        block = connection.recv(min(_BLOCK_BYTES, size - len(content)))
        if not block:
            return None
        content += block
    return orjson.loads(content), descriptors
