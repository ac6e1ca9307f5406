"""Tunnels through proxies: one that is not open in time, or that breaks before, has sent no request."""

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler


class TunnelError(aiohttp.ClientConnectionError):
    """A proxy ended the connection before it was a tunnel."""


class TunnelConnector(aiohttp.TCPConnector):
    """A connector that waits for a tunnel no longer than for a connection.

    aiohttp has no such limit: a proxy could take the whole time of the request to answer CONNECT.
    """

    async def _create_proxy_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> "tuple[asyncio.BaseTransport, ResponseHandler]":
        try:
            async with asyncio.timeout(timeout.sock_connect):
                return await super()._create_proxy_connection(req, traces, timeout)
        except TimeoutError as exc:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {req.url}") from exc
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
            raise TunnelError(str(exc) or type(exc).__name__) from exc
