"""The HTTP client: the fast way and aiohttp's session read the same replies and fail in the same way."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from connectors.contracts import Provider
from connectors.records import Call, Reply
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.fast_post import SWITCH
from connectors.transport.tcp_keepalive import keepalive_socket
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


async def post(
    transport: HttpTransport, server: RawHttpServer, body: bytes = BODY, stream: bool = False
) -> Reply | RequestError:
    call = Call("POST", "/chat/completions", body, stream=stream)
    try:
        return await transport.send(Provider("test", server.base_url, KEY), call)
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


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
OPENING_EVENTS = (
    b": keep-alive\n\n"
    b'data: {"choices":[]}\n\ndata: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n'
)
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
NO_REPLY = "no reply within 0.2 s; raise timeouts.total if the server needs longer"
NOT_COMPLETE = "no complete reply within 0.2 s; raise timeouts.total if the server needs longer"
SILENCE = "silence for 0.1 s in the middle of the reply; raise timeouts.idle if the server pauses"


@pytest.mark.parametrize(
    ("answer", "timeouts", "message"),
    [
        (b"", {"idle_s": 0.02, "total_s": 0.2}, NO_REPLY),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", {"idle_s": 0.02, "total_s": 0.2}, NO_REPLY),
        (HEAD, {"idle_s": 0.02, "total_s": 0.2}, NOT_COMPLETE),
        (HEAD + b"\n \n", {"idle_s": 0.02, "total_s": 0.2}, NOT_COMPLETE),
        (STREAM + OPENING_EVENTS, {"idle_s": 0.02, "total_s": 0.2}, NOT_COMPLETE),
        (HEAD + b'{"', {"idle_s": 0.1}, SILENCE),
        (STREAM + OPENING_EVENTS + TOKEN, {"idle_s": 0.1}, SILENCE),
    ],
    ids=["nothing", "a hint", "a head", "white space", "opening events", "half a body", "a token"],
)
async def test_a_silent_server_times_out_by_the_key_that_the_message_names(
    transport: Callable[..., HttpTransport],
    server: RawHttpServer,
    answer: bytes,
    timeouts: dict[str, float],
    message: str,
) -> None:
    server.answers = [answer, OK]
    error = await post(transport(**timeouts), server, stream=answer.startswith(STREAM))
    assert isinstance(error, RequestError)
    assert (error.error_class, error.is_billable, str(error)) == ("timeout", True, message)


async def test_a_reply_may_begin_after_the_idle_time(
    transport: Callable[..., HttpTransport], server: RawHttpServer
) -> None:
    server.answers = [b"", OK]
    client = transport(idle_s=0.02)
    task = asyncio.create_task(post(client, server))
    await asyncio.wait([task], timeout=0.1)
    server.writers[0].write(OK)
    reply = await task
    assert isinstance(reply, Reply), reply
    assert (reply.status, reply.body) == (200, b"{}")


async def test_keep_alives_of_a_stream_are_no_silence(
    transport: Callable[..., HttpTransport], server: RawHttpServer
) -> None:
    server.answers = [STREAM + OPENING_EVENTS + TOKEN, OK]
    task = asyncio.create_task(post(transport(idle_s=0.5), server, stream=True))
    await server.has_request.wait()
    for _ in range(6):
        await asyncio.wait([task], timeout=0.1)
        server.writers[0].write(b": keep-alive\n\n")
    server.writers[0].write(b"data: [DONE]\n\n")
    server.writers[0].close()
    reply = await task
    assert isinstance(reply, Reply), reply
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert reply.first_token_ms is not None


async def test_a_stream_without_a_token_has_no_time_of_its_first_token(
    transport: Callable[..., HttpTransport], server: RawHttpServer
) -> None:
    server.answers, server.closes_after_last_answer = [STREAM + OPENING_EVENTS], True
    reply = await post(transport(), server, stream=True)
    assert isinstance(reply, Reply), reply
    assert reply.first_token_ms is None


async def test_no_connection_in_time_is_not_billable_and_names_the_key(
    transport: Callable[..., HttpTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(*arguments: object, **options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("aiohappyeyeballs.start_connection", wait)
    async with RawHttpServer() as server:
        error = await post(transport(connect_s=0.05), server)
    assert isinstance(error, RequestError)
    message = "no connection within 0.05 s; raise timeouts.connect if the network is slow"
    assert (error.error_class, error.is_billable, str(error)) == ("timeout", False, message)


@pytest.mark.parametrize(
    ("answers", "error_class", "message"),
    [
        ([], "timeout", "no connection within 0.05 s; raise timeouts.connect if the network is slow"),
        ([None], "connection", "the proxy opened no tunnel: Server disconnected"),
    ],
    ids=["silent", "closes"],
)
async def test_a_proxy_that_opens_no_tunnel_has_sent_no_request(
    transport: Callable[..., HttpTransport], answers: list[bytes | None], error_class: str, message: str
) -> None:
    async with RawHttpServer() as proxy:
        proxy.answers = [*answers]
        provider = Provider("test", "https://api.corp.test/v1", KEY, proxy=proxy.base_url.removesuffix("/v1"))
        with pytest.raises(RequestError) as caught:
            await transport(connect_s=0.05 if not answers else 5).send(
                provider, Call("POST", "/chat/completions", BODY)
            )
    assert (caught.value.error_class, caught.value.is_billable, str(caught.value)) == (error_class, False, message)


async def test_the_system_detects_a_dead_peer_within_two_minutes(
    transport: Callable[..., HttpTransport], server: RawHttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []

    def keep(address: tuple[object, ...]) -> socket.socket:
        made.append(keepalive_socket(address))
        return made[-1]

    monkeypatch.setattr("connectors.transport.client.keepalive_socket", keep)
    server.answers = [b"", OK]
    task = asyncio.create_task(post(transport(), server))
    await server.has_request.wait()
    assert made[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    idle, between, probes = (
        made[0].getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle + between * probes <= 120
    task.cancel()


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_the_transfer_of_a_file_ends_after_the_total_time_without_progress(
    transport: Callable[..., HttpTransport], server: RawHttpServer, tmp_path: Path, way: str
) -> None:
    server.answers = [b"", OK]
    provider = Provider("test", server.base_url, KEY)
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(RequestError) as raised:
        if way == "upload":
            client = transport(total_s=0.2, idle_s=0.02)
            await client.upload(provider, "/files", {}, tmp_path / "file", "name", lambda sent: None)
        else:
            await transport(total_s=0.2, idle_s=0.02).download(provider, "/files/f", lambda part: None)
    assert (raised.value.error_class, str(raised.value)) == ("timeout", NO_REPLY)


async def test_a_download_takes_any_time_until_it_is_silent(
    transport: Callable[..., HttpTransport], server: RawHttpServer
) -> None:
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n12", OK]
    parts: list[bytes] = []
    client = transport(total_s=0.3, idle_s=0.5)
    task = asyncio.create_task(client.download(Provider("test", server.base_url, KEY), "/files/f", parts.append))
    await server.has_request.wait()
    for _ in range(4):
        await asyncio.wait([task], timeout=0.1)
        server.writers[0].write(b"34")
    with pytest.raises(RequestError) as raised:
        await task
    assert b"".join(parts) == b"1234343434"
    assert str(raised.value).startswith("silence for 0.5 s in the middle of the reply; raise timeouts.idle")


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
