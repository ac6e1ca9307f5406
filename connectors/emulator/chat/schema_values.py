"""Values that fit a JSON Schema: from a text if it has them, else selected by digest."""

import re
from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any

from connectors.emulator.api import digest_of
from connectors.emulator.chat.regex_text import matching_text
from connectors.emulator.chat.sentiment import asks_for_sentiment, compound, sentiment_label, strength
from connectors.emulator.chat.text_facts import first_sentence, numbers, overlaps, proper_names, stems_of
from connectors.emulator.validation import refuse

MAX_REFERENCE_DEPTH = 6
"""Below this depth of nested references the shortest alternative is taken, so that recursive schemas end."""
MAX_RECURSION = 60
"""A schema that recurses deeper than this is rejected."""
_CONFIDENCE = re.compile("confidence|score|certainty|probability|strength")
_RATING = re.compile("rating|stars|grade|score|rank")
_PROPER_NAME = re.compile("location|city|place|town|country|address|destination|name|person|company")
_QUOTATION = re.compile("quot|evidence|citation|excerpt")
"""Names of properties that hold a confidence, a rating, a proper name, a quotation."""
INVENTED_QUOTATION = "As everybody knows, there is nothing more to say."
INVENTED_EVERY = 5
"""About one of so many quotations is invented, as models do."""
FORMATS: Mapping[str, str] = {
    "date-time": "2024-01-15T10:30:00Z",
    "date": "2024-01-15",
    "time": "10:30:00Z",
    "duration": "PT1H",
    "email": "local@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


_NESTED_TYPES = (None, "object", "array")
_FACT_TYPES: Mapping[str, type] = {"string": str, "integer": int, "number": int}


class Filler:
    """Generator of one value for one schema; equal schema, text and digest give equal values."""

    def __init__(
        self,
        root: Any,
        text: str,
        digest: bytes,
        choice: int = 0,
        facts: Mapping[str, Any] | None = None,
        max_characters: int = 200,
        is_correction: bool = False,
    ) -> None:
        """`choice`: index of the answer or tool call; `facts`: known values by property name; `max_characters`: of a
        string without `maxLength`; `is_correction`: after a request to answer again, quotations are right."""
        self._root = root
        self._text = text
        self._digest = digest
        self._choice = choice
        self._facts = facts or {}
        self._max_characters = max_characters
        self._is_correction = is_correction
        self._score: float | None = None

    def value(self) -> Any:
        """The generated value."""
        return self._value(self._root, "", 0)

    def _value(self, schema: Any, name: str, depth: int) -> Any:
        if not isinstance(schema, Mapping):
            return None if schema is False else first_sentence(self._text, self._choice, self._max_characters)
        if "$ref" in schema:
            if depth > MAX_RECURSION:
                raise refuse("schema", "Invalid schema: it refers to itself endlessly.", "invalid_json_schema")
            return self._value(self._definition(schema["$ref"]), name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._enum_value(schema["enum"], name)
        for keyword in ("anyOf", "oneOf"):
            if schema.get(keyword):
                return self._value(self._alternative(schema[keyword], depth), name, depth)
        if schema.get("allOf"):
            merged = {key: item for part in schema["allOf"] for key, item in self._resolved(part).items()}
            rest = {key: item for key, item in schema.items() if key != "allOf"}
            return self._value({**merged, **rest}, name, depth)
        return self._typed(schema, name, depth)

    def _typed(self, schema: Mapping[str, Any], name: str, depth: int) -> Any:
        kind = self._kind(schema, depth)
        if kind in _FACT_TYPES and isinstance(self._facts.get(name), _FACT_TYPES[kind]):
            return self._facts[name]
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "integer":
                return self._number(schema, name, is_integer=True)
            case "number":
                return self._number(schema, name, is_integer=False)
            case "boolean":
                return self._boolean(name)
            case "null":
                return None
            case _:
                return self._string(schema, name)

    def _kind(self, schema: Mapping[str, Any], depth: int) -> str:
        kinds = schema.get("type")
        if isinstance(kinds, str):
            return kinds
        if isinstance(kinds, Sequence) and kinds:
            if depth > MAX_REFERENCE_DEPTH and "null" in kinds:
                return "null"
            return next((str(kind) for kind in kinds if kind != "null"), "null")
        if "properties" in schema:
            return "object"
        return "array" if "items" in schema else "string"

    def _alternative(self, options: Sequence[Any], depth: int) -> Any:
        """The first alternative that is not null, or, at depth, the first without nesting."""
        if depth <= MAX_REFERENCE_DEPTH:
            return next(
                (each for each in options if not (isinstance(each, Mapping) and each.get("type") == "null")), options[0]
            )
        flat = [each for each in options if isinstance(each, Mapping) and each.get("type") not in _NESTED_TYPES]
        return flat[0] if flat else options[0]

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        if isinstance(schema, Mapping) and "$ref" in schema:
            schema = self._definition(schema["$ref"])
        return schema if isinstance(schema, Mapping) else {}

    def _definition(self, reference: str) -> Any:
        node: Any = self._root
        try:
            for step in reference.removeprefix("#").strip("/").split("/"):
                if step:
                    key = step.replace("~1", "/").replace("~0", "~")
                    node = node[int(key)] if isinstance(node, list) else node[key]
        except (KeyError, IndexError, ValueError, TypeError) as exc:
            raise refuse("schema", f"Invalid schema: '{reference}' does not resolve.", "invalid_json_schema") from exc
        return node

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self._value(item, name, depth)
            for name, item in schema.get("properties", {}).items()
            if name in required or depth <= MAX_REFERENCE_DEPTH
        }

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        minimum = schema.get("minItems", 0)
        maximum = schema.get("maxItems", max(minimum, 2))
        if depth > MAX_REFERENCE_DEPTH:
            maximum = minimum
        items = schema.get("items", {"type": "string"})
        values: list[Any] = []
        prefix = schema.get("prefixItems", ())
        for item in prefix:
            values.append(self._value(item, name, depth))
        count = max(minimum, min(maximum, 2)) if items is not False else len(prefix)
        start = self._choice
        # The second item takes the second sentence or number of the text.
        for index in range(len(values), count):
            self._choice = start + index
            item = self._value(items, name, depth)
            if item in values and (schema.get("uniqueItems") or index >= minimum):
                item = self._distinct_item(items, item, values)
                if item in values:
                    break
            values.append(item)
        self._choice = start
        return values

    def _distinct_item(self, items: Any, item: Any, values: list[Any]) -> Any:
        """An item that is not in the list yet, if the schema has an enum or any number fits."""
        if isinstance(items, Mapping) and "enum" in items:
            return next((value for value in items["enum"] if value not in values), item)
        if isinstance(item, int) and not isinstance(item, bool):
            return item + len(values)
        return item

    def _enum_value(self, values: Sequence[Any], name: str) -> Any:
        label = sentiment_label(values, self._text)
        if label is not None:
            return label
        scores = overlaps([str(value) for value in values], self._text)
        best = max(scores)
        ties = [value for value, score in zip(values, scores, strict=True) if score == best and value is not None]
        return ties[self._random_number(name) % len(ties)] if ties else values[0]

    def _boolean(self, name: str) -> bool:
        lower_name = name.lower().replace("is_", "")
        if lower_name in ("positive", "negative"):
            return (self._sentiment() > 0) == (lower_name == "positive")
        if stems_of(name) and stems_of(name) <= stems_of(self._text):
            return True
        return bool(self._random_number(name) & 1)

    def _number(self, schema: Mapping[str, Any], name: str, is_integer: bool) -> float:
        minimum, maximum = _bounds(schema, is_integer)
        step = schema.get("multipleOf") or (1 if is_integer else None)
        if is_integer and step is not None and step < 1:
            step = 1
        lower_name = name.lower()
        candidate: float | None = None
        if _RATING.search(lower_name) and minimum is not None and maximum is not None and maximum > 1:
            candidate = minimum + (maximum - minimum) * (self._sentiment() + 1) / 2
        elif _CONFIDENCE.search(lower_name):
            candidate = strength(self._sentiment())
        elif "sentiment" in lower_name or "polarity" in lower_name:
            candidate = self._sentiment()
        else:
            within = [number for number in numbers(self._text) if _is_within(number, minimum, maximum)]
            fitting = [number for number in within if not is_integer or number == int(number)]
            if fitting:
                candidate = fitting[self._choice % len(fitting)]
        if candidate is None or not _is_within(candidate, minimum, maximum):
            lower = minimum if minimum is not None else (0 if maximum is None else maximum - 100)
            upper = maximum if maximum is not None else lower + 100
            candidate = lower + (upper - lower) * (self._random_number(name) % 1000) / 1000
        return _rounded(candidate, step, minimum, maximum, is_integer)

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        if (pattern := schema.get("pattern")) is not None:
            return matching_text(pattern, self._random_number(name))
        if (form := str(schema.get("format"))) in FORMATS:
            return FORMATS[form]
        if asks_for_sentiment(str(schema.get("description", ""))):
            return "positive" if self._sentiment() > 0 else "negative"
        max_characters = min(schema.get("maxLength", self._max_characters), self._max_characters)
        found_names = proper_names(self._text) if _PROPER_NAME.search(name.lower()) else []
        if found_names:
            text = found_names[self._choice % len(found_names)]
        elif self._invents(name):
            text = INVENTED_QUOTATION
        else:
            text = first_sentence(self._text, self._choice, max(max_characters, 1))
        text = text[:max_characters]
        return text.ljust(schema.get("minLength", 0), ".")

    def _invents(self, name: str) -> bool:
        is_quotation = _QUOTATION.search(name.lower()) is not None
        return is_quotation and not self._is_correction and self._random_number(name) % INVENTED_EVERY == 0

    def _sentiment(self) -> float:
        if self._score is None:
            self._score = compound(self._text)
        return self._score

    def _random_number(self, name: str) -> int:
        return int.from_bytes(digest_of(self._digest.hex(), name, self._choice)[:4], "big")


def _bounds(schema: Mapping[str, Any], is_integer: bool) -> tuple[float | None, float | None]:
    """(minimum, maximum), with exclusive bounds moved inside."""
    minimum, maximum = schema.get("minimum"), schema.get("maximum")
    inside = 1 if is_integer else 1e-6
    if (above := schema.get("exclusiveMinimum")) is not None:
        minimum = above + inside if minimum is None else max(minimum, above + inside)
    if (below := schema.get("exclusiveMaximum")) is not None:
        maximum = below - inside if maximum is None else min(maximum, below - inside)
    return minimum, maximum


def _is_within(value: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _rounded(value: float, step: float | None, minimum: float | None, maximum: float | None, is_integer: bool) -> float:
    """The value, or its nearest multiple of `step` within the bounds."""
    if step is not None:
        count = round(value / step)
        if minimum is not None:
            count = max(count, ceil(minimum / step))
        if maximum is not None:
            count = min(count, floor(maximum / step))
        value = count * step
    elif value != round(value, 4) and _is_within(round(value, 4), minimum, maximum):
        value = round(value, 4)
    return int(value) if is_integer else value
