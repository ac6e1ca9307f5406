"""Typed answers: a job's `output:` as a JSON Schema for the API and as Arrow columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from connectors.contracts import is_reserved_name
from connectors.endpoints.conversation.structured.answer_json import json_objects, same_json, wrapped_objects
from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.transport.bounded_json import parse_json

TYPES = ("string", "integer", "number", "boolean", "array", "object")
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

KEYWORDS = {
    "type", "nullable", "enum", "const", "title", "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly", "format", "contentEncoding", "contentMediaType", "pattern", "minLength", "maxLength", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items", "prefixItems", "contains", "minContains",
    "maxContains", "minItems", "maxItems", "uniqueItems", "properties", "required", "additionalProperties",
    "patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired", "anyOf", "allOf",
    "oneOf", "not", "if", "then", "else",
}  # fmt: skip
"""Keywords of JSON Schema, and `nullable`; any keyword that begins with $ or x- is accepted as well."""

UNIONS = ("anyOf", "oneOf", "allOf")
BOUND_PAIRS = (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems"))


class TypedOutput:
    """The columns of a typed answer, in the order of the job file."""

    def __init__(self, declared: Mapping[str, Any], where: KeyPath) -> None:
        """JobError, with a key path below `where`, for an invalid type."""
        if not declared:
            raise JobError(where, "names no column", "write e.g. output: {topic: {type: string}}")
        properties: dict[str, Any] = {}
        fields: list[pa.Field] = []
        for name, spec in declared.items():
            if is_reserved_name(name):
                raise JobError((*where, name), "this name is reserved for Rowmill", "choose another")
            properties[name], kind = _parse_type(spec, (*where, name))
            fields.append(pa.field(name, kind))
        self.names: tuple[str, ...] = tuple(declared)
        self.fields: tuple[pa.Field, ...] = tuple(fields)
        self.schema: dict[str, Any] = _object_schema(properties)
        """Strict: every property is required and no other is allowed, at every depth."""
        import jsonschema_rs  # 3 MB, and only for typed answers

        try:
            self._validator = jsonschema_rs.validator_for(self.schema)
        except (ValueError, jsonschema_rs.ValidationError) as exc:
            raise JobError(where, f"is not a JSON Schema: {' '.join(str(exc).split())[:200]}", "correct it") from exc
        converters = enumerate(_converter(field.type) for field in fields)
        self._converters = [(place, convert) for place, convert in converters if convert is not None]

    def parse(self, text: str) -> tuple[Any, ...] | str:
        """Return the values of an answer, one for each column, or a message about what does not fit.

        The answer is the text as a whole, or else the only object in it that fits.
        """
        try:
            answer = parse_json(strip_fence(text))
        except orjson.JSONDecodeError as exc:
            if (only := self._only_fit(text)) is not None:
                return self._convert(only)
            # Part of the repair request: another wording would change the fingerprints of stored answers.
            return f"this is no JSON: {exc}"
        if self._validator.is_valid(answer):
            return self._convert(answer)
        # A list with one object, an object around it, or JSON within a JSON text.
        only = self._only_fit(answer if isinstance(answer, str) else text)
        if only is not None:
            return self._convert(only)
        problem = next(iter(self._validator.iter_errors(answer)))
        path = ".".join(str(step) for step in problem.instance_path)
        return f"{path}: {problem.message}"[:500] if path else str(problem.message)[:500]

    def _only_fit(self, text: str) -> dict[str, Any] | None:
        """Return the object in a text that fits; None without one, or if several fit and differ."""
        objects = json_objects(text)
        fits = [each for each in objects if self._is_valid(each)]
        if not fits:
            fits = [inner for each in objects for inner in wrapped_objects(each) if self._is_valid(inner)]
        return fits[0] if fits and all(same_json(fits[0], other) for other in fits[1:]) else None

    def _is_valid(self, answer: Any) -> bool:
        try:
            return bool(self._validator.is_valid(answer))
        except ValueError:  # a number that is too large
            return False

    def _convert(self, answer: Mapping[str, Any]) -> tuple[Any, ...] | str:
        values = [answer[name] for name in self.names]
        try:
            for place, convert in self._converters:
                values[place] = convert(values[place])
        except OverflowError as exc:
            return str(exc)
        return tuple(values)


def strip_fence(text: str) -> str:
    """Remove a Markdown fence around the text."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and len(text) > 6:
        first, _, rest = text[3:-3].partition("\n")
        return rest if first.strip().isalpha() or not first.strip() else text[3:-3]
    return text


