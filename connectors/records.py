"""The values that travel between rows, requests, replies and tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform

T = TypeVar("T")

Row = Mapping[str, Any]
"""One row's values by column name, as Python values of Arrow's `to_pylist`."""

Values = tuple[Any, ...]
"""One row's outputs of one step, in the order of the endpoint's `fields`."""


@dataclass_transform(frozen_default=True)
def record(kind: type[T]) -> type[T]:
    """A frozen dataclass with slots, of which many are made: that nobody changes it is seen to by mypy alone.

    At run time a frozen one sets each field by a call: to make one of 16 fields takes ten times as long.
    """
    return dataclass(slots=True, unsafe_hash=True)(kind)


ErrorClass = Literal[
    "input",
    "bad_request",
    "content_filter",
    "length",
    "invalid_answer",
    "rate_limit",
    "timeout",
    "connection",
    "server",
    "malformed_reply",
    "unknown",
    "quota",
    "access_denied",
    "budget",
]

ROW_ERROR_CLASSES: frozenset[str] = frozenset({"input", "bad_request", "content_filter", "length", "invalid_answer"})
"""Failures of the row itself: asked again when the row or the step changes, or by `retry`."""

TRANSIENT_ERROR_CLASSES: frozenset[str] = frozenset({"rate_limit", "timeout", "connection", "server", "malformed_reply"})
"""Failures that pass: the request is sent again, at most `retry.attempts` times (rate_limit uses up none)."""

FATAL_ERROR_CLASSES: frozenset[str] = frozenset({"quota", "access_denied"})
"""Failures that every further request would meet as well: the run stops."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no result, in the provider's own words where it spoke."""

    error_class: ErrorClass
    message: str
    http_status: int | None = None
    type: str | None = None
    param: str | None = None
    code: str | None = None
    details: str | None = None
    """JSON text of whatever else the provider's error object held."""
    request_id: str | None = None


@record
class Usage:
    """What one exchange used, as the reply says; None where it says nothing of it."""

    input_tokens: int | None = None
    cached_tokens: int | None = None
    """The part of input_tokens that the provider had cached."""
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    """The part of output_tokens spent on reasoning."""
    audio_seconds: float | None = None
    characters: int | None = None
    images: int | None = None
    model_version: str | None = None
    """The model that answered, as it names itself."""
    finish_reason: str | None = None

    @property
    def tokens(self) -> int | None:
        """Those that a limit of tokens counts; None where the reply does not tell."""
        return None if self.input_tokens is None else self.input_tokens + (self.output_tokens or 0)


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or a sound that a row names or holds, found, measured and checked before its request is made."""

    digest: str
    """SHA-256 of the content, 64 hex digits."""
    size: int
    """Bytes."""
    kind: str
    """Media type by content, such as `image/png`."""
    suffix: str
    """For a file name, by content: `png`."""
    path: Path | None = None
    """Where the content lies; None: in `data`."""
    data: bytes | None = None
    pixels: tuple[int, int] | None = None
    """Width and height of a picture."""
    seconds: float | None = None
    """Length of a sound."""
    pieces: "tuple[tuple[float, Media], ...]" = ()
    """Of a sound that was cut: (where it starts in seconds, the piece)."""

    @property
    def name(self) -> str:
        """How a request's body names it; `Endpoint.call` puts the content in its place."""
        return f"rowmill-media:{self.digest}"

    def read(self) -> bytes:
        """The content; OSError where the file is gone."""
        return self.data if self.data is not None else (self.path or Path()).read_bytes()


@record
class Request:
    """One row's question: what is sent, alone or packed with others, and the ledger's key for its answer."""

    fingerprint: bytes
    """16 bytes, see `request_fingerprint`."""
    body: bytes
    """The request of this row alone: JSON for most endpoints, a JSON description of the form for uploads."""
    input_tokens: int
    """Counted (or estimated) before sending; for limits and budget."""
    output_bound: int | None
    """At most so many output tokens can be billed; None where nothing bounds them; 0 where there are none."""
    keys: tuple[str, ...] = ()
    """The rows it answers for, as text; filled in by the fan-out."""
    repair_of: bytes | None = None
    """The fingerprint of the request whose answer this one asks to mend."""
    media: tuple[Media, ...] = ()
    """The contents that `body` names by their digest."""
    parts: "tuple[Request, ...]" = ()
    """Requests to be sent instead of this one; `Endpoint.joined` makes its answer of theirs."""
    audio_seconds: float | None = None
    """Counted before sending, for the budget; as are characters and images."""
    characters: int | None = None
    images: int | None = None


@record
class Call:
    """One HTTP exchange about to be sent."""

    method: str
    path: str
    """Below the provider's base_url, with a leading slash."""
    body: bytes | None = None
    """JSON."""
    form: tuple[tuple[str, str | bytes | Path, str | None], ...] | None = None
    """Multipart fields (name, value, file name or None) instead of a body; a file is read as it is sent."""
    stream: bool = False
    """The reply is read as server-sent events."""


@record
class Reply:
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    latency_ms: float
    first_token_ms: float | None = None


def request_fingerprint(provider_tag: str, path: str, body: bytes, salt: str = "") -> bytes:
    """16 bytes that name a request: provider (name and whether it is this machine), endpoint, body, salt.

    The salt is the row's key where the step says `reuse: false`, else empty.
    """
    digest = blake2b(body, digest_size=16, person=b"rowmill.request1")
    digest.update(b"\0" + provider_tag.encode() + b"\0" + path.encode() + b"\0" + salt.encode())
    return digest.digest()


def compact_copy(dumped: bytes) -> bytes:
    """The same in the memory that it needs: orjson's own result holds on to ten times as much, as long as it lives."""
    return bytes(memoryview(dumped))
