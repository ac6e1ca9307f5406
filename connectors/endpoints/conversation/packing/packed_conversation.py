"""Packs of a step: which rows share a request, its body, and the answers in its reply."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import orjson
from msgspec import Struct
from pydantic import Field

from connectors.contracts import FrozenModel
from connectors.endpoints.conversation.packing.pack_format import (
    packed_content,
    packed_output_tokens,
    packed_schema,
    read_packed_reply,
    row_ids,
)
from connectors.endpoints.conversation.structured.structured_modes import StructuredMode
from connectors.endpoints.conversation.structured.structured_output import TypedOutput
from connectors.errors import JobError, KeyPath
from connectors.records import Request, RowError, Values, compact_copy
from connectors.tokens import chat_tokens, count_tokens

MAX_ROWS = 1_000

_ANSWER_MARK = "\0the answer\0"
"""Placeholder of an answer in the body of a reply."""

PACKED_TEXT_DIGEST = blake2b(b"packed texts", digest_size=16).digest()
"""Under which the structured mode of packed texts is learned; typed answers have a schema of their own."""


PackedAnswer = tuple[bytes, Values]
"""A row's answer as a reply to it alone would have it, and its values."""


class PackOptions(FrozenModel):
    """How rows share requests."""

    rows: int = Field(default=20, ge=1, le=MAX_ROWS, description="Rows in one request, at most.", examples=[20])
    tokens: int = Field(
        default=8000, ge=1, le=10**7, description="Input tokens of the rows in one request, at most.", examples=[8000]
    )
    verify: float = Field(
        default=0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of rows that are also requested alone, to measure agreement; their single answer counts.",
        examples=[0.01],
    )
    agreement: float = Field(
        default=0.95,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The pack size is halved if, after 50 verified rows, fewer agree.",
        examples=[0.95],
    )


class PackedWireFormat(Protocol):
    """What packed requests need of a wire format; see WireFormat."""

    messages_key: str

    @property
    def max_token_params(self) -> tuple[str, ...]: ...

    def render_messages(self, messages: Sequence[Mapping[str, Any]]) -> Any: ...

    def with_schema(
        self, body: Mapping[str, Any], way: str, name: str, schema: Mapping[str, Any]
    ) -> dict[str, Any]: ...

    def answer_body(self, text: str, model: str | None) -> dict[str, Any]: ...


class PackTokens(Struct, frozen=True):
    """Token counts and limits of the model of a step."""

    tokenizer_model: str | None
    """Counts tokens; None: a rough estimate."""
    sent_model: str
    """Counts the tokens of rows if a rough estimate does not show that they fit."""
    in_single_request: int
    """Input tokens of a single request without the row's text."""
    max_output: int | None
    """The most that the model can answer; None: unknown."""
    max_output_of_all: int | None
    """The most that every model of the step can answer; None: unknown."""


