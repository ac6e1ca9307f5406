"""What the endpoints of dialogues share: a row's turns into a request, a reply or a stream into typed columns."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import orjson
import pyarrow as pa
from pydantic import Field

from connectors.contracts import MalformedReply, SingleRowEndpoint, StepContext, StepModel
from connectors.endpoints.conversation.messages import Conversation
from connectors.endpoints.conversation.output_columns import AnswerColumns, ReplyChoice
from connectors.endpoints.conversation.structured_output import TypedOutput
from connectors.errors import JobError, KeyPath
from connectors.records import (
    Call,
    Media,
    Reply,
    Request,
    Row,
    RowError,
    Usage,
    Values,
    compact_copy,
    request_fingerprint,
)
from connectors.templating.template import RenderError
from connectors.templating.template_tree import TemplateTree, plain_json
from connectors.tokens import chat_tokens, count_tokens, max_output_tokens
from connectors.transport.bounded_json import parse_json
from connectors.transport.error_replies import is_error_body, row_error
from connectors.transport.sse import Event, is_event_stream, parse_events
from connectors.transport.token_usage import token_usage

STRUCTURED_MODES = ("schema", "json_object", "prompt")
"""How a typed output is asked for, the strictest first; a server that refuses one is asked the next way."""

REPAIR_PROMPT = "This answer does not fit: {problem}. Answer again, with nothing but JSON that fits the schema."
SCHEMA_PROMPT = "Answer with nothing but JSON that fits this JSON Schema: {schema}"

_REFUSES_THE_WAY = ("response_format", "json_schema", "json_object", "text.format", "structured output")


class ConversationStep(StepModel):
    """The keys that the steps of dialogues share."""

    output: str | dict[str, Any] | None = Field(
        default=None, description="A column's name, or typed columns: name -> JSON Schema."
    )
    structured: Literal["auto", "schema", "json_object", "prompt"] = Field(
        default="auto", description="How a typed output is asked for; auto falls back for servers without schemas."
    )
    tools: tuple[dict[str, Any], ...] | None = Field(
        default=None,
        description="The API's own tool objects; their calls become the column `<step>_tool_calls`.",
        examples=[[{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]],
    )
    tool_choice: str | dict[str, Any] | None = Field(
        default=None,
        description="none, auto, required, or an object that names a tool.",
        examples=["required", {"type": "function", "function": {"name": "look_up"}}],
    )
    stream: bool = Field(
        default=False, description="Answers come as server-sent events, are read to the end and give the same columns."
    )


class WireFormat(Protocol):
    """One way of writing dialogues and their answers: values to values."""

    path: str
    messages_key: str
    """Where the turns stand in the body."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Those of WAYS that it has."""

    @property
    def max_token_params(self) -> tuple[str, ...]:
        """The parameters that bound the tokens of an answer."""

    def render_messages(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        """Turns in chat completions' shape, as the body takes them."""

    def with_schema(self, body: Mapping[str, Any], way: str, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The body that asks for JSON of this schema."""

    def assemble(self, events: Iterable[Event]) -> dict[str, Any]:
        """A streamed reply as it would have come without a stream."""

    def parse_choices(self, reply: Mapping[str, Any]) -> Sequence[ReplyChoice]:
        """The answers of a parsed reply, at least one; MalformedReply where it has none."""


class ConversationEndpoint(SingleRowEndpoint):
    """The endpoint of one step, in one dialect."""

    def __init__(
        self,
        step: ConversationStep,
        facts: StepContext,
        dialect: WireFormat,
        dialogue: Conversation,
        fixed: Mapping[str, Any],
        moving: Mapping[str, TemplateTree],
        columns: AnswerColumns,
        typed: TypedOutput | None,
    ) -> None:
        """`fixed`: what of the body is the same for every row. `moving`: what a row fills in besides its turns."""
        where = ("steps", step.name)
        self.path = dialect.path
        self._step = step
        self._tag = facts.provider_tag
        self._dialect = dialect
        self._dialogue = dialogue
        self._moving = moving
        self._columns = columns
        self.fields = columns.fields
        self.media = dialogue.media
        texts = dialogue.texts.union(*(part.columns for part in moving.values()))
        for name in sorted(texts & dialogue.media.keys()):
            raise JobError(where, f"{name} is shown as a picture and stands in a text", "name it twice in the source")
        self.input_columns = texts | dialogue.media.keys()
        self._typed = typed
        self._way = _way(step, facts, dialect)
        body = {"model": step.model, **fixed}
        if typed is not None:
            body = dialect.with_schema(body, self._way, step.name[:64], typed.schema)
        body = {**body, **step.extra_body}
        self._fixed: dict[str, Any] = plain_json(body, where)
        self._stream = bool(self._fixed.get("stream"))
        self.output_bound = self._bound()
        self._instruction = self._schema_in_words()
        self._counted_as = step.model if facts.has_exact_tokens else None
        self._fixed_tokens = sum(
            count_tokens(orjson.dumps(self._fixed[key]).decode(), self._counted_as)
            for key in ("tools", "response_format", "text")
            if self._fixed.get(key)
        )
        told = step.model_dump(exclude={"name", "provider", "when", "detail", "reuse", "stream"}, exclude_defaults=True)
        self._declared = orjson.dumps(plain_json(told, where), option=orjson.OPT_SORT_KEYS)
        self._memo: tuple[bytes, dict[str, Any], Sequence[ReplyChoice]] | None = None

    def _bound(self) -> int | None:
        said = [self._fixed.get(name) for name in self._dialect.max_token_params]
        limits = [limit for limit in said if isinstance(limit, int)]
        bound = min(limits) if limits else max_output_tokens(self._step.model)
        count = self._fixed.get("n")
        return None if bound is None else bound * (count if isinstance(count, int) else 1)

    def _schema_in_words(self) -> dict[str, str] | None:
        if self._typed is None or self._way == "schema":
            return None
        schema = orjson.dumps(self._typed.schema).decode()
        return {"role": "system", "content": SCHEMA_PROMPT.format(schema=schema)}

    def config_bytes(self) -> bytes:
        """All but limits, detail and stream: the provider is told of beside it."""
        return self._declared

    def request(self, row: Row, key: str) -> Request | RowError:
        """The dialogue with the row's values in it."""
        try:
            messages, pictures = self._dialogue.rendered(row)
            moving = {name: part.render(row) for name, part in self._moving.items()} if self._moving else None
        except RenderError as exc:
            return RowError("input", str(exc))
        if self._instruction is not None:
            messages = [self._instruction, *messages]
        body = {**self._fixed, self._dialect.messages_key: self._dialect.render_messages(messages)}
        tokens = self._fixed_tokens
        if moving:
            body |= moving
            tokens += sum(count_tokens(_as_text(value), self._counted_as) for value in moving.values())
        return self._asked(body, messages, tokens, pictures, key, None)

    def _asked(
        self,
        body: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        tokens: int,
        pictures: tuple[Media, ...],
        key: str,
        repair_of: bytes | None,
    ) -> Request | RowError:
        """`messages`: what is counted, besides `tokens`."""
        try:
            made = compact_copy(orjson.dumps(body))
        except TypeError as exc:
            return RowError("input", f"the row's text cannot be written as UTF-8: {exc}")
        sizes = {picture.name: picture.pixels for picture in pictures if picture.pixels is not None}
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, made, "" if self._step.reuse else key),
            body=made,
            input_tokens=tokens + chat_tokens(messages, self._counted_as, sizes),
            output_bound=self.output_bound,
            keys=(key,),
            repair_of=repair_of,
            media=pictures,
        )

    def call(self, group: Sequence[Request]) -> Call:
        """The request as it stands, pictures as data URLs in place of their names."""
        request = group[0]
        body = request.body
        for picture in request.media:
            # Inside a text the quotes would be escaped: only a URL that is nothing but the name is replaced.
            data = base64.b64encode(picture.read())
            body = body.replace(
                b'url":"' + picture.name.encode() + b'"',
                b'url":"data:' + picture.kind.encode() + b";base64," + data + b'"',
            )
        return Call("POST", self.path, body, stream=self._stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """The reply's own bytes; of a stream, those of the reply that would have come without one."""
        streamed = is_event_stream(reply.body)
        whole = self._dialect.assemble(parse_events(reply.body)) if streamed else _parsed(reply.body)
        if is_error_body(whole):
            error = row_error(replace(reply, body=orjson.dumps(whole)) if streamed else reply)
            raise MalformedReply(error.message, error)
        self._memo = (reply.body, whole, self._dialect.parse_choices(whole))
        return (orjson.dumps(whole) if streamed else reply.body,)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """As the reply counts it."""
        if self._memo is None or self._memo[0] is not reply.body:
            self.answers(group, reply)
        assert self._memo is not None
        _, whole, choices = self._memo
        return token_usage(whole, choices[0].finish_reason)

    def values(self, answer: bytes) -> Values | RowError:
        """The text or the typed columns of an answer, and what stands beside them."""
        try:
            return self._columns.values(self._choices(answer))
        except MalformedReply as exc:
            return RowError("invalid_answer", str(exc))

    def _choices(self, answer: bytes) -> Sequence[ReplyChoice]:
        if self._memo is not None and self._memo[0] is answer:
            return self._memo[2]
        return self._dialect.parse_choices(_parsed(answer))

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        """The dialogue, the answer, and what does not fit."""
        if self._typed is None or problem.error_class != "invalid_answer" or request.repair_of is not None:
            return None
        said = self._choices(answer)[0].text
        body = orjson.loads(request.body)
        asked = body[self._dialect.messages_key]
        turns = [
            *([{"role": "user", "content": asked}] if isinstance(asked, str) else asked),
            {"role": "assistant", "content": said or ""},
            {"role": "user", "content": REPAIR_PROMPT.format(problem=problem.message)},
        ]
        body[self._dialect.messages_key] = turns
        tokens = self._fixed_tokens
        tokens += sum(count_tokens(_as_text(body[name]), self._counted_as) for name in self._moving)
        made = self._asked(body, turns, tokens, request.media, request.keys[0], request.fingerprint)
        return made if isinstance(made, Request) else None

    def fallback_mode(self, problem: RowError) -> str | None:
        """The next way, where the server does not know this one."""
        if self._typed is None or self._step.structured != "auto" or problem.error_class != "bad_request":
            return None
        told = f"{problem.param or ''} {problem.message}".lower()
        if not any(word in told for word in _REFUSES_THE_WAY):
            return None
        ways = self._dialect.modes
        place = ways.index(self._way) + 1
        return ways[place] if place < len(ways) else None

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """One array a column."""
        return self._columns.arrays(values)


def parse_typed_output(step: ConversationStep, where: KeyPath) -> TypedOutput | None:
    """The step's `output:` where it is typed; JobError where it is no type."""
    if not isinstance(step.output, dict):
        return None
    return TypedOutput(step.output, (*where, "output"))


def take_param(step: StepModel, params: dict[str, Any], name: str, where: KeyPath) -> Any:
    """A key of the API that stands on the step or among its `params`, not in both; taken out of `params`. None: it is
    nowhere."""
    own = getattr(step, name)
    if name not in params:
        return own
    value = params.pop(name)
    if own is not None and name in step.model_fields_set:
        raise JobError((*where, "params", name), "stands on the step as well", "leave out one of both")
    return value


def take_stream(step: ConversationStep, params: dict[str, Any], where: KeyPath) -> bool:
    """Whether the step streams; JobError for a `stream` that is none, and for stream_options without it."""
    stream = take_param(step, params, "stream", where)
    if not isinstance(stream, bool):
        raise JobError((*where, "params", "stream"), f"found {stream!r}, expected true or false", "correct it")
    if not stream and "stream_options" in params:
        raise JobError((*where, "params", "stream_options"), "there is no stream", "add stream: true to the step")
    return stream


def _way(step: ConversationStep, facts: StepContext, dialect: WireFormat) -> str:
    way = (facts.structured_mode or STRUCTURED_MODES[0]) if step.structured == "auto" else step.structured
    return way if way in dialect.modes else dialect.modes[-1]


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        whole = parse_json(body)
    except orjson.JSONDecodeError as exc:
        raise MalformedReply(f"the reply is no JSON ({exc}): {shortened(body)}") from exc
    if not isinstance(whole, dict):
        raise MalformedReply(f"the reply is no JSON object: {shortened(body)}")
    return whole


def shortened(told: Any) -> str:
    """The beginning of a reply, for messages."""
    body = told if isinstance(told, bytes) else orjson.dumps(told)
    text = body[:200].decode("utf-8", "replace")
    return text if len(body) <= 200 else f"{text}…"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
