"""The endpoint of conversations, shared by chat and responses: rows to requests, replies to typed columns."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, Protocol, Self

import orjson
from msgspec.structs import replace
from pydantic import BaseModel, Field, field_validator, model_validator

from connectors.contracts import UNFINGERPRINTED_KEYS, BaseEndpoint, MalformedReply, StepContext, StepModel
from connectors.endpoints.conversation.messages import Conversation
from connectors.endpoints.conversation.output_columns import AnswerColumns, ReplyChoice
from connectors.endpoints.conversation.packing.packed_conversation import (
    PACKED_TEXT_DIGEST,
    PackedAnswer,
    PackedConversation,
    PackOptions,
    PackTokens,
    check_packable,
)
from connectors.endpoints.conversation.structured.class_output import output_of_class
from connectors.endpoints.conversation.structured.structured_modes import STRUCTURED_MODES, StructuredMode, next_mode
from connectors.endpoints.conversation.structured.structured_output import TypedOutput
from connectors.endpoints.conversation.tool_calls import billing_terms
from connectors.error_classes import CHECK_FAILED
from connectors.errors import FieldError, JobError, KeyPath
from connectors.records import Call, Media, Reply, Request, Row, RowError, Usage, Values, compact_copy
from connectors.request_fingerprint import fingerprint_of, fingerprint_suffix, request_fingerprint
from connectors.templating.template import RenderError
from connectors.templating.template_tree import TemplateTree, plain_json
from connectors.tokens import chat_tokens, count_tokens, file_tokens, largest_output, smallest_output
from connectors.transport.bounded_json import replace_lone_surrogates
from connectors.transport.error_replies import is_error_body, request_id, row_error
from connectors.transport.finish_reasons import ending
from connectors.transport.reply_body import parse_object
from connectors.transport.sse import Event, is_event_stream, parse_events
from connectors.transport.token_usage import token_usage

REPAIR_PROMPT = (
    "This answer does not fit: {problem}. Answer again, with nothing but JSON that fits this JSON Schema: {schema}"
)
FORMER_REPAIR_PROMPT = "This answer does not fit: {problem}. Answer again, with nothing but JSON that fits the schema."
"""Still used if the conversation shows the schema; otherwise answers to it, which are paid for, are still found."""
CHECK_REPAIR_PROMPT = "This answer does not meet a condition: {problem}\nAnswer again{form}."
_TEXT_MARK = "\0the text of the row\0"
"""Placeholder of the text in which rows differ."""
SCHEMA_PROMPT = "Answer with nothing but JSON that fits this JSON Schema: {schema}"


class ConversationStep(StepModel):
    """The keys that chat and responses share."""

    output: str | dict[str, Any] | None = Field(
        default=None, description="A column's name, or typed columns: name -> JSON Schema."
    )
    output_schema: str | None = Field(
        default=None,
        min_length=1,
        description="In place of `output`: a file with a JSON Schema, whose properties become the outputs.",
        examples=["schemas/ticket.json"],
    )
    structured: Literal["auto", "schema", "json_object", "prompt"] = Field(
        default="auto", description="How a typed output is requested; auto falls back if the server has no schemas."
    )
    tools: tuple[dict[str, Any], ...] | None = Field(
        default=None,
        description="The API's tool objects; their calls become the column `<step>_tool_calls`.",
        examples=[[{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]],
    )
    allow_empty: bool = Field(default=False, description="true: an answer without a text is a result, not an error.")
    repairs: int = Field(
        default=1,
        ge=0,
        le=10,
        description="Repair turns of a row at most: a follow-up asks to correct an answer that is invalid.",
        examples=[2],
    )
    tool_choice: str | dict[str, Any] | None = Field(
        default=None,
        description="none, auto, required, or an object that names a tool.",
        examples=["required", {"type": "function", "function": {"name": "look_up"}}],
    )
    stream: bool = Field(default=False, description="true: request server-sent events; the columns are the same.")
    pack: PackOptions | None = Field(
        default=None, description="Several rows share a request; each keeps its own answer.", examples=[{"rows": 20}]
    )

    @field_validator("output", mode="before")
    @classmethod
    def _columns_of_class(cls, output: Any) -> Any:
        """Replace a pydantic class by the columns that it declares."""
        return output_of_class(output) if isinstance(output, type) and issubclass(output, BaseModel) else output

    @model_validator(mode="after")
    def _check_one_output(self) -> Self:
        if self.output is not None and self.output_schema is not None:
            raise FieldError("cannot be combined with output", "leave out one of them", ("output_schema",))
        return self

    @property
    def rungs(self) -> tuple[Self, ...]:
        """The step as each rung requests it: rows alone."""
        return tuple(rung.model_copy(update={"pack": None}) for rung in super().rungs)

    @property
    def schema_digest(self) -> bytes | None:
        """See StepModel."""
        if not isinstance(self.output, dict):
            return PACKED_TEXT_DIGEST if self.pack is not None else None
        options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        return blake2b(orjson.dumps(self.output, default=str, option=options), digest_size=16).digest()


class WireFormat(Protocol):
    """A wire format of conversations and their answers: pure functions."""

    path: str
    messages_key: str
    """Key of the messages in the body."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Its modes, out of STRUCTURED_MODES."""

    @property
    def max_token_params(self) -> tuple[str, ...]:
        """The parameters that limit the tokens of an answer."""

    def render_messages(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        """Convert messages from the format of chat completions to that of the body."""

    def with_schema(self, body: Mapping[str, Any], way: str, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body that requests JSON of this schema."""

    def answer_body(self, text: str, model: str | None) -> dict[str, Any]:
        """Return the reply whose answer is this text."""

    def assemble(self, events: Iterable[Event]) -> dict[str, Any]:
        """Return a streamed reply in the form that it has without a stream."""

    def parse_choices(self, reply: Mapping[str, Any]) -> Sequence[ReplyChoice]:
        """Return the answers of a parsed reply, at least one; MalformedReply without any."""


class ConversationEndpoint(BaseEndpoint):
    """The endpoint of one step, in one wire format."""

    has_small_values = True

    def __init__(
        self,
        step: ConversationStep,
        context: StepContext,
        wire_format: WireFormat,
        conversation: Conversation,
        fixed: Mapping[str, Any],
        templates: Mapping[str, TemplateTree],
        columns: AnswerColumns,
        typed: TypedOutput | None,
    ) -> None:
        """`fixed`: the part of the body that all rows share. `templates`: what rows render besides their messages."""
        where = ("steps", step.name)
        self.path = wire_format.path
        self._step = step
        self._tag = context.provider_tag
        self._wire_format = wire_format
        self._conversation = conversation
        self._templates = templates
        self._columns = columns
        self.fields = columns.fields
        self.media = conversation.media
        texts = conversation.text_columns.union(*(part.columns for part in templates.values()))
        for name in sorted(texts & conversation.media.keys()):
            raise JobError(where, f"{name} is both a file and a part of a text", "name it twice in the source")
        self.input_columns = texts | conversation.media.keys()
        self._typed = typed
        self._mode = _structured_mode(step, context, wire_format)
        body = {"model": step.model, **fixed}
        if typed is not None:
            schema = self._mode.reduce(typed.schema)
            body = wire_format.with_schema(body, self._mode.way, step.name[:64], schema)
        body = {**body, **step.extra_body}
        self._fixed: dict[str, Any] = plain_json(body, where)
        self._stream = bool(self._fixed.get("stream"))
        self.output_bound = self._find_output_bound(context.sent_models or (step.model,))
        self.billing_terms = replace(billing_terms(self._fixed), has_documents=conversation.has_documents)
        self._instruction = self._schema_message()
        self._sent_model = context.sent_model(step.model)
        self._tokenizer_model = self._sent_model if context.has_exact_tokens else None
        self._fixed_tokens = sum(
            count_tokens(orjson.dumps(self._fixed[key]).decode(), self._tokenizer_model)
            for key in ("tools", "response_format", "text")
            if self._fixed.get(key)
        )
        config = step.model_dump(exclude={*UNFINGERPRINTED_KEYS, "stream", "pack"}, exclude_defaults=True)
        self._config_bytes = orjson.dumps(plain_json(config, where), option=orjson.OPT_SORT_KEYS)
        self._last_reply: tuple[bytes, dict[str, Any], Sequence[ReplyChoice]] | None = None
        self.pack_options = step.pack
        self._constants = conversation.constant_messages()
        self._varies_in_one_text = self._constants is not None and not templates and not self.media
        self._fingerprint_suffix = fingerprint_suffix(self._tag, self.path)
        self._around_text: tuple[bytes, bytes, int] | None = None
        """If rows differ in one text: what their bodies have before and after it, and the tokens of all but the text;
        None before the first row."""
        self._body_without_schema = plain_json({"model": step.model, **fixed, **step.extra_body}, where)
        self._sent_models = context.sent_models or (step.model,)
        self._model_output_tokens = largest_output(self._sent_models)
        if step.pack is not None:
            check_packable(self._body_without_schema, typed, bool(self.media), where)
            if self._constants is None or templates:
                raise JobError(
                    (*where, "pack"),
                    "only the last message may depend on the row, as one text of the user",
                    "write the others without columns, or leave pack out",
                )

    def packed(self, mode: StructuredMode) -> PackedConversation:
        """Return the form in which rows share requests; `mode`: how its schema is requested.

        Without `pack` it only reads replies.
        """
        constants = self._constants or []
        before = self._with_instruction(constants)
        return PackedConversation(
            self.pack_options or PackOptions(),
            self._wire_format,
            constants,
            self._body_without_schema,
            self._step.name[:64],
            self.typed_properties,
            mode,
            SCHEMA_PROMPT,
            PackTokens(
                self._tokenizer_model,
                self._sent_model,
                self._fixed_tokens + chat_tokens([*before, {"role": "user", "content": ""}], self._tokenizer_model),
                self._model_output_tokens,
                smallest_output(self._sent_models),
            ),
        )

    @property
    def typed_properties(self) -> Mapping[str, Any] | None:
        """The JSON Schema of each typed output; None for a text."""
        return None if self._typed is None else self._typed.schema["properties"]

    @property
    def packed_mode(self) -> StructuredMode:
        """The mode in which the schema of shared requests is requested first."""
        return self._mode

    def next_packed_mode(
        self, mode: StructuredMode, form: PackedConversation, problem: RowError
    ) -> StructuredMode | None:
        """Return the mode to try next if `problem` refuses the schema of shared requests; else None."""
        if self._step.structured != "auto" or problem.error_class != "bad_request":
            return None
        return next_mode(mode, self._wire_format.modes, form.schema, problem)

    def packed_answers(
        self, form: PackedConversation, group: Sequence[Request], reply: Reply
    ) -> Sequence[PackedAnswer | None]:
        """Return each row's answer as a reply to it alone would have it; None: to be requested again.

        MalformedReply as for `answers`.
        """
        self.answers(group, reply)
        assert self._last_reply is not None
        _, body, choices = self._last_reply
        choice = choices[0]
        text = None if choice.refusal else choice.text or choice.reasoning
        model = body.get("model")
        return form.answers(group, text, model if isinstance(model, str) else None, self._packed_values)

    def _packed_values(self, answer: str) -> Values | RowError:
        """Return what `values` returns for a reply with this answer."""
        return self._columns.text_values(answer)

    @property
    def token_limits(self) -> Sequence[int]:
        """The most tokens of an answer, as `params` sets them; empty: only the model bounds it."""
        values = [self._fixed.get(name) for name in self._wire_format.max_token_params]
        return [limit for limit in values if isinstance(limit, int)]

    def _find_output_bound(self, sent_models: Sequence[str]) -> int | None:
        limits = self.token_limits
        bound = min(limits) if limits else largest_output(sent_models)
        count = self._fixed.get("n")
        return None if bound is None else bound * (count if isinstance(count, int) else 1)

    def _with_instruction(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        return messages if self._instruction is None else [self._instruction, *messages]

    def _schema_message(self) -> dict[str, str] | None:
        if self._typed is None or self._mode.way == "schema":
            return None
        schema = orjson.dumps(self._typed.schema).decode()
        return {"role": "system", "content": SCHEMA_PROMPT.format(schema=schema)}

    def config_bytes(self) -> bytes:
        """Return all keys but detail and stream; the row fingerprint has the provider separately."""
        return self._config_bytes

    def request(self, row: Row, key: str) -> Request | RowError:
        """Return the conversation with the row's values in it."""
        try:
            messages, files = self._conversation.render(row)
            rendered = {name: part.render(row) for name, part in self._templates.items()} if self._templates else None
        except RenderError as exc:
            return RowError("input", str(exc))
        if self._varies_in_one_text and isinstance(text := messages[-1].get("content"), str):
            return self._text_request(messages, text, key)
        body, tokens = self._body(messages), self._fixed_tokens
        if rendered:
            body |= rendered
            tokens += sum(count_tokens(_text_or_json(value), self._tokenizer_model) for value in rendered.values())
        return self._build_request(body, self._with_instruction(messages), tokens, files, key, None)

    def requests(self, rows: Sequence[Row], keys: Sequence[str]) -> Sequence[Request | RowError]:
        """Return the request of each row; of rows that differ in one text, no other part is rendered again."""
        render = self._conversation.render_last_text
        if render is None or not self._varies_in_one_text or not rows:
            return super().requests(rows, keys)
        found: list[Request | RowError] = []
        if self._around_text is None:
            # The first row that can be rendered shows what the bodies of all have around the text.
            for row, key in zip(rows, keys, strict=True):
                found.append(self.request(row, key))
                if self._around_text is not None:
                    break
            if self._around_text is None:
                return found
            rows, keys = rows[len(found) :], keys[len(found) :]
        before, after, constant_tokens = self._around_text
        suffix, bound, model = self._fingerprint_suffix, self.output_bound, self._tokenizer_model
        for row, key in zip(rows, keys, strict=True):
            try:
                text = render(row)
            except RenderError as exc:
                found.append(RowError("input", str(exc)))
                continue
            try:
                body = before + orjson.dumps(text) + after
            except TypeError as exc:
                found.append(_unwritable(exc))
                continue
            if not self._step.reuse:
                suffix = fingerprint_suffix(self._tag, self.path, key)
            tokens = constant_tokens + count_tokens(text, model)
            found.append(Request(fingerprint_of(body, suffix), body, tokens, bound, (key,)))
        return found

    def _body(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rendered = self._wire_format.render_messages(self._with_instruction(messages))
        return {**self._fixed, self._wire_format.messages_key: rendered}

    def _text_request(self, messages: Sequence[Mapping[str, Any]], text: str, key: str) -> Request | RowError:
        """Return the request of a row that differs from others in the text of the last message only.

        What is the same for all rows is written and counted once.
        """
        if self._around_text is None:
            marked = [*messages[:-1], {**messages[-1], "content": _TEXT_MARK}]
            before, _, after = orjson.dumps(self._body(marked)).rpartition(orjson.dumps(_TEXT_MARK))
            empty = self._with_instruction([*messages[:-1], {**messages[-1], "content": ""}])
            self._around_text = before, after, self._fixed_tokens + chat_tokens(empty, self._tokenizer_model)
        before, after, tokens = self._around_text
        try:
            body = before + orjson.dumps(text) + after
        except TypeError as exc:
            return _unwritable(exc)
        fingerprint = request_fingerprint(self._tag, self.path, body, "" if self._step.reuse else key)
        tokens += count_tokens(text, self._tokenizer_model)
        return Request(fingerprint, body, tokens, self.output_bound, (key,))

    def _build_request(
        self,
        body: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        tokens: int,
        files: tuple[Media, ...],
        key: str,
        repair_of: bytes | None,
    ) -> Request | RowError:
        """Return the request; `tokens` are those besides the messages'."""
        try:
            raw_body = compact_copy(orjson.dumps(body))
        except TypeError as exc:
            return _unwritable(exc)
        sizes = {file.name: file.pixels for file in files if file.pixels is not None}
        documents = {file.name: file_tokens(file.size, file.seconds) for file in files if file.pixels is None}
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, raw_body, "" if self._step.reuse else key),
            body=raw_body,
            input_tokens=tokens + chat_tokens(messages, self._tokenizer_model, sizes, documents),
            output_bound=self.output_bound,
            keys=(key,),
            repair_of=repair_of,
            media=files,
        )

    def call(self, group: Sequence[Request]) -> Call:
        """Return the request, with contents as data URLs in place of their names, and audio as base64 alone."""
        request = group[0]
        body = request.body
        for file in request.media:
            # Inside a text the quotes are escaped, so only a value that equals the name is replaced.
            data = base64.b64encode(file.read())
            head = b"" if file.kind.startswith("audio/") else b"data:" + file.kind.encode() + b";base64,"
            for key in (b'url":"', b'data":"'):
                body = body.replace(key + file.name.encode() + b'"', key + head + data + b'"')
        return Call("POST", self.path, body, stream=self._stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """Return the reply's bytes; for a stream, those of the same reply without one."""
        raw = reply.body
        if is_event_stream(raw):
            raw, body = _joined(self._wire_format.assemble(parse_events(raw)))
        else:
            body = parse_object(raw)
        if is_error_body(body) or _has_error(body.get("error")):
            error = row_error(reply if raw is reply.body else replace(reply, body=raw))
            raise MalformedReply(error.message, error, token_usage(body, None))
        try:
            choices = self._wire_format.parse_choices(body)
        except MalformedReply as exc:
            raise MalformedReply(str(exc), exc.error, token_usage(body, None)) from exc
        for choice in choices:
            if choice.finish_reason == "stop" and not choice.error:
                continue
            if (broken_off := _broken_off(choice, reply)) is not None:
                raise MalformedReply(broken_off.message, broken_off, token_usage(body, choice.finish_reason))
        self._last_reply = (reply.body, body, choices)
        return (raw,)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """Return the usage that the reply reports."""
        if self._last_reply is None or self._last_reply[0] is not reply.body:
            self.answers(group, reply)
        assert self._last_reply is not None
        _, body, choices = self._last_reply
        return token_usage(body, choices[0].finish_reason)

    def values(self, answer: bytes) -> Values | RowError:
        """Return the text or the typed columns of an answer, and its further columns."""
        try:
            return self._columns.values(self._choices(answer))
        except MalformedReply as exc:
            return RowError("invalid_answer", str(exc))

    def committed_values(self, answer: bytes) -> Values | RowError:
        """Return the same of an answer that is in a table already, also if it had no text: earlier releases took it."""
        try:
            return self._columns.values(self._choices(answer), is_committed=True)
        except MalformedReply as exc:
            return RowError("invalid_answer", str(exc))

    def _choices(self, answer: bytes) -> Sequence[ReplyChoice]:
        if self._last_reply is not None and self._last_reply[0] is answer:
            return self._last_reply[2]
        return self._wire_format.parse_choices(parse_object(answer))

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        """Return the conversation with the answer and what does not fit, to be answered again."""
        if problem.error_class != "invalid_answer":
            return None
        if problem.code == CHECK_FAILED:
            return self._repair_request(request, self._choices(answer)[0].text, self._check_prompt(problem.message))
        if self._typed is None:
            return None
        text = self._choices(answer)[0].text
        former = self._repair_request(request, text, FORMER_REPAIR_PROMPT.format(problem=problem.message))
        if self._instruction is not None:
            return former
        schema = orjson.dumps(self._typed.schema).decode()
        repair = self._repair_request(request, text, REPAIR_PROMPT.format(problem=problem.message, schema=schema))
        return None if repair is None else replace(repair, former=former)

    def _check_prompt(self, problem: str) -> str:
        form = ""
        if self._typed is not None:
            form = ", with nothing but JSON that fits the schema"
            if self._instruction is None:
                schema = orjson.dumps(self._typed.schema).decode()
                form = f", with nothing but JSON that fits this JSON Schema: {schema}"
        return CHECK_REPAIR_PROMPT.format(problem=problem, form=form)

    def _repair_request(self, request: Request, answer: str | None, prompt: str) -> Request | None:
        body = orjson.loads(request.body)
        sent = body[self._wire_format.messages_key]
        messages = [
            *([{"role": "user", "content": sent}] if isinstance(sent, str) else sent),
            {"role": "assistant", "content": answer or ""},
            {"role": "user", "content": prompt},
        ]
        body[self._wire_format.messages_key] = messages
        tokens = self._fixed_tokens
        tokens += sum(count_tokens(_text_or_json(body[name]), self._tokenizer_model) for name in self._templates)
        repair = self._build_request(body, messages, tokens, request.media, request.keys[0], request.fingerprint)
        return repair if isinstance(repair, Request) else None

    def fallback_mode(self, problem: RowError) -> str | None:
        """Return the next mode if the server does not know the present one."""
        if self._typed is None or self._step.structured != "auto" or problem.error_class != "bad_request":
            return None
        following = next_mode(self._mode, self._wire_format.modes, self._typed.schema, problem)
        return None if following is None else str(following)


def _joined(body: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return a reply that was assembled from events, as JSON and as a value, with valid Unicode only."""
    try:
        return orjson.dumps(body), body
    except TypeError:
        raw = replace_lone_surrogates(json.dumps(body)).encode()
        return raw, parse_object(raw)


def _has_error(error: Any) -> bool:
    """Return whether the `error` next to the answers of a reply is one."""
    if isinstance(error, Mapping):
        return any(error.values()) and error.get("code") not in (0, "0", 200, "200")
    return bool(error) and error is not True


def _unwritable(exc: TypeError) -> RowError:
    return RowError("input", f"the row's text cannot be written as UTF-8: {exc}")


def _broken_off(choice: ReplyChoice, reply: Reply) -> RowError | None:
    """Return why the request must be sent again: the answer has an error, or an ending that no whole answer has."""
    if _has_error(choice.error):
        error = row_error(replace(reply, body=orjson.dumps({"error": choice.error})))
        if error.error_class != "content_filter":
            error = replace(error, error_class="server", message=f"the answer broke off: {error.message}")
        return error
    reason = choice.finish_reason
    if ending(reason) != "unknown":
        return None
    message = f"the answer broke off (finish_reason {reason})"
    return RowError("server", message, reply.status, request_id=request_id(reply.headers))


def parse_typed_output(step: ConversationStep, where: KeyPath) -> TypedOutput | None:
    """Return the step's `output:` if it is typed; JobError for an invalid type."""
    if not isinstance(step.output, dict):
        return None
    return TypedOutput(step.output, (*where, "output"))


def take_param(step: StepModel, params: dict[str, Any], name: str, where: KeyPath) -> Any:
    """Return an API key from the step or its `params`, and remove it from `params`; JobError if both have it."""
    step_value = getattr(step, name)
    if name not in params:
        return step_value
    value = params.pop(name)
    if step_value is not None and name in step.model_fields_set:
        raise JobError((*where, "params", name), "is also a key of the step", "use one of the two")
    return value


def take_stream(step: ConversationStep, params: dict[str, Any], where: KeyPath) -> bool:
    """Return whether the step streams; JobError for an invalid `stream`, or stream_options without a stream."""
    stream = take_param(step, params, "stream", where)
    if not isinstance(stream, bool):
        raise JobError((*where, "params", "stream"), f"found {stream!r}, expected true or false", "correct it")
    if not stream and "stream_options" in params:
        raise JobError((*where, "params", "stream_options"), "the step does not stream", "add stream: true to the step")
    return stream


def _structured_mode(step: ConversationStep, context: StepContext, wire_format: WireFormat) -> StructuredMode:
    text = (context.structured_mode or STRUCTURED_MODES[0]) if step.structured == "auto" else step.structured
    mode = StructuredMode.parse(text)
    return mode if mode.way in wire_format.modes else StructuredMode(wire_format.modes[-1])


def _text_or_json(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
