"""Servers that lie: about lengths, encodings, counts, waits and depth; the run ends, and keeps what was answered."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.behaviour.faults.hostile_server import Answer, Asked, RoughServer
from tests.behaviour.faults.table import every, first_two, one_row

Read = Callable[..., list[dict[str, Any]]]
Says = Callable[[bytes], bytes]
"""The usual body -> all that is sent in place of the usual reply."""


@pytest.fixture
def rough(workspace: Any) -> Iterator[RoughServer]:
    """The workspace's provider, which misbehaves as a test says."""
    server = RoughServer()
    provider = f'providers: {{test: {{base_url: "http://127.0.0.1:{server.port}/v1"}}}}\n'
    workspace.write("rowmill.yaml", provider + "prices: {m: {input_per_million: 1, output_per_million: 2}}\n")
    yield server
    server.close()


def sending(says: Says, then_ends: bool = False) -> Answer:
    """These bytes in place of the reply."""

    async def answer(asked: Asked) -> None:
        await asked.send(says(json.dumps(asked.usual()).encode()))
        if then_ends:
            raise EOFError

    return answer


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


def sized(body: bytes, *lines: str) -> bytes:
    return head(f"Content-Length: {len(body)}", *lines) + body


def chunked(body: bytes, *lines: str, size: str = "", end: bytes = b"0\r\n\r\n") -> bytes:
    return head("Transfer-Encoding: chunked", *lines) + f"{len(body):x}{size}\r\n".encode() + body + b"\r\n" + end


def packed(encoding: str, pack: Callable[[bytes], bytes]) -> Says:
    return lambda body: sized(pack(body), f"Content-Encoding: {encoding}")


