"""The columns of a chat or responses step: text or typed values, tool calls, logprobs, metadata, finish reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pyarrow as pa

from connectors.endpoints.conversation.structured_output import TypedOutput
from connectors.endpoints.conversation.tool_calls import TOOL_CALLS
from connectors.records import RowError, Values

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


@dataclass(frozen=True, slots=True)
class ReplyChoice:
    """One answer of a reply, independent of its wire format; None: not in the reply."""

    text: str | None
    finish_reason: str | None = None
    refusal: str | None = None
    """The model's reason for not answering."""
    tool_calls: Sequence[Mapping[str, str | None]] = ()
    logprobs: Any = None
    """As the API sends them: a list of objects, or anything else from an odd server."""
    metadata: Mapping[str, Any] | None = None


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
    ) -> None:
        """`output`: the column of an untyped answer. `count`: answers a row; if more than 1, every column is a list.

        `max_tokens_param`: the parameter that limits an answer, for messages.
        """
        self._typed = typed
        self._count = count
        self._max_tokens_param = max_tokens_param
        extras = [
            ("tool_calls", TOOL_CALLS if tool_calls else None),
            ("logprobs", LOGPROBS if logprobs else None),
            ("metadata", metadata),
            ("finish_reason", pa.string() if detail else None),
        ]
        self._extras = tuple(name for name, kind in extras if kind is not None)
        main = typed.fields if typed is not None else (pa.field(output, self._list_if_several(pa.string())),)
        extra_fields = (
            pa.field(f"{step}_{name}", self._list_if_several(kind)) for name, kind in extras if kind is not None
        )
        self.fields: tuple[pa.Field, ...] = (*main, *extra_fields)

    def _list_if_several(self, kind: pa.DataType) -> pa.DataType:
        return kind if self._count == 1 else pa.list_(kind)

    def values(self, choices: Sequence[ReplyChoice]) -> Values | RowError:
        """Return one value for each field, or the reason why the answer has none."""
        if self._count > 1:
            problems = [self._problem(choice) for choice in choices]
            if problems[0] is not None and all(problems):
                return problems[0]
            texts = [None if problem else _text(each) for each, problem in zip(choices, problems, strict=True)]
            return (texts, *([_extra(each, name) for each in choices] for name in self._extras))
        choice = choices[0]
        problem = self._problem(choice)
        if problem is not None:
            return problem
        if self._typed is None:
            main: Values = (_text(choice),)
        else:
            parsed = self._parse_typed(self._typed, choice)
            if isinstance(parsed, RowError):
                return parsed
            main = parsed
        return (*main, *(_extra(choice, name) for name in self._extras)) if self._extras else main

    def _problem(self, choice: ReplyChoice) -> RowError | None:
        if choice.refusal:
            return RowError("content_filter", f"the model refused: {choice.refusal}")
        reason = choice.finish_reason
        if reason == "content_filter":
            return RowError("content_filter", "the answer was filtered (finish_reason content_filter)")
        if reason == "length" and (self._typed is not None or not (choice.text or choice.tool_calls)):
            return RowError(
                "length",
                f"the answer was cut off at {self._max_tokens_param} (finish_reason length); "
                f"raise {self._max_tokens_param}",
            )
        if choice.text is None and not choice.tool_calls:
            return RowError("invalid_answer", f"the answer has no text and calls no tool (finish_reason {reason})")
        return None

    def _parse_typed(self, typed: TypedOutput, choice: ReplyChoice) -> Values | RowError:
        has_calls = bool(choice.tool_calls)
        nulls = (None,) * len(typed.fields)
        if has_calls and not choice.text:
            return nulls
        text = choice.text or ""
        parsed = typed.parse(text)
        if not isinstance(parsed, str):
            return parsed
        # With a tool call the text is a remark, not the answer.
        excerpt = text if len(text) <= _MAX_EXCERPT_CHARACTERS else f"{text[:_MAX_EXCERPT_CHARACTERS]}…"
        return nulls if has_calls else RowError("invalid_answer", f"{parsed} (answer: {excerpt})")


def _text(choice: ReplyChoice) -> str | None:
    return None if not choice.text and choice.tool_calls else choice.text


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
