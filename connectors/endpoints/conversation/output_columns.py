"""The columns of a chat or responses step: text or typed values, tool calls, logprobs, metadata, finish reason."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import pyarrow as pa
from msgspec import Struct

from connectors.endpoints.conversation.structured.structured_output import TypedOutput
from connectors.endpoints.conversation.tool_calls import TOOL_CALLS
from connectors.records import RowError, Values
from connectors.transport.finish_reasons import ending

_TOP_LOGPROB = pa.struct([("token", pa.string()), ("logprob", pa.float64())])
LOGPROBS = pa.list_(
    pa.struct(
        [
            ("token", pa.string()),
            ("logprob", pa.float64()),
            ("bytes", pa.list_(pa.int64())),
            ("top_logprobs", pa.list_(_TOP_LOGPROB)),
        ]
    )
)
"""One struct for each token."""

_MAX_EXCERPT_CHARACTERS = 200


class ReplyChoice(Struct, frozen=True):
    """One answer of a reply, independent of its wire format; None: not in the reply."""

    text: str | None
    finish_reason: str | None = None
    """As the provider wrote it."""
    refusal: str | None = None
    """The model's reason for not answering."""
    tool_calls: Sequence[Mapping[str, str | None]] = ()
    logprobs: Any = None
    """As the API sends them: a list of objects, or anything else from an odd server."""
    metadata: Mapping[str, Any] | None = None
    reasoning: str | None = None
    """Only in an answer without a text: some servers put the whole answer there."""
    error: Any = None
    """The provider's error, if the answer broke off."""


class AnswerColumns:
    """The columns of a step, and their values from an answer."""

    def __init__(
        self,
        step: str,
        output: str,
        typed: TypedOutput | None,
        count: int = 1,
        tool_calls: bool = False,
        logprobs: bool = False,
        metadata: pa.DataType | None = None,
        detail: bool = False,
        max_tokens_param: str = "max_tokens",
        allow_empty: bool = False,
    ) -> None:
        """`output`: the column of an untyped answer. `count`: answers a row; if more than 1, every column is a list.

        `max_tokens_param`: the parameter that limits an answer, for messages.
        """
        self._typed = typed
        self._count = count
        self._max_tokens_param = max_tokens_param
        self._allow_empty = allow_empty
        self._has_tools = tool_calls
        extras = [
            ("tool_calls", TOOL_CALLS if tool_calls else None),
            ("logprobs", LOGPROBS if logprobs else None),
            ("metadata", metadata),
            ("finish_reason", pa.string() if detail else None),
        ]
        self._extras = tuple(name for name, kind in extras if kind is not None)
        self._is_text = typed is None and count == 1 and not self._extras
        main = typed.fields if typed is not None else (pa.field(output, self._list_if_several(pa.string())),)
        extra_fields = (
            pa.field(f"{step}_{name}", self._list_if_several(kind)) for name, kind in extras if kind is not None
        )
        self.fields: tuple[pa.Field, ...] = (*main, *extra_fields)

    def _list_if_several(self, kind: pa.DataType) -> pa.DataType:
        return kind if self._count == 1 else pa.list_(kind)

    def values(self, choices: Sequence[ReplyChoice], is_committed: bool = False) -> Values | RowError:
        """Return one value for each field, or the reason why the answer has none.

        `is_committed`: earlier releases took what they knew no name for, empty texts, and fewer answers than `n`.
        """
        if self._count > 1:
            problems = [self._problem(choice, is_committed) for choice in choices]
            if problems[0] is not None and all(problems):
                return problems[0]
            if len(choices) < self._count and not is_committed:
                message = f"the server sent {len(choices)} of {self._count} answers; it does not support n; leave n out"
                return RowError("invalid_answer", message)
            texts = [None if problem else _text(each) for each, problem in zip(choices, problems, strict=True)]
            return (texts, *([_extra(each, name) for each in choices] for name in self._extras))
        choice = choices[0]
        problem = self._problem(choice, is_committed)
        if problem is not None:
            return problem
        if self._typed is None:
            main: Values = (_text(choice),)
        else:
            parsed = self._parse_typed(self._typed, choice, is_committed)
            if isinstance(parsed, RowError):
                return parsed
            main = parsed
        return (*main, *(_extra(choice, name) for name in self._extras)) if self._extras else main

    def text_values(self, text: str) -> Values | RowError:
        """Return the values of an answer that is nothing but a text, and ended as it should."""
        if self._is_text and text and not text.isspace():
            return (text,)
        return self.values((ReplyChoice(text, "stop"),))

    def _problem(self, choice: ReplyChoice, is_committed: bool) -> RowError | None:
        if choice.refusal:
            return RowError("content_filter", f"the model refused: {choice.refusal}")
        reason, text = choice.finish_reason, choice.text
        has_text = text is not None and text != "" and not text.isspace()
        if reason != "stop":
            how = reason if is_committed else ending(reason)
            if how == "content_filter":
                return RowError("content_filter", f"the answer was filtered (finish_reason {reason})")
            if how == "length" and (self._typed is not None or not (has_text or choice.tool_calls)):
                name = self._max_tokens_param
                return RowError("length", f"the answer was cut off at {name} (finish_reason {reason}); raise {name}")
        has_answer = has_text or (bool(choice.tool_calls) and (self._has_tools or self._typed is not None))
        if has_answer or self._allow_empty or (is_committed and (text is not None or choice.tool_calls)):
            return None
        if self._typed is not None and (choice.reasoning or text is not None):
            return None
        return RowError("invalid_answer", _without_text(choice, self._typed is not None))

    def _parse_typed(self, typed: TypedOutput, choice: ReplyChoice, is_committed: bool) -> Values | RowError:
        has_calls = bool(choice.tool_calls)
        nulls = (None,) * len(typed.fields)
        if has_calls and self._has_tools and not choice.text:
            return nulls
        text = choice.text or ""
        parsed = typed.parse(text)
        if not isinstance(parsed, str):
            return parsed
        for other in self._other_texts(choice):
            found = typed.parse(other)
            if not isinstance(found, str):
                return found
        # With a tool call the text is a remark, not the answer.
        if has_calls and (self._has_tools or is_committed):
            return nulls
        if self._allow_empty and (not text or text.isspace()):
            return nulls
        if choice.text is None:
            return RowError("invalid_answer", _without_text(choice, is_typed=True))
        excerpt = text if len(text) <= _MAX_EXCERPT_CHARACTERS else f"{text[:_MAX_EXCERPT_CHARACTERS]}…"
        return RowError("invalid_answer", f"{parsed} (answer: {excerpt})")

    def _other_texts(self, choice: ReplyChoice) -> Iterator[str]:
        """Yield the other places of a typed answer: servers that turn the schema into a tool, or into reasoning."""
        if not self._has_tools:
            yield from (call["arguments"] or "" for call in choice.tool_calls)
        if choice.reasoning and not choice.tool_calls:
            yield choice.reasoning