READ: dict[str, Says] = {
    "trailers": lambda body: chunked(body, "Trailer: X-Sum", end=b"0\r\nX-Sum: 1\r\n\r\n"),
    "chunk extensions": lambda body: chunked(body, size=";a=b"),
    "a thousand 1xx": lambda body: b"HTTP/1.1 102 Processing\r\n\r\n" * 1000 + sized(body),
    "line feeds alone": lambda body: b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(body) + body,
    "zlib": packed("deflate", zlib.compress),
    "bare deflate": packed("deflate", lambda body: zlib.compress(body)[2:-4]),
    "gzip in members": packed("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    "a byte order mark": lambda body: sized(b"\xef\xbb\xbf" + body),
    "a key twice": lambda body: sized(b'{"choices": 1, "usage": 2, ' + body[1:]),
    "status 206": lambda body: b"HTTP/1.1 206 Some\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
    "depth beside the answer": lambda body: sized(body[:-1] + b', "x": ' + b"[" * 150 + b"]" * 150 + b"}"),
}


@pytest.mark.parametrize("says", READ.values(), ids=READ)
def test_an_odd_reply_that_can_be_read_is_read(
    workspace: Any, rough: RoughServer, cli: Any, read: Read, says: Says
) -> None:
    workspace.csv(4)
    rough.fault, rough.hits = sending(says), one_row
    told = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (told["exit_code"], told["requests"], len(rough.read)) == (0, 4, 4)
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == [f"TEXT {n}" for n in range(1, 5)]
    assert {(row["input_tokens"], row["output_tokens"]) for row in read(workspace.folder / "out", "usage")} == {(10, 5)}


def test_a_server_that_ends_the_connection_after_each_reply_costs_no_request(
    workspace: Any, rough: RoughServer, cli: Any
) -> None:
    workspace.csv(60)
    rough.fault, rough.hits = sending(lambda body: sized(body, "Connection: close"), then_ends=True), every
    told = cli.run(workspace.job(limits="{concurrency: 8}"))
    assert (told["exit_code"], told["rows_ok"], told["requests"], len(rough.read)) == (0, 60, 60, 60)


BROKEN: dict[str, Says] = {
    "a chunk of minus five": lambda body: chunked(b"", end=b"-5\r\n" + body),
    "a chunk beyond counting": lambda body: head("Transfer-Encoding: chunked") + b"f" * 40 + b"\r\n" + body,
    "garbage after the last chunk": lambda body: chunked(body) + b"GARBAGE\r\n\r\n",
    "a length and chunks": lambda body: chunked(body, "Content-Length: 5"),
    "two lengths": lambda body: sized(body, "Content-Length: 5"),
    "a negative length": lambda body: head("Content-Length: -5") + body,
    "a length in words": lambda body: head("Content-Length: many") + body,
    "a length beyond counting": lambda body: head(f"Content-Length: {'9' * 30}") + body,
    "too short a length": lambda body: head("Content-Length: 10") + body,
    "a length of nothing": lambda body: head("Content-Length: 0") + body,
    "no head": lambda body: body,
    "HTTP/2": lambda body: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a header without a name": lambda body: sized(body, "nonsense"),
    "a header of 100 kB": lambda body: sized(body, "X: " + "x" * 100_000),
    "100,000 headers": lambda body: sized(body, *[f"X-{n}: x" for n in range(100_000)]),
    "a NUL in a header": lambda body: sized(body, "X-Request-Id: a\0b"),
    "brotli that is none": packed("br", lambda body: body),
    "zstandard that is none": packed("zstd", lambda body: body),
    "gzip twice": packed("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    "gzip with something after it": packed("gzip", lambda body: gzip.compress(body) + b"something"),
    "UTF-16": lambda body: sized(body.decode().encode("utf-16")),
    "UTF-32": lambda body: sized(body.decode().encode("utf-32")),
    "Latin-1": lambda body: sized(body[:-1] + ', "x": "é"}'.encode("latin-1")),
    "20 MB of spaces": lambda body: sized(b" " * (20 << 20)),
    "too deep": lambda body: sized(body[:-1] + b', "x": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "far too deep": lambda body: sized(b"[" * 100_000 + b"]" * 100_000),
    "status 204": lambda body: b"HTTP/1.1 204 Nothing\r\n\r\n",
}


@pytest.mark.parametrize("says", BROKEN.values(), ids=BROKEN)
def test_a_reply_that_cannot_be_read_is_tried_again_and_harms_no_other_row(
    workspace: Any, rough: RoughServer, cli: Any, read: Read, says: Says
) -> None:
    workspace.csv(4)
    rough.fault, rough.hits = sending(says, then_ends=True), one_row
    told = cli.run(workspace.job(limits="{concurrency: 1}", budget="{usd: 0.01}"))
    used = read(workspace.folder / "out", "usage")
    # A request may meet the end of the connection on its way: it is noted, and tried again.
    crossed = sum(row["error_class"] == "connection" for row in used)
    assert (told["exit_code"], told["rows_ok"], told["requests"]) == (1, 3, len(used))
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["attempts"]) == (2, 3)
    if not crossed:
        assert (len(rough.read), len(used), error["error_class"]) == (6, 6, "malformed_reply")
    assert [row["answer"] for row in read(workspace.folder / "out", order="id")] == ["TEXT 1", "TEXT 3", "TEXT 4"]
    # What may have been billed counts at its worst.
    costs = [row["cost_usd"] for row in read(workspace.folder / "out", "usage", "keys") if row["error_class"]]
    assert min(costs) > 40e-6


async def endless_hints(asked: Asked) -> None:
    """1xx for ever."""
    while True:
        await asked.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.01)


def test_hints_without_end_are_given_up_after_the_total_time(
    workspace: Any, rough: RoughServer, cli: Any, read: Read
) -> None:
    workspace.csv(3)
    rough.fault, rough.hits = endless_hints, one_row
    retry = "{attempts: 2, longest_wait: 0.01, longest_hold: 60}"
    told = cli.run(workspace.job(timeouts="{idle: 5, total: 0.3}", retry=retry))
    assert (told["exit_code"], told["rows_ok"], told["requests"]) == (1, 2, 4)
    assert [row["error_class"] for row in read(workspace.folder / "out", "errors")] == ["timeout"]


WORST = 20 * 2e-6
"""US dollars for as many output tokens as the job allows."""
NO_COUNTS: dict[str, Any] = {
    "negative": {"prompt_tokens": -5, "completion_tokens": -7},
    "half negative": {"prompt_tokens": 10, "completion_tokens": -7},
    "2^62": {"prompt_tokens": 2**62, "completion_tokens": 2**62},
    "2^63": {"prompt_tokens": 2**63, "completion_tokens": 1},
    "a trillion": {"prompt_tokens": 10, "completion_tokens": 10**12},
    "1e300": {"prompt_tokens": 1e300, "completion_tokens": 1e300},
    "half a token": {"prompt_tokens": 10.0, "completion_tokens": 5.5},
    "texts": {"prompt_tokens": "10", "completion_tokens": "5"},
    "flags": {"prompt_tokens": True, "completion_tokens": False},
    "lists": {"prompt_tokens": [1], "completion_tokens": {}},
    "nothing": {},
    "null": None,
    "a word": "free",
}


@pytest.mark.parametrize("budget", ["{usd: 0.01}", ""], ids=["budget", "no budget"])
@pytest.mark.parametrize("used", NO_COUNTS.values(), ids=NO_COUNTS)
def test_counts_that_are_none_are_billed_at_the_worst_case(
    workspace: Any, rough: RoughServer, cli: Any, read: Read, used: Any, budget: str
) -> None:
    async def lying(asked: Asked) -> None:
        await asked.reply({**asked.usual(), "usage": used})

    workspace.csv(3)
    rough.fault, rough.hits = lying, every
    told = cli.run(workspace.job(budget=budget))
    assert (told["exit_code"], told["rows_ok"], told["requests"]) == (0, 3, 3)
    usage = read(workspace.folder / "out", "usage")
    assert {(row["input_tokens"], row["output_tokens"]) for row in usage} == {(None, None)}
    assert all(WORST <= row["cost_usd"] < 1e-3 for row in usage)


def test_a_server_that_bills_beyond_what_was_allowed_stops_the_run_at_once(
    workspace: Any, rough: RoughServer, cli: Any
) -> None:
    async def greedy(asked: Asked) -> None:
        await asked.reply({**asked.usual(), "usage": {"prompt_tokens": 10, "completion_tokens": 400_000}})

    workspace.csv(50)
    rough.fault, rough.hits = greedy, every
    told = cli.run(workspace.job(budget="{usd: 0.01}", limits="{concurrency: 1}"))
    # The next one may have left before the bill for the first was in the books.
    assert told["exit_code"] == 3
    assert told["rows_ok"] == len(rough.read) <= 2
    assert told["rows_left"] == 50 - told["rows_ok"]
    assert told["cost_usd"] == pytest.approx(0.80001 * len(rough.read))
    assert "the budget of $0.010000 is spent" in told["stopped"]
    assert "at the price of those before about $" in told["stopped"]


DEEP = b"[" * 300 + b"]" * 300
ERRORS = {
    "more": (400, b'{"error": {"message": "m", "more": %b}}'),
    "message": (400, b'{"error": {"message": %b, "type": %b}}'),
    "code": (400, b'{"error": {"code": %b, "param": %b}}'),
    "detail": (422, b'{"detail": [{"msg": "m", "loc": %b}]}'),
    "plain": (400, b"%b"),
    "in a 200": (200, b'{"error": {"message": "m", "more": %b}}'),
}


@pytest.mark.parametrize(("status", "body"), ERRORS.values(), ids=ERRORS)
def test_an_error_that_is_nested_too_deeply_is_its_rows_alone(
    workspace: Any, rough: RoughServer, cli: Any, read: Read, status: int, body: bytes
) -> None:
    async def deep(asked: Asked) -> None:
        await asked.reply(body.replace(b"%b", DEEP), status)

    workspace.csv(4)
    rough.fault, rough.hits = deep, one_row
    told = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (told["exit_code"], told["rows_ok"], told["rows_failed"], told["stopped"]) == (1, 3, 1, None)
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["error_class"]) == (2, "malformed_reply" if status == 200 else "bad_request")
    assert error["message"]


