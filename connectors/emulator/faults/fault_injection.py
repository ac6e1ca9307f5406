"""Fault injection: which requests fail, by rate or by script, and how each kind of fault is produced."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from math import isfinite

from aiohttp import web

from connectors.emulator.api import ApiError
from connectors.emulator.faults.altered_answers import ALTERED_ANSWERS, alter_completion
from connectors.emulator.faults.altered_packs import ALTERED_PACKS, alter_pack
from connectors.emulator.faults.altered_replies import ALTERED_REPLIES, altered_reply
from connectors.emulator.faults.error_bodies import ERROR_REPLIES
from connectors.emulator.rate_limits import wait_headers

FAULT = web.RequestKey("rowmill_fault", str)
"""The kind of fault that the answer to a request gets."""

NO_FAULT = "200"

STATUSES: dict[str, tuple[str, str, str | None]] = {
    "400": ("The request was refused on purpose.", "invalid_request_error", "bad_request"),
    "401": ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    "403": ("You are not allowed to use this model.", "invalid_request_error", "permission_denied"),
    "404": ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    "408": ("The request timed out.", "timeout", "request_timeout"),
    "409": ("The resource is being changed by another request.", "invalid_request_error", "conflict"),
    "413": ("The request is too large.", "invalid_request_error", "request_too_large"),
    "422": ("The request cannot be followed.", "invalid_request_error", "unprocessable_entity"),
    "429": ("Rate limit reached for requests", "requests", "rate_limit_exceeded"),
    "500": ("The server had an error while processing your request", "server_error", None),
    "502": ("Bad gateway.", "server_error", "bad_gateway"),
    "503": ("The engine is currently overloaded, please try again later", "server_error", "service_unavailable"),
    "529": ("Overloaded.", "overloaded_error", "overloaded"),
}
"""status -> (message, type, code)"""

QUOTA = "You exceeded your current quota, please check your plan and billing details."

FAULTS_BEFORE_ANSWER = frozenset({*STATUSES, *ERROR_REPLIES, "quota", "hang", "dropped", "html", "empty"})
"""Kinds that need no answer from the endpoint; all others corrupt its answer."""

KINDS = (
    *STATUSES, "quota", *ERROR_REPLIES, "hang", "hang-body", "truncated", "malformed", "empty", "html", "dropped",
    *ALTERED_ANSWERS, *ALTERED_REPLIES, *ALTERED_PACKS,
)  # fmt: skip

RETRY_AFTER_SECONDS = 0.1
"""The wait that an injected 429 asks for."""

HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1>rowmill-local</body></html>"


class Faults:
    """Selects the fault of each request in order of arrival; deterministic by seed."""

    def __init__(self, rates: Sequence[str], script: str, seed: int) -> None:
        """Raise ValueError for an invalid kind or rate."""
        self._rates = _rates(rates)
        self._script: Iterator[str] = iter(_script(script))
        self._random = random.Random(seed)

    def next(self) -> str | None:
        """The kind of the next request's fault; None for the regular answer."""
        scripted = next(self._script, None)
        if scripted is not None:
            return None if scripted == NO_FAULT else scripted
        if not self._rates:
            return None
        random_number = self._random.random()
        return next((kind for kind, upper_end in self._rates if random_number < upper_end), None)


async def fail_before(kind: str, request: web.Request) -> web.StreamResponse:
    """Produce one of FAULTS_BEFORE_ANSWER; ApiError for those that are API errors."""
    if kind == "quota":
        raise ApiError(429, QUOTA, type="insufficient_quota", code="insufficient_quota")
    if kind == "html":
        return web.Response(body=HTML, status=502, content_type="text/html")
    if kind == "empty":
        return web.Response(body=b"", content_type="application/json")
    if kind == "hang":
        await asyncio.Event().wait()
    if kind == "dropped":
        return drop(request)
    if kind in ERROR_REPLIES:
        return ERROR_REPLIES[kind].response()
    message, type_, code = STATUSES[kind]
    raise ApiError(
        int(kind), message, type=type_, code=code, headers=wait_headers(RETRY_AFTER_SECONDS) if kind == "429" else None
    )


async def corrupt(kind: str, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Corrupt a whole response by a fault that needs one; `event_stream` does it for streams."""
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return response
    body = response.body
    if kind in ALTERED_REPLIES:
        return altered_reply(kind, body, response.content_type)
    if kind in ALTERED_ANSWERS:
        altered = alter_completion(kind, body)
        return web.Response(body=altered, status=response.status, content_type=response.content_type)
    if kind in ALTERED_PACKS:
        return web.Response(body=alter_pack(kind, body), status=response.status, content_type=response.content_type)
    if kind == "malformed":
        # JSON without its end is malformed; other bodies, such as audio, are truncated.
        return web.Response(body=body[: len(body) * 2 // 3], status=response.status, content_type=response.content_type)
    half = web.StreamResponse(status=response.status, headers={"content-type": response.content_type})
    half.content_length = len(body)
    await half.prepare(request)
    await half.write(body[: len(body) // 2])
    if kind == "hang-body":
        await asyncio.Event().wait()
    return drop(request)


def drop(request: web.Request) -> web.StreamResponse:
    """Close the connection; the returned response can no longer be sent."""
    if request.transport is not None:
        # Not abort(): earlier data must still arrive.
        request.transport.close()
    return web.Response()


def _rates(rates: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """(kind, upper end of its share of the interval from 0 to 1) pairs."""
    ends: list[tuple[str, float]] = []
    end = 0.0
    for entry in rates:
        kind, equals, share = entry.partition("=")
        _check_kind(kind)
        try:
            rate = float(share)
        except ValueError:
            rate = -1.0
        if not equals or not isfinite(rate) or not 0 <= rate <= 1:
            raise ValueError(f"fault {entry!r}: has no rate; write KIND=RATE with a rate from 0 to 1, e.g. 500=0.01")
        end += rate
        ends.append((kind, end))
    if end > 1 + 1e-9:
        raise ValueError(f"faults: their rates add up to {end:g}; lower them to a sum of at most 1")
    return tuple(ends)


def _script(script: str) -> list[str]:
    """The kinds of a script in order."""
    kinds: list[str] = []
    for entry in (part.strip() for part in script.split(",") if part.strip()):
        kind, asterisk, count = entry.partition("*")
        if kind != NO_FAULT:
            _check_kind(kind)
        if asterisk and not (count.isascii() and count.isdigit()):
            raise ValueError(f"script: {entry!r} has no count; write e.g. {kind}*2")
        kinds += [kind] * (int(count) if asterisk else 1)
    return kinds


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"fault {kind!r}: no such kind; write one of {', '.join(KINDS)}")
