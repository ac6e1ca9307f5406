"""Request bytes parsed independently: JSON, forms, and the schemas that both must fit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import HTTP
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
OFFICIAL: dict[str, Any] = json.loads((ROOT / "connectors" / "emulator" / "openai-request-schemas.json").read_bytes())
REFERENCE: dict[str, Any] = json.loads((HERE / "reference-responses.json").read_bytes())


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in a form."""

    name: str
    kind: str
    """The content type of its part."""
    content: bytes


def fields_of(content_type: str, raw: bytes) -> dict[str, Any]:
    """The fields of a form, text or Upload; `name[]` becomes a list, `name[key]` an object at `name`."""
    whole = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + raw, policy=HTTP)
    found: dict[str, Any] = {}
    for part in whole.iter_parts():
        assert part.get_content_disposition() == "form-data"
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        file = part.get_filename()
        value = content.decode() if file is None else Upload(file, part.get_content_type(), content)
        name, _, rest = str(part.get_param("name", header="content-disposition")).partition("[")
        key = rest.removesuffix("]")
        if not rest:
            assert name not in found, f"the field {name} came twice"
            found[name] = value
        elif key:
            found.setdefault(name, {})[key] = value
        else:
            found.setdefault(name, []).append(value)
    return found


def at(sent: Any, place: str) -> Any:
    """The value at a path of keys and positions, such as `messages.0.content`."""
    for step in place.split("."):
        sent = sent[int(step)] if isinstance(sent, list) else sent[step]
    return sent


@cache
def _validator(schema: str) -> jsonschema_rs.Validator:
    whole = REFERENCE if schema == "reference" else {"$ref": f"#/$defs/{schema}", "$defs": OFFICIAL["$defs"]}
    return jsonschema_rs.validator_for(whole)


@cache
def _property_validator(schema: str, name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for({**properties(schema)[name], "$defs": OFFICIAL["$defs"]})


def check(schema: str, sent: Mapping[str, Any]) -> None:
    """Assert that the body fits its schema and has no unknown keys."""
    assert sent.keys() <= properties(schema).keys()
    _validator(schema).validate(sent)


def check_form(schema: str, sent: Mapping[str, Any]) -> None:
    """Like `check`, after converting the texts of the form to the types of the schema."""
    check(schema, {name: _typed(schema, name, value) for name, value in sent.items()})


def _typed(schema: str, name: str, value: Any) -> Any:
    plain = _plain(value)
    validator = _property_validator(schema, name)
    fitting = [reading for reading in (plain, _numbers(plain)) if validator.is_valid(reading)]
    assert fitting, f"{name}: {plain!r} is nothing that its schema takes"
    return fitting[0]


def _plain(value: Any) -> Any:
    """A file as text, since its schema is a string of format binary."""
    if isinstance(value, Upload):
        return f"{len(value.content)} bytes"
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _numbers(value: Any) -> Any:
    """Numbers and booleans in place of their JSON texts."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def properties(schema: str) -> dict[str, Any]:
    """The properties of a schema, through `$ref` and `allOf`."""
    return _properties(REFERENCE if schema == "reference" else OFFICIAL["$defs"][schema])


def _properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        found |= _properties(OFFICIAL["$defs"][part["$ref"].removeprefix("#/$defs/")] if "$ref" in part else part)
    return found