class PackedConversation:
    """The packed form of one step's requests: pure functions from single requests to a packed one and back."""

    def __init__(
        self,
        options: PackOptions,
        wire_format: PackedWireFormat,
        constants: Sequence[Mapping[str, Any]],
        fixed: Mapping[str, Any],
        name: str,
        properties: Mapping[str, Any] | None,
        mode: StructuredMode,
        schema_prompt: str,
        tokens: PackTokens,
    ) -> None:
        """Make the packed form.

        Args:
            constants: the messages before the row's, as chat completions write them.
            fixed: the part of the body that all rows share, without a schema.
            name: of the schema.
            properties: those of a typed answer; None: an answer is a text.
            mode: how the schema is requested.
            schema_prompt: the instruction that shows a schema (`{schema}`) in the modes without one.
        """
        self.options = options
        self.schema = packed_schema(properties)
        self._wire_format = wire_format
        self._is_typed = properties is not None
        self._tokens = tokens
        instruction = [] if mode.way == "schema" else [_instruction(schema_prompt, self.schema)]
        self._constants = [*instruction, *constants]
        self._fixed = wire_format.with_schema(fixed, mode.way, name, mode.reduce(self.schema))
        self._own_output_tokens = [
            limit for key in wire_format.max_token_params if isinstance(limit := self._fixed.get(key), int)
        ]
        schema_tokens = sum(
            count_tokens(orjson.dumps(self._fixed[key]).decode(), tokens.tokenizer_model)
            for key in ("response_format", "text")
            if self._fixed.get(key)
        )
        self._around_text: tuple[bytes, bytes] | None = None
        """What the bodies of all rows begin and end with, the quotes of the text included; None before the first."""
        self._around_answer: tuple[str | None, bytes, bytes] | None = None
        """Model, and what the bodies of its answers begin and end with."""
        self._constant_tokens = schema_tokens + chat_tokens(self._constants, tokens.tokenizer_model)

    def groups(self, requests: Sequence[Request], rows: int) -> Iterator[tuple[Request, ...]]:
        """Yield requests that share one, in their order: at most `rows`, and as many as tokens and the model allow.

        Repairs go alone.
        """
        pack: list[Request] = []
        tokens, is_rough, most = 0, True, self._max_rows(rows)
        for request in requests:
            if request.repair_of is not None:
                yield (request,)
                continue
            row_tokens = self._row_tokens(request, is_rough)
            if is_rough and tokens + row_tokens > self.options.tokens:
                is_rough = False
                tokens = sum(self._row_tokens(one, is_rough) for one in pack)
                row_tokens = self._row_tokens(request, is_rough)
            if pack and (tokens + row_tokens > self.options.tokens or len(pack) >= most):
                yield tuple(pack)
                pack, tokens, is_rough = [], 0, True
                row_tokens = self._row_tokens(request, is_rough)
            pack.append(request)
            tokens += row_tokens
        if pack:
            yield tuple(pack)

    def _row_tokens(self, request: Request, is_rough: bool) -> int:
        """Return the tokens of a row's text; `is_rough`: the most that they can be, if they were not counted."""
        tokens = max(0, request.input_tokens - self._tokens.in_single_request)
        if self._tokens.tokenizer_model is not None:
            return tokens
        if is_rough:
            # The estimate has a token for four bytes, and no token is shorter than a byte.
            return 4 * tokens
        (text,) = self._row_texts([request])
        return count_tokens(orjson.loads(text), self._tokens.sent_model)

    def _max_rows(self, rows: int) -> int:
        """Return how many rows may share a request, `rows` at most: every model must be able to answer them all."""
        if self._tokens.max_output_of_all is None or not self._own_output_tokens:
            return rows
        own, limit = max(self._own_output_tokens), self._tokens.max_output_of_all
        return next((size for size in range(rows, 1, -1) if packed_output_tokens(own, size) <= limit), 1)

    def request(self, group: Sequence[Request]) -> Request:
        """Return the packed request as it is sent, with its tokens: for limits and budget, and for the call."""
        content = packed_content(row_ids([request.fingerprint for request in group]), self._row_texts(group))
        messages = [*self._constants, {"role": "user", "content": content}]
        body = {**self._fixed, self._wire_format.messages_key: self._wire_format.render_messages(messages)}
        for name in self._wire_format.max_token_params:
            if isinstance(tokens := body.get(name), int):
                body[name] = packed_output_tokens(tokens, len(group))
        own = min(self._own_output_tokens, default=None)
        bound = self._tokens.max_output if own is None else packed_output_tokens(own, len(group))
        input_tokens = self._constant_tokens + chat_tokens(messages[-1:], self._tokens.tokenizer_model)
        return Request(b"", compact_copy(orjson.dumps(body)), input_tokens, bound)

    def answers(
        self,
        group: Sequence[Request],
        text: str | None,
        model: str | None,
        values_of: Callable[[str], Values | RowError],
    ) -> list[PackedAnswer | None]:
        """Return for each row the answer as a reply to it alone would have it; None: to be requested again.

        `text` and `model`: of the reply; `values_of`: the values of an answer's text, or what is wrong with it.
        """
        ids = row_ids([request.fingerprint for request in group])
        found = read_packed_reply(text or "", ids, self._is_typed).answers
        before, after = self._answer_template(model)
        answers: list[PackedAnswer | None] = []
        for identity in ids:
            answer = found.get(identity)
            values = None if answer is None else values_of(answer)
            if values is None or isinstance(values, RowError):
                answers.append(None)
            else:
                answers.append((before + orjson.dumps(answer) + after, values))
        return answers

    def _answer_template(self, model: str | None) -> tuple[bytes, bytes]:
        """Return what the body of a reply has before and after its answer."""
        if self._around_answer is None or self._around_answer[0] != model:
            body = orjson.dumps(self._wire_format.answer_body(_ANSWER_MARK, model))
            before, _, after = body.partition(orjson.dumps(_ANSWER_MARK))
            self._around_answer = model, before, after
        return self._around_answer[1:]

    def item(self, request: Request) -> dict[str, str]:
        """Return a row's part of a packed request."""
        (identity,), (text,) = row_ids([request.fingerprint]), self._row_texts([request])
        return {"id": identity, "content": orjson.loads(text)}

    def _row_texts(self, group: Sequence[Request]) -> list[bytes]:
        """Return the text of each row's message as JSON, without reading the constant text around it more than once."""
        if self._around_text is None:
            self._find_text(group[0])
        prefix, suffix = self._around_text or (b"", b"")
        # Within a JSON text every quote is escaped: what begins and ends with one is a whole text.
        start, end, shortest = len(prefix) - 1, 1 - len(suffix) or None, len(prefix) + len(suffix)
        return [
            body[start:end]
            if (body := request.body).startswith(prefix) and body.endswith(suffix) and len(body) >= shortest
            else self._find_text(request)
            for request in group
        ]

    def _find_text(self, request: Request) -> bytes:
        """Return the text of a row's message as JSON; remember what is around it."""
        body = request.body
        sent = orjson.loads(body)[self._wire_format.messages_key]
        content = sent if isinstance(sent, str) else sent[-1]["content"]
        assert isinstance(content, str)
        text = orjson.dumps(content)
        before, _, after = body.rpartition(text)
        self._around_text = before + b'"', b'"' + after
        return text


def check_packable(body: Mapping[str, Any], typed: TypedOutput | None, has_pictures: bool, where: KeyPath) -> None:
    """Raise JobError for a step whose rows cannot share requests. `body`: the part that all rows share."""
    text = body.get("text")
    found = {
        "n": body.get("n", 1) != 1,
        "tools": bool(body.get("tools")),
        "stream": bool(body.get("stream")),
        "logprobs": bool(body.get("logprobs") or body.get("top_logprobs"))
        or "logprobs" in str(body.get("include", "")),
        "response_format": "response_format" in body,
        "text.format": isinstance(text, Mapping) and "format" in text,
        "pictures": has_pictures,
        "an output named id": typed is not None and "id" in typed.names,
    }
    for name, is_used in found.items():
        if is_used:
            raise JobError((*where, "pack"), f"cannot be combined with {name}", "leave one of the two out")


def _instruction(schema_prompt: str, schema: Mapping[str, Any]) -> dict[str, str]:
    return {"role": "system", "content": schema_prompt.format(schema=orjson.dumps(schema).decode())}