PASSED_OVER = ("nan", "-1", "1e999", "inf", "soon", "", "0x10", "Wed, 21 Oct 1015 07:28:00 GMT", "1" * 4000)


@pytest.mark.parametrize("said", PASSED_OVER, ids=[said[:9] for said in PASSED_OVER])
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_is_none_is_passed_over(
    workspace: Any, rough: RoughServer, cli: Any, status: int, said: str
) -> None:
    async def refusing(asked: Asked) -> None:
        await asked.reply({"error": {"message": "no"}}, status, Retry_After=said)

    workspace.csv(4)
    rough.fault, rough.hits = refusing, first_two
    told = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (told["exit_code"], told["rows_ok"], told["requests"]) == (0, 4, 6)


@pytest.mark.parametrize("said", ["9999999", "1e308", "Wed, 21 Oct 9999 07:28:00 GMT"])
def test_a_wait_beyond_all_measure_stops_the_run_in_few_words(
    workspace: Any, rough: RoughServer, cli: Any, said: str
) -> None:
    async def refusing(asked: Asked) -> None:
        await asked.reply({"error": {"message": "no"}}, 429, Retry_After=said)

    workspace.csv(4)
    rough.fault, rough.hits = refusing, every
    told = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert (told["exit_code"], told["rows_ok"]) == (3, 0)
    assert "asks to come back in" in told["stopped"]
    assert len(told["stopped"]) < 200


