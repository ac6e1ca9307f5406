"""The one place where requests leave the machine, and every way in which that can fail."""

import time
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from connectors.contracts import Provider
from connectors.exchange import Call, ErrorClass, Reply
from connectors.media_kinds import TYPES

LARGEST_REPLY = 128 << 20
"""Bytes, unpacked: a reply that is larger is not read to its end."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until a request is given up."""

    connect: float = 10
    idle: float = 60
    """Without a byte from the server."""
    total: float = 600


class RequestError(Exception):
    """No whole reply came. `billable` where the server may have done, and billed, its work all the same."""

    def __init__(self, error_class: ErrorClass, message: str, latency_ms: float, billable: bool) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class
        self.latency_ms = latency_ms
        self.billable = billable


class Transport(Protocol):
    """Everything is sent here, every test is fed here."""

    async def send(self, provider: Provider, call: Call) -> Reply:
        """The whole reply, whatever its status; RequestError where none comes."""

    async def close(self) -> None:
        """Let go of the connections."""


class HttpTransport:
    """Transport over aiohttp: keys go only to their provider's host, redirects are not followed."""

    def __init__(self, timeouts: Timeouts, connections: int) -> None:
        """`connections`: at most so many at a time; make it as many as requests are in flight."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=timeouts.total or None, sock_connect=timeouts.connect or None, sock_read=timeouts.idle or None
            ),
            auto_decompress=True,
        )
        self._headers: dict[tuple[str, str], dict[str, str]] = {}

    async def close(self) -> None:
        await self._session.close()

    async def send(self, provider: Provider, call: Call) -> Reply:
        began = time.perf_counter()
        started = False
        first_byte: float | None = None
        try:
            async with self._session.request(
                call.method,
                provider.base_url + call.path,
                data=_form(call) if call.form is not None else call.body,
                headers=self._headers_of(provider, call),
                allow_redirects=False,
            ) as response:
                started = True
                length = response.content_length
                if call.stream or length is None or length > 1 << 20 or "content-encoding" in response.headers:
                    parts: list[bytes] = []
                    size = 0
                    async for part in response.content.iter_any():
                        if first_byte is None:
                            first_byte = (time.perf_counter() - began) * 1000
                        parts.append(part)
                        size += len(part)
                        if size > LARGEST_REPLY:
                            raise RequestError(
                                "malformed_reply",
                                f"the reply is larger than {LARGEST_REPLY >> 20} MB: not read further",
                                _since(began),
                                billable=True,
                            )
                    body = b"".join(parts)
                else:
                    body = await response.read()
                return Reply(
                    response.status,
                    {name.lower(): value for name, value in response.headers.items()},
                    body,
                    _since(began),
                    first_byte if call.stream else None,
                )
        except aiohttp.ConnectionTimeoutError as exc:
            raise RequestError("timeout", f"no connection in time: {_said(exc)}", _since(began), False) from exc
        except TimeoutError as exc:
            raise RequestError("timeout", _timeout_words(exc, started), _since(began), True) from exc
        except aiohttp.ClientConnectorError as exc:
            raise RequestError("connection", f"cannot connect: {_said(exc)}", _since(began), False) from exc
        except (aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError) as exc:
            raise RequestError("malformed_reply", f"the reply broke off: {_said(exc)}", _since(began), True) from exc
        except aiohttp.ClientResponseError as exc:
            raise RequestError("malformed_reply", f"this is no HTTP reply: {_said(exc)}", _since(began), True) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise RequestError("connection", f"the connection broke: {_said(exc)}", _since(began), True) from exc

    def _headers_of(self, provider: Provider, call: Call) -> dict[str, str]:
        kind = "" if call.form is not None or call.body is None else call.content_type
        headers = self._headers.get((provider.name, kind))
        if headers is None:
            headers = {"User-Agent": "rowmill/0.1"}
            if kind:
                headers["Content-Type"] = kind
            if provider.api_key is not None:
                headers["Authorization"] = f"Bearer {provider.api_key}"
            self._headers[provider.name, kind] = headers
        return headers


def _form(call: Call) -> aiohttp.FormData:
    # Names such as `image[]` stand as they are. The type goes by the suffix: OpenAI refuses pictures without one.
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for name, value, filename in call.form or ():
        if filename is None:
            form.add_field(name, value)
        else:
            kind = TYPES.get(filename.rpartition(".")[2], "application/octet-stream")
            form.add_field(name, value, filename=filename, content_type=kind)
    return form


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _said(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


def _timeout_words(exc: BaseException, started: bool) -> str:
    if isinstance(exc, aiohttp.SocketTimeoutError):
        return "the server went silent" + (" in the middle of its reply" if started else " before its reply began")
    return "no whole reply within the total time (timeouts.total)"
