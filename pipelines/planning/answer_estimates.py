"""Answer estimates: the length of answers that do not exist yet, and placeholder values for later steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from connectors.tokens import count_tokens
from pipelines.ledger.ledger_reader import AnswerReads
from pipelines.preparation.prepared_job import PreparedStep

DEFAULT_ANSWER_TOKENS = 150
"""Tokens of an answer in plain text if nothing better is known."""
EXPECTED_TEXT_WORDS = 8
"""Words of a string in a typed answer."""
PLACEHOLDER_WORDS = 40
ITEM_TOKENS = 12
"""Tokens of an item of a packed answer besides the answer itself: its id, keys and punctuation."""
MIN_ANSWERS = 20
"""Earlier answers needed before their lengths are used."""


class AnswerEstimate(Struct, frozen=True):
    """Output tokens of one answer, and the basis of the estimate."""

    min_tokens: float
    expected_tokens: float
    max_tokens: float | None
    """None if nothing bounds it."""
    seen: int
    """Earlier answers of the step that it is based on; 0: based on the declared types, or a guess."""
    latency_ms: float | None
    """Mean latency of earlier answers; None if there are none."""
    is_guess: bool = False
    """Whether neither earlier answers nor declared types are known."""

    def of_pack(self, rows: int) -> "AnswerEstimate":
        """Return the estimate of one answer to so many rows."""
        # The lengths of earlier answers have been seen in packs, too.
        item_tokens = 0 if self.seen else ITEM_TOKENS
        return replace(
            self, min_tokens=self.min_tokens * rows, expected_tokens=(self.expected_tokens + item_tokens) * rows
        )


def estimate_answer(ledger: AnswerReads, job: str, step: PreparedStep) -> AnswerEstimate:
    """Estimate the length of the step's answers from earlier ones, else from their types, else by a default."""
    bound = step.endpoint.output_bound
    seen, mean, least, latency = _earlier_answers(ledger, job, step)
    latency = latency if latency is not None else _latency_of_model(ledger, step)
    if bound == 0:
        return AnswerEstimate(0, 0, 0, seen, latency)
    schema = _output_schema(step)
    count = step.model.params.get("n")
    times = count if isinstance(count, int) else 1
    if schema is None:
        min_tokens, expected_tokens = 1.0, float(DEFAULT_ANSWER_TOKENS)
    else:
        min_tokens, expected_tokens = (
            float(
                count_tokens(orjson.dumps(_example(schema, words)).decode(), step.context.sent_model(step.model.model))
            )
            for words in (0, EXPECTED_TEXT_WORDS)
        )
    min_tokens, expected_tokens = min_tokens * times, expected_tokens * times
    if seen >= MIN_ANSWERS:
        # Later answers may be shorter than any earlier one.
        min_tokens, expected_tokens = min(min_tokens, least), mean
    if bound is not None:
        min_tokens, expected_tokens = min(min_tokens, bound), min(expected_tokens, bound)
    return AnswerEstimate(
        min_tokens,
        expected_tokens,
        bound,
        seen if seen >= MIN_ANSWERS else 0,
        latency,
        schema is None and seen < MIN_ANSWERS,
    )


def placeholder_values(step: PreparedStep, likely: AnswerEstimate, place: int) -> list[Any]:
    """Return values for the step's columns in a row without an answer.

    `place` cycles through the values of an enum, so that a later `when` passes as many rows as if all were equally
    frequent.
    """
    schema = _output_schema(step) or {}
    properties = schema.get("properties", {})
    text = "word " * max(1, round(likely.expected_tokens * 0.9))
    return [
        _placeholder(properties[field.name], place)
        if field.name in properties
        else _placeholder_of_type(field.type, text)
        for field in step.endpoint.fields
    ]


