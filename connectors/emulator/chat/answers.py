"""Emulated answers to a conversation: text, JSON that fits a schema, or tool calls."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
from msgspec import Struct, field

from connectors.emulator.api import derived_id, digest_of
from connectors.emulator.chat.file_facts import describe_audio, describe_file
from connectors.emulator.chat.image_facts import inspect_image
from connectors.emulator.chat.request_checks import content_text
from connectors.emulator.chat.schema_values import Filler
from connectors.emulator.chat.schemas import CompiledSchema
from connectors.emulator.chat.sentiment import asks_for_sentiment, compound, strength, without_labels
from connectors.emulator.chat.text_facts import overlaps, proper_names, sentences, subject_of
from connectors.emulator.validation import refuse
from connectors.tokens import count_tokens, token_pieces

REFUSAL_TRIGGER = "[[rowmill:refuse]]"
"""A last user message with this text is answered with finish_reason content_filter."""

TEXT_MARK = "[local] "
"""Prefix of free text, which shows that no model wrote it."""

MAX_TEXT_CHARACTERS = 400
"""Maximum length of free text."""
MAX_CALLS = 4

_CORRECTION = re.compile(r"This answer does not (?:fit|meet)\b.*\bAnswer again\b", re.DOTALL)
"""A user message that is about the answer before it."""
_SCHEMA_HEAD = re.compile(r'\{\s*"(?:type|properties|\$defs|\$schema)"\s*:')


class Tool(Struct, frozen=True):
    """A tool that the request offers."""

    name: str
    description: str
    """Name and description, by which a tool is selected."""
    schema: CompiledSchema | None
    """Schema of the arguments; None for a custom tool, which takes free text."""


class ToolCall(Struct, frozen=True):
    """One tool call of an answer."""

    id: str
    name: str
    arguments: str
    """JSON, or the free text of a custom tool."""
    is_custom: bool = False


class AnswerRequest(Struct, frozen=True):
    """A validated request for answers, from any endpoint."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    """Messages in the format of chat completions."""
    digest: bytes
    """Digest of everything that the answer depends on."""
    schema: CompiledSchema | None = None
    is_strict: bool = False
    """Whether an answer must fit the schema."""
    json_object: bool = False
    tools: Sequence[Tool] = ()
    tool_choice: Literal["none", "auto", "required"] = "auto"
    forced_tool: str | None = None
    """Name of the only tool to call."""
    allows_parallel_calls: bool = True
    max_tokens: int | None = None
    """Tokens per answer."""
    stops: Sequence[str] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling parameters for real models (temperature, seed …), as sent."""


class Answer(Struct, frozen=True):
    """One answer; a request with `n` gets several."""

    text: str | None
    calls: tuple[ToolCall, ...] = ()
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] = "stop"
    tokens: int = 0
    prompt_tokens: int | None = None
    """Prompt tokens as a real model counted them; None for the emulator."""
    logprobs: Sequence[Mapping[str, Any]] | None = None
    """A real model's log probabilities, one entry per token; None if not requested or synthetic."""


class ConversationFacts(Struct):
    """Facts of a conversation, gathered once for all choices."""

    user: str
    """The last user message."""
    prompt: str
    """All instructions and the last user message."""
    tool_results: list[str] = field(default_factory=list)
    """Tool messages after the last user message."""
    is_from_user: bool = True
    """Whether the last message is the user's."""
    is_correction: bool = False
    """Whether the last user message asks to answer the one before again."""
    image_descriptions: list[str] = field(default_factory=list)
    image_values: dict[str, str | int] = field(default_factory=dict)
    """Values of schema fields such as `width`, from the images."""

    @property
    def subject(self) -> str:
        """The text from which the answer is taken."""
        if self.tool_results:
            return "\n".join(self.tool_results)
        text = subject_of(self.user)
        if self.image_descriptions:
            return " ".join([*(f"{description}." for description in self.image_descriptions), text])
        if asks_for_sentiment(text):
            parts = [part for part in re.split(r"\n+", text) if not asks_for_sentiment(part)]
            text = "\n".join(parts) or without_labels(text)
        return text


