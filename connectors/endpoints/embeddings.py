"""POST /embeddings: many rows a request, one vector a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
from pybase64 import b64decode
from pydantic import Field

from connectors.contracts import MalformedReply, SingleRowEndpoint, StepContext, StepModel
from connectors.endpoints.params.checks import ParamCheck, check_params, integer, one_of, text
from connectors.errors import JobError, did_you_mean
from connectors.records import Call, Reply, Request, Row, RowError, Usage, Values, request_fingerprint
from connectors.templating.template import RenderError, Template
from connectors.templating.template_tree import plain_json
from connectors.tokens import count_tokens, token_upper_bound
from connectors.transport.error_replies import is_error_body, row_error
from connectors.transport.token_usage import parse_count

MAX_TEXTS_PER_REQUEST = 256
"""Texts in one request; the API takes 2,048, but a failed request then costs more to repeat."""
MAX_TOKENS_PER_REQUEST = 100_000
"""Of one request; the API takes 300,000."""
MAX_TEXT_TOKENS = 8191
"""Tokens of one text, for OpenAI's own models."""

DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
"""The reference, section 7.4."""
FIXED_DIMENSIONS = frozenset({"text-embedding-ada-002"})
"""Models that take no `dimensions`."""

TEXT_PLACEHOLDER = "\0the text\0"
"""Stands for it while the rest of a body is written."""

EMBEDDING_PARAMS: Mapping[str, ParamCheck] = {
    "user": text,
    "dimensions": integer(1),
    "encoding_format": one_of("float", "base64"),
}
"""The reference, section 7.3, and the OpenAPI description; base64 is asked for where a step does not say."""


class EmbeddingsStep(StepModel):
    """A step of endpoint embeddings."""

    endpoint: Literal["embeddings"] = Field(description="POST /embeddings.")
    input: str = Field(min_length=1, description="The text; a template.", examples=["{{ body }}"])
    dimensions: int | None = Field(
        default=None, ge=1, description="Length of the vectors, sent to the provider; left out: the model's own."
    )
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, facts: StepContext) -> "EmbeddingsEndpoint":
        """The endpoint; JobError, beginning with a key path, for what does not fit."""
        return EmbeddingsEndpoint(self, facts)


