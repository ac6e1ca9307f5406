"""The fault table: what goes wrong, what a run does about it, and the resulting exit code, errors and usage."""

import asyncio
import functools
import gzip
import json
import struct
import textwrap
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.behaviour.faults.hostile_server import FaultyReply, HostileServer, ReceivedRequest

Hits = Callable[[ReceivedRequest, int], bool]
SOME = -1
"""Any positive number: it depends on time."""
ROWS = 4


def one_row(request: ReceivedRequest, count: int) -> bool:
    """Every request for the second row."""
    return "text 2" in request.texts


def every(request: ReceivedRequest, count: int) -> bool:
    """Every request."""
    return True


def after_one(request: ReceivedRequest, count: int) -> bool:
    """Every request but the first."""
    return count > 0


def first_two(request: ReceivedRequest, count: int) -> bool:
    """The second and the third request."""
    return count in (1, 2)


def every_hundredth(request: ReceivedRequest, count: int) -> bool:
    """One row in a hundred."""
    return request.texts[0].endswith("00")


def nothing(request: ReceivedRequest, count: int) -> bool:
    """No request."""
    return False


HIT_WORDS: Mapping[Hits, str] = {
    one_row: "one row",
    every: "all",
    after_one: "all after the first",
    first_two: "two requests",
    every_hundredth: "10 of 1,000 rows",
    nothing: "none",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a provider, and the outcome of a run of four rows (three attempts, one request at a time)."""

    name: str
    outcome: str
    """The heading of the table below which the fault is listed."""
    exit_code: int
    errors: Mapping[str, int]
    """Rows of the errors table by class."""
    usage: Mapping[str, int]
    """Rows of the usage table by class; `ok` for those without one."""
    requests: int
    """Requests that the server has read."""
    again: int
    """Requests of the next run, when the provider has recovered."""
    answer: FaultyReply | None = None
    hits: Hits = one_row
    endpoint: str = "chat"
    rows: int = ROWS
    base_url: Callable[[HostileServer], str] = lambda server: f"http://127.0.0.1:{server.port}/v1"
    job: Mapping[str, str] = field(default_factory=dict)
    """Blocks of the job file that differ from the default."""
    stopped: str | None = None
    """The start of the reason, if the exit code is 3."""
    note: str = ""
    """What is special about this fault; the page lists it below the table."""


def refusing(status: int, message: str = "no", code: str | None = None, **headers: str) -> FaultyReply:
    """An error reply in the API's format."""

    async def answer(request: ReceivedRequest) -> None:
        body = {"error": {"message": message, "type": "t", "param": None, "code": code}}
        await request.reply(body, status, **headers)

    return answer


def saying(
    content: bytes | dict[str, Any], status: int = 200, kind: str = "application/json", **headers: str
) -> FaultyReply:
    """A reply with this body."""

    async def answer(request: ReceivedRequest) -> None:
        await request.reply(content, status, kind, **headers)

    return answer


async def well_but_plain(request: ReceivedRequest) -> None:
    """The usual answer under another content type."""
    await request.reply(json.dumps(request.usual_reply()).encode(), kind="text/plain")


async def reset(request: ReceivedRequest) -> None:
    """The connection is reset before a byte of the reply."""
    sock = request.writer.get_extra_info("socket")
    # Linger for no time: closing sends a reset instead of an end.
    sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
    request.writer.transport.abort()
    raise EOFError


async def closed(request: ReceivedRequest) -> None:
    """The connection ends before a byte of the reply."""
    raise EOFError


async def silent(request: ReceivedRequest) -> None:
    """No byte, for longer than any timeout."""
    await asyncio.sleep(30)


async def silent_midway(request: ReceivedRequest) -> None:
    """Half of the reply, then no byte."""
    await request.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    await asyncio.sleep(30)


async def dripping(request: ReceivedRequest) -> None:
    """The reply, a byte at a time."""
    await request.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await request.send(b" ")
        await asyncio.sleep(0.05)


async def truncated(request: ReceivedRequest) -> None:
    """Fewer bytes than Content-Length announces."""
    whole = json.dumps(request.usual_reply()).encode()
    await request.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(whole)}\r\n\r\n".encode() + whole[:-10])
    raise EOFError


