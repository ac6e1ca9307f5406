"""The HTTP client: the fast way and aiohttp's session read the same replies and fail in the same way."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable

import pytest

from connectors.contracts import Provider
from connectors.records import Call, Reply
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.fast_post import SWITCH
from tests.support.raw_http_server import RawHttpServer

BODY = b'{"model":"m"}'
OK = b"HTTP/1.1 200 OK\r\nX-Request-Id: r-7\r\nContent-Length: 2\r\n\r\n{}"
GZIPPED = gzip.compress(b'{"a":1}')
KEY = "sk-secret-key-of-some-length"


@pytest.fixture
async def server() -> AsyncIterator[RawHttpServer]:
    async with RawHttpServer() as running:
        yield running


@pytest.fixture(params=["1", "0"], ids=["fast", "session"])
async def transport(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., HttpTransport]]:
    """Makes transports that take one of the two ways, with one connection each."""
    monkeypatch.setenv(SWITCH, request.param)
    made: list[HttpTransport] = []

    def make(**timeouts: float) -> HttpTransport:
        made.append(HttpTransport(RequestTimeouts(**{"connect_s": 5, "idle_s": 5, "total_s": 10, **timeouts}), 1))
        assert made[-1].uses_fast_post is (request.param == "1")
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def post(transport: HttpTransport, server: RawHttpServer, body: bytes = BODY) -> Reply | RequestError:
    try:
        return await transport.send(Provider("test", server.base_url, KEY), Call("POST", "/chat/completions", body))
    except RequestError as exc:
        return exc


async def test_a_connection_is_used_again(transport: Callable[..., HttpTransport], server: RawHttpServer) -> None:
    server.answers = [OK, OK, OK]
    client = transport()
    replies = [await post(client, server) for _ in range(3)]
    received = [(r.status, r.body, r.headers["x-request-id"]) if isinstance(r, Reply) else r for r in replies]
    assert received == [(200, b"{}", "r-7")] * 3
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n", b"[1,2]"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end of the connection", b"to the end of the connection"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"{}"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(GZIPPED) + GZIPPED,
            b'{"a":1}',
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}"),
    ],
    ids=["chunked", "until the end", "after 1xx", "gzip", "HTTP 1.0"],
)
async def test_a_reply_is_read_to_its_end(
    transport: Callable[..., HttpTransport], server: RawHttpServer, answer: bytes, body: bytes
) -> None:
    server.answers, server.closes_after_last_answer = [answer], True
    reply = await post(transport(), server)
    assert isinstance(reply, Reply), reply
    assert (reply.status, reply.body) == (200, body)


@pytest.mark.parametrize(
    ("answer", "error_class", "message"),
    [
        (None, "connection", "the connection broke"),
        (b"no HTTP at all\r\n\r\n", "malformed_reply", "not an HTTP reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "malformed_reply", "the reply was cut off"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "malformed_reply", "cut off"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
            "malformed_reply",
            "Invalid character in chunk size",
        ),
    ],
    ids=["dropped", "no HTTP", "truncated", "not gzip", "bad chunk"],
)
async def test_a_broken_reply_raises_a_billable_request_error(
    transport: Callable[..., HttpTransport],
    server: RawHttpServer,
    answer: bytes | None,
    error_class: str,
    message: str,
) -> None:
    server.answers, server.closes_after_last_answer = [answer], True
    error = await asyncio.wait_for(post(transport(), server), 5)
    assert isinstance(error, RequestError), error
    assert (error.error_class, error.is_billable) == (error_class, True)
    assert message in str(error)


@pytest.mark.parametrize(
    ("timeouts", "message"),
    [
        ({"idle_s": 0.1}, "the server went silent before its reply began"),
        ({"total_s": 0.1}, "no complete reply within the total time (timeouts.total)"),
    ],
    ids=["idle", "total"],
)
async def test_a_silent_server_times_out(
    transport: Callable[..., HttpTransport], server: RawHttpServer, timeouts: dict[str, float], message: str
) -> None:
    server.answers = [b"", OK]
    error = await post(transport(**timeouts), server)
    assert isinstance(error, RequestError)
    assert (error.error_class, error.is_billable, str(error)) == ("timeout", True, message)


async def test_a_refused_connection_is_not_billable(transport: Callable[..., HttpTransport]) -> None:
    async with RawHttpServer() as stopped:
        pass
    error = await post(transport(), stopped)
    assert isinstance(error, RequestError)
    assert (error.error_class, error.is_billable) == ("connection", False)
    assert str(error).startswith("cannot connect: ")


async def test_a_reply_before_the_body_was_read_leaves_nothing_for_the_next_request(
    transport: Callable[..., HttpTransport], server: RawHttpServer
) -> None:
    server.reads_bodies = False
    server.answers = [b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n", OK]
    client = transport()
    refused = await post(client, server, b"x" * (200 << 10))
    server.reads_bodies = True
    after = await asyncio.wait_for(post(client, server), 5)
    assert isinstance(refused, Reply) and isinstance(after, Reply)
    assert (refused.status, after.status) == (413, 200)


async def test_a_cancelled_request_closes_its_connection(
    transport: Callable[..., HttpTransport], server: RawHttpServer
) -> None:
    server.answers = [b"", OK]
    client = transport()
    task = asyncio.create_task(post(client, server))
    await server.has_request.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reply = await post(client, server)
    assert isinstance(reply, Reply)
    assert server.connections == 2


async def test_a_key_that_the_server_repeats_is_replaced(
    transport: Callable[..., HttpTransport], server: RawHttpServer
) -> None:
    server.answers = [
        b"HTTP/1.1 401 No\r\nX-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (KEY.encode(), 28, KEY.encode())
    ]
    reply = await post(transport(), server)
    assert isinstance(reply, Reply)
    assert (reply.body, reply.headers["x-key"]) == (b"[the key]", "[the key]")
