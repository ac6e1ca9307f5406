"""Servers with wrong lengths, encodings, counts, waits and nesting: the run ends and keeps its answers."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.behaviour.faults.hostile_server import FaultyReply, HostileServer, ReceivedRequest
from tests.behaviour.faults.table import every, first_two, one_row
from tests.conftest import Cli, Workspace
from tests.support.exhaustive import every_nth

Read = Callable[..., list[dict[str, Any]]]
Render = Callable[[bytes], bytes]
"""The usual body -> everything that is sent instead of the usual reply."""


@pytest.fixture
def hostile(workspace: Workspace) -> Iterator[HostileServer]:
    """The workspace's provider, which misbehaves as a test defines."""
    server = HostileServer()
    provider = f'providers: {{test: {{base_url: "http://127.0.0.1:{server.port}/v1"}}}}\n'
    workspace.write("rowmill.yaml", provider + "prices: {m: {input_per_million: 1, output_per_million: 2}}\n")
    yield server
    server.close()


def sending(render: Render, then_closes: bool = False) -> FaultyReply:
    """Send these bytes instead of the reply."""

    async def answer(request: ReceivedRequest) -> None:
        await request.send(render(json.dumps(request.usual_reply()).encode()))
        if then_closes:
            raise EOFError

    return answer


def by_row(faults: Mapping[int, FaultyReply]) -> FaultyReply:
    """Answer each of these rows in its own way, and all others as usual."""

    async def answer(request: ReceivedRequest) -> None:
        fault = faults.get(int(request.texts[0].removeprefix("text ")))
        await (request.reply(request.usual_reply()) if fault is None else fault(request))

    return answer


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


def with_length(body: bytes, *lines: str) -> bytes:
    return head(f"Content-Length: {len(body)}", *lines) + body


def chunked(body: bytes, *lines: str, size: str = "", end: bytes = b"0\r\n\r\n") -> bytes:
    return head("Transfer-Encoding: chunked", *lines) + f"{len(body):x}{size}\r\n".encode() + body + b"\r\n" + end


def compressed(encoding: str, pack: Callable[[bytes], bytes]) -> Render:
    return lambda body: with_length(pack(body), f"Content-Encoding: {encoding}")


