"""The table of faults: what goes wrong, what a run does about it, and what it leaves behind."""

import asyncio
import functools
import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.behaviour.faults.hostile_server import Answer, Asked, RoughServer

Hits = Callable[[Asked, int], bool]
SOME = -1
"""As many as the time allows."""
ROWS = 4


def one_row(asked: Asked, count: int) -> bool:
    """Every request for the second row."""
    return "text 2" in asked.texts


def every(asked: Asked, count: int) -> bool:
    """Every request."""
    return True


def after_one(asked: Asked, count: int) -> bool:
    """Every request but the first."""
    return count > 0


def first_two(asked: Asked, count: int) -> bool:
    """The second and the third request."""
    return count in (1, 2)


def every_hundredth(asked: Asked, count: int) -> bool:
    """One row in a hundred."""
    return asked.texts[0].endswith("00")


def nothing(asked: Asked, count: int) -> bool:
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
    """One way in which a provider fails, and what a run of four rows (three attempts, one at a time) makes of it."""

    name: str
    does: str
    exit_code: int
    errors: Mapping[str, int]
    """Rows of the errors table by class."""
    usage: Mapping[str, int]
    """Rows of the usage table by class; `ok` for those without one."""
    requests: int
    """Those that the server has read."""
    again: int
    """Requests of the next run, with the provider well again."""
    answer: Answer | None = None
    hits: Hits = one_row
    endpoint: str = "chat"
    rows: int = ROWS
    base_url: Callable[[RoughServer], str] = lambda server: f"http://127.0.0.1:{server.port}/v1"
    job: Mapping[str, str] = field(default_factory=dict)
    """Blocks of the job file that are written otherwise."""
    stopped: str | None = None
    """Of exit 3: how the reason begins."""


def refusing(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    """An error as the API words it."""

    async def answer(asked: Asked) -> None:
        body = {"error": {"message": message, "type": "t", "param": None, "code": code}}
        await asked.reply(body, status, **headers)

    return answer


def saying(
    content: bytes | dict[str, Any], status: int = 200, kind: str = "application/json", **headers: str
) -> Answer:
    """A reply with this body."""

    async def answer(asked: Asked) -> None:
        await asked.reply(content, status, kind, **headers)

    return answer


async def well_but_plain(asked: Asked) -> None:
    """The usual answer under another content type."""
    await asked.reply(json.dumps(asked.usual()).encode(), kind="text/plain")


async def reset(asked: Asked) -> None:
    """The connection is reset before a byte of the reply."""
    sock = asked.writer.get_extra_info("socket")
    # Linger for no time: closing sends a reset instead of an end.
    sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
    asked.writer.transport.abort()
    raise EOFError


async def closed(asked: Asked) -> None:
    """The connection ends before a byte of the reply."""
    raise EOFError


async def silent(asked: Asked) -> None:
    """Nothing, for longer than anybody waits."""
    await asyncio.sleep(30)


async def silent_midway(asked: Asked) -> None:
    """Half of the reply, then nothing."""
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    await asyncio.sleep(30)


async def dripping(asked: Asked) -> None:
    """The reply, a byte at a time."""
    await asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await asked.send(b" ")
        await asyncio.sleep(0.05)


async def truncated(asked: Asked) -> None:
    """Fewer bytes than were announced."""
    whole = json.dumps(asked.usual()).encode()
    await asked.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(whole)}\r\n\r\n".encode() + whole[:-10])
    raise EOFError


async def no_http(asked: Asked) -> None:
    """Something else than HTTP."""
    await asked.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    raise EOFError


@functools.cache
def zeros(megabytes: int) -> bytes:
    """So many MB of zeros, packed by gzip a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + block * megabytes


async def bomb(asked: Asked) -> None:
    """4 GB of zeros in 4 MB."""
    await asked.reply(zeros(4096), Content_Encoding="gzip")


async def small_bomb(asked: Asked) -> None:
    """900 MB of zeros in less than 1 MB."""
    await asked.reply(zeros(900), Content_Encoding="gzip")


def padded(megabytes: int) -> Answer:
    """The usual answer with so much beside it."""

    async def answer(asked: Asked) -> None:
        whole = json.dumps(asked.usual()).encode()
        head = b'{"padding": "'
        size = (megabytes << 20) - len(head) - len(whole) - 2
        length = f"Content-Length: {megabytes << 20}"
        await asked.send(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode() + head)
        for start in range(0, size, 1 << 20):
            await asked.send(b"x" * min(1 << 20, size - start))
        await asked.send(b'", ' + whole[1:])

    return answer


def vectors(change: Callable[[list[list[float]], list[int]], None]) -> Answer:
    """An embeddings reply with something wrong in it."""

    async def answer(asked: Asked) -> None:
        found = [[float(len(text)), 1.0] for text in asked.texts]
        indexes = list(range(len(found)))
        change(found, indexes)
        await asked.reply(asked.vectors(found, indexes))

    return answer


def twice_the_first(found: list[list[float]], indexes: list[int]) -> None:
    indexes[-1] = 0


def without_the_last(found: list[list[float]], indexes: list[int]) -> None:
    del found[-1], indexes[-1]


def a_nan(found: list[list[float]], indexes: list[int]) -> None:
    found[0][0] = float("nan")


def a_number_more(found: list[list[float]], indexes: list[int]) -> None:
    found[0].append(1.0)


def _own(name: str, does: str, answer: Answer, error_class: str = "bad_request", again: int = 0) -> Fault:
    """The row's own fault: asked once, never again."""
    return Fault(name, does, 1, {error_class: 1}, {"ok": 3, error_class: 1}, 4, again, answer)