RUBBISH: tuple[dict[str, str], ...] = (
    {"limit": "0"},
    {"limit": "-5"},
    {"limit": "nan", "remaining": "nan"},
    {"limit": "inf", "remaining": "inf"},
    {"limit": "1e308", "remaining": "1e308", "reset": "1e308"},
    {"limit": "9" * 40, "remaining": "-4", "reset": "tomorrow"},
    {"limit": "10000", "remaining": "0", "reset": "99999d"},
)


@pytest.mark.parametrize("told", RUBBISH, ids=[str(number) for number in range(len(RUBBISH))])
def test_limits_that_are_none_hold_nobody(workspace: Any, rough: RoughServer, cli: Any, told: dict[str, str]) -> None:
    async def limiting(asked: Asked) -> None:
        headers = {f"X_Ratelimit_{word}_{of}": said for word, said in told.items() for of in ("Requests", "Tokens")}
        await asked.reply(asked.usual(), **headers)

    workspace.csv(20)
    rough.fault, rough.hits = limiting, every
    ended = cli.run(workspace.job(limits="{concurrency: 2}"))
    assert (ended["exit_code"], ended["rows_ok"], ended["requests"]) == (0, 20, 20)


def test_a_row_that_is_refused_for_its_rate_for_ever_does_not_hold_the_run_for_ever(
    workspace: Any, rough: RoughServer, cli: Any, read: Read
) -> None:
    async def refusing(asked: Asked) -> None:
        await asked.reply({"error": {"message": "no"}}, 429, Retry_After="0")

    workspace.csv(20)
    rough.fault, rough.hits = refusing, one_row
    told = cli.run(
        workspace.job(limits="{concurrency: 2}", retry="{attempts: 2, longest_wait: 0.1, longest_hold: 0.3}")
    )
    assert (told["exit_code"], told["rows_ok"]) == (3, 19)
    assert "has answered nothing for" in told["stopped"]
    assert len(read(workspace.folder / "out")) == 19
