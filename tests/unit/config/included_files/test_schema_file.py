"""Output schemas in files: columns from properties, references, and errors with the line of the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import JobError
from pipelines.config.included_files.schema_file import read_output_schema
from pipelines.config.loaded_job import LoadedJob

TOPIC = {"type": "string", "enum": ["billing", "other"], "description": "About."}
SCHEMA = """\
{
\t"$schema": "https://json-schema.org/draft/2020-12/schema",
\t"type": "object",
\t"properties": {
\t\t"topic": {"type": "string", "enum": ["billing", "other"], "description": "About."},
\t\t"owner": {"$ref": "#/$defs/person", "description": "Who."},
\t\t"tags": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}}
\t},
\t"required": ["topic"],
\t"$defs": {
\t\t"person": {
\t\t\t"type": "object",
\t\t\t"properties": {"age": {"type": "strange"}}
\t\t}
\t}
}
"""
JOB = """\
name: small
source: {csv: rows.csv}
steps:
  - name: label
    endpoint: chat
    model: m
    messages: [{user: "{{ text }}"}]
    output_schema: schemas/ticket.json
sink: {parquet: out}
"""


def test_properties_become_outputs_without_references() -> None:
    output, part = read_output_schema(SCHEMA, "s.json")
    assert output == {
        "topic": TOPIC,
        "owner": {"type": "object", "properties": {"age": {"type": "strange"}}, "description": "Who."},
        "tags": {"type": "array", "items": {"type": "string", "nullable": True}},
    }
    places = {
        ("topic", "enum"): "s.json:5: properties.topic.enum",
        ("owner", "properties", "age", "type"): "s.json:13: $defs.person.properties.age.type",
        ("owner", "description"): "s.json:6: properties.owner.description",
        ("owner", "required"): "s.json:11: $defs.person.required",
        ("tags", "items", "type"): "s.json:7: properties.tags.items.anyOf.0.type",
        (): "s.json:4: properties",
    }
    assert {path: part.locate(path, "x", None) for path in places} == places


def test_a_schema_in_a_file_is_the_same_step_as_its_outputs_inline(
    load: Callable[..., LoadedJob], folder: Path
) -> None:
    (folder / "rowmill.yaml").write_text("")
    (folder / "schemas").mkdir()
    (folder / "schemas/ticket.json").write_text(json.dumps({"type": "object", "properties": {"topic": TOPIC}}))
    inline = JOB.replace("output_schema: schemas/ticket.json", f"output: {json.dumps({'topic': TOPIC})}")
    assert load(JOB).job == load(inline).job


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "schemas/ticket.json",
            "schemas/no.json",
            "jobs/x.yaml:8: steps.label.output_schema: schemas/no.json: no such",
        ),
        ("schemas/ticket.json", "[a]", "jobs/x.yaml:8: steps.label.output_schema: found a list, expected text"),
        (
            "model: m",
            "model: m\n    output: x",
            "jobs/x.yaml:9: steps.label.output_schema: cannot be combined with output",
        ),
    ],
    ids=["missing", "list", "both"],
)
def test_the_key_names_a_file_in_place_of_output(
    load_error: Callable[..., str], old: str, new: str, message: str
) -> None:
    assert load_error(JOB.replace(old, new)).startswith(message)


TREE = {"type": "object", "properties": {"next": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
BOMB = {
    f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(40)
}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ('{\n"a": 1,\n}', "s.json:3: not JSON (Expecting property name enclosed in double quotes); correct it"),
        ('{"properties": {"a": NaN}}', "s.json:1: not JSON (NaN is no JSON number); correct it"),
        ('{"properties": {"a": {},\n"a": {}}}', "s.json:2: properties.a: already on line 1; keep one of them"),
        ([], 's.json: not a JSON object; write {"type": "object", "properties": {...}}'),
        ({"type": "array"}, 's.json:1: type: found "array", expected an object; write "type": "object"'),
        ({}, 's.json:1: properties: no properties; write "properties": {"topic": {"type": "string"}}'),
        ({"propertys": {"a": {}}}, "s.json:1: propertys: no such keyword; did you mean properties?"),
        ({"oneOf": [], "properties": {"a": {}}}, "s.json:1: oneOf: applies to the answer as a whole, not to one col"),
        (
            {"$ref": "#/$defs/no", "$defs": {"now": {}}},
            "s.json:1: $ref: #/$defs/no does not exist in this file; did you",
        ),
        ({"properties": {"a": {"$ref": "b.json"}}}, "s.json:1: properties.a.$ref: b.json is in another file; move it"),
        (
            {"properties": {"a": {"$ref": "#"}}},
            "s.json:1: properties.a.$ref: contains itself; a column has a fixed depth: leave",
        ),
        (
            {"properties": {"a": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": TREE}},
            "s.json:1: $defs.tree.properties.next.items.$ref: contains itself; a column has a fixed depth: leave",
        ),
        ({"properties": {"a": {"$dynamicRef": "#x"}}}, "s.json:1: properties.a.$dynamicRef: contains itself; a column"),
        ({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**BOMB, "d40": {}}}, "s.json:1: $defs.d"),
    ],
    ids=[
        *("comma", "constant", "twice", "list", "array", "none", "misspelt", "union", "typing-error"),
        *("other-file", "whole", "recursive", "dynamic", "bomb"),
    ],
)
def test_what_describes_no_columns_is_refused_with_its_line(schema: Any, message: str) -> None:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with pytest.raises(JobError) as caught:
        read_output_schema(text, "s.json")
    assert str(caught.value).startswith(message)