def _passing(name: str, does: str, answer: Answer, error_class: str, **more: Any) -> Fault:
    """A fault that may pass: three attempts, and one more by the next run."""
    return Fault(name, does, 1, {error_class: 1}, {"ok": 3, error_class: 3}, 6, 1, answer, **more)


def _stopping(name: str, does: str, answer: Answer, error_class: str) -> Fault:
    """A fault that every further request would meet."""
    usage = {"ok": 1, error_class: 1}
    return Fault(name, does, 3, {error_class: 1}, usage, 2, 3, answer, after_one, stopped=error_class)


def _unreachable(name: str, does: str, base_url: Callable[[RoughServer], str]) -> Fault:
    """A provider that is not there at all."""
    return Fault(
        name, does, 3, {"connection": 1}, {"connection": SOME}, 0, 4,
        hits=nothing, base_url=base_url, stopped="connection",
        job={"retry": "{attempts: 3, longest_wait: 0.05, longest_hold: 0.3}"},
    )  # fmt: skip


def _pack(name: str, does: str, change: Callable[[list[list[float]], list[int]], None]) -> Fault:
    """An embeddings reply whose four vectors cannot be told apart or are none."""
    return Fault(
        name, does, 1, {"malformed_reply": 4}, {"malformed_reply": 3}, 3, 1, vectors(change), every, "embeddings"
    )


OWN = "The row's own fault."
TRIED = "Tried again."
STOPS = "The run stops."
DEAD = "The provider is probed, then the run stops."
IDLE = "Given up after `timeouts.idle`; tried again."
PACKED = "Not unpacked beyond 128 MB; tried again."
OF_CODE = "Taken for the status that the error's code stands for, else for a 500."
TIMES = {"timeouts": "{idle: 0.2}"}