async def no_http(request: ReceivedRequest) -> None:
    """A reply that is not HTTP."""
    await request.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    raise EOFError


@functools.cache
def zeros(megabytes: int) -> bytes:
    """A gzip stream of zeros, compressed by a factor of a thousand."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + block * megabytes


async def bomb(request: ReceivedRequest) -> None:
    """4 GB of zeros in 4 MB."""
    await request.reply(zeros(4096), Content_Encoding="gzip")


async def small_bomb(request: ReceivedRequest) -> None:
    """900 MB of zeros in less than 1 MB."""
    await request.reply(zeros(900), Content_Encoding="gzip")


def padded(megabytes: int) -> FaultyReply:
    """The usual answer padded to this size."""

    async def answer(request: ReceivedRequest) -> None:
        whole = json.dumps(request.usual_reply()).encode()
        head = b'{"padding": "'
        size = (megabytes << 20) - len(head) - len(whole) - 2
        length = f"Content-Length: {megabytes << 20}"
        await request.send(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode() + head)
        for start in range(0, size, 1 << 20):
            await request.send(b"x" * min(1 << 20, size - start))
        await request.send(b'", ' + whole[1:])

    return answer


def vectors(change: Callable[[list[list[float]], list[int]], None]) -> FaultyReply:
    """An embeddings reply with something wrong in it."""

    async def answer(request: ReceivedRequest) -> None:
        found = [[float(len(text)), 1.0] for text in request.texts]
        indexes = list(range(len(found)))
        change(found, indexes)
        await request.reply(request.vectors(found, indexes))

    return answer


def twice_the_first(found: list[list[float]], indexes: list[int]) -> None:
    indexes[-1] = 0


def without_the_last(found: list[list[float]], indexes: list[int]) -> None:
    del found[-1], indexes[-1]


def a_nan(found: list[list[float]], indexes: list[int]) -> None:
    found[0][0] = float("nan")


def a_number_more(found: list[list[float]], indexes: list[int]) -> None:
    found[0].append(1.0)


OUTCOMES: Mapping[str, str] = {
    "The row fails": "The row becomes an error row. It is sent again only when it or the step changes, or by "
    "`rowmill retry`.",
    "The request is retried": "Up to `retry.attempts` times, after pauses that grow to `retry.longest_wait`. Then the "
    "row becomes an error row, and the next run sends it again.",
    "All requests to the provider wait": "No attempt is used.",
    "The run stops": "Exit code 3, with the reason in one line. Requests in flight are completed, their answers are "
    "stored, and the next run continues.",
    "The provider is probed": "Single requests at growing intervals, which use no attempt, test whether it is back. "
    "After `retry.longest_hold` without an answer the run stops.",
    "The reply is used": "The row gets its result.",
}
"""Outcome -> its description."""
ROW_FAILS, RETRIED, WAITS, RUN_STOPS, PROBED, REPLY_USED = OUTCOMES
IDLE = "the request is abandoned after `timeouts.idle`."
TOTAL = "the request is abandoned after `timeouts.total`."
NOT_UNPACKED = "no reply is unpacked beyond 128 MB."
SHORT_IDLE = {"timeouts": "{idle: 0.2}"}
SHORT_TOTAL = {"timeouts": "{idle: 5, total: 0.3}"}


def _row_fails(name: str, answer: FaultyReply) -> Fault:
    """A fault of the row: one request, none in the next run."""
    return Fault(name, ROW_FAILS, 1, {"bad_request": 1}, {"ok": 3, "bad_request": 1}, 4, 0, answer)


def _retried(name: str, answer: FaultyReply, error_class: str, **fields: Any) -> Fault:
    """A fault that may pass: three attempts, and one more in the next run."""
    return Fault(name, RETRIED, 1, {error_class: 1}, {"ok": 3, error_class: 3}, 6, 1, answer, **fields)


def _stops(name: str, answer: FaultyReply, error_class: str, note: str = "") -> Fault:
    """A fault that every further request would meet."""
    usage = {"ok": 1, error_class: 1}
    return Fault(name, RUN_STOPS, 3, {error_class: 1}, usage, 2, 3, answer, after_one, stopped=error_class, note=note)


def _probed(name: str, base_url: Callable[[HostileServer], str]) -> Fault:
    """A provider that cannot be reached at all."""
    return Fault(
        name, PROBED, 3, {"connection": 1}, {"connection": SOME}, 0, 4,
        hits=nothing, base_url=base_url, stopped="connection",
        job={"retry": "{attempts: 3, longest_wait: 0.05, longest_hold: 0.3}"},
    )  # fmt: skip


def _malformed_vectors(name: str, change: Callable[[list[list[float]], list[int]], None]) -> Fault:
    """An embeddings reply whose four vectors cannot be assigned to their texts, or are malformed."""
    return Fault(
        name, RETRIED, 1, {"malformed_reply": 4}, {"malformed_reply": 3}, 3, 1, vectors(change), every, "embeddings"
    )


def _faults() -> Iterator[Fault]:
    yield _row_fails("400", refusing(400))
    yield Fault(
        "400 for one row in 100", ROW_FAILS,
        1, {"bad_request": 10}, {"ok": 990, "bad_request": 10}, 1000, 0, refusing(400, "poisoned"), every_hundredth,
        rows=1000, job={"limits": "{concurrency: 50}"},
    )  # fmt: skip
    yield _stops("401 during the run", refusing(401, "bad key", "invalid_api_key"), "access_denied")
    yield _stops("403", refusing(403), "access_denied")
    yield _row_fails("404", refusing(404, "no such model", "model_not_found"))
    yield Fault(
        "404 before any answer", RUN_STOPS, 3, {"setup": 1}, {"setup": 1}, 1, 4, refusing(404), every,
        stopped="setup", note="of this provider and model. The message names the address, or the model.",
    )  # fmt: skip
    yield Fault(
        "404, three in a row", RUN_STOPS, 3, {"setup": 3}, {"ok": 1, "bad_request": 2, "setup": 1}, 4, 3,
        refusing(404), after_one, stopped="setup", note="a single one is the row's.",
    )  # fmt: skip
    yield Fault(
        "One refusal for the first 20 rows", RUN_STOPS, 3, {"setup": 20}, {"bad_request": 19, "setup": 1}, 20, 30,
        refusing(400), every, rows=30, stopped="setup",
        note="of a step that has no answer yet. Until then at most 20 of its rows are sent.",
    )  # fmt: skip
    yield _retried("408", refusing(408), "timeout")
    yield _row_fails("413", refusing(413))
    yield _row_fails("422", refusing(422))
    yield Fault(
        "429 with `retry-after`", WAITS, 0, {}, {"ok": 4, "rate_limit": 2}, 6, 0, refusing(429, Retry_After="0"),
        first_two, note="as long as the header says.",
    )  # fmt: skip
    yield Fault(
        "429 without headers", WAITS, 0, {}, {"ok": 4, "rate_limit": 2}, 6, 0, refusing(429), first_two,
        note="with pauses that grow from half a second.",
    )  # fmt: skip
    yield Fault(
        "429, `retry-after` beyond `longest_hold`", RUN_STOPS,
        3, {"rate_limit": 1}, {"ok": 1, "rate_limit": 1}, 2, 3, refusing(429, Retry_After="86400"), after_one,
        stopped="rate_limit", note="the message says when to run again. The key is `retry.longest_hold`.",
    )  # fmt: skip
    yield _stops("429 `insufficient_quota`", refusing(429, "no money", "insufficient_quota"), "quota")
    for status in (500, 502, 503, 529):
        yield _retried(str(status), refusing(status), "server")
    yield _retried("502 with a page of HTML", saying(b"<h1>Bad gateway</h1>", 502, "text/html"), "server")
    yield _stops(
        "A redirect", saying(b"", 308, Location="https://elsewhere.invalid/v1"), "access_denied",
        "it is not followed, because the key would be sent along. The message names the new address.",
    )  # fmt: skip
    yield _probed("Connection refused", lambda server: "http://127.0.0.1:1/v1")
    yield _probed("A host name that does not resolve", lambda server: "http://provider.invalid/v1")
    yield Fault(
        "A server without TLS behind https://", RUN_STOPS, 3, {"setup": 1}, {"setup": 1}, 0, 4, hits=nothing,
        base_url=lambda server: f"https://127.0.0.1:{server.port}/v1", stopped="setup",
        note="like a certificate that is refused. The message says what to correct.",
    )  # fmt: skip
    yield _retried("The connection is reset", reset, "connection")
    yield _retried("The connection ends before the reply", closed, "connection")
    yield _retried("Silence before the reply", silent, "timeout", job=SHORT_TOTAL, note=TOTAL)
    yield _retried("Silence within the body", silent_midway, "timeout", job=SHORT_IDLE, note=IDLE)
    yield _retried("One byte a second", dripping, "timeout", job=SHORT_TOTAL, note=TOTAL)
    yield _retried("A truncated reply", truncated, "malformed_reply")
    yield _retried("A reply that is not HTTP", no_http, "malformed_reply")
    yield _retried("Malformed JSON", saying(b'{"choices": ['), "malformed_reply")
    yield _retried("An empty body", saying(b""), "malformed_reply")
    yield _retried("HTML instead of JSON", saying(b"<html>busy</html>", kind="text/html"), "malformed_reply")
    yield Fault(
        "JSON under another content type", REPLY_USED, 0, {}, {"ok": 4}, 4, 0, well_but_plain,
        note="it is parsed normally; the Content-Type header is ignored.",
    )  # fmt: skip
    yield _retried("JSON of another shape", saying({"choices": [{"text": 1}]}), "malformed_reply")
    yield _retried("A gzip bomb (4 GB in 4 MB)", bomb, "malformed_reply", note=NOT_UNPACKED)
    yield _retried("A gzip bomb of less than 1 MB", small_bomb, "malformed_reply", note=NOT_UNPACKED)
    yield _retried(
        "200 with an error in the body", saying({"error": {"message": "overloaded", "type": "t"}}), "server",
        note="it is treated as the status that belongs to the error's code, otherwise as a 500.",
    )  # fmt: skip
    yield Fault(
        "A reply of 100 MB", REPLY_USED, 0, {}, {"ok": 4}, 4, 0, padded(100),
        note="it is stored in a file next to the ledger.",
    )  # fmt: skip
    yield _retried("A reply of 200 MB", padded(200), "malformed_reply", note="no reply is read beyond 128 MB.")
    yield _malformed_vectors("An embedding's index twice", twice_the_first)
    yield Fault(
        "A vector missing", RETRIED, 1, {"malformed_reply": 4}, {"bad_request": 2, "malformed_reply": 12}, 14, 4,
        vectors(without_the_last), every, "embeddings",
        note="the texts are sent in halves, at last alone, to find the one without a vector.",
    )  # fmt: skip
    yield Fault(
        "NaN in a vector", ROW_FAILS, 1, {"invalid_answer": 1}, {"ok": 1}, 1, 0, vectors(a_nan), every, "embeddings",
        note="the other rows of the request keep their vectors.",
    )  # fmt: skip
    yield _malformed_vectors("A vector of another length", a_number_more)


FAULTS = tuple(_faults())


def as_markdown() -> str:
    """The tables of `jobs/docs/errors-and-faults.md`, one for each outcome."""
    return "\n".join(_outcome_section(outcome, description) for outcome, description in OUTCOMES.items())


def _outcome_section(outcome: str, description: str) -> str:
    faults = [fault for fault in FAULTS if fault.outcome == outcome]
    notes = [_wrapped(f"- **{fault.name}**: {fault.note}", "  ") for fault in faults if fault.note]
    lines = [
        f"### {outcome}",
        "",
        _wrapped(description),
        "",
        "| fault | for | exit | errors | usage | requests | next run |",
        "|---|---|---|---|---|---|---|",
        *(_table_row(fault) for fault in faults),
        "",
    ]
    return "\n".join([*lines, *notes, ""] if notes else lines)


def _table_row(fault: Fault) -> str:
    cells = [
        fault.name,
        HIT_WORDS[fault.hits] if fault.hits is not nothing else "all",
        str(fault.exit_code),
        _counts(fault.errors),
        _counts(fault.usage),
        f"{fault.requests:,}",
        f"{fault.again:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _counts(by_class: Mapping[str, int]) -> str:
    counts = (f"{'some' if count == SOME else f'{count:,}'} {name}" for name, count in by_class.items())
    return ", ".join(counts) or "none"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_on_hyphens=False)


if __name__ == "__main__":
    print(as_markdown())