def conversation_facts(messages: Sequence[Mapping[str, Any]]) -> ConversationFacts:
    """The facts of a conversation; ApiError 400 for an unreadable image in it."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    corrections: list[str] = []
    while len(users) > 1 and _CORRECTION.match(text := content_text(messages[users[-1]].get("content"))):
        corrections.append(text)
        users.pop()
    last = users[-1] if users else -1
    user = content_text(messages[last].get("content")) if last >= 0 else ""
    instructions = [
        content_text(message.get("content")) for message in messages if message["role"] in ("system", "developer")
    ]
    if last < 0:
        user = content_text(messages[-1].get("content"))
    facts = ConversationFacts(
        user,
        "\n".join([*instructions, user, *corrections]),
        is_from_user=messages[-1]["role"] not in ("tool", "function"),
        is_correction=bool(corrections),
    )
    for index, message in enumerate(messages):
        if message["role"] in ("tool", "function") and index > last:
            facts.tool_results.append(content_text(message.get("content")))
        if isinstance(message.get("content"), list):
            _inspect_parts(message["content"], f"messages[{index}].content", facts, index == last)
    return facts


def has_images(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a message has an image, document or recording, which takes time to decode."""
    return any(
        part.get("type") in ("image_url", "file", "input_audio")
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _inspect_parts(
    parts: Sequence[Mapping[str, Any]], param: str, facts: ConversationFacts, is_last_user_message: bool
) -> None:
    for index, part in enumerate(parts):
        if part["type"] == "image_url":
            url = part["image_url"]["url"]
            image = inspect_image(url, part.get("where") or f"{param}[{index}].image_url.url")
            if not is_last_user_message:
                continue
            facts.image_descriptions.append(
                f"an image at {url[:200]} that was not fetched" if image is None else image.description()
            )
            if image is not None:
                facts.image_values = {**image.values(), **facts.image_values}
        elif part["type"] in ("input_audio", "file"):
            key = str(part["type"])
            describe = describe_audio if key == "input_audio" else describe_file
            description = describe(part[key], part.get("where") or f"{param}[{index}].{key}")
            if is_last_user_message:
                facts.image_descriptions.append(description)


def answer(request: AnswerRequest, facts: ConversationFacts, choice: int = 0) -> Answer:
    """The emulator's answer; equal requests and choices give equal answers."""
    if REFUSAL_TRIGGER in facts.user:
        return Answer(None, finish_reason="content_filter")
    tools = _tools_to_call(request, facts)
    if tools:
        calls = tuple(_calls(request, facts, tools, choice))
        tokens = sum(count_tokens(f"{call.name}{call.arguments}", request.model) + 8 for call in calls)
        return Answer(None, calls, "tool_calls", tokens)
    return truncated(_answer_text(request, facts, choice), request)


def _tools_to_call(request: AnswerRequest, facts: ConversationFacts) -> list[Tool]:
    if request.forced_tool is not None:
        return [tool for tool in request.tools if tool.name == request.forced_tool]
    if request.tool_choice == "none" or not request.tools or (request.tool_choice == "auto" and not facts.is_from_user):
        return []
    scores = overlaps([tool.description for tool in request.tools], facts.user)
    best = max(scores)
    if not request.allows_parallel_calls or best == 0:
        return [request.tools[scores.index(best)]]
    # A tool that shares only a common word with the message is not meant.
    return [tool for tool, score in zip(request.tools, scores, strict=True) if score * 2 > best][:MAX_CALLS]


def _calls(request: AnswerRequest, facts: ConversationFacts, tools: Sequence[Tool], choice: int) -> list[ToolCall]:
    count = 1
    if len(tools) == 1 and request.allows_parallel_calls and request.forced_tool is None:
        count = max(1, min(MAX_CALLS, len(proper_names(facts.user))))
    calls: list[ToolCall] = []
    for index, tool in enumerate(tool for tool in tools for _ in range(count)):
        repetition = index if count > 1 else 0
        if tool.schema is None:
            arguments = facts.subject
        else:
            filler = Filler(
                tool.schema.document, facts.subject, request.digest, choice + repetition, facts.image_values
            )
            arguments = orjson.dumps(filler.value()).decode()
        if not any(call.name == tool.name and call.arguments == arguments for call in calls):
            call_id = derived_id("call_", request.digest.hex(), choice, index)
            calls.append(ToolCall(call_id, tool.name, arguments, tool.schema is None))
    return calls


def _answer_text(request: AnswerRequest, facts: ConversationFacts, choice: int) -> str:
    if request.schema is not None:
        return _structured_text(request.schema, request, facts, choice)
    if request.json_object or "JSON Schema" in facts.prompt:
        schema = schema_in_prompt(facts.prompt)
        if schema is not None:
            return _filled(schema, request, facts, choice)[1]
    subject = facts.subject
    if asks_for_sentiment(facts.prompt) and not facts.tool_results:
        score = compound(subject)
        label = "positive" if score > 0 else "negative"
        return f'{{"sentiment":"{label}","confidence":{strength(score)}}}' if request.json_object else label
    summary = _summary(subject, choice, facts)
    return orjson.dumps({"answer": summary}).decode() if request.json_object else summary


def _structured_text(schema: CompiledSchema, request: AnswerRequest, facts: ConversationFacts, choice: int) -> str:
    value, text = _filled(schema.document, request, facts, choice)
    if request.is_strict and not schema.validator.is_valid(value):
        problem = next(iter(schema.validator.iter_errors(value)))
        raise refuse(
            "response_format",
            f"The embedded provider found no value that fits this schema: {str(problem.message)[:200]}",
            "invalid_json_schema",
        )
    return text


def _filled(schema: Any, request: AnswerRequest, facts: ConversationFacts, choice: int) -> tuple[Any, str]:
    """(value, its JSON), with shorter strings if longer ones exceed `max_tokens`."""
    for max_characters in (200, 40, 10):
        value = Filler(
            schema, facts.subject, request.digest, choice, facts.image_values, max_characters, facts.is_correction
        ).value()
        text = orjson.dumps(value).decode()
        if request.max_tokens is None or count_tokens(text, request.model) <= request.max_tokens:
            break
    return value, text


def schema_in_prompt(prompt: str) -> Any:
    """The JSON Schema in a prompt; None if it has none."""
    for match in _SCHEMA_HEAD.finditer(prompt):
        try:
            schema, _ = json.JSONDecoder().raw_decode(prompt, match.start())
        except json.JSONDecodeError:
            continue
        if "properties" in schema or "type" in schema:
            return schema
    return None


def _summary(subject: str, choice: int, facts: ConversationFacts) -> str:
    """The first sentences; the second choice begins with the second sentence, and so on."""
    if facts.image_descriptions and not facts.tool_results:
        return f"{TEXT_MARK}I see {', and '.join(facts.image_descriptions)}."
    all_sentences = sentences(subject)
    if not all_sentences:
        return f"{TEXT_MARK}There is nothing to answer."
    start = choice % len(all_sentences)
    text = all_sentences[start]
    for sentence in all_sentences[start + 1 :]:
        if len(text) + len(sentence) > MAX_TEXT_CHARACTERS // 2:
            break
        text = f"{text} {sentence}"
    return TEXT_MARK + (text if len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS].rsplit(" ", 1)[0])


def truncated(text: str, request: AnswerRequest) -> Answer:
    """The text up to a stop sequence or `max_tokens`, whichever comes first."""
    ends = [index for stop in request.stops if stop and (index := text.find(stop)) >= 0]
    if ends:
        text = text[: min(ends)]
    tokens = count_tokens(text, request.model)
    if request.max_tokens is None or tokens <= request.max_tokens:
        return Answer(text, tokens=tokens)
    truncated, used = "", 0
    for piece, count in token_pieces(text, request.model):
        if used + count > request.max_tokens:
            break
        truncated, used = truncated + piece, used + count
    return Answer(truncated, finish_reason="length", tokens=used)


def digest_of_request(body: Mapping[str, Any], ignored: frozenset[str]) -> bytes:
    """The digest of all parameters that the answer depends on."""
    return digest_of({name: value for name, value in body.items() if name not in ignored})
