"""Values that fit a JSON Schema, taken from a text where it has them and chosen by digest where not."""

from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any

from connectors.emulator.api import digest_of
from connectors.emulator.chat.regex_text import matching_text
from connectors.emulator.chat.sentiment import asks_for_sentiment, compound, sentiment_label, strength
from connectors.emulator.chat.text_facts import first_sentence, numbers, overlaps, proper_names, stems_of
from connectors.emulator.validation import refuse

MAX_REFERENCE_DEPTH = 6
"""After so many references, one into another, the shortest way is taken, so that a schema of itself ends."""
MAX_RECURSION = 60
"""A schema that has no end then either is refused."""
CONFIDENCE_NAMES = ("confidence", "score", "certainty", "probability", "strength")
RATING_NAMES = ("rating", "stars", "grade", "score", "rank")
PROPER_NAME_FIELDS = (
    "location",
    "city",
    "place",
    "town",
    "country",
    "address",
    "destination",
    "name",
    "person",
    "company",
)
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


_FACT_TYPES: Mapping[str, type] = {"string": str, "integer": int, "number": int}


class Filler:
    """Makes one value for one schema from one text; equal schema, text and digest give an equal value."""

    def __init__(
        self,
        root: Any,
        text: str,
        digest: bytes,
        choice: int = 0,
        facts: Mapping[str, Any] | None = None,
        max_characters: int = 200,
    ) -> None:
        """`choice`: which of several answers to a request, or calls of a tool; `facts`: values known by name;
        `longest`: characters of a text that may be of any length."""
        self._root = root
        self._text = text
        self._digest = digest
        self._choice = choice
        self._facts = facts or {}
        self._max_characters = max_characters
        self._score: float | None = None

    def value(self) -> Any:
        """The value."""
        return self._value(self._root, "", 0)

    def _value(self, schema: Any, name: str, depth: int) -> Any:
        if not isinstance(schema, Mapping):
            return None if schema is False else first_sentence(self._text, self._choice, self._max_characters)
        if "$ref" in schema:
            if depth > MAX_RECURSION:
                raise refuse("schema", "Invalid schema: it refers to itself without an end.", "invalid_json_schema")
            return self._value(self._referred(schema["$ref"]), name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._chosen(schema["enum"], name)
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return self._value(self._way(schema[word], depth), name, depth)
        if schema.get("allOf"):
            merged = {key: one for part in schema["allOf"] for key, one in self._flat(part).items()}
            rest = {key: one for key, one in schema.items() if key != "allOf"}
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
                return self._number(schema, name, whole=True)
            case "number":
                return self._number(schema, name, whole=False)
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

    def _way(self, ways: Sequence[Any], depth: int) -> Any:
        """The first way that is not null, or, deep in a schema, the first that ends."""
        if depth <= MAX_REFERENCE_DEPTH:
            return next((way for way in ways if not (isinstance(way, Mapping) and way.get("type") == "null")), ways[0])
        ends = [way for way in ways if isinstance(way, Mapping) and way.get("type") not in (None, "object", "array")]
        return ends[0] if ends else ways[0]

    def _flat(self, schema: Any) -> Mapping[str, Any]:
        if isinstance(schema, Mapping) and "$ref" in schema:
            schema = self._referred(schema["$ref"])
        return schema if isinstance(schema, Mapping) else {}

    def _referred(self, reference: str) -> Any:
        found: Any = self._root
        try:
            for step in reference.removeprefix("#").strip("/").split("/"):
                if step:
                    key = step.replace("~1", "/").replace("~0", "~")
                    found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError) as exc:
            raise refuse("schema", f"Invalid schema: '{reference}' leads nowhere.", "invalid_json_schema") from exc
        return found

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self._value(one, name, depth)
            for name, one in schema.get("properties", {}).items()
            if name in required or depth <= MAX_REFERENCE_DEPTH
        }

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", max(least, 2))
        if depth > MAX_REFERENCE_DEPTH:
            most = least
        items = schema.get("items", {"type": "string"})
        made: list[Any] = []
        prefix = schema.get("prefixItems", ())
        for one in prefix:
            made.append(self._value(one, name, depth))
        count = max(least, min(most, 2)) if items is not False else len(prefix)
        start = self._choice
        # The second of two texts is the text's second sentence, of two numbers its second number.
        for place in range(len(made), count):
            self._choice = start + place
            one = self._value(items, name, depth)
            if one in made and (schema.get("uniqueItems") or place >= least):
                one = self._another(items, one, made)
                if one in made:
                    break
            made.append(one)
        self._choice = start
        return made

    def _another(self, items: Any, one: Any, made: list[Any]) -> Any:
        """An item that is not there yet, where the schema lists some or takes any number."""
        if isinstance(items, Mapping) and "enum" in items:
            return next((value for value in items["enum"] if value not in made), one)
        if isinstance(one, int) and not isinstance(one, bool):
            return one + len(made)
        return one

    def _chosen(self, values: Sequence[Any], name: str) -> Any:
        label = sentiment_label(values, self._text)
        if label is not None:
            return label
        scores = overlaps([str(value) for value in values], self._text)
        best = max(scores)
        near = [value for value, score in zip(values, scores, strict=True) if score == best and value is not None]
        return near[self._drawn(name) % len(near)] if near else values[0]

    def _boolean(self, name: str) -> bool:
        plain = name.lower().replace("is_", "")
        if plain in ("positive", "negative"):
            return (self._feeling() > 0) == (plain == "positive")
        if stems_of(name) and stems_of(name) <= stems_of(self._text):
            return True
        return bool(self._drawn(name) & 1)

    def _number(self, schema: Mapping[str, Any], name: str, whole: bool) -> float:
        least, most = _bounds(schema, whole)
        step = schema.get("multipleOf") or (1 if whole else None)
        if whole and step is not None and step < 1:
            step = 1
        plain = name.lower()
        wanted: float | None = None
        if least is not None and most is not None and any(word in plain for word in RATING_NAMES) and most > 1:
            wanted = least + (most - least) * (self._feeling() + 1) / 2
        elif any(word in plain for word in CONFIDENCE_NAMES):
            wanted = strength(self._feeling())
        elif "sentiment" in plain or "polarity" in plain:
            wanted = self._feeling()
        else:
            fitting = [
                one for one in numbers(self._text) if _holds(one, least, most) and (not whole or one == int(one))
            ]
            if fitting:
                wanted = fitting[self._choice % len(fitting)]
        if wanted is None or not _holds(wanted, least, most):
            low = least if least is not None else (0 if most is None else most - 100)
            high = most if most is not None else low + 100
            wanted = low + (high - low) * (self._drawn(name) % 1000) / 1000
        return _stepped(wanted, step, least, most, whole)

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        if (pattern := schema.get("pattern")) is not None:
            return matching_text(pattern, self._drawn(name))
        if (form := str(schema.get("format"))) in FORMATS:
            return FORMATS[form]
        if asks_for_sentiment(str(schema.get("description", ""))):
            return "positive" if self._feeling() > 0 else "negative"
        max_characters = min(schema.get("maxLength", self._max_characters), self._max_characters)
        said = proper_names(self._text) if any(word in name.lower() for word in PROPER_NAME_FIELDS) else []
        text = (
            said[self._choice % len(said)] if said else first_sentence(self._text, self._choice, max(max_characters, 1))
        )
        text = text[:max_characters]
        return text.ljust(schema.get("minLength", 0), ".")

    def _feeling(self) -> float:
        if self._score is None:
            self._score = compound(self._text)
        return self._score

    def _drawn(self, name: str) -> int:
        return int.from_bytes(digest_of(self._digest.hex(), name, self._choice)[:4], "big")


def _bounds(schema: Mapping[str, Any], whole: bool) -> tuple[float | None, float | None]:
    """The least and the most, exclusive ones moved inside."""
    least, most = schema.get("minimum"), schema.get("maximum")
    inside = 1 if whole else 1e-6
    if (above := schema.get("exclusiveMinimum")) is not None:
        least = above + inside if least is None else max(least, above + inside)
    if (below := schema.get("exclusiveMaximum")) is not None:
        most = below - inside if most is None else min(most, below - inside)
    return least, most


def _holds(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _stepped(value: float, step: float | None, least: float | None, most: float | None, whole: bool) -> float:
    """The value, or the multiple of `step` that is next to it and within the bounds."""
    if step is not None:
        count = round(value / step)
        if least is not None:
            count = max(count, ceil(least / step))
        if most is not None:
            count = min(count, floor(most / step))
        value = count * step
    elif value != round(value, 4) and _holds(round(value, 4), least, most):
        value = round(value, 4)
    return int(value) if whole else value
