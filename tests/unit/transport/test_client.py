"""Both ways by which a request leaves, straight over aiohttp's connections and by its session, do the same."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable

import pytest

from connectors.contracts import Provider
from connectors.records import Call, Reply
from connectors.transport.client import HttpTransport, RequestError, Timeouts
from connectors.transport.fast_post import FastPost

BODY = b'{"model":"m"}'
OK = b"HTTP/1.1 200 OK\r\nX-Request-Id: r-7\r\nContent-Length: 2\r\n\r\n{}"
PACKED = gzip.compress(b'{"a":1}')


class RawServer:
    """Answers each request of a connection with the next of its scripted byte strings; None: closes the connection."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.heads: list[bytes] = []
        self.connections = 0
        self.reads_bodies = True
        self.hangs_up = False
        """Whether the connection ends with the last answer."""
        self.asked = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "RawServer":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.base_url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                self.asked.set()
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                if self.reads_bodies:
                    await reader.readexactly(length)
                answer = self.answers.pop(0)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
            if not self.hangs_up:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer() as running:
        yield running


@pytest.fixture(params=[True, False], ids=["direct", "session"])
async def transport(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., HttpTransport]]:
    """Makes transports of either way, with one connection each."""
    monkeypatch.setattr(FastPost, "fits", staticmethod(lambda: request.param))
    made: list[HttpTransport] = []

    def make(**timeouts: float) -> HttpTransport:
        made.append(HttpTransport(Timeouts(**{"connect": 5, "idle": 5, "total": 10, **timeouts}), 1))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def ask(transport: HttpTransport, server: RawServer, body: bytes = BODY) -> Reply | RequestError:
    provider = Provider("test", server.base_url, "sk-secret-key-of-some-length")
    try:
        return await transport.send(provider, Call("POST", "/chat/completions", body))
    except RequestError as exc:
        return exc


def test_the_installed_aiohttp_is_one_whose_parts_fit() -> None:
    assert FastPost.fits()
    assert not FastPost.fits("4.0.0")


async def test_both_ways_send_the_same_head(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for direct in (True, False):
        monkeypatch.setattr(FastPost, "fits", staticmethod(lambda direct=direct: direct))
        transport = HttpTransport(Timeouts(), 1)
        server.answers = [OK]
        await ask(transport, server)
        await transport.close()
    direct_head, session_head = (sorted(head.splitlines()) for head in server.heads)
    assert direct_head == session_head
    assert b"Authorization: Bearer sk-secret-key-of-some-length" in direct_head
    assert server.heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_a_connection_is_used_again(transport: Callable[..., HttpTransport], server: RawServer) -> None:
    server.answers = [OK, OK, OK]
    sending = transport()
    replies = [await ask(sending, server) for _ in range(3)]
    told = [(r.status, r.body, r.headers["x-request-id"]) if isinstance(r, Reply) else r for r in replies]
    assert told == [(200, b"{}", "r-7")] * 3
    assert server.connections == 1


async def test_a_reply_that_nobody_asked_for_answers_no_request(server: RawServer) -> None:
    server.answers = [OK, OK]
    sending = HttpTransport(Timeouts(), 1)
    await ask(sending, server)
    server.writers[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray")
    await server.writers[0].drain()
    for _ in range(20):
        # Until it has arrived at the connection that rests.
        await asyncio.sleep(0.001)
    second = await ask(sending, server)
    await sending.close()
    assert isinstance(second, Reply), second
    assert (second.body, server.connections) == (b"{}", 2)


async def test_silence_after_an_early_hint_is_silence(server: RawServer) -> None:
    server.answers = [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
    sending = HttpTransport(Timeouts(idle=0.2, total=20), 1)
    failure = await ask(sending, server)
    await sending.close()
    assert isinstance(failure, RequestError)
    assert (failure.error_class, str(failure)) == ("timeout", "the server went silent before its reply began")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n", b"[1,2]"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end of the connection", b"to the end of the connection"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"{}"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED) + PACKED, b'{"a":1}'),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}"),
    ],
    ids=["chunked", "until the end", "after 1xx", "gzip", "HTTP 1.0"],
)
async def test_a_reply_is_read_whole(
    transport: Callable[..., HttpTransport], server: RawServer, answer: bytes, body: bytes
) -> None:
    server.answers, server.hangs_up = [answer], True
    sending = transport()
    reply = await ask(sending, server)
    assert isinstance(reply, Reply), reply
    assert (reply.status, reply.body) == (200, body)


@pytest.mark.parametrize(
    ("answer", "error_class", "billable", "words"),
    [
        (None, "connection", True, "the connection broke"),
        (b"no HTTP at all\r\n\r\n", "malformed_reply", True, "this is no HTTP reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "malformed_reply", True, "the reply broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "malformed_reply", True, "broke"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
            "malformed_reply",
            True,
            "Invalid character in chunk size",
        ),
    ],
    ids=["dropped", "no HTTP", "truncated", "not gzip", "bad chunk"],
)
async def test_a_broken_reply_is_told(
    transport: Callable[..., HttpTransport],
    server: RawServer,
    answer: bytes | None,
    error_class: str,
    billable: bool,
    words: str,
) -> None:
    server.answers, server.hangs_up = [answer], True
    sending = transport()
    told = await asyncio.wait_for(ask(sending, server), 5)
    assert isinstance(told, RequestError), told
    assert (told.error_class, told.billable) == (error_class, billable)
    assert words in str(told)


@pytest.mark.parametrize(
    ("timeouts", "words"),
    [
        ({"idle": 0.1}, "the server went silent before its reply began"),
        ({"total": 0.1}, "no whole reply within the total time (timeouts.total)"),
    ],
    ids=["idle", "total"],
)
async def test_silence_ends(
    transport: Callable[..., HttpTransport], server: RawServer, timeouts: dict[str, float], words: str
) -> None:
    server.answers = [b"", OK]
    sending = transport(**timeouts)
    told = await ask(sending, server)
    assert isinstance(told, RequestError)
    assert (told.error_class, told.billable, str(told)) == ("timeout", True, words)


async def test_an_answer_before_the_body_was_read_leaves_nothing_for_the_next_request(
    transport: Callable[..., HttpTransport], server: RawServer
) -> None:
    server.reads_bodies = False
    server.answers = [b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n", OK]
    sending = transport()
    refused = await ask(sending, server, b"x" * (200 << 10))
    server.reads_bodies = True
    after = await asyncio.wait_for(ask(sending, server), 5)
    assert isinstance(refused, Reply) and isinstance(after, Reply)
    assert (refused.status, after.status) == (413, 200)


async def test_a_cancelled_request_gives_its_connection_up(
    transport: Callable[..., HttpTransport], server: RawServer
) -> None:
    server.answers = [b"", OK]
    sending = transport()
    task = asyncio.create_task(ask(sending, server))
    await server.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reply = await ask(sending, server)
    assert isinstance(reply, Reply)
    assert server.connections == 2