def _without_text(choice: ReplyChoice, is_typed: bool) -> str:
    message = f"the answer has no text and calls no tool (finish_reason {choice.finish_reason})"
    if choice.tool_calls:
        call = choice.tool_calls[0]
        if not is_typed:
            return f"the answer has no text, but calls {call['name']}, and the step has no tools"
        return f"the answer has no text, but a tool call that does not fit the schema: {call}"
    return f"{message}; it has reasoning of {len(choice.reasoning):,} characters" if choice.reasoning else message


def _text(choice: ReplyChoice) -> str | None:
    return (None if choice.tool_calls else "") if not choice.text else choice.text


def _extra(choice: ReplyChoice, name: str) -> Any:
    if name == "tool_calls":
        return list(choice.tool_calls) or None
    return _logprobs(choice.logprobs) if name == "logprobs" else getattr(choice, name)


def _logprobs(tokens: Any) -> list[dict[str, Any]] | None:
    if not isinstance(tokens, list):
        return None
    return [
        {
            "token": _string(token.get("token")),
            "logprob": _number(token.get("logprob")),
            "bytes": _bytes(token.get("bytes")),
            "top_logprobs": _top_logprobs(token.get("top_logprobs")),
        }
        for token in tokens
        if isinstance(token, Mapping)
    ]


def _top_logprobs(tokens: Any) -> list[dict[str, Any]] | None:
    if not isinstance(tokens, list):
        return None
    return [
        {"token": _string(token.get("token")), "logprob": _number(token.get("logprob"))}
        for token in tokens
        if isinstance(token, Mapping)
    ]


def _bytes(value: Any) -> list[int] | None:
    is_valid = isinstance(value, list) and all(type(each) is int and 0 <= each < 256 for each in value)
    return value if is_valid else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) else None
