"""The fast way of sending small requests: when it is taken, and that it sends what the session sends."""

import asyncio
import gzip
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from connectors.contracts import Provider
from connectors.records import Call, Reply
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.fast_post import MAX_BODY_BYTES, SUPPORTED_RELEASES, SWITCH, is_enabled, whole_reply
from tests.support.raw_http_server import RawHttpServer

BODY = b'{"model":"m"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
async def server() -> AsyncIterator[RawHttpServer]:
    async with RawHttpServer() as running:
        yield running


async def post(transport: HttpTransport, server: RawHttpServer, body: bytes = BODY) -> Reply | RequestError:
    provider = Provider("test", server.base_url, "sk-secret-key-of-some-length")
    try:
        return await transport.send(provider, Call("POST", "/chat/completions", body))
    except RequestError as exc:
        return exc


@pytest.fixture
def session_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the requests that went through aiohttp's session."""
    calls: list[str] = []
    original = aiohttp.ClientSession.request

    def request(session: aiohttp.ClientSession, method: str, *args: object, **kwargs: object) -> object:
        calls.append(method)
        return original(session, method, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    return calls


async def test_the_installed_aiohttp_sends_a_small_request_the_fast_way(
    server: RawHttpServer, session_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that this release is not in SUPPORTED_RELEASES: every row would cost a third more CPU time."""
    monkeypatch.delenv(SWITCH, raising=False)
    transport = HttpTransport(RequestTimeouts(), 1)
    server.answers = [OK]
    reply = await post(transport, server)
    await transport.close()
    assert isinstance(reply, Reply), reply
    assert transport.uses_fast_post
    assert session_calls == []


@pytest.mark.parametrize(
    ("switch", "body", "calls"),
    [("1", BODY, []), ("0", BODY, ["POST"]), ("1", b"x" * (MAX_BODY_BYTES + 1), ["POST"])],
    ids=["on", "off", "large body"],
)
async def test_the_switch_and_the_size_of_the_body_decide_the_way(
    server: RawHttpServer,
    session_calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
    body: bytes,
    calls: list[str],
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    transport = HttpTransport(RequestTimeouts(), 1)
    server.answers = [OK]
    reply = await post(transport, server, body)
    await transport.close()
    assert isinstance(reply, Reply), reply
    assert session_calls == calls


def test_only_supported_releases_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    assert all(is_enabled(f"{release}0") for release in SUPPORTED_RELEASES)
    assert not is_enabled("4.0.0")
    monkeypatch.setenv(SWITCH, "0")
    assert not is_enabled(f"{SUPPORTED_RELEASES[0]}0")


def test_the_oldest_aiohttp_that_the_package_accepts_is_supported() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (requirement,) = (each for each in project["dependencies"] if each.startswith("aiohttp>="))
    assert f"{requirement.removeprefix('aiohttp>=')}.".startswith(SUPPORTED_RELEASES)


async def test_both_ways_send_the_same_head(server: RawHttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        transport = HttpTransport(RequestTimeouts(), 1)
        server.answers = [OK]
        await post(transport, server)
        await transport.close()
    fast_head, session_head = (sorted(head.splitlines()) for head in server.heads)
    assert fast_head == session_head
    assert b"Authorization: Bearer sk-secret-key-of-some-length" in fast_head
    assert server.heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_a_reply_that_arrives_on_an_idle_connection_answers_no_request(server: RawHttpServer) -> None:
    server.answers = [OK, OK]
    transport = HttpTransport(RequestTimeouts(), 1)
    await post(transport, server)
    server.writers[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray")
    await server.writers[0].drain()
    for _ in range(20):
        # Until it has arrived at the idle connection.
        await asyncio.sleep(0.001)
    second = await post(transport, server)
    await transport.close()
    assert isinstance(second, Reply), second
    assert (second.body, server.connections) == (b"{}", 2)


async def test_the_beginning_of_a_reply_on_an_idle_connection_begins_no_answer(server: RawHttpServer) -> None:
    server.answers = [OK, OK, OK]
    transport = HttpTransport(RequestTimeouts(), 1)
    await post(transport, server)
    await post(transport, server)
    server.writers[0].write(b"HTTP/1.1 200 OK\r\nContent-Le")
    await server.writers[0].drain()
    for _ in range(20):
        # Until it has arrived at the idle connection.
        await asyncio.sleep(0.001)
    third = await post(transport, server)
    await transport.close()
    assert isinstance(third, Reply), third
    assert (third.body, server.connections) == (b"{}", 2)


async def test_replies_of_every_size_and_form_follow_one_another_on_a_connection(server: RawHttpServer) -> None:
    large = b'"%b"' % (b"x" * 3_000_000)
    packed = gzip.compress(b"[1]")
    server.answers = [
        OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(large), large),
        OK,
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
        % (len(packed), packed),
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        OK,
    ]
    transport = HttpTransport(RequestTimeouts(), 1)
    replies = [await post(transport, server) for _ in range(8)]
    await transport.close()
    found = [(one.status, one.body) for one in replies if isinstance(one, Reply)]
    assert found == [
        (200, b"{}"),
        (200, large),
        (200, b"{}"),
        (429, b"[1]"),
        (200, b"{}"),
        (204, b""),
        (200, b"{}"),
        (200, b"{}"),
    ]
    assert server.connections == 1


HEADS = {
    "usual": b"Content-Type: application/json\r\nX-Request-Id: r-1",
    "connection stays": b"Connection: Keep-Alive",
    "connection ends": b"Connection: close",
    "spaces": b"X-Padded: \t  a \t b  ",
    "header twice": b"Set-Cookie: a=1\r\nSet-Cookie: b=2",
    "not ASCII": "X-City: Köln".encode(),
    "not UTF-8": b"X-City: K\xf6ln",
    "no value": b"X-Nothing:",
    "control character": b"X-Bell: \x07",
    "two lengths": b"Content-Length: 3",
    "no colon": b"X-Broken",
    "folded": b"X-Folded: a\r\n b",
    "space in the name": b"X Name: a",
    "long": b"X-Long: " + b"x" * 6000,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
async def test_a_reply_in_one_piece_is_read_as_the_session_reads_it(
    server: RawHttpServer, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    found: list[object] = []
    for switch in ("1", "0"):
        monkeypatch.setenv(SWITCH, switch)
        transport = HttpTransport(RequestTimeouts(), 1)
        server.answers = [b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: 2\r\n\r\n{}" % head, OK]
        before = server.connections
        replies = [await post(transport, server) for _ in range(2)]
        await transport.close()
        read = [(one.headers, one.body) if isinstance(one, Reply) else one.error_class for one in replies]
        found.append((read, server.connections - before))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("received", "body"),
    [
        (OK, b"{}"),
        (OK.replace(b"200 OK", b"200"), b"{}"),
        (OK + b"x", None),
        (OK[:-1], None),
        (OK[:20], None),
        (OK.replace(b"200 OK", b"2001"), None),
        (OK.replace(b"200 OK", b"204 No Content"), None),
        (OK.replace(b"1.1", b"1.0"), None),
        (OK.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"), None),
        (OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), None),
    ],
)
def test_only_a_whole_usual_reply_skips_the_parser(received: bytes, body: bytes | None) -> None:
    reply = whole_reply(received)
    assert (None if reply is None else reply.body) == body
