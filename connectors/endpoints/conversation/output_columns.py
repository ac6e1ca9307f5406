"""The columns of a dialogue's step: text or typed values, tool calls, logprobs, metadata, finish reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pyarrow as pa

from connectors.endpoints.conversation.structured_output import TypedOutput
from connectors.endpoints.conversation.tool_calls import TOOL_CALLS
from connectors.records import RowError, Values

_TOP = pa.struct([("token", pa.string()), ("logprob", pa.float64())])
LOGPROBS = pa.list_(
    pa.struct(
        [
            ("token", pa.string()),
            ("logprob", pa.float64()),
            ("bytes", pa.list_(pa.int64())),
            ("top_logprobs", pa.list_(_TOP)),
        ]
    )
)
"""One struct a token."""

_SHOWN = 200


@dataclass(frozen=True, slots=True)
class ReplyChoice:
    """One answer of a reply, read out of its dialect; None where the reply does not say."""

    text: str | None
    finish_reason: str | None = None
    refusal: str | None = None
    """The model's own words on why it does not answer."""
    tool_calls: Sequence[Mapping[str, str | None]] = ()
    logprobs: Any = None
    """As the API tells them: a list of objects, or anything that a server makes of it."""
    metadata: Mapping[str, Any] | None = None


class AnswerColumns:
    """Which columns a step has, and what of an answer goes into which."""

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
        longest: str = "max_tokens",
    ) -> None:
        """`output`: the column of an untyped answer. `count`: answers a row; with more than one, every column is a list
        with an element for each. `longest`: the parameter that bounds an answer, for messages."""
        self._typed = typed
        self._count = count
        self._longest = longest
        extras = [
            ("tool_calls", TOOL_CALLS if tool_calls else None),
            ("logprobs", LOGPROBS if logprobs else None),
            ("metadata", metadata),
            ("finish_reason", pa.string() if detail else None),
        ]
        self._extras = tuple(name for name, kind in extras if kind is not None)
        own = typed.fields if typed is not None else (pa.field(output, self._several(pa.string())),)
        more = (pa.field(f"{step}_{name}", self._several(kind)) for name, kind in extras if kind is not None)
        self.fields: tuple[pa.Field, ...] = (*own, *more)

    def _several(self, kind: pa.DataType) -> pa.DataType:
        return kind if self._count == 1 else pa.list_(kind)

    def values(self, choices: Sequence[ReplyChoice]) -> Values | RowError:
        """One value a field, or why there are none."""
        if self._count > 1:
            problems = [self._problem(choice) for choice in choices]
            if problems[0] is not None and all(problems):
                return problems[0]
            texts = [None if problem else _text(one) for one, problem in zip(choices, problems, strict=True)]
            return (texts, *([_extra(one, name) for one in choices] for name in self._extras))
        choice = choices[0]
        problem = self._problem(choice)
        if problem is not None:
            return problem
        if self._typed is None:
            own: Values = (_text(choice),)
        else:
            read = self._read_typed(self._typed, choice)
            if isinstance(read, RowError):
                return read
            own = read
        return (*own, *(_extra(choice, name) for name in self._extras)) if self._extras else own

    def _problem(self, choice: ReplyChoice) -> RowError | None:
        if choice.refusal:
            return RowError("content_filter", f"the model refused: {choice.refusal}")
        reason = choice.finish_reason
        if reason == "content_filter":
            return RowError("content_filter", "the answer was filtered (finish_reason content_filter)")
        if reason == "length" and (self._typed is not None or not (choice.text or choice.tool_calls)):
            return RowError(
                "length",
                f"the answer was cut off at {self._longest} (finish_reason length); raise {self._longest}",
            )
        if choice.text is None and not choice.tool_calls:
            return RowError("invalid_answer", f"the answer has no text and calls no tool (finish_reason {reason})")
        return None

    def _read_typed(self, typed: TypedOutput, choice: ReplyChoice) -> Values | RowError:
        called = bool(choice.tool_calls)
        nothing = (None,) * len(typed.fields)
        if called and not choice.text:
            return nothing
        text = choice.text or ""
        read = typed.read(text)
        if not isinstance(read, str):
            return read
        # Beside a call the text is a remark, not the answer.
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        return nothing if called else RowError("invalid_answer", f"{read} (answer: {shown})")

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """One array a field; None gives nulls."""
        return [
            pa.array([None if row is None else row[place] for row in values], field.type)
            for place, field in enumerate(self.fields)
        ]


def _text(choice: ReplyChoice) -> str | None:
    return None if not choice.text and choice.tool_calls else choice.text


def _extra(choice: ReplyChoice, name: str) -> Any:
    if name == "tool_calls":
        return list(choice.tool_calls) or None
    return _logprobs(choice.logprobs) if name == "logprobs" else getattr(choice, name)


def _logprobs(told: Any) -> list[dict[str, Any]] | None:
    if not isinstance(told, list):
        return None
    return [
        {
            "token": _string(token.get("token")),
            "logprob": _number(token.get("logprob")),
            "bytes": _bytes(token.get("bytes")),
            "top_logprobs": _top(token.get("top_logprobs")),
        }
        for token in told
        if isinstance(token, Mapping)
    ]


def _top(told: Any) -> list[dict[str, Any]] | None:
    if not isinstance(told, list):
        return None
    some = (token for token in told if isinstance(token, Mapping))
    return [{"token": _string(token.get("token")), "logprob": _number(token.get("logprob"))} for token in some]


def _bytes(told: Any) -> list[int] | None:
    whole = isinstance(told, list) and all(type(one) is int and 0 <= one < 256 for one in told)
    return told if whole else None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) else None
