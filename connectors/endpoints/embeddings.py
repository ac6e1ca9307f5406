"""POST /embeddings: many rows in a request, one vector for each row."""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from types import NoneType
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace
from pybase64 import b64decode
from pydantic import Field

from connectors.contracts import BaseEndpoint, MalformedReply, StepContext, StepModel, TemplateText
from connectors.endpoints.params.checks import ParamCheck, check_params, integer, one_of, text
from connectors.endpoints.params.step_params import checked_text, step_config_bytes
from connectors.errors import JobError
from connectors.records import Call, Reply, Request, Row, RowError, Usage, Values
from connectors.request_fingerprint import request_fingerprint
from connectors.templating.template import RenderError, Template
from connectors.templating.template_tree import plain_json
from connectors.tokens import count_tokens, token_upper_bound
from connectors.transport.error_replies import is_error_body, row_error
from connectors.transport.reply_body import parse_object
from connectors.transport.token_usage import parse_count, token_usage

MAX_TEXTS_PER_REQUEST = 256
"""The API accepts 2,048, but a larger request costs more to repeat after a failure."""
MAX_TOKENS_PER_REQUEST = 100_000
"""The API accepts 300,000."""
MAX_TEXT_TOKENS = 8191
"""Of OpenAI's models."""

DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
"""Default, and largest, length of the vectors: the reference, section 7.4."""
FIXED_DIMENSIONS = frozenset({"text-embedding-ada-002"})
"""Models that accept no `dimensions`."""

TEXT_PLACEHOLDER = "\0the text\0"
"""Written in its place while the rest of a body is rendered."""

_ENCODING_WORDS = re.compile(r"encoding[_ ]?format|base64", re.I)
"""Words of a refusal that names the encoding."""
_PARAM_WORDS = re.compile(
    r"extra (inputs|fields)|unprocessable|validation|bad request|invalid (request|param|argument|value|format)"
    r"|(un(known|supported|recogni[sz]ed|expected)|not (supported|allowed|permitted)).{0,40}"
    r"(param|argument|field|option|property|key|value|format)|empty body",
    re.I,
)
"""Words of a refusal that may mean the encoding, as they blame a parameter without its name."""
_INPUT_WORDS = re.compile(
    r"token|\blong|length|(?<!extra )\binputs?\b|text|batch|content|dimension|model|empty string", re.I
)
"""Words of a refusal that blames something else."""
_COUNT_WORDS = re.compile(
    r"batch[ _-]?size|too many (inputs|texts|items|strings|documents|elements|sentences|requests in)"
    r"|(number|amount|count) of (the )?(inputs?|texts?|items|strings|documents|elements|sentences)"
    r"|(array|list) (is )?too (long|large|big)|(array|list|items) .{0,30}at most|too_long"
    r"|at most \d+ (inputs|texts|items|strings|documents|elements|sentences|requests)"
    r"|max\w* (number of )?(batch|inputs|texts|items|array|documents|elements|sentences)"
    r"|inputs? per (request|call|batch)"
    r"|\d+ ?(inputs|texts|items|strings|documents|条)",
    re.I,
)
"""Words of a refusal of too many texts."""
_LENGTH_WORDS = re.compile(r"token|character|byte", re.I)
"""Words of a refusal of texts that are too long."""
_LIMIT = re.compile(
    r"(?:at most|(?:larger|greater|more|longer) than|exceed\w*|max\w*|limit\w*|up to|<=|≤|>|less than or equal to"
    r"|不得超过|最多|最大)[^0-9]{0,40}?(\d+)",
    re.I,
)

_NO_VECTOR = RowError("invalid_answer", "the vector is empty")
"""Of a text that a server cannot embed, although it embeds those next to it."""

EMBEDDING_PARAMS: Mapping[str, ParamCheck] = {
    "user": text,
    "dimensions": integer(1),
    "encoding_format": one_of("float", "base64"),
}
"""The reference, section 7.3, and the OpenAPI description; a step without encoding_format requests base64."""