READABLE: dict[str, Render] = {
    "trailers": lambda body: chunked(body, "Trailer: X-Sum", end=b"0\r\nX-Sum: 1\r\n\r\n"),
    "chunk extensions": lambda body: chunked(body, size=";a=b"),
    "a thousand 1xx": lambda body: b"HTTP/1.1 102 Processing\r\n\r\n" * 1000 + with_length(body),
    "line feeds alone": lambda body: b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(body) + body,
    "zlib": compressed("deflate", zlib.compress),
    "bare deflate": compressed("deflate", lambda body: zlib.compress(body)[2:-4]),
    "gzip in members": compressed("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    "a byte order mark": lambda body: with_length(b"\xef\xbb\xbf" + body),
    "a key twice": lambda body: with_length(b'{"choices": 1, "usage": 2, ' + body[1:]),
    "status 206": lambda body: b"HTTP/1.1 206 Some\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
    "nesting next to the answer": lambda body: with_length(body[:-1] + b', "x": ' + b"[" * 150 + b"]" * 150 + b"}"),
}


def test_unusual_but_readable_replies_are_used(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read
) -> None:
    names = dict(enumerate(READABLE, 1))
    workspace.csv(len(names))
    hostile.fault, hostile.hits = by_row({row: sending(READABLE[name]) for row, name in names.items()}), every
    report = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (report["exit_code"], report["requests"], len(hostile.received)) == (0, len(names), len(names))
    answers = {names[row["id"]]: row["answer"] for row in read(workspace.folder / "out")}
    assert answers == {name: f"TEXT {row}" for row, name in names.items()}
    assert {(row["input_tokens"], row["output_tokens"]) for row in read(workspace.folder / "out", "usage")} == {(10, 5)}


def test_connections_that_end_after_each_reply_cost_no_extra_request(
    workspace: Workspace, hostile: HostileServer, cli: Cli
) -> None:
    workspace.csv(60)
    hostile.fault, hostile.hits = sending(lambda body: with_length(body, "Connection: close"), then_closes=True), every
    report = cli.run(workspace.job(limits="{concurrency: 8}"))
    assert (report["exit_code"], report["rows_ok"], report["requests"], len(hostile.received)) == (0, 60, 60, 60)


UNREADABLE: dict[str, Render] = {
    "a chunk of minus five": lambda body: chunked(b"", end=b"-5\r\n" + body),
    "a chunk beyond counting": lambda body: head("Transfer-Encoding: chunked") + b"f" * 40 + b"\r\n" + body,
    "garbage after the last chunk": lambda body: chunked(body) + b"GARBAGE\r\n\r\n",
    "a length and chunks": lambda body: chunked(body, "Content-Length: 5"),
    "two lengths": lambda body: with_length(body, "Content-Length: 5"),
    "a negative length": lambda body: head("Content-Length: -5") + body,
    "a length in words": lambda body: head("Content-Length: many") + body,
    "a length beyond counting": lambda body: head(f"Content-Length: {'9' * 30}") + body,
    "too short a length": lambda body: head("Content-Length: 10") + body,
    "a length of nothing": lambda body: head("Content-Length: 0") + body,
    "no head": lambda body: body,
    "HTTP/2": lambda body: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a header without a name": lambda body: with_length(body, "nonsense"),
    "a header of 100 kB": lambda body: with_length(body, "X: " + "x" * 100_000),
    "100,000 headers": lambda body: with_length(body, *[f"X-{n}: x" for n in range(100_000)]),
    "a NUL in a header": lambda body: with_length(body, "X-Request-Id: a\0b"),
    "invalid brotli": compressed("br", lambda body: body),
    "invalid zstandard": compressed("zstd", lambda body: body),
    "gzip twice": compressed("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    "gzip with something after it": compressed("gzip", lambda body: gzip.compress(body) + b"something"),
    "UTF-16": lambda body: with_length(body.decode().encode("utf-16")),
    "UTF-32": lambda body: with_length(body.decode().encode("utf-32")),
    "20 MB of spaces": lambda body: with_length(b" " * (20 << 20)),
    "too deep": lambda body: with_length(body[:-1] + b', "x": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "far too deep": lambda body: with_length(b"[" * 100_000 + b"]" * 100_000),
    "status 204": lambda body: b"HTTP/1.1 204 Nothing\r\n\r\n",
}


@pytest.mark.parametrize("render", every_nth(2, UNREADABLE))
def test_unreadable_replies_are_retried_and_harm_no_other_row(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read, render: Render
) -> None:
    workspace.csv(4)
    hostile.fault, hostile.hits = sending(render, then_closes=True), one_row
    report = cli.run(workspace.job(limits="{concurrency: 1}", budget="{usd: 0.01}"))
    usage = read(workspace.folder / "out", "usage")
    # A connection may end while a request is being sent: that is recorded, and the request is retried.
    dropped = sum(row["error_class"] == "connection" for row in usage)
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (1, 3, len(usage))
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["attempts"]) == (2, 3)
    if not dropped:
        assert (len(hostile.received), len(usage), error["error_class"]) == (6, 6, "malformed_reply")
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == ["TEXT 1", "TEXT 3", "TEXT 4"]
    # Requests that may have been billed count with their maximum cost.
    costs = [row["cost_usd"] for row in read(workspace.folder / "out", "usage", "keys") if row["error_class"]]
    assert min(costs) > 40e-6


def test_bytes_that_are_not_utf8_are_replaced_and_the_answer_is_paid_once(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read
) -> None:
    async def latin(request: ReceivedRequest) -> None:
        await request.send(with_length(json.dumps(request.usual_reply()).encode().replace(b"TEXT", b"T\xe9XT")))

    workspace.csv(2)
    hostile.fault, hostile.hits = latin, every
    report = cli.run(workspace.job())
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 2, 2)
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == ["T\ufffdXT 1", "T\ufffdXT 2"]


async def endless_hints(request: ReceivedRequest) -> None:
    """Send 1xx replies without end."""
    while True:
        await request.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.01)


