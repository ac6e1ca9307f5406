"""Fetching of URLs in rows and replies: up to a size, never from private addresses, with every redirect checked."""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import BinaryIO

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct
from yarl import URL

from connectors.error_classes import ErrorClass

MAX_REDIRECTS = 5
MAX_CONCURRENT_FETCHES = 16
RETRY_WAITS = (0.5, 2.0)
"""Seconds before a fetch is repeated after a temporary failure."""

FETCH_TIMEOUT = aiohttp.ClientTimeout(total=300, sock_connect=10, sock_read=30)

_NAT64 = IPv6Network("64:ff9b::/96")


class FetchError(Exception):
    """The content could not be fetched; `input`: permanently, `timeout`, `connection` and `server`: now."""

    def __init__(self, error_class: ErrorClass, message: str) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class


def is_private(address: str) -> bool:
    """Whether an IP address is not on the public internet, directly or through an IPv4 address embedded in it."""
    try:
        ip = ip_address(address)
    except ValueError:
        return True
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_private(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_private(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
        if any(each is not None and is_private(str(each)) for each in (ip.sixtofour, *(ip.teredo or ()))):
            return True
        if ip.is_site_local:
            return True
    return not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified


class WebAccess(Struct, frozen=True):
    """The way to hosts outside: through which proxy, and whose certificates are trusted."""

    proxy_of: Callable[[str], str | None] = lambda url: None
    """The proxy for a URL; None: none."""
    tls: Callable[[], ssl.SSLContext | bool] = lambda: True
    """Called when the first URL is fetched; True: aiohttp's own certificates."""


DIRECT = WebAccess()
"""Without proxies, with the system's certificates."""


class UrlFetcher:
    """HTTP client for GET without keys or cookies."""

    def __init__(self, hosts: Iterable[str], waits: Sequence[float] = RETRY_WAITS, access: WebAccess = DIRECT) -> None:
        """`hosts`: names, or `name:port`, that may have private addresses."""
        self._hosts = frozenset(_normalized_host(host) for host in hosts)
        self._waits = waits
        self._concurrency = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)
        self._access = access
        self._resolver = _CheckedResolver(self)
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        """By whether the requests go through a proxy."""

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            await session.close()

    async def fetch(self, url: str, max_bytes: int, into: BinaryIO) -> None:
        """Write the content of a URL to an open file, truncated first; FetchError if there is none."""
        for wait in (*self._waits, None):
            try:
                async with self._concurrency:
                    await self._follow(url, max_bytes, into)
                return
            except FetchError as exc:
                if exc.error_class == "input" or wait is None:
                    raise
                await asyncio.sleep(wait)

    def is_allowed(self, host: str, port: int | None) -> bool:
        """Whether this host may have a private address."""
        name = _normalized_host(host)
        return name in self._hosts or f"{name}:{port}" in self._hosts

    async def _follow(self, url: str, max_bytes: int, into: BinaryIO) -> None:
        current = _parse_url(url)
        for _ in range(MAX_REDIRECTS + 1):
            redirect = await self._exchange(current, max_bytes, into)
            if redirect is None:
                return
            current = redirect
        raise FetchError("input", f"{redact_url(url)} is redirected more than {MAX_REDIRECTS} times")

    async def _exchange(self, url: URL, max_bytes: int, into: BinaryIO) -> URL | None:
        """Send one request; return the URL of a redirect, or None if the content was written."""
        host = url.host
        if url.scheme not in ("http", "https") or not host:
            raise FetchError("input", f"{redact_url(str(url))} is not an http or https URL")
        # Addresses written as numbers never reach the resolver.
        with contextlib.suppress(ValueError):
            if is_private(str(ip_address(host))) and not self.is_allowed(host, url.port):
                raise _private_address(host, host)
        proxy = self._access.proxy_of(str(url))
        try:
            if proxy is not None:
                await self._check_addresses(host, url.port)
            async with self._open_session(proxy is not None).get(url, allow_redirects=False, proxy=proxy) as response:
                if response.status in (301, 302, 303, 307, 308) and "location" in response.headers:
                    return url.join(_parse_url(response.headers["location"]))
                if response.status != 200:
                    is_temporary = response.status in (408, 425, 429) or response.status >= 500
                    raise FetchError(
                        "server" if is_temporary else "input",
                        f"{redact_url(str(url))} returned status {response.status}",
                    )
                await _copy(response, max_bytes, into, url)
                return None
        except TimeoutError as exc:
            raise FetchError("timeout", f"{redact_url(str(url))} did not arrive in time") from exc
        except aiohttp.InvalidURL as exc:
            raise FetchError("input", f"{redact_url(str(url))} is not a URL") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise FetchError("connection", f"{redact_url(str(url))} could not be fetched: {_message(exc)}") from exc

    async def _check_addresses(self, host: str, port: int | None) -> None:
        """Check the addresses of a host that a proxy connects to; a name that only the proxy knows passes."""
        try:
            await self._resolver.resolve(host, port or 0)
        except OSError:
            return

    def _open_session(self, is_proxied: bool) -> aiohttp.ClientSession:
        if (session := self._sessions.get(is_proxied)) is None:
            # The address of the proxy itself may be private.
            resolver = aiohttp.ThreadedResolver() if is_proxied else self._resolver
            session = self._sessions[is_proxied] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONCURRENT_FETCHES, resolver=resolver, ssl=self._access.tls()),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=FETCH_TIMEOUT,
                headers={"User-Agent": "rowmill/0.1", "Accept-Encoding": "identity"},
            )
        return session


class _CheckedResolver(AbstractResolver):
    """Name resolver; the connector connects to exactly the addresses that were checked here."""

    def __init__(self, fetcher: UrlFetcher) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._fetcher = fetcher

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = await self._inner.resolve(host, port, family)
        if not self._fetcher.is_allowed(host, port):
            for address in addresses:
                if is_private(address["host"]):
                    raise _private_address(host, address["host"])
        return addresses

    async def close(self) -> None:
        await self._inner.close()


async def _copy(response: aiohttp.ClientResponse, max_bytes: int, into: BinaryIO, url: URL) -> None:
    into.seek(0)
    into.truncate()
    size = response.content_length or 0
    if size <= max_bytes:
        size = 0
        async for part in response.content.iter_chunked(1 << 18):
            size += len(part)
            if size > max_bytes:
                break
            into.write(part)
    if size > max_bytes:
        raise FetchError("input", f"{redact_url(str(url))} is larger than {max_bytes / (1 << 20):g} MB")


def redact_url(url: str) -> str:
    """Return a URL for messages: without user, password and query, which may contain secrets."""
    short = re.sub(r"^(\w+://)[^/?#]*@", r"\1", url).partition("?")[0].partition("#")[0]
    return short if len(short) <= 200 else f"{short[:200]}…"


def _parse_url(url: str) -> URL:
    try:
        # Existing encoding is preserved: signed URLs break if a character is encoded differently.
        return URL(url, encoded=re.fullmatch(r"[!-~]+", url) is not None)
    except ValueError as exc:
        raise FetchError("input", f"{redact_url(url)} is not a URL") from exc


def _private_address(host: str, address: str) -> FetchError:
    name = host if host == address else f"{host} ({address})"
    return FetchError("input", f"{name} is a private address; name the host in `hosts` of rowmill.yaml to allow it")


def _normalized_host(host: str) -> str:
    return host.lower().rstrip(".")


def _message(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
