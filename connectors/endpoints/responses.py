"""POST /responses in both formats: OpenAI's (input, text) and the reference's (messages, response_format)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from connectors.contracts import StepContext, TemplateText, TextFile
from connectors.endpoints.conversation.chat_params import REFERENCE_PARAMS, RESPONSES_PARAMS
from connectors.endpoints.conversation.conversation_endpoint import (
    ConversationEndpoint,
    ConversationStep,
    WireFormat,
    parse_typed_output,
    take_param,
    take_stream,
)
from connectors.endpoints.conversation.messages import ColumnReference, Conversation, Messages
from connectors.endpoints.conversation.openai_responses import OpenAIResponsesFormat
from connectors.endpoints.conversation.output_columns import AnswerColumns
from connectors.endpoints.conversation.reference_responses import METADATA, ReferenceResponsesFormat, response_format
from connectors.endpoints.conversation.tool_calls import validate_tool_choice, validate_tools
from connectors.endpoints.params.checks import check_params
from connectors.endpoints.params.step_params import checked_text
from connectors.errors import JobError, KeyPath
from connectors.templating.template_tree import TemplateTree, compile_text, plain_json

MessageList = Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]


class ResponsesStep(ConversationStep):
    """A step of endpoint responses."""

    endpoint: Literal["responses"] = Field(description="POST /responses.")
    dialect: Literal["openai", "reference"] | None = Field(
        default=None,
        description="Default: reference if the step has messages or response_format, else openai.",
    )
    input: TemplateText | MessageList | ColumnReference | None = Field(
        default=None,
        description="A text, or messages and items whose texts are templates; or a column of whole conversations.",
        examples=["{{ body }}", [{"user": "{{ body }}"}]],
    )
    instructions: str | TextFile | None = Field(
        default=None, description="Instructions before the input; a template.", examples=["You label support tickets."]
    )
    text: dict[str, Any] | None = Field(
        default=None, description="The API's object: format, verbosity.", examples=[{"verbosity": "low"}]
    )
    messages: MessageList | ColumnReference | None = Field(
        default=None,
        description="The messages, in which every text is a template; or a column of whole conversations.",
        examples=[[{"user": "{{ body }}"}]],
    )
    response_format: dict[str, Any] | None = Field(
        default=None,
        description="The reference's object: standard, structured, enhanced, template or json_schema.",
        examples=[{"type": "enhanced", "include_metadata": True}],
    )

    def build(self, context: StepContext) -> ConversationEndpoint:
        """Build the endpoint; JobError for keys that do not fit."""
        where = ("steps", self.name)
        has_reference_keys = (
            self.messages is not None or self.response_format is not None or "response_format" in self.params
        )
        is_openai = (self.dialect or ("reference" if has_reference_keys else "openai")) == "openai"
        params = dict(self.params)
        if "background" in params:
            raise JobError(
                (*where, "params", "background"), "its answer would have to be fetched later", "leave it out"
            )
        tools, choice = take_param(self, params, "tools", where), take_param(self, params, "tool_choice", where)
        stream = take_stream(self, params, where)
        text, form = take_param(self, params, "text", where), take_param(self, params, "response_format", where)
        instructions = take_param(self, params, "instructions", where)
        check_params(params, RESPONSES_PARAMS if is_openai else REFERENCE_PARAMS, where)
        typed = parse_typed_output(self, where)
        templates: dict[str, TemplateTree] = {}
        body: dict[str, Any] = params
        messages, key = self._messages(where)
        if instructions is not None:
            if not isinstance(instructions, str):
                raise JobError((*where, "instructions"), f"found {instructions!r}, expected text", "put it in quotes")
            if not is_openai:
                raise JobError((*where, "instructions"), "only OpenAI's format has it", "write a message of the system")
            templates["instructions"] = compile_text(instructions, context.columns, (*where, "instructions"))
        if text is not None:
            body["text"] = self._text(text, is_openai, typed is not None, (*where, "text"))
        if form is not None:
            if is_openai or typed is not None:
                reason = "OpenAI's format has text: {format: ...}" if is_openai else "a typed output has its own"
                raise JobError((*where, "response_format"), reason, "leave it out")
            templates["response_format"] = response_format(form, context.columns, (*where, "response_format"))
        if tools is not None:
            body["tools"] = tools = validate_tools(tools, (*where, "tools"), flat=is_openai)
        if choice is not None:
            body["tool_choice"] = validate_tool_choice(choice, tools, (*where, "tool_choice"), flat=is_openai)
        if stream:
            body["stream"] = True
        body |= {key: part.render({}) for key, part in templates.items() if not part.varies_by_row}
        columns = AnswerColumns(
            self.name,
            self.output if isinstance(self.output, str) else self.name,
            typed,
            tool_calls=tools is not None,
            logprobs="message.output_text.logprobs" in params.get("include", ()) or bool(params.get("top_logprobs")),
            metadata=None if is_openai else METADATA,
            detail=self.detail,
            allow_empty=self.allow_empty,
            max_tokens_param="max_output_tokens" if is_openai else "max_tokens",
        )
        # The reference describes pictures only; OpenAI's description has no audio here.
        parts = ("image", "file") if is_openai else ("image",)
        conversation = Conversation(messages, context.columns, (*where, key), allows_items=is_openai, file_parts=parts)
        wire_format: WireFormat = (
            OpenAIResponsesFormat(isinstance(self.input, str)) if is_openai else ReferenceResponsesFormat()
        )
        rest = {key: part for key, part in templates.items() if part.varies_by_row}
        return ConversationEndpoint(self, context, wire_format, conversation, body, rest, columns, typed)

    def _messages(self, where: KeyPath) -> tuple[Messages, str]:
        """Return the messages and their key."""
        if self.input is not None and self.messages is not None:
            raise JobError((*where, "messages"), "is not used with input", "use one of the two")
        if self.messages is not None:
            return self.messages, "messages"
        if self.input is None:
            raise JobError((*where, "input"), "missing", "write input: or messages:")
        if isinstance(self.input, str | TextFile):
            return checked_text(self.input, (*where, "input")), "input"
        return self.input, "input"

    def _text(self, text: Any, is_openai: bool, typed: bool, where: KeyPath) -> Any:
        if not is_openai:
            raise JobError(where, "only OpenAI's format has it", "write response_format:")
        if not isinstance(text, Mapping):
            raise JobError(where, f"found {text!r}, expected keys and values", "write e.g. text: {verbosity: low}")
        if typed and "format" in text:
            raise JobError((*where, "format"), "a typed output has its own", "leave it out")
        return plain_json(text, where)