def test_endless_hints_are_abandoned_after_the_total_timeout(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read
) -> None:
    workspace.csv(3)
    hostile.fault, hostile.hits = endless_hints, one_row
    retry = "{attempts: 2, longest_wait: 0.01, longest_hold: 60}"
    report = cli.run(workspace.job(timeouts="{idle: 5, total: 0.3}", retry=retry))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (1, 2, 4)
    assert [row["error_class"] for row in read(workspace.folder / "out", "errors")] == ["timeout"]


MAX_OUTPUT_COST = 20 * 2e-6
"""US dollars for the output tokens that the job allows."""
INVALID_COUNTS: dict[str, Any] = {
    "negative": {"prompt_tokens": -5, "completion_tokens": -7},
    "half negative": {"prompt_tokens": 10, "completion_tokens": -7},
    "2^62": {"prompt_tokens": 2**62, "completion_tokens": 2**62},
    "2^63": {"prompt_tokens": 2**63, "completion_tokens": 1},
    "a trillion": {"prompt_tokens": 10, "completion_tokens": 10**12},
    "1e300": {"prompt_tokens": 1e300, "completion_tokens": 1e300},
    "half a token": {"prompt_tokens": 10.0, "completion_tokens": 5.5},
    "flags": {"prompt_tokens": True, "completion_tokens": False},
    "lists": {"prompt_tokens": [1], "completion_tokens": {}},
    "nothing": {},
    "null": None,
    "a word": "free",
}


@pytest.mark.parametrize("budget", ["{usd: 0.01}", ""], ids=["budget", "no budget"])
def test_exchanges_with_invalid_token_counts_are_charged_their_maximum_cost(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read, budget: str
) -> None:
    def lying(used: Any) -> FaultyReply:
        async def answer(request: ReceivedRequest) -> None:
            await request.reply({**request.usual_reply(), "usage": used})

        return answer

    names = dict(enumerate(INVALID_COUNTS, 1))
    workspace.csv(len(names))
    hostile.fault, hostile.hits = by_row({row: lying(INVALID_COUNTS[name]) for row, name in names.items()}), every
    report = cli.run(workspace.job(budget=budget))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, len(names), len(names))
    usage = {names[int(row["keys"][0])]: row for row in read(workspace.folder / "out", "usage")}
    counts = {name: (row["input_tokens"], row["output_tokens"]) for name, row in usage.items()}
    assert counts == dict.fromkeys(INVALID_COUNTS, (None, None))
    assert [name for name, row in usage.items() if not MAX_OUTPUT_COST <= row["cost_usd"] < 1e-3] == []


def test_a_bill_beyond_the_reserved_cost_stops_the_run_at_once(
    workspace: Workspace, hostile: HostileServer, cli: Cli
) -> None:
    async def greedy(request: ReceivedRequest) -> None:
        await request.reply({**request.usual_reply(), "usage": {"prompt_tokens": 10, "completion_tokens": 400_000}})

    workspace.csv(50)
    hostile.fault, hostile.hits = greedy, every
    report = cli.run(workspace.job(budget="{usd: 0.01}", limits="{concurrency: 1}"))
    # The next request may have been sent before the first bill was recorded.
    assert report["exit_code"] == 3
    assert report["rows_ok"] == len(hostile.received) <= 2
    assert report["rows_left"] == 50 - report["rows_ok"]
    assert report["cost_usd"] == pytest.approx(0.80001 * len(hostile.received))
    assert "the budget of $0.010000 is spent" in report["stopped"]
    assert "which would cost about $" in report["stopped"]


DEEP = b"[" * 300 + b"]" * 300
ERRORS = {
    "more": (400, b'{"error": {"message": "m", "more": %b}}'),
    "message": (400, b'{"error": {"message": %b, "type": %b}}'),
    "code": (400, b'{"error": {"code": %b, "param": %b}}'),
    "detail": (422, b'{"detail": [{"msg": "m", "loc": %b}]}'),
    "plain": (400, b"%b"),
    "in a 200": (200, b'{"error": {"message": "m", "more": %b}}'),
}


