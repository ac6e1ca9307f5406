"""What the local provider answers to a dialogue: text, JSON that fits a schema, or calls of tools."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from connectors.emulator.api import digest_of, id_of
from connectors.emulator.chat.image_facts import look
from connectors.emulator.chat.request_checks import text_of
from connectors.emulator.chat.schema_values import Filler
from connectors.emulator.chat.schemas import Schema
from connectors.emulator.chat.sentiment import asks_for_sentiment, compound, strength, without_labels
from connectors.emulator.chat.text_facts import most_alike, names, sentences, subject_of
from connectors.emulator.validation import refuse
from connectors.tokens import count_tokens, token_pieces

REFUSE = "[[rowmill:refuse]]"
"""A dialogue whose last user message holds this is answered with finish_reason content_filter."""

MARK = "[local] "
"""How free text begins, so that nobody takes it for a model's."""

LONGEST = 400
"""Characters of a free text."""
MOST_CALLS = 4

_SCHEMA_HEAD = re.compile(r'\{\s*"(?:type|properties|\$defs|\$schema)"\s*:')


@dataclass(frozen=True, slots=True)
class Tool:
    """What may be called."""

    name: str
    about: str
    """Name and description, by which it is chosen."""
    schema: Schema | None
    """Of its arguments; None: it takes free text (a custom tool)."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call."""

    id: str
    name: str
    arguments: str
    """JSON, or the free text of a custom tool."""
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for answers, of whichever endpoint."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    """As chat completions write them; checked."""
    digest: bytes
    """Of all that an answer depends on."""
    schema: Schema | None = None
    must_fit: bool = False
    """Whether an answer that does not fit the schema is refused."""
    json_object: bool = False
    tools: Sequence[Tool] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    named: str | None = None
    """The one tool that is to be called."""
    parallel: bool = True
    limit: int | None = None
    """Tokens of one answer."""
    stops: Sequence[str] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How a real model draws its words: temperature, seed and the like, as they were sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice."""

    text: str | None
    calls: tuple[ToolCall, ...] = ()
    finish: Literal["stop", "length", "tool_calls", "content_filter"] = "stop"
    tokens: int = 0
    given: int | None = None
    """Tokens of the dialogue as a real model counted them; None for the emulator."""
    logprobs: Sequence[Mapping[str, Any]] | None = None
    """Of a real model that was asked for them, an entry a token; None: there are none, or they are made up."""


@dataclass(slots=True)
class Heard:
    """What a dialogue says, gathered once for all choices."""

    user: str
    """The last user message."""
    prompt: str
    """All instructions and the last user message."""
    results: list[str] = field(default_factory=list)
    """What tools have said since."""
    from_user: bool = True
    """Whether the user spoke last."""
    sights: list[str] = field(default_factory=list)
    facts: dict[str, str | int] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """What an answer is made from."""
        if self.results:
            return "\n".join(self.results)
        text = subject_of(self.user)
        if self.sights:
            return " ".join([*(f"{sight}." for sight in self.sights), text])
        if asks_for_sentiment(text):
            parts = [part for part in re.split(r"\n+", text) if not asks_for_sentiment(part)]
            text = "\n".join(parts) or without_labels(text)
        return text


def hear(messages: Sequence[Mapping[str, Any]]) -> Heard:
    """What the dialogue says; ApiError 400 for a picture in it that is none."""
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    user = text_of(messages[last].get("content")) if last >= 0 else ""
    instructions = [text_of(one.get("content")) for one in messages if one["role"] in ("system", "developer")]
    if last < 0:
        user = text_of(messages[-1].get("content"))
    heard = Heard(user, "\n".join([*instructions, user]), from_user=messages[-1]["role"] not in ("tool", "function"))
    for place, message in enumerate(messages):
        if message["role"] in ("tool", "function") and place > last:
            heard.results.append(text_of(message.get("content")))
        if isinstance(message.get("content"), list):
            _look_at(message["content"], f"messages[{place}].content", heard, place == last)
    return heard


