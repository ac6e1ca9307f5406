"""URLs that rows and replies name: fetched up to a size, from no private address, every redirect checked."""

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import BinaryIO

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from connectors.records import ErrorClass

REDIRECTS = 5
AT_A_TIME = 16
WAITS = (0.5, 2.0)
"""Seconds before a fetch that failed in passing is tried again."""

TIMEOUTS = aiohttp.ClientTimeout(total=300, sock_connect=10, sock_read=30)

_NAT64 = IPv6Network("64:ff9b::/96")


class FetchError(Exception):
    """No content came. `input`: none ever will; `timeout`, `connection`, `server`: later perhaps."""

    def __init__(self, error_class: ErrorClass, message: str) -> None:
        super().__init__(message)
        self.error_class: ErrorClass = error_class


def is_private(address: str) -> bool:
    """Whether an IP address leads anywhere but into the public internet, also through an address inside of it."""
    try:
        found = ip_address(address)
    except ValueError:
        return True
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return is_private(str(found.ipv4_mapped))
        if found in _NAT64:
            return is_private(str(IPv4Address(int(found) & 0xFFFFFFFF)))
        if any(each is not None and is_private(str(each)) for each in (found.sixtofour, *(found.teredo or ()))):
            return True
        if found.is_site_local:
            return True
    return not found.is_global or found.is_multicast or found.is_reserved or found.is_unspecified


class Fetcher:
    """Fetches with GET, without keys, cookies or proxies."""

    def __init__(self, hosts: Iterable[str], waits: Sequence[float] = WAITS) -> None:
        """`hosts`: names, or `name:port`, that may have private addresses."""
        self._hosts = frozenset(_plain(host) for host in hosts)
        self._waits = waits
        self._gate = asyncio.Semaphore(AT_A_TIME)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str, largest: int, into: BinaryIO) -> None:
        """The content behind a URL into an open file, which is emptied first; FetchError where there is none."""
        for wait in (*self._waits, None):
            try:
                async with self._gate:
                    await self._follow(url, largest, into)
                return
            except FetchError as exc:
                if exc.error_class == "input" or wait is None:
                    raise
                await asyncio.sleep(wait)

    def allowed(self, host: str, port: int | None) -> bool:
        """Whether this host may have a private address."""
        name = _plain(host)
        return name in self._hosts or f"{name}:{port}" in self._hosts

    async def _follow(self, url: str, largest: int, into: BinaryIO) -> None:
        here = _parsed(url)
        for _ in range(REDIRECTS + 1):
            onward = await self._one(here, largest, into)
            if onward is None:
                return
            here = onward
        raise FetchError("input", f"{shown(url)} is redirected more than {REDIRECTS} times")

    async def _one(self, here: URL, largest: int, into: BinaryIO) -> URL | None:
        """One exchange; the URL of a redirect, or None once the content is there."""
        host = here.host
        if here.scheme not in ("http", "https") or not host:
            raise FetchError("input", f"{shown(str(here))} is no http or https URL")
        # Addresses written as numbers never reach the resolver.
        with contextlib.suppress(ValueError):
            if is_private(str(ip_address(host))) and not self.allowed(host, here.port):
                raise _refusal(host, host)
        try:
            async with self._opened().get(here, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308) and "location" in response.headers:
                    return here.join(_parsed(response.headers["location"]))
                if response.status != 200:
                    passing = response.status in (408, 425, 429) or response.status >= 500
                    raise FetchError(
                        "server" if passing else "input", f"{shown(str(here))} gave status {response.status}"
                    )
                await _copy(response, largest, into, here)
                return None
        except TimeoutError as exc:
            raise FetchError("timeout", f"{shown(str(here))} did not come in time") from exc
        except aiohttp.InvalidURL as exc:
            raise FetchError("input", f"{shown(str(here))} is no URL") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise FetchError("connection", f"{shown(str(here))} did not come: {_said(exc)}") from exc

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=AT_A_TIME, resolver=_CheckedResolver(self)),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=TIMEOUTS,
                headers={"User-Agent": "rowmill/0.1", "Accept-Encoding": "identity"},
            )
        return self._session


class _CheckedResolver(AbstractResolver):
    """Resolves names; the connector connects to the very addresses that were checked here."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._fetcher = fetcher

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not self._fetcher.allowed(host, port):
            for each in found:
                if is_private(each["host"]):
                    raise _refusal(host, each["host"])
        return found

    async def close(self) -> None:
        await self._inner.close()


async def _copy(response: aiohttp.ClientResponse, largest: int, into: BinaryIO, here: URL) -> None:
    into.seek(0)
    into.truncate()
    size = response.content_length or 0
    if size <= largest:
        size = 0
        async for part in response.content.iter_chunked(1 << 18):
            size += len(part)
            if size > largest:
                break
            into.write(part)
    if size > largest:
        raise FetchError("input", f"{shown(str(here))} is larger than {largest / (1 << 20):g} MB")


def shown(url: str) -> str:
    """A URL for messages: without user, password and query, which may hold secrets."""
    short = re.sub(r"^(\w+://)[^/?#]*@", r"\1", url).partition("?")[0].partition("#")[0]
    return short if len(short) <= 200 else f"{short[:200]}…"


def _parsed(url: str) -> URL:
    try:
        # What is encoded already stays as it is: signed URLs break when a character is written in another way.
        return URL(url, encoded=re.fullmatch(r"[!-~]+", url) is not None)
    except ValueError as exc:
        raise FetchError("input", f"{shown(url)} is no URL") from exc


def _refusal(host: str, address: str) -> FetchError:
    told = host if host == address else f"{host} ({address})"
    return FetchError("input", f"{told} is a private address; name the host in `hosts` of rowmill.yaml to allow it")


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def _said(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
