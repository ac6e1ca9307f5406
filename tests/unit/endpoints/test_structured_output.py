"""Typed answers: what an output schema may declare, and that every answer that fits it can be stored."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.endpoints.conversation.structured.structured_output import TypedOutput
from connectors.errors import JobError
from connectors.sinks.delta_types import delta_schema

WHERE = ("steps", "a", "output")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
            "x.prefixItems: the items of an array are stored in one column and have one type; write an object",
        ),
        (
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "array", "items": "integer"}],
                "items": "integer",
            },
            "x.prefixItems: the items of an array are stored in one column and have one type; write an object",
        ),
        ({"type": "array", "prefixItems": [], "items": "string"}, "x.prefixItems: found [], expected a list of types"),
        (
            {"type": "array", "prefixItems": "string", "items": "string"},
            "x.prefixItems: found 'string', expected a list",
        ),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, "x.items: an array needs the type of its items"),
        ({"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}, "x.items: found [{'type': 'string'}"),
        ({"type": "array", "items": False}, "x.items: found False, expected a type"),
        ({"type": "array", "items": {}}, "x.items.type: no type; write one of string, integer"),
        (
            {"type": "object", "properties": {"a": "string"}, "patternProperties": {"^x": {"type": "integer"}}},
            "x.patternProperties: a column of objects has a fixed set of properties; name them in properties",
        ),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            "x.properties: an object needs its properties",
        ),
        (
            {"type": "object", "properties": {"a": "string", "A": "string"}},
            "x.properties.A: a and A differ in case only",
        ),
        ({"type": "object", "properties": {"": "string"}}, "x.properties.: '' cannot be a name; choose another"),
        ({"type": "object", "properties": {"a\0": "string"}}, "x.properties.a\\x00: 'a\\x00' cannot be a name"),
        (
            {"type": "object", "properties": {"child": {"$ref": "#"}}},
            "x.properties.child.type: no type; write one of",
        ),
        ({"$ref": "#/$defs/node"}, "x.type: no type; write one of"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "x.type: no type; write one of"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "x.type: no type; write one of"),
        ({"allOf": [{"type": "string"}]}, "x.type: no type; write one of"),
        ({"type": ["string", "integer"]}, "x.type: found ['string', 'integer']; write one of"),
        ({"type": "null"}, "x.type: found 'null'; write one of"),
        ({"type": ["null"]}, "x.type: found ['null']; write one of"),
        ({"enum": ["a", 1]}, "x.type: no type; write one of"),
        ({"enum": [1, 2]}, "x.type: no type; write one of"),
        ({"const": 1}, "x.type: no type; write one of"),
        ({"type": "integer", "enum": [1, "a"]}, "x.enum: 'a' is not a valid integer; write values of that type"),
        ({"type": "string", "const": 5}, "x.const: 5 is not a valid string; write values of that type"),
        ({"type": "string", "unevaluatedProperties": False}, "x.unevaluatedProperties: no such key"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_sent(spec: Any, message: str) -> None:
    with pytest.raises(JobError) as raised:
        TypedOutput({"x": spec}, WHERE)
    assert str(raised.value).startswith(f"steps.a.output.{message}")


@pytest.mark.parametrize("name", ["", "a\0b", "_run_id", "_row_fingerprint", "_key"])
def test_a_column_of_a_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="this name is reserved for Rowmill; choose another"):
        TypedOutput({name: "string"}, WHERE)


def test_the_first_items_of_an_array_may_have_rules_of_their_own() -> None:
    first = {"type": "string", "enum": ["low", "high"]}
    typed = TypedOutput({"x": {"type": "array", "prefixItems": [first], "items": {"type": "string"}}}, WHERE)
    assert typed.parse('{"x": ["low", "other"]}') == (["low", "other"],)
    assert isinstance(typed.parse('{"x": ["other"]}'), str)


def test_a_constant_text_needs_no_type() -> None:
    typed = TypedOutput({"kind": {"const": "invoice"}}, WHERE)
    assert typed.parse('{"kind": "invoice"}') == ("invoice",)
    assert isinstance(typed.parse('{"kind": "letter"}'), str)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4)
PROPERTY_NAMES = st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower)
Typed = tuple[dict[str, Any], st.SearchStrategy[Any]]
"""A type of the job file, and the answers that fit it."""


@st.composite
def types(draw: st.DrawFn, depth: int = 2) -> Typed:
    """Draw a type with the answers that fit it."""
    kinds = [
        "string",
        "integer",
        "number",
        "boolean",
        "enum",
        "const",
        *(["array", "prefix", "object"] if depth else []),
    ]
    kind = draw(st.sampled_from(kinds))
    spec: dict[str, Any] = {"type": kind}
    answers: st.SearchStrategy[Any]
    if kind == "string":
        answers = TEXTS
    elif kind == "integer":
        whole = st.integers(-(2**63), 2**63 - 1)
        answers = whole | st.sampled_from([-(2**63), 2**63 - 1]) | st.integers(-(2**53), 2**53).map(float)
    elif kind == "number":
        answers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
    elif kind == "boolean":
        answers = st.booleans()
    elif kind == "enum":
        values = draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True))
        spec, answers = {"enum": values}, st.sampled_from(values)
    elif kind == "const":
        value = draw(TEXTS)
        spec, answers = {"const": value}, st.just(value)
    elif kind == "object":
        properties = {name: draw(types(depth - 1)) for name in draw(PROPERTY_NAMES)}
        spec = {"type": "object", "properties": {name: one[0] for name, one in properties.items()}}
        answers = st.fixed_dictionaries({name: one[1] for name, one in properties.items()})
    else:
        items, of_items = draw(types(depth - 1))
        spec, answers = {"type": "array", "items": items}, st.lists(of_items, max_size=3)
        if kind == "prefix":
            spec["prefixItems"] = [items, items]
    if draw(st.booleans()):
        spec, answers = {**spec, "nullable": True}, answers | st.none()
        if "enum" in spec or "const" in spec:
            spec["type"] = "string"
    return spec, answers


@st.composite
def outputs(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw an output with some answers that fit it."""
    typed = {name: draw(types()) for name in draw(PROPERTY_NAMES)}
    answers = st.fixed_dictionaries({name: one[1] for name, one in typed.items()})
    return {name: one[0] for name, one in typed.items()}, draw(st.lists(answers, min_size=1, max_size=3))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(drawn=outputs())
def test_every_answer_that_fits_is_stored_in_every_kind_of_table(
    tmp_path: Path, drawn: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    declared, answers = drawn
    typed = TypedOutput(declared, WHERE)
    rows = [typed.parse(json.dumps(answer)) for answer in answers]
    assert rows == [tuple(answer[name] for name in declared) for answer in answers]
    columns = [
        pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), typed.fields, strict=True)
    ]
    table = pa.table(columns, schema=pa.schema(typed.fields))
    expected = table.to_pylist()
    assert table.cast(delta_schema(table.schema)).to_pylist() == expected
    pq.write_table(table, tmp_path / "part.parquet")
    assert pq.read_table(tmp_path / "part.parquet").to_pylist() == expected
    with duckdb.connect() as db:
        db.register("rows", table)
        db.execute("create table stored as from rows")
        assert db.sql("from stored").to_arrow_table().to_pylist() == expected