def test_an_error_that_is_nested_too_deeply_fails_only_its_row(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read
) -> None:
    def deep(status: int, body: bytes) -> FaultyReply:
        async def answer(request: ReceivedRequest) -> None:
            await request.reply(body.replace(b"%b", DEEP), status)

        return answer

    names = {2 * place: name for place, name in enumerate(ERRORS, 1)}
    rows = 2 * len(names) + 1
    workspace.csv(rows)
    hostile.fault, hostile.hits = by_row({row: deep(*ERRORS[name]) for row, name in names.items()}), every
    report = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (report["exit_code"], report["rows_ok"], report["stopped"]) == (1, rows - len(names), None)
    failed = {names[row["id"]]: row for row in read(workspace.folder / "out", "errors")}
    classes = {name: row["error_class"] for name, row in failed.items()}
    assert classes == {
        name: "malformed_reply" if status == 200 else "bad_request" for name, (status, _) in ERRORS.items()
    }
    assert all(row["message"] for row in failed.values())


INVALID_WAITS = ("nan", "-1", "1e999", "inf", "soon", "", "0x10", "Wed, 21 Oct 1015 07:28:00 GMT", "1" * 4000)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait", every_nth(4, {wait[:9]: wait for wait in INVALID_WAITS}))
def test_invalid_waits_are_ignored(
    workspace: Workspace, hostile: HostileServer, cli: Cli, status: int, wait: str
) -> None:
    async def refusing(request: ReceivedRequest) -> None:
        await request.reply({"error": {"message": "no"}}, status, Retry_After=wait)

    workspace.csv(4)
    hostile.fault, hostile.hits = refusing, first_two
    report = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 4, 6)


@pytest.mark.parametrize("wait", ["9999999", "1e308", "Wed, 21 Oct 9999 07:28:00 GMT"])
def test_an_extreme_wait_stops_the_run_with_a_short_message(
    workspace: Workspace, hostile: HostileServer, cli: Cli, wait: str
) -> None:
    async def refusing(request: ReceivedRequest) -> None:
        await request.reply({"error": {"message": "no"}}, 429, Retry_After=wait)

    workspace.csv(4)
    hostile.fault, hostile.hits = refusing, every
    report = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (report["exit_code"], report["rows_ok"]) == (3, 0)
    assert "asks to come back in" in report["stopped"]
    assert len(report["stopped"]) < 200


INVALID_LIMITS: tuple[dict[str, str], ...] = (
    {"limit": "0"},
    {"limit": "-5"},
    {"limit": "nan", "remaining": "nan"},
    {"limit": "inf", "remaining": "inf"},
    {"limit": "1e308", "remaining": "1e308", "reset": "1e308"},
    {"limit": "9" * 40, "remaining": "-4", "reset": "tomorrow"},
    {"limit": "10000", "remaining": "0", "reset": "99999d"},
)


def test_invalid_rate_limit_headers_delay_no_request(workspace: Workspace, hostile: HostileServer, cli: Cli) -> None:
    async def limiting(request: ReceivedRequest) -> None:
        limits = INVALID_LIMITS[(len(hostile.received) - 1) // 4]
        headers = {f"X_Ratelimit_{word}_{of}": value for word, value in limits.items() for of in ("Requests", "Tokens")}
        await request.reply(request.usual_reply(), **headers)

    rows = 4 * len(INVALID_LIMITS)
    workspace.csv(rows)
    hostile.fault, hostile.hits = limiting, every
    report = cli.run(workspace.job(limits="{concurrency: 2}"))
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, rows, rows)


def test_a_row_that_always_gets_429_does_not_block_the_run_forever(
    workspace: Workspace, hostile: HostileServer, cli: Cli, read: Read
) -> None:
    async def refusing(request: ReceivedRequest) -> None:
        await request.reply({"error": {"message": "no"}}, 429, Retry_After="0")

    workspace.csv(20)
    # Near the end: with so few answers, the learned rate would make the rows after it wait for most of a minute.
    hostile.fault, hostile.hits = refusing, lambda request, count: "text 18" in request.texts
    report = cli.run(
        workspace.job(limits="{concurrency: 2}", retry="{attempts: 2, longest_wait: 0.1, longest_hold: 0.3}")
    )
    assert (report["exit_code"], report["rows_ok"]) == (3, 19)
    assert "has answered nothing for" in report["stopped"]
    assert len(read(workspace.folder / "out")) == 19
