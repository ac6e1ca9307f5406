"""Records that pass between rows, requests, replies and tables."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from connectors.error_classes import ErrorClass

Row = Mapping[str, Any]
"""One row's values by column name, as Python values of Arrow's `to_pylist`."""

ROW_PROBLEM = "_row_problem"
"""Column with the reason why a row's source values cannot be used; null if they can."""
FAILED_STEP = "_row_failed_step"
"""Column with the step in which the row failed in an earlier run and that a rung requests again; else null."""
FAILED_CLASS = "_row_failed_class"
"""Column with the class of that error."""
TEXT_PREFIX = "_row_text_"
"""Of the column with a value's text in the file, which templates print instead of the typed value."""

KEPT_ROW = "_row_kept"
"""Column with whether the sink has a result of the row that only other checks have accepted."""
KEPT_PREFIX = "_row_kept_"
"""Of the columns with the outputs in that result."""
KEPT_CHILDREN_PREFIX = "_row_children_"
"""Of the columns with the outputs in the results of the row's children: lists, in the order of the children."""

Values = tuple[Any, ...]
"""One row's outputs of one step, in the order of the endpoint's `fields`."""


class RowError(Struct, frozen=True):
    """The reason why a row has no result, in the provider's words if it gave one."""

    error_class: ErrorClass
    message: str
    http_status: int | None = None
    type: str | None = None
    param: str | None = None
    code: str | None = None
    details: str | None = None
    """JSON text of the other keys of the provider's error object."""
    request_id: str | None = None


class Usage(Struct, frozen=True):
    """The usage of one exchange, as the reply reports it; None: not reported."""

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
    """The model that answered, in the reply's own words."""
    finish_reason: str | None = None
    service_tier: str | None = None
    """The tier that served the request, in the reply's own words."""
    cache_write_tokens: int | None = None
    """The part of input_tokens that the provider wrote to its cache."""
    hosted_calls: tuple[tuple[str, int], ...] = ()
    """(type, such as `web_search`; number) of the tool calls that the provider executed."""
    reported_usd: float | None = None
    """The cost in US dollars, if the reply states one."""

    @property
    def tool_calls(self) -> int | None:
        """The number of tool calls that the provider executed; None: none."""
        return sum(count for _, count in self.hosted_calls) or None

    @property
    def tokens(self) -> int | None:
        """The tokens that count against a token limit; None: not reported."""
        return None if self.input_tokens is None else self.input_tokens + (self.output_tokens or 0)

    @property
    def is_all_zero(self) -> bool:
        """Whether the reply reports counts and all are zero, which no answered request has; a stated cost counts."""
        if self.input_tokens != 0 or self.output_tokens or self.reported_usd is not None:
            return False
        return not (self.audio_seconds or self.characters or self.images or self.hosted_calls)


NO_USAGE = Usage()


class Media(Struct, frozen=True):
    """A picture or an audio file of a row, measured and checked before its request is built."""

    digest: str
    """SHA-256 of the content, 64 hex digits."""
    size: int
    """In bytes."""
    kind: str
    """Media type by content, such as `image/png`."""
    suffix: str
    """For a file name, by content: `png`."""
    path: Path | None = None
    """The file with the content; None: it is in `data`."""
    data: bytes | None = None
    pixels: tuple[int, int] | None = None
    """Width and height of a picture."""
    seconds: float | None = None
    """Length of audio."""
    pieces: "tuple[tuple[float, Media], ...]" = ()
    """(start in seconds, piece) of audio that was split."""

    @property
    def name(self) -> str:
        """Its name in a request's body, which `Endpoint.call` replaces by the content."""
        return f"rowmill-media:{self.digest}"

    def read(self) -> bytes:
        """Return the content; OSError if the file is gone."""
        return self.data if self.data is not None else (self.path or Path()).read_bytes()


class BillingTerms(Struct, frozen=True):
    """What the requests of a step name of how they are billed."""

    service_tier: str | None = None
    """None: the provider chooses."""
    hosted_tools: frozenset[str] = frozenset()
    """The tools that the provider executes and bills by call, as `prices.per_call` names them: `web_search`."""
    max_tool_calls: int | None = None
    """The most calls of these in one request; None: nothing bounds them."""
    has_documents: bool = False
    """Whether it has documents or audio: only the context window bounds their tokens."""


class Request(Struct, frozen=True):
    """The request of one row, sent alone or in a group, and the ledger's key of its answer."""

    fingerprint: bytes
    """16 bytes, see `request_fingerprint`."""
    body: bytes
    """The request of this row alone: JSON for most endpoints, a JSON description of the form for uploads."""
    input_tokens: int
    """Counted (or estimated) before sending; for limits and budget."""
    output_bound: int | None
    """The most output tokens that can be billed; None: unbounded; 0: the endpoint bills none."""
    keys: tuple[str, ...] = ()
    """The rows that it answers for, as text; filled in by the dispatcher."""
    repair_of: bytes | None = None
    """The fingerprint of the request whose answer this one asks to correct."""
    former: "Request | None" = None
    """The same question as an earlier release asked it: if the ledger has its answer, it is not asked again."""
    media: tuple[Media, ...] = ()
    """The contents that `body` names by their digest."""
    parts: "tuple[Request, ...]" = ()
    """Requests to send instead of this one; `Endpoint.merge_parts` makes its answer from theirs."""
    audio_seconds: float | None = None
    """Counted before sending, for the budget, like characters and images."""
    characters: int | None = None
    images: int | None = None
    rung: int = 0
    """The place among the step's rungs of the one that sends it; 0: the step as declared."""
    rescued_classes: frozenset[str] = frozenset()
    """The error classes after which another rung requests its rows again: such an error is not their last outcome."""

    @property
    def has_only_tokens(self) -> bool:
        """Whether nothing else was counted before sending."""
        return self.audio_seconds is None and self.characters is None and self.images is None


def is_rescued(request: Request, error: RowError) -> bool:
    """Whether another rung requests the rows again after this error."""
    return error.error_class in request.rescued_classes


class Call(Struct, frozen=True):
    """An HTTP request to send."""

    method: str
    path: str
    """Below the provider's base_url, with a leading slash."""
    body: bytes | None = None
    """JSON."""
    form: tuple[tuple[str, str | bytes | Path, str | None], ...] | None = None
    """Multipart fields (name, value, file name or None) instead of a body; a file is read while it is sent."""
    stream: bool = False
    """Whether the reply is server-sent events."""
    on_refused_key: Literal["repeat", "renew", "return"] = "repeat"
    """After a 401 with a key that expires: renew it and repeat the call, renew it only, or do neither."""


class Reply(Struct, frozen=True):
    """A complete HTTP reply."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    latency_ms: float
    first_token_ms: float | None = None
    is_key_renewed: bool = False
    """Whether it refuses a key that was renewed since: the call may be sent again."""
    mask: Callable[[bytes], bytes] | None = None
    """Replaces secrets in what is assembled from a stream: each may be split among its events. None: a whole body."""


def compact_copy(dumped: bytes) -> bytes:
    """Return a copy of exact size: orjson's own result occupies ten times as much memory as long as it lives."""
    return bytes(memoryview(dumped))
