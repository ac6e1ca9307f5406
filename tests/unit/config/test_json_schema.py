"""The JSON Schema of the job file: it describes every key, accepts every shipped job and rejects errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from connectors.registry import ENDPOINTS, SINKS, SOURCES
from pipelines.config.json_schema import job_schema
from pipelines.config.loaded_job import load_job
from pipelines.config.steps.local_steps import LOCAL_STEPS
from pipelines.config.yaml_reader import parse_yaml, read_yaml

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(
    path
    for folder in (ROOT / "jobs", ROOT / "pipelines" / "starter" / "jobs")
    for path in folder.glob("*.yaml")
    if path.name != "rowmill.yaml"
)


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema_rs.validator_for(job_schema())


def test_the_schema_is_of_draft_2020_12() -> None:
    schema = job_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert jsonschema_rs.meta.is_valid(schema)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "source", "steps", "sink"]


def test_each_kind_of_source_step_and_sink_has_one_alternative() -> None:
    properties = job_schema()["properties"]
    assert len(properties["source"]["oneOf"]) == len(SOURCES)
    assert len(properties["sink"]["oneOf"]) == len(SINKS)
    assert len(properties["steps"]["items"]["oneOf"]) == len(ENDPOINTS) + len(LOCAL_STEPS)


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield path, schema
        for key, inner in schema.items():
            if key not in ("examples", "default"):
                yield from objects(inner, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from objects(inner, f"{path}/{index}")


def test_every_key_has_a_description_and_no_other_key_is_allowed() -> None:
    found = list(objects(job_schema()))
    assert [path for path, schema in found if schema.get("additionalProperties") is not False] == []
    assert [
        f"{path}: {key}"
        for path, schema in found
        for key, inner in schema["properties"].items()
        # A section is described where it is defined.
        if not inner.get("description") and not {"const", "$ref"} & inner.keys()
    ] == []


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_job_is_accepted(validator: Any, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(read_yaml(path, path.name).values)] == []


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_job_loads_and_has_the_name_of_its_file(path: Path) -> None:
    assert load_job(path).job.name == path.stem


def test_a_complete_job_is_accepted_and_errors_in_it_are_not(validator: Any, contract_job: str) -> None:
    assert validator.is_valid(parse_yaml(contract_job, "x").values)
    for written, replacement in [
        ("usd: 5.00", "usd: five"),
        ("concurrency: 200", "inflight: 200"),
        ("endpoint: chat", "endpoint: chatt"),
        ("parquet: data/tickets/*.parquet", "parqet: x"),
        ("parquet: data/tickets/*.parquet", "parquet: x\n  csv: y"),
        ("model: gpt-4o-mini", ""),
        ("on_finish: {command: notify.sh}", "on_finish: {}"),
        ("delivery: online", "deadline: 6am"),
    ]:
        assert written in contract_job
        assert not validator.is_valid(parse_yaml(contract_job.replace(written, replacement, 1), "x").values), (
            replacement
        )


def test_examples_are_valid_for_their_own_schema() -> None:
    schema = job_schema()
    checked = 0
    for path, outer in objects(schema):
        for key, inner in outer["properties"].items():
            for example in inner.get("examples", ()):
                one = jsonschema_rs.validator_for({**inner, "$defs": schema["$defs"]})
                assert one.is_valid(example), f"{path}: {key}: {example}"
                checked += 1
    assert checked > 20