class EmbeddingsStep(StepModel):
    """A step of endpoint embeddings."""

    endpoint: Literal["embeddings"] = Field(description="POST /embeddings.")
    input: TemplateText = Field(description="The text; a template.", examples=["{{ body }}"])
    dimensions: int | None = Field(
        default=None, ge=1, description="Length of the vectors, sent to the provider; default: the model's."
    )
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, context: StepContext) -> "EmbeddingsEndpoint":
        """Build the endpoint; JobError for keys that do not fit."""
        return EmbeddingsEndpoint(self, context)


class EmbeddingsEndpoint(BaseEndpoint):
    """The endpoint of one step of embeddings."""

    path = "/embeddings"
    output_bound = 0
    shares_exchanges = True

    def __init__(self, step: EmbeddingsStep, context: StepContext) -> None:
        where = ("steps", step.name)
        check_params(step.params, EMBEDDING_PARAMS, where)
        self._step = step
        self._context = context
        self._tag = context.provider_tag
        self._sent_model = context.sent_model(step.model)
        self._tokenizer_model = self._sent_model if context.has_exact_tokens else None
        self._input = Template(checked_text(step.input, (*where, "input")), (*where, "input"), context.columns)
        self.input_columns = self._input.columns
        if step.dimensions is not None and "dimensions" in step.params:
            raise JobError((*where, "params", "dimensions"), "is also a key of the step", "use one of the two")
        known = DIMENSIONS.get(self._sent_model)
        for key, requested in (
            (("dimensions",), step.dimensions),
            (("params", "dimensions"), step.params.get("dimensions")),
        ):
            if (
                known is not None
                and requested is not None
                and (requested > known or (self._sent_model in FIXED_DIMENSIONS and requested != known))
            ):
                limit = f"makes {known:,} only" if self._sent_model in FIXED_DIMENSIONS else f"makes at most {known:,}"
                raise JobError((*where, *key), f"found {requested}, {self._sent_model} {limit}", "correct it")
        size = step.dimensions or step.params.get("dimensions") or known or context.embedding.dimensions
        self.dimensions_unknown = size is None
        self._size = int(size or 0)
        self._fixed: dict[str, Any] = {"model": step.model, "encoding_format": "base64", **step.params}
        if step.dimensions is not None and step.dimensions != known:
            self._fixed["dimensions"] = step.dimensions
        self._fixed |= plain_json(step.extra_body, (*where, "extra_body"))
        # The parts of a request's body before and after its text or texts.
        self._head, _, self._tail = orjson.dumps({**self._fixed, "input": TEXT_PLACEHOLDER}).partition(
            orjson.dumps(TEXT_PLACEHOLDER)
        )
        self._max_texts = min(MAX_TEXTS_PER_REQUEST, context.embedding.max_texts or MAX_TEXTS_PER_REQUEST)
        self._requests_base64 = self._fixed["encoding_format"] == "base64" and context.embedding.encoding != "float"
        # As it is sent: a server without base64 may not know the parameter at all.
        self._sent_head = self._head
        if not self._requests_base64 and step.params.get("encoding_format") != "float":
            self._sent_head = self._head.replace(b'"encoding_format":"base64",', b"", 1)
        vector = pa.list_(pa.float32()) if self.dimensions_unknown else pa.list_(pa.float32(), self._size)
        self._column = pa.field(step.output or step.name, vector)
        self.fields = (self._column,)
        self._last_reply: tuple[bytes, Any] | None = None

    def config_bytes(self) -> bytes:
        return step_config_bytes(self._step)

    def request(self, row: Row, key: str) -> Request | RowError:
        """Return the request of the row's text alone."""
        try:
            text = self._input.render(row)
            body = b"".join((self._head, orjson.dumps(text), self._tail))
        except (RenderError, TypeError) as exc:
            return RowError("input", str(exc))
        if not text:
            return RowError("input", "the text is empty; there is nothing to embed")
        tokens = count_tokens(text, self._tokenizer_model)
        if self._sent_model in DIMENSIONS and token_upper_bound(text) > MAX_TEXT_TOKENS:
            tokens = count_tokens(text, self._sent_model)
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
        """Yield groups as large as the provider and MAX_TOKENS_PER_REQUEST allow."""
        group: list[Request] = []
        tokens = 0
        for request in requests:
            if group and (len(group) == self._max_texts or tokens + request.input_tokens > MAX_TOKENS_PER_REQUEST):
                yield tuple(group)
                group, tokens = [], 0
            group.append(request)
            tokens += request.input_tokens
        if group:
            yield tuple(group)

    def call(self, group: Sequence[Request]) -> Call:
        """Return one request with a list of all texts."""
        start, end = len(self._head), -len(self._tail)
        texts = b",".join([request.body[start:end] for request in group])
        return Call("POST", self.path, b"".join((self._sent_head, b"[", texts, b"]", self._tail)))

    def group_limit(self, problem: RowError, size: int) -> int | None:
        """Return the number of texts that a refusal of too many texts names; half of them if it names none."""
        words = _words(problem)
        if size == 1 or not _COUNT_WORDS.search(words) or _LENGTH_WORDS.search(words):
            return None
        stated = [int(number) for number in _LIMIT.findall(words)]
        named = [count for count in stated or map(int, re.findall(r"\b\d{1,6}\b", words)) if 0 < count < size]
        return (min if stated else max)(named, default=size // 2)

    def plain_encoding(self, problem: RowError) -> "tuple[EmbeddingsEndpoint, bool] | None":
        """Return the endpoint that requests floats if a refusal of base64 is certain (True) or possible (False)."""
        words = _words(problem)
        if not self._requests_base64:
            return None
        is_named = bool(_ENCODING_WORDS.search(words))
        if not is_named and (_INPUT_WORDS.search(words) or not _PARAM_WORDS.search(words)):
            return None
        facts = replace(self._context.embedding, encoding="float")
        return EmbeddingsEndpoint(self._step, replace(self._context, embedding=facts)), is_named

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """Return each text's vector as little-endian float32 bytes, in the order of the group."""
        body = self._parse(reply.body)
        if is_error_body(body):
            error = row_error(reply)
            raise MalformedReply(error.message, error)
        data = body.get("data")
        if not isinstance(data, list) or len(data) != len(group):
            raise _wrong_count(data, len(group), reply, token_usage(body, None, has_output=False))
        if not all(isinstance(entry, dict) for entry in data):
            raise MalformedReply("an entry of the vectors is not a JSON object")
        answers = [self._vector(data[place].get("embedding")) for place in _places(data)]
        if len(answers) > 1 and all(vector == _NO_VECTOR for vector in answers):
            raise MalformedReply("the vectors of all texts are empty")
        complete = [vector for vector in answers if isinstance(vector, bytes)]
        if len(complete) == len(answers) and _is_finite(b"".join(complete)):
            return complete
        # The text itself causes it, so it would be the same again; the other texts keep their vectors.
        invalid = RowError("invalid_answer", "the vector holds NaN or infinity")
        return [vector if isinstance(vector, RowError) or _is_finite(vector) else invalid for vector in answers]

    def _vector(self, value: Any) -> bytes | RowError:
        if value is None or value in ([], ""):
            return _NO_VECTOR
        try:
            if isinstance(value, str):
                raw = b64decode(value, validate=True)
            else:
                if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
                    # llama.cpp's server: a list of one vector.
                    value = value[0]
                if not isinstance(value, list) or not (kinds := set(map(type, value))) <= {float, int, NoneType}:
                    raise MalformedReply("a vector is not a list of numbers")
                if NoneType in kinds:
                    # JSON has no NaN.
                    return RowError("invalid_answer", "the vector holds null")
                raw = array("f", value).tobytes()
        except (ValueError, OverflowError) as exc:
            raise MalformedReply(f"a vector cannot be read: {exc}") from exc
        if self.dimensions_unknown:
            if not raw or len(raw) % 4 != 0:
                raise MalformedReply(f"a vector has {len(raw) / 4:g} numbers")
        elif len(raw) != 4 * self._size:
            raise MalformedReply(f"a vector has {len(raw) / 4:g} numbers, expected {self._size}; check `dimensions`")
        return raw

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """Return the usage that the reply reports for the whole group."""
        return token_usage(self._parse(reply.body), None, has_output=False)

    def values(self, answer: bytes) -> Values | RowError:
        """Return the vector's bytes."""
        if len(answer) != 4 * self._size:
            return RowError("invalid_answer", f"the vector has {len(answer) // 4} numbers, expected {self._size}")
        return (answer,)

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """Return one fixed-size list column over the bytes of the vectors."""
        if self.dimensions_unknown:
            return [pa.nulls(len(values), self._column.type)]
        size = 4 * self._size
        empty = bytes(size)
        # Arrow's memory, until the commit: in Python's heap the vectors would fragment it.
        buffer = pa.allocate_buffer(len(values) * size)
        view = memoryview(buffer).cast("B")
        for index, row in enumerate(values):
            view[index * size : (index + 1) * size] = empty if row is None else row[0]
        mask = None
        if any(row is None for row in values):
            mask = pa.array([row is None for row in values], pa.bool_())
        numbers = pa.Array.from_buffers(pa.float32(), len(values) * self._size, [None, buffer])
        return [pa.FixedSizeListArray.from_arrays(numbers, self._size, mask=mask)]

    def _parse(self, body: bytes) -> Any:
        if self._last_reply is not None and self._last_reply[0] is body:
            return self._last_reply[1]
        parsed = parse_object(body)
        self._last_reply = (body, parsed)
        return parsed


def _is_finite(vectors: bytes) -> bool:
    numbers = pa.Array.from_buffers(pa.float32(), len(vectors) // 4, [None, pa.py_buffer(vectors)])
    # Added up in 64 bits, which finite numbers of 32 bits cannot leave.
    return isfinite(pc.sum(numbers, min_count=0).as_py())


def _wrong_count(data: Any, expected: int, reply: Reply, usage: Usage) -> MalformedReply:
    """Return the fault of a reply with another number of vectors.

    A server that answers one text reads no others. One that leaves out some has dropped a text: halving finds it.
    """
    count = len(data) if isinstance(data, list) else 0
    if not 0 < count < expected:
        return MalformedReply(f"the reply has {count or 'no'} vectors for {expected} texts", usage=usage)
    message = f"the reply has {count} of {expected} vectors"
    if count == 1:
        message += ": the server takes at most 1 texts a request"
    return MalformedReply(message, RowError("bad_request", message, reply.status), usage)


def _places(data: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    """Return for each text the place of its vector in a reply that has all of them.

    Some servers leave out every index, some the index 0; some give each vector the index 0, some count from 1.
    """
    indexes = [place if entry.get("index") is None else _index(entry["index"]) for place, entry in enumerate(data)]
    if all(index == 0 for index in indexes):
        return range(len(data))
    first = min((index for index in indexes if index is not None), default=0)
    shift = first if first == 1 else 0
    by_index = {index - shift: place for place, index in enumerate(indexes) if index is not None}
    if by_index.keys() != set(range(len(data))):
        raise MalformedReply(f"an index of the vectors is repeated or out of range: {indexes}"[:200])
    return [by_index[text] for text in range(len(data))]


def _index(value: Any) -> int | None:
    return value if type(value) is int else parse_count(value)


def _words(problem: RowError) -> str:
    return " ".join(filter(None, (problem.message, problem.param, problem.code, problem.type, problem.details)))
