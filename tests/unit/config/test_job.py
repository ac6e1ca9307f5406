"""A valid job file: values, defaults, and the location of each key."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors.errors import JobError
from pipelines.config.job import (
    Audit,
    Budget,
    Job,
    JobLimits,
    OnFinish,
    Retry,
    Timeouts,
)
from pipelines.config.loaded_job import LoadedJob, load_job
from pipelines.config.workspace import find_workspace

SMALL = """\
name: small
source: {csv: rows.csv}
steps:
  - {name: vector, endpoint: embeddings, model: m, input: "{{ text }}"}
sink: {parquet: out}
"""


def test_a_complete_job_file_is_loaded_in_full(
    contract_job: str, contract_workspace: str, load: Callable[..., LoadedJob], folder: Path
) -> None:
    Path("rowmill.yaml").write_text(contract_workspace)
    job = load(contract_job).job
    assert (job.name, job.description) == ("ticket-enrichment", "Label each ticket, then embed it.")
    assert (job.key, job.source.where, job.limit) == (("ticket_id",), "length(body) > 20", 1000)
    assert [(step.name, step.endpoint, step.provider, step.model) for step in job.steps] == [
        ("label", "chat", "openai", "gpt-4o-mini"),
        ("vector", "embeddings", "openai", "text-embedding-3-small"),
    ]
    assert [step.when for step in job.steps] == [None, "topic <> 'other'"]
    assert (job.sink.columns, job.sink.write, job.sink.deleted) == (("subject",), "merge", "keep")
    assert job.limits == JobLimits(
        requests_per_minute=3000, tokens_per_minute=2_000_000, concurrency=200, failed_share=0.2
    )
    assert job.budget == Budget(usd=5.0)
    assert job.retry == Retry(attempts=6, longest_wait=60, longest_hold=900)
    assert job.timeouts == Timeouts(connect=10, idle=60, total=600)
    assert (job.delivery, job.deadline, job.schedule) == ("online", None, "0 2 * * *")
    assert job.on_finish == OnFinish(command="notify.sh")
    assert job.audits == (Audit(name="no empty topic", sql="select * from results where topic is null", max=0),)
    assert find_workspace("jobs/x.yaml").folder == folder


def test_absent_keys_have_their_defaults(load: Callable[..., LoadedJob]) -> None:
    job = load(SMALL).job
    assert job.limits == JobLimits(concurrency=64, failed_share=None, requests_per_minute=None, tokens_per_minute=None)
    assert job.budget is None
    assert job.retry == Retry(attempts=6, longest_wait=60, longest_hold=900)
    assert job.timeouts == Timeouts(connect=10, idle=60, total=600)
    assert (job.sink.write, job.sink.deleted, job.sink.columns) == ("merge", "keep", ())
    assert (job.key, job.limit, job.delivery, job.audits, job.steps[0].provider) == ((), None, "online", (), "openai")


def test_a_job_is_immutable(load: Callable[..., LoadedJob]) -> None:
    job = load(SMALL).job
    with pytest.raises(ValidationError, match="frozen"):
        job.name = "other"


def test_a_job_built_in_python_is_validated_like_a_file(load: Callable[..., LoadedJob]) -> None:
    job = load(SMALL).job
    again = Job(name="small", source=job.source, steps=job.steps, sink=job.sink)
    assert again == job
    with pytest.raises(ValidationError, match="is the name of an earlier one too"):
        Job(name="small", source=job.source, steps=(*job.steps, *job.steps), sink=job.sink)


def test_every_key_is_located_by_its_line(contract_job: str, load: Callable[..., LoadedJob]) -> None:
    loaded = load(contract_job)
    lines = contract_job.splitlines()
    for path, key in [
        (("name",), "name:"),
        (("source", "where"), "where:"),
        (("steps", 0, "model"), "model: gpt-4o-mini"),
        (("steps", 0, "messages", 1, "user"), "- user:"),
        (("steps", 0, "output", "tags"), "tags:"),
        (("steps", 1, "output"), "output: body_vector"),
        (("audits", 0, "sql"), "{name: no empty"),
    ]:
        location, _, dotted = loaded.locate(*path).partition(": ")
        assert key in lines[int(location.removeprefix("jobs/x.yaml:")) - 1]
        assert dotted == ".".join(map(str, path)).replace("steps.0", "steps.label").replace("steps.1", "steps.vector")


def test_an_absent_key_is_located_by_the_nearest_key_around_it(load: Callable[..., LoadedJob]) -> None:
    loaded = load(SMALL)
    assert loaded.locate("steps", 0, "when") == "jobs/x.yaml:4: steps.vector.when"
    assert loaded.locate("steps", "vector", "when") == "jobs/x.yaml:4: steps.vector.when"
    assert loaded.locate("budget", "usd") == "jobs/x.yaml:1: budget.usd"
    assert loaded.locate() == "jobs/x.yaml"


def test_an_anchor_can_be_reused_and_merged(contract_job: str, load: Callable[..., LoadedJob]) -> None:
    text = contract_job.replace("params: {temperature: 0, max_tokens: 200}", "params: &usual {temperature: 0, seed: 1}")
    text = text.replace("    input:", "    params: {<<: *usual, seed: 2}\n    input:")
    text = text.replace("endpoint: embeddings", 'endpoint: chat\n    messages: [{user: "{{ body }}"}]')
    text = text.replace('    input: "{{ body }}"\n', "").replace("    output: body_vector\n", "")
    steps = load(text).job.steps
    assert [step.params for step in steps] == [{"temperature": 0, "seed": 1}, {"seed": 2, "temperature": 0}]


def test_a_path_is_shown_as_the_user_gave_it(folder: Path) -> None:
    for path in (Path("jobs/../jobs/none.yaml"), folder / "none.yaml"):
        with pytest.raises(JobError) as caught:
            load_job(path)
        assert str(caught.value).startswith(f"{path}: no such file; check the path")
