"""Jobs that Python passes: dicts and models, their YAML, rows in place of a source, and one line for a mistake."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from pydantic import BaseModel, Field

from connectors.errors import JobError
from pipelines.config.from_python.passed_job import Job, PassedJob
from pipelines.config.job import Job as FileJob
from pipelines.config.overrides import Overrides
from pipelines.config.yaml_reader import parse_yaml, read_yaml

ROOT = Path(__file__).parents[4]
SHIPPED = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if path.name != "rowmill.yaml")
STEP = {"name": "answer", "endpoint": "chat", "model": "m", "messages": [{"user": "{{ text }}"}]}
ROWS_JOB: dict[str, Any] = {"name": "frame", "key": "id", "steps": [STEP]}


class Answer(BaseModel):
    topic: str
    urgency: int = Field(ge=1)


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_job_is_the_same_after_yaml(path: Path) -> None:
    job = Job.model_validate(read_yaml(path, "x").values)
    again = parse_yaml(job.to_yaml(), "x").values
    assert Job.model_validate(again) == job
    # PyYAML reads a plain `on` as true.
    assert Job.model_validate(pyyaml.safe_load(path.read_text())) == job
    assert pyyaml.safe_load(job.to_yaml()) == again
    assert FileJob.model_validate(again) == FileJob.model_validate(read_yaml(path, "x").values)


def test_a_job_for_rows_needs_neither_source_nor_sink() -> None:
    job = Job.model_validate(ROWS_JOB)
    assert job.key == ("id",)
    assert parse_yaml(job.to_yaml(), "x").values == ROWS_JOB
    assert Job.model_validate({**ROWS_JOB, "key": ("a", "b")}).key == ("a", "b")
    assert Job.model_validate({"name": "frame", "steps": (STEP,)}).key == ()


def test_a_class_as_output_becomes_its_columns() -> None:
    job = Job.model_validate({**ROWS_JOB, "steps": [{**STEP, "output": Answer}]})
    output = {"topic": {"type": "string"}, "urgency": {"type": "integer", "minimum": 1}}
    assert job.to_values()["steps"][0]["output"] == output
    assert Job.model_validate(parse_yaml(job.to_yaml(), "x").values) == job


def with_step(**keys: Any) -> dict[str, Any]:
    return {**ROWS_JOB, "steps": [{**STEP, **keys}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_step(modell="x"), "steps.answer.modell: no such key; did you mean model?"),
        (with_step(output=type("X", (BaseModel,), {})), "steps.answer.output: X has no fields; declare a field for"),
        ({**ROWS_JOB, "key": 5}, "key: found 5, expected text or a list"),
        ({**ROWS_JOB, "kee": "id"}, "kee: no such key; did you mean key?"),
        ({**ROWS_JOB, "source": {"csv": "x"}}, "key: is for rows passed from Python; write it below source"),
        ({"name": "x", "source": {"csv": "x"}, "steps": [STEP]}, "sink: missing; write e.g. sink: {parquet:"),
        (with_step(output=dict[str, int]), "steps.answer.output: found dict[str, int], expected text or keys"),
        (with_step(output=Answer(topic="a", urgency=1)), "steps.answer.output: found Answer(topic='a', urg"),
        ("jobs/x.yaml", "job: found str, expected the keys of a job; pass a dict"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(values: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        Job.model_validate(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_rows_are_the_source_and_tables_without_a_sink_are_in_the_state_folder(tmp_path: Path) -> None:
    (tmp_path / "rowmill.yaml").write_text("state: .state\n")
    passed = PassedJob.of(ROWS_JOB, tmp_path, "/rows.parquet")
    loaded = PassedJob.from_json(passed.to_json()).load(Overrides(limit=5))
    assert loaded.job.source.model_dump(exclude_unset=True) == {  # type: ignore[attr-defined]
        "parquet": "/rows.parquet",
        "hive": False,
        "key": "id",
        "limit": 5,
    }
    assert loaded.job.sink.location(tmp_path) == str(tmp_path / ".state" / "tables" / "frame")
    assert loaded.workspace.folder == tmp_path
    assert loaded.locate("source", "key") == "key"
    assert loaded.locate("source") == "rows"
    assert loaded.locate("steps", "answer", "model") == "steps.answer.model"


def test_a_job_file_for_rows_keeps_its_lines_in_messages(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(Job.model_validate(ROWS_JOB).to_yaml())
    loaded = PassedJob.of(file, None, "/rows.parquet").load()
    assert loaded.locate("source", "key") == f"{file}:2: key"
    with pytest.raises(JobError, match=r"x\.yaml:1: source: missing"):
        PassedJob.of(file, None).load()


def test_a_source_and_rows_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        Job.model_validate({"name": "x", "source": {"csv": "x"}, "steps": [STEP], "sink": {"parquet": "o"}}).to_yaml()
    )
    with pytest.raises(JobError, match=r"x\.yaml:2: source: rows take its place; leave it out"):
        PassedJob.of(file, None, "/rows.parquet").load()


def test_neither_a_source_nor_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^source: missing; pass rows"):
        PassedJob.of(ROWS_JOB, tmp_path).load()


def test_a_workspace_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no such folder; name the folder of the workspace$"):
        PassedJob.of(ROWS_JOB, tmp_path / "missing", os.devnull).load()