def _faults() -> Iterator[Fault]:
    yield _own("400", OWN, refusing(400))
    yield Fault(
        "400 for one row in a hundred of 1,000", "990 rows are kept, ten stand in errors, ten calls were refused.",
        1, {"bad_request": 10}, {"ok": 990, "bad_request": 10}, 1000, 0, refusing(400, "poisoned"), every_hundredth,
        rows=1000, job={"limits": "{concurrency: 50}"},
    )  # fmt: skip
    yield _stopping("401 in mid-run", STOPS, refusing(401, "bad key", "invalid_api_key"), "access_denied")
    yield _stopping("403", STOPS, refusing(403), "access_denied")
    yield _own("404", OWN, refusing(404, "no such model", "model_not_found"))
    yield _passing("408", TRIED, refusing(408), "timeout")
    yield _own("413", OWN, refusing(413))
    yield _own("422", OWN, refusing(422))
    yield Fault(
        "429 with `retry-after`", "All requests to this provider wait as long as it says; no attempt is used up.",
        0, {}, {"ok": 4, "rate_limit": 2}, 6, 0, refusing(429, Retry_After="0"), first_two,
    )  # fmt: skip
    yield Fault(
        "429 without headers", "The same, with pauses that grow from half a second; no attempt is used up.",
        0, {}, {"ok": 4, "rate_limit": 2}, 6, 0, refusing(429), first_two,
    )  # fmt: skip
    yield Fault(
        "429 with a `retry-after` beyond `retry.longest_hold`", "The run stops and says when to come back.",
        3, {"rate_limit": 1}, {"ok": 1, "rate_limit": 1}, 2, 3, refusing(429, Retry_After="86400"), after_one,
        stopped="rate_limit",
    )  # fmt: skip
    yield _stopping("429 `insufficient_quota`", STOPS, refusing(429, "no money", "insufficient_quota"), "quota")
    for status in (500, 502, 503, 529):
        yield _passing(str(status), TRIED, refusing(status), "server")
    yield _passing("502 with a page of HTML", TRIED, saying(b"<h1>Bad gateway</h1>", 502, "text/html"), "server")
    yield _stopping(
        "A redirect", "Not followed, since the key would go along: the run stops and names the new address.",
        saying(b"", 308, Location="https://elsewhere.invalid/v1"), "access_denied",
    )  # fmt: skip
    yield _unreachable("Connection refused", DEAD, lambda server: "http://127.0.0.1:1/v1")
    yield _unreachable("A host name that does not resolve", DEAD, lambda server: "http://provider.invalid/v1")
    yield _unreachable("TLS fails", DEAD, lambda server: f"https://127.0.0.1:{server.port}/v1")
    yield _passing("The connection is reset", TRIED, reset, "connection")
    yield _passing("The connection ends before the reply", TRIED, closed, "connection")
    yield _passing("Silence before the headers", IDLE, silent, "timeout", job=TIMES)
    yield _passing("Silence within the body", IDLE, silent_midway, "timeout", job=TIMES)
    yield _passing(
        "One byte a second", "Given up after `timeouts.total`; tried again.", dripping, "timeout",
        job={"timeouts": "{idle: 5, total: 0.3}"},
    )  # fmt: skip
    yield _passing("A truncated reply", TRIED, truncated, "malformed_reply")
    yield _passing("Something else than HTTP", TRIED, no_http, "malformed_reply")
    yield _passing("Malformed JSON", TRIED, saying(b'{"choices": ['), "malformed_reply")
    yield _passing("An empty body", TRIED, saying(b""), "malformed_reply")
    yield _passing("HTML instead of JSON", TRIED, saying(b"<html>busy</html>", kind="text/html"), "malformed_reply")
    yield Fault(
        "JSON under another content type", "Read as if nothing were: the content counts.",
        0, {}, {"ok": 4}, 4, 0, well_but_plain,
    )  # fmt: skip
    yield _passing("JSON of another shape", TRIED, saying({"choices": [{"text": 1}]}), "malformed_reply")
    yield _passing("A gzip bomb (4 GB in 4 MB)", PACKED, bomb, "malformed_reply")
    yield _passing("A gzip bomb of less than 1 MB", PACKED, small_bomb, "malformed_reply")
    yield _passing(
        "200 with an error in the body", OF_CODE,
        saying({"error": {"message": "overloaded", "type": "t"}}), "server",
    )  # fmt: skip
    yield Fault(
        "A reply of 100 MB", "Read and kept, beside the ledger, not in it.", 0, {}, {"ok": 4}, 4, 0, padded(100)
    )
    yield _passing("A reply of 200 MB", "Not read beyond 128 MB; tried again.", padded(200), "malformed_reply")
    yield _pack("An embedding's index twice", TRIED, twice_the_first)
    yield _pack("An embedding's index missing", TRIED, without_the_last)
    yield Fault(
        "NaN in a vector", "The row's own fault; its neighbours keep their vectors.",
        1, {"invalid_answer": 1}, {"ok": 1}, 1, 0, vectors(a_nan), every, "embeddings",
    )  # fmt: skip
    yield _pack("A vector of another length", TRIED, a_number_more)


FAULTS = tuple(_faults())


def as_markdown() -> str:
    """The table for people, as it stands in jobs/README.md."""
    lines = [
        "What becomes of a job of four rows (`retry: {attempts: 3}`, one request at a time) when its provider fails. "
        "*Requests* are those that reached the provider; *next run* counts what the same command sends once the "
        "provider is well again.",
        "",
        "- *The row's own fault*: it stands in errors, and is asked again only when it or the step changes, or by "
        "`rowmill retry`.",
        "- *Tried again*: up to `retry.attempts` times, after pauses that grow to `retry.longest_wait`; then the row "
        "stands in errors, and the next run asks it again.",
        "- *The run stops*: exit 3 and the reason in a line; what is in flight lands, what came is kept, and the next "
        "run goes on where it stopped.",
        "- *The provider is probed*: single requests at growing intervals, which use up no attempt, until it is back; "
        "after `retry.longest_hold` without an answer the run stops.",
        "",
        "| What goes wrong | For | What the run does | Exit | Errors | Usage | Requests | Next run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        cells = [
            fault.name,
            HIT_WORDS[fault.hits] if fault.hits is not nothing else "all",
            fault.does,
            str(fault.exit_code),
            _counted(fault.errors),
            _counted(fault.usage),
            f"{fault.requests:,}",
            f"{fault.again:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _counted(by_class: Mapping[str, int]) -> str:
    told = (f"{'some' if count == SOME else f'{count:,}'} {name}" for name, count in by_class.items())
    return ", ".join(told) or "none"