def has_pictures(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether answering takes longer than a moment."""
    return any(
        part.get("type") == "image_url"
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _look_at(parts: Sequence[Mapping[str, Any]], where: str, heard: Heard, current: bool) -> None:
    for place, part in enumerate(parts):
        if part["type"] == "image_url":
            url = part["image_url"]["url"]
            sight = look(url, part.get("where") or f"{where}[{place}].image_url.url")
            if not current:
                continue
            heard.sights.append(f"an image at {url[:200]} that was not fetched" if sight is None else sight.words())
            if sight is not None:
                heard.facts = {**sight.facts(), **heard.facts}
        elif part["type"] == "input_audio" and current:
            heard.sights.append(f"a {part['input_audio']['format']} clip that was not listened to")
        elif part["type"] == "file" and current:
            heard.sights.append(f"a file {part['file'].get('filename', '')} that was not read".replace("  ", " "))


def answer(asked: Asked, heard: Heard, choice: int = 0) -> Answer:
    """One choice; the same for the same request."""
    if REFUSE in heard.user:
        return Answer(None, finish="content_filter")
    tools = _tools_to_call(asked, heard)
    if tools:
        calls = tuple(_calls(asked, heard, tools, choice))
        tokens = sum(count_tokens(f"{call.name}{call.arguments}", asked.model) + 8 for call in calls)
        return Answer(None, calls, "tool_calls", tokens)
    return _cut(_text(asked, heard, choice), asked)


def _tools_to_call(asked: Asked, heard: Heard) -> list[Tool]:
    if asked.named is not None:
        return [tool for tool in asked.tools if tool.name == asked.named]
    if asked.choice == "none" or not asked.tools or (asked.choice == "auto" and not heard.from_user):
        return []
    scores = most_alike([tool.about for tool in asked.tools], heard.user)
    best = max(scores)
    if not asked.parallel or best == 0:
        return [asked.tools[scores.index(best)]]
    # A tool of which only a common word is mentioned is not meant.
    return [tool for tool, score in zip(asked.tools, scores, strict=True) if score * 2 > best][:MOST_CALLS]


def _calls(asked: Asked, heard: Heard, tools: Sequence[Tool], choice: int) -> list[ToolCall]:
    times = 1
    if len(tools) == 1 and asked.parallel and asked.named is None:
        times = max(1, min(MOST_CALLS, len(names(heard.user))))
    calls: list[ToolCall] = []
    for place, tool in enumerate(tool for tool in tools for _ in range(times)):
        again = place if times > 1 else 0
        if tool.schema is None:
            arguments = heard.subject
        else:
            filler = Filler(tool.schema.whole, heard.subject, asked.digest, choice + again, heard.facts)
            arguments = orjson.dumps(filler.value()).decode()
        if not any(call.name == tool.name and call.arguments == arguments for call in calls):
            ident = id_of("call_", asked.digest.hex(), choice, place)
            calls.append(ToolCall(ident, tool.name, arguments, tool.schema is None))
    return calls


def _text(asked: Asked, heard: Heard, choice: int) -> str:
    if asked.schema is not None:
        return _fitting(asked.schema, asked, heard, choice)
    if asked.json_object or "JSON Schema" in heard.prompt:
        schema = _schema_in(heard.prompt)
        if schema is not None:
            return _filled(schema, asked, heard, choice)[1]
    subject = heard.subject
    if asks_for_sentiment(heard.prompt) and not heard.results:
        score = compound(subject)
        label = "positive" if score > 0 else "negative"
        return f'{{"sentiment":"{label}","confidence":{strength(score)}}}' if asked.json_object else label
    said = _summary(subject, choice, heard)
    return orjson.dumps({"answer": said}).decode() if asked.json_object else said


def _fitting(schema: Schema, asked: Asked, heard: Heard, choice: int) -> str:
    value, written = _filled(schema.whole, asked, heard, choice)
    if asked.must_fit and not schema.validator.is_valid(value):
        problem = next(iter(schema.validator.iter_errors(value)))
        raise refuse(
            "response_format",
            f"The local provider found no value that fits this schema: {str(problem.message)[:200]}",
            "invalid_json_schema",
        )
    return written


def _filled(schema: Any, asked: Asked, heard: Heard, choice: int) -> tuple[Any, str]:
    """(value, its JSON): with shorter texts where longer ones would not fit the limit of tokens."""
    for longest in (200, 40, 10):
        value = Filler(schema, heard.subject, asked.digest, choice, heard.facts, longest).value()
        written = orjson.dumps(value).decode()
        if asked.limit is None or count_tokens(written, asked.model) <= asked.limit:
            break
    return value, written


def _schema_in(prompt: str) -> Any:
    """The JSON Schema that is written in a prompt; None where there is none."""
    for match in _SCHEMA_HEAD.finditer(prompt):
        try:
            found, _ = json.JSONDecoder().raw_decode(prompt, match.start())
        except json.JSONDecodeError:
            continue
        if "properties" in found or "type" in found:
            return found
    return None


def _summary(subject: str, choice: int, heard: Heard) -> str:
    """The first sentences, from the second one on for the second choice, and so on."""
    if heard.sights and not heard.results:
        return f"{MARK}I see {', and '.join(heard.sights)}."
    found = sentences(subject)
    if not found:
        return f"{MARK}There is nothing to answer."
    start = choice % len(found)
    said = found[start]
    for sentence in found[start + 1 :]:
        if len(said) + len(sentence) > LONGEST // 2:
            break
        said = f"{said} {sentence}"
    return MARK + (said if len(said) <= LONGEST else said[:LONGEST].rsplit(" ", 1)[0])


def _cut(text: str, asked: Asked) -> Answer:
    """The text up to a stop or to the limit of tokens, whichever comes first."""
    ends = [place for stop in asked.stops if stop and (place := text.find(stop)) >= 0]
    if ends:
        text = text[: min(ends)]
    tokens = count_tokens(text, asked.model)
    if asked.limit is None or tokens <= asked.limit:
        return Answer(text, tokens=tokens)
    kept, used = "", 0
    for piece, count in token_pieces(text, asked.model):
        if used + count > asked.limit:
            break
        kept, used = kept + piece, used + count
    return Answer(kept, finish="length", tokens=used)


def digest_of_request(body: Mapping[str, Any], ignored: frozenset[str]) -> bytes:
    """Of all parameters that an answer depends on."""
    return digest_of({name: value for name, value in body.items() if name not in ignored})
