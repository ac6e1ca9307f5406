"""Flags that replace values of a job file: their effect, and the errors of invalid ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.registry import SINKS
from connectors.sinks.duckdb_table import DuckdbSink
from pipelines.config.job import Budget
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import Overrides, answer_flags, apply_overrides, has_other_sink, trial_sink

JOB = """\
name: small
source: {csv: rows.csv, key: id, limit: 5}
steps:
  - {name: label, endpoint: chat, model: m, messages: [{user: "{{ text }}"}]}
  - {name: vector, endpoint: embeddings, model: m, input: "{{ text }}"}
sink: {parquet: out}
"""


def settings(*assignments: str) -> Overrides:
    return Overrides(assignments=assignments)


def test_set_reaches_any_key_and_reads_its_value_as_yaml(load: Callable[..., LoadedJob]) -> None:
    loaded = load(
        JOB,
        settings(
            "steps.label.model=gpt-4o",
            "steps.1.dimensions=256",
            "steps.label.params={temperature: 0.5, stop: [a]}",
            "budget.usd=2.5",
            "sink.columns=[text]",
            "source.where=label = 'x'",
        ),
    )
    job = loaded.job
    assert (job.steps[0].model, job.steps[1].model) == ("gpt-4o", "m")
    assert getattr(job.steps[1], "dimensions", None) == 256
    assert job.steps[0].params == {"temperature": 0.5, "stop": ["a"]}
    assert (job.budget, job.sink.columns, job.source.where) == (Budget(usd=2.5), ("text",), "label = 'x'")


def test_the_named_flags_set_their_keys(load: Callable[..., LoadedJob], folder: Path) -> None:
    loaded = load(JOB, Overrides(limit=2, provider="local", sink="trial", budget_usd=0.5, delivery="batch"))
    job = loaded.job
    assert (job.limit, [step.provider for step in job.steps]) == (2, ["local", "local"])
    assert (job.budget, job.delivery) == (Budget(usd=0.5), "batch")
    assert getattr(job.sink, "parquet", None) == str(folder / "trial")


def test_a_sink_keeps_its_kind(load: Callable[..., LoadedJob], folder: Path) -> None:
    text = JOB.replace("sink: {parquet: out}", "sink: {duckdb: out.duckdb, table: rows}")
    sink = load(text, Overrides(sink=str(folder / "trial.duckdb"))).job.sink
    assert isinstance(sink, DuckdbSink)
    assert (sink.duckdb, sink.table) == (str(folder / "trial.duckdb"), "rows")


def test_delivery_online_removes_the_deadline(load: Callable[..., LoadedJob]) -> None:
    text = JOB + 'delivery: batch\ndeadline: "06:00"\n'
    assert load(text).job.deadline == "06:00"
    assert load(text, Overrides(delivery="online")).job.deadline is None


def test_the_values_as_written_are_not_changed() -> None:
    written = {"name": "a", "steps": [{"name": "b", "model": "m"}]}
    assert apply_overrides(written, settings("steps.b.model=n", "limits.concurrency=3"), SINKS).values == {
        "name": "a",
        "steps": [{"name": "b", "model": "n"}],
        "limits": {"concurrency": 3},
    }
    assert written == {"name": "a", "steps": [{"name": "b", "model": "m"}]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (settings("steps.labl.model=x"), "--set steps.labl.model: no such step; did you mean label?"),
        (settings("steps.2.model=x"), "--set steps.2.model: no such step; known here: label, vector"),
        (settings("steps.label.modle=x"), "--set steps.label.modle: no such key; did you mean model?"),
        (settings("limts.concurrency=4"), "--set limts.concurrency: limts: no such key; did you mean limits?"),
        (
            settings("limits.concurrency=x"),
            '--set limits.concurrency: found "x", expected a whole number; write e.g. concurrency: 200',
        ),
        (
            settings("limits={concurrency: 0}"),
            "--set limits: limits.concurrency: found 0, expected at least 1; write e.g. concurrency: 200",
        ),
        (settings("name.x=1"), "--set name.x: name is a single value; set name itself"),
        (
            settings("steps.label.messages.3.user=x"),
            "--set steps.label.messages.3.user: 3 is not an index of the list steps.0.messages; write 0 to 0",
        ),
        (
            settings("steps.label.messages.0.user={{ x }}"),
            '--set steps.label.messages.0.user: a key that is not text; put a template in quotes: "{{ column }}"',
        ),
        (settings("steps.label.model"), "--set steps.label.model: no key with a value; {example}"),
        (settings("=x"), "--set =x: no key with a value; {example}"),
        (settings("a..b=x"), "--set a..b=x: no key with a value; {example}"),
        (Overrides(limit=-1), "--limit: found -1, expected at least 0; write e.g. limit: 1000"),
        (Overrides(budget_usd=-2.0), "--budget-usd: found -2.0, expected at least 0; write e.g. usd: 5.00"),
        (Overrides(delivery="post"), '--delivery: found "post", expected online or batch; write e.g. delivery: online'),
    ],
)
def test_an_invalid_flag_is_named_in_the_error(
    load_error: Callable[..., str], overrides: Overrides, message: str
) -> None:
    example = "write e.g. --set steps.label.model=gpt-4o"
    assert load_error(JOB, overrides) == message.replace("{example}", example)


def test_an_invalid_file_is_reported_despite_flags(load_error: Callable[..., str]) -> None:
    text = JOB.replace("source: {csv: rows.csv, key: id, limit: 5}", "source: rows.csv")
    assert load_error(text, Overrides(limit=3, provider="local", sink="x")) == (
        'jobs/x.yaml:2: source: found "rows.csv", expected keys and values; write e.g. source: {parquet: PATH}'
    )


@pytest.mark.parametrize(
    ("overrides", "flags"),
    [
        (Overrides(limit=3, budget_usd=1, delivery="batch", sink="x"), ()),
        (settings("source.limit=3", "limits.concurrency=4", "sink.columns=[text]"), ()),
        (settings("steps.label.pack={rows: 5}", "steps.label.repairs=3"), ()),
        (settings("steps.label.model=n"), ("--set steps.label.model",)),
        (settings("source.where=id > 3"), ("--set source.where",)),
        (settings("name=other"), ("--set name",)),
        (Overrides(provider="local"), ("--provider",)),
        (
            Overrides(assignments=("steps.1.model=n",), provider="local"),
            ("--set steps.1.model", "--provider"),
        ),
    ],
)
def test_flags_that_change_answers_are_listed(
    load: Callable[..., LoadedJob], overrides: Overrides, flags: tuple[str, ...]
) -> None:
    assert answer_flags(overrides) == flags
    assert load(JOB, overrides).changed_by == flags


def test_a_flag_with_the_value_as_written_changes_no_answer(load: Callable[..., LoadedJob]) -> None:
    same = Overrides(assignments=("steps.label.model=m", "source.key=id"), provider="openai", limit=1)
    assert answer_flags(same) == ("--set steps.label.model", "--set source.key", "--provider")
    assert load(JOB, same).changed_by == ()


def test_a_flag_that_completes_an_invalid_job_counts_as_a_change(load: Callable[..., LoadedJob]) -> None:
    text = JOB.replace("endpoint: chat, model: m", "endpoint: chat")
    assert load(text, settings("steps.label.model=m")).changed_by == ("--set steps.label.model",)


def test_flags_that_name_a_sink_are_recognised() -> None:
    given = [Overrides(sink="x"), settings("sink.parquet=x"), settings("sink.table=x")]
    others = [Overrides(), settings("sink.columns=[a]"), settings("sink.write=append"), Overrides(limit=1)]
    assert [has_other_sink(overrides, SINKS) for overrides in (*given, *others)] == [True] * 3 + [False] * 4


@pytest.mark.parametrize(
    ("folder", "sink", "suggestion"),
    [
        (".", "out/tickets", "out/tickets-try"),
        (".", "out/tables.duckdb", "out/tables-try.duckdb"),
        ("jobs", "out/tickets", "../out/tickets-try"),
        (".", "s3://bucket/tickets/", "s3://bucket/tickets-try"),
    ],
)
def test_a_trial_sink_is_of_the_same_kind_and_next_to_the_jobs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, sink: str, suggestion: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    assert trial_sink(sink, tmp_path) == suggestion
