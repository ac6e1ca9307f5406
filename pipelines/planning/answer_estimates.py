"""What answers are likely to be, before there are any: how many tokens they take, and values to reckon on with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from connectors.tokens import count_tokens
from pipelines.ledger.ledger import Ledger
from pipelines.preparation.prepared_job import PreparedStep

USUAL_TOKENS = 150
"""Of an answer in plain text, where nothing tells better."""
USUAL_WORDS = 8
"""Of a text in a typed answer."""
LONG_WORDS = 40
ENOUGH = 20
"""Answers that tell more than a guess does."""


@dataclass(frozen=True, slots=True)
class Likely:
    """Output tokens of one answer, and where that is known from."""

    fewest: float
    usual: float
    most: float | None
    """None: nothing bounds it."""
    seen: int
    """Earlier answers of the step that tell it; 0: reckoned from the declared types, or a guess."""
    latency_ms: float | None
    """What an answer took to come, where there were some."""
    guess: bool = False
    """Whether nothing tells the length, neither earlier answers nor declared types."""


def likely(ledger: Ledger, job: str, step: PreparedStep) -> Likely:
    """How long the step's answers will be: as the earlier ones were, else as their types say, else a guess."""
    bound = step.endpoint.output_bound
    seen, mean, least, latency = _earlier(ledger, job, step)
    latency = latency if latency is not None else _latency_elsewhere(ledger, step)
    if bound == 0:
        return Likely(0, 0, 0, seen, latency)
    schema = _output(step)
    count = step.model.params.get("n")
    times = count if isinstance(count, int) else 1
    if schema is None:
        fewest, usual = 1.0, float(USUAL_TOKENS)
    else:
        fewest, usual = (
            float(count_tokens(orjson.dumps(_example(schema, words)).decode(), step.model.model))
            for words in (0, USUAL_WORDS)
        )
    fewest, usual = fewest * times, usual * times
    if seen >= ENOUGH:
        # Later rows may be shorter still than any that was seen.
        fewest, usual = min(fewest, least), mean
    if bound is not None:
        fewest, usual = min(fewest, bound), min(usual, bound)
    return Likely(fewest, usual, bound, seen if seen >= ENOUGH else 0, latency, schema is None and seen < ENOUGH)


def stand_ins(step: PreparedStep, likely: Likely, place: int) -> list[Any]:
    """Values for the step's columns in a row whose answer is not there yet; `place` turns through the values of an
    enum, so that a later `when` passes as many rows as if all were equally frequent."""
    schema = _output(step) or {}
    properties = schema.get("properties", {})
    text = "word " * max(1, round(likely.usual * 0.9))
    return [
        _value(properties[field.name], place) if field.name in properties else _of_type(field.type, text)
        for field in step.endpoint.fields
    ]


def _earlier(ledger: Ledger, job: str, step: PreparedStep) -> tuple[int, float, float, float | None]:
    """(answers, mean output tokens, fewest, mean latency) of the step's exchanges that brought answers."""
    ((seen, mean, least, latency),) = ledger.query(
        "select count(e.output_tokens), avg(e.output_tokens), min(e.output_tokens), avg(e.latency_ms) "
        "from exchanges e join legs l on l.id = e.leg "
        "where l.job = ? and l.step = ? and l.model = ? and l.provider = ? and e.error_class is null",
        (job, step.model.name, step.model.model, step.provider.name),
    )
    return seen, float(mean or 0), float(least or 0), latency


def _latency_elsewhere(ledger: Ledger, step: PreparedStep) -> float | None:
    """What answers of the same model took in other steps and jobs."""
    model = step.model
    ((latency,),) = ledger.query(
        "select avg(e.latency_ms) from exchanges e join legs l on l.id = e.leg "
        "where l.provider = ? and l.endpoint = ? and l.model = ? and e.error_class is null",
        (step.provider.name, model.endpoint, model.model),
    )
    return None if latency is None else float(latency)


def _output(step: PreparedStep) -> Mapping[str, Any] | None:
    """The declared types as one object; None for answers in plain text."""
    declared = getattr(step.model, "output", None)
    if not isinstance(declared, Mapping):
        return None
    return {"type": "object", "properties": {name: _spec(spec) for name, spec in declared.items()}}


def _spec(spec: Any) -> Mapping[str, Any]:
    return spec if isinstance(spec, Mapping) else {"type": spec}


def _example(spec: Mapping[str, Any], words: int) -> Any:
    """A value of the type; `words`: of its texts, 0 for the shortest value that there is."""
    if spec.get("enum"):
        by_length = sorted(spec["enum"], key=lambda value: len(str(value)))
        return by_length[len(by_length) // 2 if words else 0]
    kind = _kind(spec)
    if kind == "object":
        return {name: _example(_spec(inner), words) for name, inner in spec.get("properties", {}).items()}
    if kind == "array":
        return [_example(_spec(spec.get("items", "string")), words)] * (3 if words else int(spec.get("minItems", 0)))
    if kind == "string":
        return " ".join(["word"] * words)
    if kind == "boolean":
        return True
    return (0.75 if kind == "number" else 42) if words else 0


def _value(spec: Mapping[str, Any], place: int) -> Any:
    spec = _spec(spec)
    if spec.get("enum"):
        return spec["enum"][place % len(spec["enum"])]
    if _kind(spec) == "boolean":
        return place % 2 == 0
    if _kind(spec) == "integer" and "minimum" in spec and "maximum" in spec:
        low, high = int(spec["minimum"]), int(spec["maximum"])
        return low + place % (high - low + 1)
    if _kind(spec) == "number" and "minimum" in spec and "maximum" in spec:
        return spec["minimum"] + (spec["maximum"] - spec["minimum"]) * (place % 101) / 100
    return _example(spec, LONG_WORDS if _kind(spec) == "string" else USUAL_WORDS)


def _kind(spec: Mapping[str, Any]) -> str:
    kind = spec.get("type", "string")
    if isinstance(kind, Sequence) and not isinstance(kind, str):
        return next((str(one) for one in kind if one != "null"), "string")
    return str(kind)


def _of_type(kind: pa.DataType, text: str) -> Any:
    """A value of an Arrow type that no schema tells more of."""
    if pa.types.is_string(kind):
        return text
    if pa.types.is_struct(kind):
        return {field.name: _of_type(field.type, text) for field in kind}
    if pa.types.is_list(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_struct(kind.value_type)):
        return [_of_type(kind.value_type, text)]
    return None