class EmbeddingsEndpoint(SingleRowEndpoint):
    """The endpoint of one step of embeddings."""

    path = "/embeddings"
    output_bound = 0

    def __init__(self, step: EmbeddingsStep, facts: StepContext) -> None:
        where = ("steps", step.name)
        check_params(step.params, EMBEDDING_PARAMS, where)
        self._step = step
        self._tag = facts.provider_tag
        self._counted_as = step.model if facts.has_exact_tokens else None
        self._input = Template(step.input, (*where, "input"))
        for name in sorted(self._input.columns):
            if name not in facts.columns:
                raise JobError((*where, "input"), f"no column {name}", f"{did_you_mean(name, facts.columns)}")
        self.input_columns = self._input.columns
        if step.dimensions is not None and "dimensions" in step.params:
            raise JobError((*where, "params", "dimensions"), "stands on the step as well", "leave out one of both")
        known = DIMENSIONS.get(step.model)
        for place, asked in (("dimensions", step.dimensions), ("params.dimensions", step.params.get("dimensions"))):
            if (
                known is not None
                and asked is not None
                and (asked > known or (step.model in FIXED_DIMENSIONS and asked != known))
            ):
                takes = f"makes {known:,}, no others" if step.model in FIXED_DIMENSIONS else f"makes at most {known:,}"
                raise JobError((*where, place), f"found {asked}, {step.model} {takes}", "correct it")
        size = step.dimensions or step.params.get("dimensions") or known or facts.embedding_dimensions
        self.dimensions_unknown = size is None
        self._size = int(size or 0)
        self._fixed: dict[str, Any] = {"model": step.model, "encoding_format": "base64", **step.params}
        if step.dimensions is not None and step.dimensions != known:
            self._fixed["dimensions"] = step.dimensions
        self._fixed |= plain_json(step.extra_body, (*where, "extra_body"))
        # What stands before and after the text, or the texts, in a request's body.
        self._head, _, self._tail = orjson.dumps({**self._fixed, "input": TEXT_PLACEHOLDER}).partition(
            orjson.dumps(TEXT_PLACEHOLDER)
        )
        vector = pa.list_(pa.float32()) if self.dimensions_unknown else pa.list_(pa.float32(), self._size)
        self._column = pa.field(step.output or step.name, vector)
        self.fields = (self._column,)
        self._memo: tuple[bytes, Any] | None = None

    def config_bytes(self) -> bytes:
        """All but limits and detail: the provider is told of beside it."""
        told = self._step.model_dump(exclude={"name", "provider", "when", "detail", "reuse"})
        return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)

    def request(self, row: Row, key: str) -> Request | RowError:
        """The request for the row's text alone."""
        try:
            said = self._input.render(row)
            body = b"".join((self._head, orjson.dumps(said), self._tail))
        except (RenderError, TypeError) as exc:
            return RowError("input", str(exc))
        if not said:
            return RowError("input", "the text is empty: there is nothing to embed")
        tokens = count_tokens(said, self._counted_as)
        if self._step.model in DIMENSIONS and token_upper_bound(said) > MAX_TEXT_TOKENS:
            tokens = count_tokens(said, self._step.model)
            if tokens > MAX_TEXT_TOKENS:
                return RowError("input", f"the text has {tokens:,} tokens, more than the model's {MAX_TEXT_TOKENS:,}")
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, body, "" if self._step.reuse else key),
            body=body,
            input_tokens=tokens,
            output_bound=0,
            keys=(key,),
        )

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        """As many as MAX_TEXTS_PER_REQUEST and MAX_TOKENS_PER_REQUEST allow."""
        group: list[Request] = []
        tokens = 0
        for request in requests:
            if group and (len(group) == MAX_TEXTS_PER_REQUEST or tokens + request.input_tokens > MAX_TOKENS_PER_REQUEST):
                yield tuple(group)
                group, tokens = [], 0
            group.append(request)
            tokens += request.input_tokens
        if group:
            yield tuple(group)

    def call(self, group: Sequence[Request]) -> Call:
        """All texts in one list."""
        start, end = len(self._head), -len(self._tail)
        texts = b",".join([request.body[start:end] for request in group])
        return Call("POST", self.path, b"".join((self._head, b"[", texts, b"]", self._tail)))

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """Each text's vector as little-endian float32 bytes, in the order of the group."""
        whole_reply = self._read(reply.body)
        if is_error_body(whole_reply):
            error = row_error(reply)
            raise MalformedReply(error.message, error)
        data = whole_reply.get("data")
        if not isinstance(data, list) or len(data) != len(group):
            came = len(data) if isinstance(data, list) else "no"
            raise MalformedReply(f"{came} vectors came for {len(group)} texts")
        vectors: list[bytes | None] = [None] * len(group)
        for entry in data:
            place = entry.get("index") if isinstance(entry, dict) else None
            if type(place) is not int or not 0 <= place < len(group) or vectors[place] is not None:
                raise MalformedReply(f"an index of the vectors is missing, doubled or out of range: {place!r}")
            vectors[place] = self._vector(entry.get("embedding"))
        found = [vector for vector in vectors if vector is not None]
        if np.isfinite(np.frombuffer(b"".join(found), dtype="<f4")).all():
            return found
        # Of this text alone, and it will come again: its neighbours keep their vectors.
        odd = RowError("invalid_answer", "the vector holds NaN or infinity")
        return [vector if np.isfinite(np.frombuffer(vector, dtype="<f4")).all() else odd for vector in found]

    def _vector(self, told: Any) -> bytes:
        try:
            if isinstance(told, str):
                raw = b64decode(told, validate=True)
            else:
                raw = np.asarray(told, dtype="<f4").tobytes()
        except (ValueError, TypeError) as exc:
            raise MalformedReply(f"a vector cannot be read: {exc}") from exc
        if len(raw) != 4 * self._size and not (self.dimensions_unknown and raw and len(raw) % 4 == 0):
            raise MalformedReply(
                f"a vector has {len(raw) / 4:g} numbers, {self._size} were expected; is `dimensions` right?"
            )
        return raw

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """As the reply counts it, for the whole group."""
        whole_reply = self._read(reply.body)
        used, model = whole_reply.get("usage"), whole_reply.get("model")
        used = used if isinstance(used, dict) else {}
        return Usage(
            input_tokens=parse_count(used.get("prompt_tokens", used.get("total_tokens"))),
            output_tokens=0 if used else None,
            model_version=model if isinstance(model, str) else None,
        )

    def values(self, answer: bytes) -> Values | RowError:
        """The vector's bytes."""
        if len(answer) != 4 * self._size:
            return RowError("invalid_answer", f"the vector has {len(answer) // 4} numbers, not {self._size}")
        return (answer,)

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """One fixed-size list column, its numbers taken from the bytes as they are."""
        if self.dimensions_unknown:
            return [pa.nulls(len(values), self._column.type)]
        size = 4 * self._size
        empty = bytes(size)
        # In Arrow's own memory, where it stays until it is committed: among Python's small values it would leave holes.
        buffer = pa.allocate_buffer(len(values) * size)
        view = memoryview(buffer).cast("B")
        for place, row in enumerate(values):
            view[place * size : (place + 1) * size] = empty if row is None else row[0]
        mask = None
        if any(row is None for row in values):
            mask = pa.array([row is None for row in values], pa.bool_())
        numbers = pa.Array.from_buffers(pa.float32(), len(values) * self._size, [None, buffer])
        return [pa.FixedSizeListArray.from_arrays(numbers, self._size, mask=mask)]

    def _read(self, body: bytes) -> Any:
        if self._memo is not None and self._memo[0] is body:
            return self._memo[1]
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError as exc:
            raise MalformedReply(f"the reply is no JSON: {exc}") from exc
        if not isinstance(parsed, dict):
            raise MalformedReply("the reply is no JSON object")
        self._memo = (body, parsed)
        return parsed
