"""Every key of a job file and of `rowmill.yaml` as Markdown tables, made of the JSON Schemas that check them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from connectors.registry import ENDPOINTS, SINKS, SOURCES
from pipelines.config.json_schema import job_schema
from pipelines.config.workspace import WorkspaceFile

BEGIN = "<!-- keys, made of the JSON Schema: begin -->\n"
END = "<!-- keys: end -->\n"

Schema = Mapping[str, Any]


def with_keys(text: str) -> str:
    """The text with its part between the two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{keys()}\n{END}{after}"


def keys() -> str:
    """All keys, a table for each part of the two files."""
    schema = job_schema()
    parts: Schema = schema["$defs"]
    top: Schema = schema["properties"]
    blocks = [
        _block("### The job file", top.items(), schema["required"]),
        *_kinds("source", parts, SOURCES, "### `source`: exactly one of these kinds"),
        *_kinds("step", parts, ENDPOINTS, "### `steps`: a list; `endpoint` tells the kind"),
        *_kinds("sink", parts, SINKS, "### `sink`: exactly one of these kinds"),
    ]
    for name in ("limits", "budget", "retry", "timeouts", "on_finish"):
        blocks.append(_section(f"### `{name}`", parts[_reference(top[name])]))
    blocks.append(_section("### `audits`: a list", parts["Audit"]))
    blocks.append(_section("### `audits[].drift`", parts["Drift"]))
    workspace = WorkspaceFile.model_json_schema()
    inner = workspace["$defs"]
    blocks.append(_section("### The workspace: `rowmill.yaml`", workspace))
    blocks.append(_section("### `providers.NAME`", inner["ProviderEntry"]))
    blocks.append(_section("### `providers.NAME.limits`", inner["ProviderLimits"]))
    blocks.append(_section("### `budget` of the workspace", inner["DayBudget"]))
    blocks.append(_section("### `prices.MODEL`", inner["PriceEntry"]))
    return "\n".join(blocks)


def _kinds(what: str, parts: Schema, kinds: Mapping[str, type[Any]], title: str) -> Iterator[str]:
    """First the keys that all kinds share, then each kind's own."""
    schemas = {name: parts[kind.__name__] for name, kind in kinds.items()}
    first = next(iter(schemas.values()))
    shared = [key for key in first["properties"] if all(key in schema["properties"] for schema in schemas.values())]
    told = [(key, first["properties"][key]) for key in shared if key != "endpoint"]
    yield _block(f"{title}\n\nEvery {what}:", told, first.get("required", ()))
    for name, schema in schemas.items():
        own = [(key, value) for key, value in schema["properties"].items() if key not in shared]
        heading = f"#### `{name}`\n\n{schema.get('description', '')}".rstrip()
        if own:
            yield _block(heading, own, schema.get("required", ()))


def _section(title: str, schema: Schema) -> str:
    said = schema.get("description", "")
    return _block(f"{title}\n\n{said}" if said else title, schema["properties"].items(), schema.get("required", ()))


def _block(title: str, told: Iterable[tuple[str, Schema]], required: Sequence[str]) -> str:
    lines = [title, "", "| key | what it is | type | default | e.g. |", "|---|---|---|---|---|"]
    for key, schema in told:
        default = "required" if key in required else _code(schema["default"]) if _says(schema, "default") else ""
        example = next(iter(schema.get("examples", ())), None)
        cells = (
            f"`{key}`",
            schema.get("description", ""),
            _type(schema),
            default,
            "" if example is None else _code(example),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _says(schema: Schema, key: str) -> bool:
    return schema.get(key) not in (None, "", [], {}) and "$ref" not in schema


def _reference(schema: Schema) -> str:
    found = schema if "$ref" in schema else next(one for one in schema["anyOf"] if "$ref" in one)
    return str(found["$ref"]).rpartition("/")[2]


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return "keys and values"
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return " or ".join(_code(value) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[key]))
    kind = schema.get("type")
    if kind == "array":
        inner = _type(schema["items"]) if isinstance(schema.get("items"), Mapping) else ""
        return f"list of {inner}" if inner and inner != "anything" else "list"
    if kind in ("integer", "number"):
        words = {"integer": "whole number", "number": "number"}[kind]
        low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
        # Bounds that only keep out what no machine can hold are no news.
        span = f" {low}–{high}" if low is not None and high is not None and high <= 10_000 else ""
        return words + (span or (f" ≥ {low}" if low is not None and low > 0 else ""))
    return {"string": "text", "boolean": "true or false", "object": "keys and values", "null": "null"}.get(
        str(kind), "anything"
    )


def _code(value: Any) -> str:
    text = value if isinstance(value, str) and value.strip() else orjson.dumps(value).decode()
    return f"`{text}`"
