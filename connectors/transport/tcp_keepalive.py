"""TCP keep-alive: the system detects a peer that is dead, although an answer may take any time."""

import socket
from typing import Any

OPTIONS = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 5}
"""Seconds until the first probe (on macOS by another name), seconds between probes, probes without a reply: a dead peer
is detected after 105 s."""


def keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address as `socket.getaddrinfo` gives it."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in OPTIONS.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