def _parse_type(spec: Any, where: KeyPath) -> tuple[dict[str, Any], pa.DataType]:
    """Return (JSON Schema, Arrow type) of one type in the job file."""
    if isinstance(spec, str):
        spec = {"type": spec}
    if not isinstance(spec, Mapping):
        raise JobError(where, f"found {spec!r}, expected a type", "write e.g. {type: string}")
    schema = {key: value for key, value in spec.items() if key != "nullable"}
    kinds = schema.get("type")
    if kinds is None and ("enum" in schema or "const" in schema):
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        kinds = "string" if all(isinstance(value, str) for value in values) else None
    nullable = bool(spec.get("nullable"))
    if isinstance(kinds, Sequence) and not isinstance(kinds, str):
        nullable = nullable or "null" in kinds
        rest = [kind for kind in kinds if kind != "null"]
        kinds = rest[0] if len(rest) == 1 else None
    if kinds not in TYPES:
        remedy = f"write one of {', '.join(TYPES)}"
        if kinds is None and (union := next((word for word in UNIONS if word in schema), None)):
            remedy += f": a column has one type, whatever {union} says"
        found = f"found {schema['type']!r}" if "type" in schema else "no type"
        raise JobError((*where, "type"), found, remedy)
    kind: pa.DataType
    if kinds == "object":
        inner = schema.get("properties")
        if not isinstance(inner, Mapping) or not inner:
            raise JobError((*where, "properties"), "an object needs its properties", "name each with its type")
        _check_property_names(inner, (*where, "properties"))
        if "patternProperties" in schema:
            raise JobError(
                (*where, "patternProperties"),
                "a column of objects has a fixed set of properties",
                "name them in properties, or ask for a list of objects with a name and a value",
            )
        types = {name: _parse_type(value, (*where, "properties", name)) for name, value in inner.items()}
        schema |= _object_schema({name: inner_schema for name, (inner_schema, _) in types.items()})
        kind = pa.struct([pa.field(name, inner_kind) for name, (_, inner_kind) in types.items()])
    elif kinds == "array":
        if "items" not in schema:
            raise JobError(
                (*where, "items"), "an array needs the type of its items", "write e.g. items: {type: string}"
            )
        schema["items"], item_kind = _parse_type(schema["items"], (*where, "items"))
        if "prefixItems" in schema:
            schema["prefixItems"] = _parse_prefix(schema["prefixItems"], item_kind, (*where, "prefixItems"))
        kind = pa.list_(item_kind)
    else:
        kind = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}[kinds]
    _check_keywords(schema, kinds, where)
    schema["type"] = [kinds, "null"] if nullable else kinds
    if nullable and schema.get("const") is not None:
        schema["enum"] = [schema.pop("const")]
    if nullable and "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    return schema, kind


def _parse_prefix(prefix: Any, kind: pa.DataType, where: KeyPath) -> list[dict[str, Any]]:
    """Return the JSON Schemas of an array's first items; JobError unless they have the type of the others."""
    if not isinstance(prefix, Sequence) or isinstance(prefix, str) or not prefix:
        raise JobError(where, f"found {prefix!r}, expected a list of types", "write e.g. [{type: string}]")
    parsed = [_parse_type(spec, (*where, index)) for index, spec in enumerate(prefix)]
    if any(found != kind for _, found in parsed):
        raise JobError(
            where,
            "the items of an array are stored in one column and have one type",
            "write an object with a property for each, or give them the type of items",
        )
    return [schema for schema, _ in parsed]


def _check_property_names(names: Iterable[str], where: KeyPath) -> None:
    """JobError for properties that DuckDB, which ignores case, cannot store as parts of one column."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(str(name).lower(), name)
        if not name or "\0" in str(name):
            raise JobError((*where, name), f"{name!r} cannot be a name", "choose another")
        if other is not name:
            raise JobError((*where, name), f"{other} and {name} differ in case only", "give one of them another name")


def _check_keywords(schema: Mapping[str, Any], kind: str, where: KeyPath) -> None:
    """JobError for what no answer could fit, and for a keyword that there is not: both would be paid for first."""
    for word in schema:
        if word not in KEYWORDS and not word.startswith(("$", "x-")):
            raise JobError((*where, word), "no such key", did_you_mean(word, KEYWORDS))
    if "enum" in schema or "const" in schema:
        word = "enum" if "enum" in schema else "const"
        values = schema["enum"] if word == "enum" else [schema["const"]]
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise JobError(
                (*where, "enum"), f"found {values!r}, expected a list of values", "write e.g. enum: [billing, other]"
            )
        import jsonschema_rs

        fits = jsonschema_rs.validator_for({"type": [kind, "null"]}).is_valid
        for value in values:
            if not fits(value):
                raise JobError(
                    (*where, word),
                    f"{value!r} is not a valid {kind}",
                    "write values of that type (in quotes for texts)",
                )
    for minimum, maximum in BOUND_PAIRS:
        low, high = schema.get(minimum), schema.get(maximum)
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            raise JobError(
                (*where, minimum), f"{low} is more than {maximum} {high}, so nothing fits", "correct one of them"
            )


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return a function that converts a valid JSON value to one that Arrow accepts; None if Arrow accepts all."""
    if pa.types.is_int64(kind):
        return _int64
    if pa.types.is_float64(kind):
        return lambda value: None if value is None else float(value)
    if pa.types.is_list(kind):
        convert_item = _converter(kind.value_type)
        if convert_item is None:
            return None
        return lambda value: None if value is None else [convert_item(item) for item in value]
    if pa.types.is_struct(kind):
        parts = [(field.name, convert) for field in kind if (convert := _converter(field.type)) is not None]
        if not parts:
            return None
        return lambda value: (
            None if value is None else {**value, **{name: convert(value[name]) for name, convert in parts}}
        )
    return None


def _int64(value: Any) -> int | None:
    if value is None:
        return None
    number = int(value)
    if not MIN_INTEGER <= number <= MAX_INTEGER:
        raise OverflowError(f"{value} is too large for a whole number of 64 bits")
    return number
