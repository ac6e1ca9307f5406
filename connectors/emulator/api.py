"""What the routes of the local provider share: the state behind them, answers, and errors in the API's own words."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

LOCAL_NAME = "rowmill-local"
"""Every answer says that it is local: `system_fingerprint` where the API has one, and the header `x-rowmill-local`."""


class ApiError(Exception):
    """A refusal; told as `{"error": {message, type, param, code}}`, all four keys always there."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """`more`: further keys of the error object, such as `details`."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": type, "param": param, "code": code, **(more or {})}
        }


@dataclass(slots=True)
class State:
    """What the server remembers between requests: files, batches, stored responses; in memory, or below a folder."""

    folder: Path | None = None
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Objects of the API by id: files, batches, responses, in the order in which they were made."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """Bytes of files by id."""
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    """The work on each batch that is not done, by its id."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request to a route, its body read."""

    request: web.Request
    state: State
    body: dict[str, Any]
    """The JSON object, or the text fields of a form (a field that came several times: a list)."""
    files: Mapping[str, tuple[tuple[str, bytes], ...]]
    """The files of a form: field name -> (file name, content) each; `x[]` counts as `x`."""


Handler = Callable[[Incoming], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """A path below /v1 and what answers there."""

    method: str
    path: str
    """aiohttp's pattern without /v1, e.g. `/files/{file_id}`."""
    handler: Handler
    limited: bool = True
    """Whether rate limits and faults hold here: for everything that makes an answer, not for look-ups."""
    keyed: bool = True
    """Whether an API key is asked for where one is set: for everything but links that are handed on."""


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def digest_of(*parts: object) -> bytes:
    """32 bytes by which deterministic answers are chosen: equal parts, equal answer."""
    return hashlib.sha256(b"\0".join(orjson.dumps(part, default=str) for part in parts)).digest()


def derived_id(prefix: str, *parts: object) -> str:
    """An id as the API writes them, e.g. `chatcmpl-…`, the same for the same parts."""
    return f"{prefix}{digest_of(*parts).hex()[:24]}"
