"""POST /chat/completions: one row a request, text or typed columns out."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
import pyarrow as pa
from pydantic import Field

from connectors.contracts import MalformedReply, OneByOne, StepFacts, StepModel
from connectors.endpoints.chat_messages import Message, message_templates
from connectors.endpoints.chat_params import CHAT_PARAMS
from connectors.errors import JobError
from connectors.exchange import Call, Reply, Request, Row, RowError, Usage, Values, request_fingerprint
from connectors.params import check_params
from connectors.template import TemplateProblem
from connectors.tokens import chat_tokens, max_output_tokens
from connectors.typed import TypedOutput

WAYS = ("schema", "json_object", "prompt")
"""How a typed output is asked for, the strictest first; a server that refuses one is asked the next way."""

REPAIR = "This answer does not fit: {problem}. Answer again, with nothing but JSON that fits the schema."


class ChatStep(StepModel):
    """A step of endpoint chat."""

    endpoint: Literal["chat"] = Field(description="POST /chat/completions.")
    messages: tuple[dict[str, Any], ...] = Field(
        min_length=1,
        description="The dialogue; every text is a template.",
        examples=[[{"system": "You label support tickets."}, {"user": "{{ body }}"}]],
    )
    output: str | dict[str, Any] | None = Field(
        default=None, description="A column's name, or typed columns: name -> JSON Schema."
    )
    structured: Literal["auto", "schema", "json_object", "prompt"] = Field(
        default="auto", description="How a typed output is asked for; auto falls back for servers without schemas."
    )

    def build(self, facts: StepFacts) -> "Chat":
        """The endpoint; JobError, beginning with a key path, for what does not fit."""
        return Chat(self, facts)


class Chat(OneByOne):
    """The endpoint of one step of chat."""

    path = "/chat/completions"

    def __init__(self, step: ChatStep, facts: StepFacts) -> None:
        where = f"steps.{step.name}"
        check_params(step.params, CHAT_PARAMS, where)
        self._step = step
        self._tag = facts.provider_tag
        self._messages: Sequence[Message] = message_templates(step.messages, facts.columns, where)
        self.uses = frozenset(name for message in self._messages for name in message.columns)
        self._count = int(step.params.get("n", 1))
        self._typed = _typed_output(step, where)
        self._way = _way(step, facts)
        self._name = step.output if isinstance(step.output, str) else step.name
        self.fields = self._columns()
        self.output_bound = self._bound()
        self._fixed = self._fixed_body()
        self._instruction = self._schema_in_words()
        self._memo: tuple[bytes, Any] | None = None

    def _columns(self) -> tuple[pa.Field, ...]:
        if self._typed is not None:
            columns = list(self._typed.fields)
        elif self._count > 1:
            columns = [pa.field(self._name, pa.list_(pa.string()))]
        else:
            columns = [pa.field(self._name, pa.string())]
        if self._step.detail:
            columns.append(pa.field(f"{self._step.name}_finish_reason", pa.string()))
        return tuple(columns)

    def _bound(self) -> int | None:
        params = self._step.params
        limits = [params[name] for name in ("max_tokens", "max_completion_tokens") if name in params]
        bound = min(limits) if limits else max_output_tokens(self._step.model)
        return None if bound is None else bound * self._count

    def _fixed_body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._step.model, **self._step.params}
        if self._typed is not None and self._way == "schema":
            form = {"name": self._step.name, "strict": True, "schema": self._typed.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self._typed is not None and self._way == "json_object":
            body["response_format"] = {"type": "json_object"}
        return {**body, **self._step.extra_body}

    def _schema_in_words(self) -> dict[str, str] | None:
        if self._typed is None or self._way == "schema":
            return None
        schema = orjson.dumps(self._typed.schema).decode()
        return {"role": "system", "content": f"Answer with nothing but JSON that fits this JSON Schema: {schema}"}

    def declared(self) -> bytes:
        """All but limits and detail: the provider is told of beside it."""
        told = self._step.model_dump(exclude={"name", "provider", "when", "detail", "reuse"})
        return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)

    def request(self, row: Row, key: str) -> Request | RowError:
        """The dialogue with the row's values in it."""
        try:
            messages: list[Mapping[str, Any]] = [message.rendered(row) for message in self._messages]
        except TemplateProblem as exc:
            return RowError("input", str(exc))
        if self._instruction is not None:
            messages.insert(0, self._instruction)
        return self._asked(messages, key, None)

    def _asked(self, messages: Sequence[Mapping[str, Any]], key: str, repair_of: bytes | None) -> Request | RowError:
        try:
            body = orjson.dumps({**self._fixed, "messages": messages})
        except TypeError as exc:
            return RowError("input", f"the row's text cannot be written as UTF-8: {exc}")
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, body, "" if self._step.reuse else key),
            body=body,
            input_tokens=chat_tokens(messages, self._step.model),
            output_bound=self.output_bound,
            keys=(key,),
            repair_of=repair_of,
        )

    def call(self, pack: Sequence[Request]) -> Call:
        """The request as it stands."""
        return Call("POST", self.path, pack[0].body)

    def answers(self, pack: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """The reply's own bytes."""
        whole = self._read(reply.body)
        choices = whole.get("choices")
        if not isinstance(choices, list) or not choices:
            raise MalformedReply(f"the reply has no choices: {_shortened(reply.body)}")
        for choice in choices:
            if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
                raise MalformedReply(f"a choice of the reply has no message: {_shortened(reply.body)}")
        return (reply.body,)

    def usage(self, pack: Sequence[Request], reply: Reply) -> Usage:
        """As the reply counts it."""
        whole = self._read(reply.body)
        used = whole.get("usage") or {}
        choices = whole.get("choices") or [{}]
        return Usage(
            input_tokens=used.get("prompt_tokens"),
            cached_tokens=(used.get("prompt_tokens_details") or {}).get("cached_tokens"),
            output_tokens=used.get("completion_tokens"),
            reasoning_tokens=(used.get("completion_tokens_details") or {}).get("reasoning_tokens"),
            model_version=whole.get("model"),
            finish_reason=choices[0].get("finish_reason"),
        )

    def values(self, answer: bytes) -> Values | RowError:
        """The text or the typed columns of an answer."""
        choices = self._read(answer)["choices"]
        reasons = [choice.get("finish_reason") for choice in choices]
        texts = [choice["message"].get("content") for choice in choices]
        refusal = choices[0]["message"].get("refusal")
        detail = (reasons[0],) if self._step.detail else ()
        if refusal:
            return RowError("content_filter", f"the model refused: {refusal}")
        if "content_filter" in reasons and (self._typed is not None or not texts[0]):
            return RowError("content_filter", "the answer was filtered (finish_reason content_filter)")
        if self._typed is None:
            return ((texts if self._count > 1 else texts[0]), *detail)
        if reasons[0] == "length":
            return RowError("length", "the answer was cut off at max_tokens (finish_reason length); raise max_tokens")
        read = self._typed.read(texts[0] or "")
        if isinstance(read, str):
            return RowError("invalid_answer", f"{read} (answer: {_shortened((texts[0] or '').encode())})")
        return (*read, *detail)

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        """The dialogue, the answer, and what does not fit."""
        if problem.error_class != "invalid_answer" or request.repair_of is not None:
            return None
        said = self._read(answer)["choices"][0]["message"].get("content")
        turns = [
            {"role": "assistant", "content": said or ""},
            {"role": "user", "content": REPAIR.format(problem=problem.message)},
        ]
        messages = [*orjson.loads(request.body)["messages"], *turns]
        asked = self._asked(messages, request.keys[0], request.fingerprint)
        return asked if isinstance(asked, Request) else None

    def easier(self, problem: RowError) -> str | None:
        """The next way, where the server does not know this one."""
        if self._typed is None or self._step.structured != "auto" or problem.error_class != "bad_request":
            return None
        told = f"{problem.param or ''} {problem.message}".lower()
        if not any(word in told for word in ("response_format", "json_schema", "json_object", "structured output")):
            return None
        place = WAYS.index(self._way)
        return WAYS[place + 1] if place + 1 < len(WAYS) else None

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """One array a column."""
        if self._typed is None:
            kinds = [field.type for field in self.fields]
            return [
                pa.array([None if row is None else row[place] for row in values], kind)
                for place, kind in enumerate(kinds)
            ]
        arrays = self._typed.arrays(values)
        if self._step.detail:
            arrays.append(pa.array([None if row is None else row[-1] for row in values], pa.string()))
        return arrays

    def _read(self, body: bytes) -> Any:
        """The parsed reply; the last one is remembered, since it is read three times in a row."""
        if self._memo is not None and self._memo[0] is body:
            return self._memo[1]
        try:
            whole = orjson.loads(body)
        except orjson.JSONDecodeError as exc:
            raise MalformedReply(f"the reply is no JSON ({exc}): {_shortened(body)}") from exc
        if not isinstance(whole, dict):
            raise MalformedReply(f"the reply is no JSON object: {_shortened(body)}")
        self._memo = (body, whole)
        return whole


def _typed_output(step: ChatStep, where: str) -> TypedOutput | None:
    if not isinstance(step.output, dict):
        return None
    if step.params.get("n", 1) != 1:
        raise JobError(f"{where}.params.n: a typed output has one answer a row; leave n out")
    if "response_format" in step.params:
        raise JobError(f"{where}.params.response_format: a typed output brings its own; leave it out")
    try:
        return TypedOutput(step.output, f"{where}.output")
    except ValueError as exc:
        raise JobError(str(exc)) from exc


def _way(step: ChatStep, facts: StepFacts) -> str:
    return (facts.structured or "schema") if step.structured == "auto" else step.structured


def _shortened(body: bytes) -> str:
    text = body[:200].decode("utf-8", "replace")
    return text if len(body) <= 200 else f"{text}…"
