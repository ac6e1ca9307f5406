"""Types that all routes of the emulator share: routes, requests, server state, and errors in the API's wording."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from msgspec import Struct, field

LOCAL_NAME = "rowmill-local"
"""Marks every answer as local: in `system_fingerprint` if the API has it, and by the header `x-rowmill-local`."""


class ApiError(Exception):
    """An error reply: `{"error": {message, type, param, code}}`, always with all four keys."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra_keys: Mapping[str, Any] | None = None,
    ) -> None:
        """`more`: further keys of the error object, such as `details`."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": type, "param": param, "code": code, **(extra_keys or {})}
        }


class EmulatorState(Struct):
    """State between requests (files, batches, stored responses), in memory or below a folder."""

    folder: Path | None = None
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """API objects by id (files, batches, responses), in order of creation."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """File contents by id."""
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    """Running batch tasks by batch id."""


class ApiRequest(Struct, frozen=True):
    """One request to a route, with its body."""

    http_request: web.Request
    state: EmulatorState
    body: dict[str, Any]
    """The JSON object, or the text fields of a form (a list for a repeated field)."""
    files: Mapping[str, tuple[tuple[str, bytes], ...]]
    """The files of a form: field name -> (file name, content) pairs; `x[]` counts as `x`."""


Handler = Callable[[ApiRequest], Awaitable[web.StreamResponse]]


class ApiRoute(Struct, frozen=True):
    """A method and path below /v1 with its handler."""

    method: str
    path: str
    """aiohttp's pattern without /v1, e.g. `/files/{file_id}`."""
    handler: Handler
    is_rate_limited: bool = True
    """Whether rate limits and faults apply: to everything that generates an answer, not to lookups."""
    requires_key: bool = True
    """Whether the API key is required, if one is set: False only for links that clients pass on."""


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def digest_of(*parts: object) -> bytes:
    """A digest of 32 bytes that selects deterministic answers: equal parts, equal answer."""
    return hashlib.sha256(b"\0".join(orjson.dumps(part, default=str) for part in parts)).digest()


def derived_id(prefix: str, *parts: object) -> str:
    """An id in the API's format, e.g. `chatcmpl-…`, equal for equal parts."""
    return f"{prefix}{digest_of(*parts).hex()[:24]}"


def served_tier(body: Mapping[str, Any]) -> str:
    """Return the service tier that a reply states: the requested one, `default` for `auto` or none."""
    tier = body.get("service_tier")
    return tier if isinstance(tier, str) and tier != "auto" else "default"
