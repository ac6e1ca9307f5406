"""POST /chat/completions: a conversation for each row, text or typed columns out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from connectors.contracts import MalformedReply, StepContext
from connectors.endpoints.conversation.chat_params import CHAT_PARAMS, LEFT_OUT_OF_CHAT
from connectors.endpoints.conversation.conversation_endpoint import (
    ConversationEndpoint,
    ConversationStep,
    parse_typed_output,
    take_param,
    take_stream,
)
from connectors.endpoints.conversation.messages import ColumnReference, Conversation
from connectors.endpoints.conversation.output_columns import AnswerColumns, ReplyChoice
from connectors.endpoints.conversation.structured.structured_modes import STRUCTURED_MODES
from connectors.endpoints.conversation.tool_calls import parse_tool_calls, validate_tool_choice, validate_tools
from connectors.endpoints.params.checks import check_params
from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.transport.finish_reasons import ending, finish_reason
from connectors.transport.reply_body import excerpt
from connectors.transport.reply_texts import content_text, reasoning_text, transcript
from connectors.transport.sse import Event
from connectors.transport.stream_assembly import assemble_completion

FORMATS = ("text", "json_object", "json_schema")


class ChatStep(ConversationStep):
    """A step of endpoint chat."""

    endpoint: Literal["chat"] = Field(description="POST /chat/completions.")
    messages: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | ColumnReference = Field(
        description="The messages, in which every text is a template; or a column of whole conversations.",
        examples=[[{"system": "You label support tickets."}, {"user": "{{ body }}"}]],
    )

    def build(self, context: StepContext) -> ConversationEndpoint:
        """Build the endpoint; JobError for keys that do not fit."""
        where = ("steps", self.name)
        params = dict(self.params)
        body: dict[str, Any] = {}
        tools, choice = take_param(self, params, "tools", where), take_param(self, params, "tool_choice", where)
        stream = take_stream(self, params, where)
        response_format = params.pop("response_format", None)
        check_params(params, CHAT_PARAMS, where, LEFT_OUT_OF_CHAT)
        typed = parse_typed_output(self, where)
        count = int(params.get("n", 1))
        if typed is not None and count != 1:
            raise JobError((*where, "params", "n"), "a typed output has one answer a row", "leave n out")
        if typed is not None and response_format is not None:
            raise JobError((*where, "params", "response_format"), "a typed output has its own", "leave it out")
        if params.get("top_logprobs") is not None and not params.get("logprobs"):
            raise JobError((*where, "params", "top_logprobs"), "requires logprobs", "add logprobs: true to params")
        body |= params
        if response_format is not None:
            body["response_format"] = _validate_response_format(response_format, (*where, "params", "response_format"))
        if tools is not None:
            body["tools"] = tools = validate_tools(tools, (*where, "tools"), flat=False)
        if choice is not None:
            body["tool_choice"] = validate_tool_choice(choice, tools, (*where, "tool_choice"), flat=False)
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True, **params.get("stream_options", {})}}
        columns = AnswerColumns(
            self.name,
            self.output if isinstance(self.output, str) else self.name,
            typed,
            count,
            tool_calls=tools is not None,
            logprobs=bool(params.get("logprobs")),
            detail=self.detail,
            allow_empty=self.allow_empty,
        )
        conversation = Conversation(self.messages, context.columns, (*where, "messages"))
        return ConversationEndpoint(self, context, ChatCompletionsFormat(), conversation, body, {}, columns, typed)


class ChatCompletionsFormat:
    """The wire format of chat completions."""

    path = "/chat/completions"
    messages_key = "messages"
    modes = STRUCTURED_MODES
    max_token_params = ("max_tokens", "max_completion_tokens")

    def render_messages(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        """Return the messages unchanged."""
        return messages

    def with_schema(self, body: Mapping[str, Any], way: str, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Use `response_format`."""
        if way == "schema":
            form = {"name": name, "strict": True, "schema": schema}
            return {**body, "response_format": {"type": "json_schema", "json_schema": form}}
        return {**body, "response_format": {"type": "json_object"}} if way == "json_object" else dict(body)

    def answer_body(self, text: str, model: str | None) -> dict[str, Any]:
        """Return the reply whose answer is this text."""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"object": "chat.completion", "model": model, "choices": [choice]}

    def assemble(self, events: Iterable[Event]) -> dict[str, Any]:
        """Assemble chunks."""
        return assemble_completion(events)

    def parse_choices(self, reply: Mapping[str, Any]) -> Sequence[ReplyChoice]:
        """Return the answers in the order of their indexes."""
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices:
            raise MalformedReply(f"the reply has no choices: {excerpt(reply)}")
        for choice in choices:
            if not isinstance(choice, dict) or not _has_message(choice):
                raise MalformedReply(f"a choice of the reply has no message: {excerpt(reply)}")
        if len(choices) > 1:
            choices = sorted(choices, key=lambda choice: choice["index"] if isinstance(choice.get("index"), int) else 0)
        return [_choice(choice) for choice in choices]


def _has_message(choice: Mapping[str, Any]) -> bool:
    """Return whether a choice has a message; some servers send a text, and one that broke off may lack both."""
    message = choice.get("message")
    if message is None:
        return finish_reason(choice.get("finish_reason")) is not None or bool(choice.get("error"))
    return isinstance(message, dict)


def _choice(source: Mapping[str, Any]) -> ReplyChoice:
    message, logprobs = source.get("message") or {"content": source.get("text")}, source.get("logprobs")
    refusal, text = message.get("refusal"), content_text(message.get("content"))
    if not text and (spoken := transcript(message)):
        text = spoken
    has_calls = "tool_calls" in message or "function_call" in message
    return ReplyChoice(
        text,
        _finish_reason(source),
        refusal if isinstance(refusal, str) else None,
        parse_tool_calls(message) if has_calls else (),
        logprobs.get("content") if isinstance(logprobs, dict) else None,
        reasoning=None if text else reasoning_text(message),
        error=source.get("error"),
    )


def _finish_reason(source: Mapping[str, Any]) -> str | None:
    """Return the reason; without one, that of the provider behind a router, if its meaning is known."""
    if source.get("finish_reason") == "stop":
        return "stop"
    reason = finish_reason(source.get("finish_reason"))
    if reason is None and (native := finish_reason(source.get("native_finish_reason"))) is not None:
        return native if ending(native) != "unknown" else None
    return reason


def _validate_response_format(form: Any, where: KeyPath) -> Any:
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind not in FORMATS:
        raise JobError((*where, "type"), f"found {kind!r}", did_you_mean(str(kind), FORMATS))
    if kind == "json_schema":
        inner = form.get("json_schema")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise JobError((*where, "json_schema", "name"), "missing", "write json_schema: {name: ..., schema: ...}")
    return form