def _earlier_answers(ledger: AnswerReads, job: str, step: PreparedStep) -> tuple[int, float, float, float | None]:
    """(answers, mean output tokens, fewest, mean latency) of the step's successful exchanges.

    The tokens of a pack are shared by its rows; rows with the same request share its fingerprint.
    """
    ((seen, mean, least, latency),) = ledger.query(
        "select sum(answers), sum(output_tokens) * 1.0 / sum(answers), min(output_tokens * 1.0 / answers), "
        "avg(latency_ms) from (select e.output_tokens, e.latency_ms, case when e.output_tokens is null then 0 "
        "when substr(e.fingerprints, 1, 16) = substr(e.fingerprints, -16) then 1 "
        "else length(e.fingerprints) / 16 end as answers from exchanges e join legs l on l.id = e.leg "
        "where l.job = ? and l.step = ? and l.model = ? and l.provider = ? and e.error_class is null)",
        (job, step.model.name, step.model.model, step.provider.name),
    )
    return seen or 0, float(mean or 0), float(least or 0), latency


def _latency_of_model(ledger: AnswerReads, step: PreparedStep) -> float | None:
    """Mean latency of the same model's answers in other steps and jobs."""
    model = step.model
    ((latency,),) = ledger.query(
        "select avg(e.latency_ms) from exchanges e join legs l on l.id = e.leg "
        "where l.provider = ? and l.endpoint = ? and l.model = ? and e.error_class is null",
        (step.provider.name, model.endpoint, model.model),
    )
    return None if latency is None else float(latency)


def _output_schema(step: PreparedStep) -> Mapping[str, Any] | None:
    """The declared types as an object schema; None for answers in plain text."""
    declared = getattr(step.model, "output", None)
    if not isinstance(declared, Mapping):
        return None
    return {"type": "object", "properties": {name: _type_spec(spec) for name, spec in declared.items()}}


def _type_spec(spec: Any) -> Mapping[str, Any]:
    return spec if isinstance(spec, Mapping) else {"type": spec}


def _example(spec: Mapping[str, Any], words: int) -> Any:
    """A value of the type with strings of `words` words; 0 gives the shortest value."""
    if spec.get("enum"):
        by_length = sorted(spec["enum"], key=lambda value: len(str(value)))
        return by_length[len(by_length) // 2 if words else 0]
    kind = _type_name(spec)
    if kind == "object":
        return {name: _example(_type_spec(inner), words) for name, inner in spec.get("properties", {}).items()}
    if kind == "array":
        return [_example(_type_spec(spec.get("items", "string")), words)] * (
            3 if words else int(spec.get("minItems", 0))
        )
    if kind == "string":
        return " ".join(["word"] * words)
    if kind == "boolean":
        return True
    return (0.75 if kind == "number" else 42) if words else 0


def _placeholder(spec: Mapping[str, Any], place: int) -> Any:
    spec = _type_spec(spec)
    if spec.get("enum"):
        return spec["enum"][place % len(spec["enum"])]
    if _type_name(spec) == "boolean":
        return place % 2 == 0
    if _type_name(spec) == "integer" and "minimum" in spec and "maximum" in spec:
        low, high = int(spec["minimum"]), int(spec["maximum"])
        return low + place % (high - low + 1)
    if _type_name(spec) == "number" and "minimum" in spec and "maximum" in spec:
        return spec["minimum"] + (spec["maximum"] - spec["minimum"]) * (place % 101) / 100
    return _example(spec, PLACEHOLDER_WORDS if _type_name(spec) == "string" else EXPECTED_TEXT_WORDS)


def _type_name(spec: Mapping[str, Any]) -> str:
    kind = spec.get("type", "string")
    if isinstance(kind, Sequence) and not isinstance(kind, str):
        return next((str(one) for one in kind if one != "null"), "string")
    return str(kind)


def _placeholder_of_type(kind: pa.DataType, text: str) -> Any:
    """A value of an Arrow type without a schema."""
    if pa.types.is_string(kind):
        return text
    if pa.types.is_struct(kind):
        return {field.name: _placeholder_of_type(field.type, text) for field in kind}
    if pa.types.is_list(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_struct(kind.value_type)):
        return [_placeholder_of_type(kind.value_type, text)]
    return None
