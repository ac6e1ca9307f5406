"""What `plan` estimates holds in the run: rows, requests, tokens, and a cost between low and high."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from connectors.emulator.server import EmulatorOptions, EmulatorServer
from pipelines.config.loaded_job import load_job
from pipelines.config.overrides import Overrides
from pipelines.planning.plan import build_plan
from tests.behaviour.screens.conftest import Screen
from tests.conftest import Cli, Workspace
from tests.support.exhaustive import marks

Read = Callable[..., list[dict[str, Any]]]

LABEL = """
- name: label
  endpoint: chat
  provider: test
  model: MODEL
  messages: [{system: Summarize the topic of the review.}, {user: "{{ text }}"}]
  params: {max_tokens: 60}
  output:
    sentiment: {type: string, enum: [positive, negative]}
    remark: {type: string}
    tags: {type: array, items: {type: string}}
"""
TEXT = """
- name: answer
  endpoint: chat
  provider: test
  model: MODEL
  messages: [{user: "Sum this up.\\n\\n{{ text }}"}]
  params: {max_tokens: 200}
"""
VECTOR = """
- {name: vector, endpoint: embeddings, provider: test, model: text-embedding-3-small, input: "{{ text }}",
   dimensions: 4}
"""
AFTER = """
- name: after
  endpoint: chat
  provider: test
  model: MODEL
  messages: [{user: "{{ remark }}"}]
  params: {max_tokens: 60}
  when: sentiment = 'negative'
"""

PRICES = """
prices:
  gpt-4o-mini: {input_per_million: 0.15, output_per_million: 0.60}
  text-embedding-3-small: {input_per_million: 0.02}
"""


def job_of(workspace: Any, steps: str, model: str = "gpt-4o-mini", **blocks: str) -> Path:
    indented = "".join(f"  {line}\n" for line in steps.replace("MODEL", model).splitlines())
    path: Path = workspace.job(source="{csv: rows.csv, key: id}", steps=f"\n{indented}", **blocks)
    return path


def planned(cli: Any, job: Path, *flags: str) -> dict[str, Any]:
    assert cli("plan", job, "--json", *flags) == 0, cli.err
    plan: dict[str, Any] = json.loads(cli.out)
    return plan


JOB_STEPS = {"typed": LABEL, "text": TEXT, "two steps": LABEL + AFTER}
MODELS = ("gpt-4o-mini", "gpt-3.5-turbo", "m")


@pytest.mark.parametrize(
    ("steps", "model"),
    [
        # By default each model with one kind of steps.
        pytest.param(JOB_STEPS[name], model, marks=marks(place != turn), id=f"{name}, {model}")
        for place, name in enumerate(JOB_STEPS)
        for turn, model in enumerate(MODELS)
    ],
)
def test_the_cost_of_a_run_on_real_text_is_between_low_and_high(
    reviews: Any, cli: Any, read: Read, steps: str, model: str
) -> None:
    job = job_of(reviews, steps, model)
    plan = planned(cli, job)
    report = cli.run(job)
    assert report["exit_code"] == 0
    assert plan["low_usd"] <= plan["expected_usd"] <= plan["high_usd"]
    assert plan["low_usd"] <= report["cost_usd"] <= plan["high_usd"]
    if steps == LABEL:
        assert plan["expected_usd"] == pytest.approx(report["cost_usd"], rel=0.7)
    (billed,) = duckdb.sql(f"select sum(cost_usd) from '{reviews.folder}/out/usage/*.parquet'").fetchall()
    assert billed[0] == pytest.approx(report["cost_usd"])


def test_rows_requests_and_tokens_are_those_of_the_usage_table(reviews: Any, cli: Any) -> None:
    job = job_of(reviews, TEXT + VECTOR)
    plan = planned(cli, job)
    cli.run(job)
    counted = duckdb.sql(
        f"select step, count(*), sum(input_tokens), sum(len(keys)) from '{reviews.folder}/out/usage/*.parquet' "
        "group by all order by all"
    ).fetchall()
    (text, vector) = plan["steps"]
    assert counted[0] == ("answer", text["requests"], text["input_tokens"], plan["rows"])
    assert (counted[1][1], counted[1][3]) == (vector["requests"], plan["rows"])
    assert (plan["rows"], plan["new"], plan["done"]) == (400, 400, 0)
    assert [step["exact_tokens"] for step in plan["steps"]] == [True, True]
    assert (vector["output_tokens"], vector["high_usd"]) == (0, pytest.approx(vector["expected_usd"], rel=0.2))


def test_a_plan_sends_nothing_and_writes_no_table(reviews: Any, provider: Any, cli: Any) -> None:
    planned(cli, job_of(reviews, LABEL))
    assert provider.seen == []
    assert not (reviews.folder / "out").exists()


def test_after_a_run_nothing_is_left_to_send(reviews: Any, cli: Any) -> None:
    job = job_of(reviews, TEXT)
    cli.run(job)
    plan = planned(cli, job)
    assert (plan["done"], plan["new"], plan["requests"], plan["expected_usd"]) == (400, 0, 0, 0)
    assert cli("plan", job) == 0
    assert "nothing to send" in cli.out


def test_answers_in_the_ledger_cost_nothing_and_later_steps_use_them(reviews: Any, provider: Any, cli: Any) -> None:
    first = job_of(reviews, LABEL)
    cli.run(first)
    before = len(provider.seen)
    both = job_of(reviews, LABEL + AFTER)
    plan = planned(cli, both)
    label, after = plan["steps"]
    negative = duckdb.sql(
        f"select count(*) filter (sentiment = 'negative'), count(distinct remark) filter (sentiment = 'negative') "
        f"from '{reviews.folder}/out/results/*.parquet'"
    ).fetchall()[0]
    assert (label["requests"], label["in_ledger"], label["expected_usd"]) == (0, 400, 0)
    assert (after["skipped"], after["perhaps"]) == (400 - negative[0], 0)
    assert after["requests"] == negative[1]
    assert after["exact_tokens"]
    assert len(provider.seen) == before


def test_rows_whose_when_depends_on_missing_answers_are_counted(reviews: Any, cli: Any) -> None:
    plan = planned(cli, job_of(reviews, LABEL + AFTER))
    after = plan["steps"][1]
    assert (after["perhaps"], after["low_usd"]) == (400, 0)
    assert 190 <= after["requests"] <= 210
    assert not after["exact_tokens"]
    assert cli("plan", reviews.folder / "job.yaml") == 0
    assert "after  `when` depends on answers that are not there yet for 400 rows" in cli.out


def test_the_length_of_answers_is_estimated_from_earlier_ones(reviews: Any, cli: Any) -> None:
    job = job_of(reviews, TEXT)
    assert cli.run(job, "--limit", "100", "--sink", str(reviews.folder / "out-try"))["exit_code"] == 0
    plan = planned(cli, job)
    (step,) = plan["steps"]
    assert (step["answers_seen"], step["in_ledger"], step["rows"]) == (100, 100, 299)
    mean = duckdb.sql(f"select avg(output_tokens) from '{reviews.folder}/out-try/usage/*.parquet'").fetchall()[0][0]
    assert step["output_tokens"] == pytest.approx(299 * mean, abs=1)
    assert plan["seconds"] is not None


def test_the_time_is_estimated_from_earlier_latency_if_the_limits_allow_more(
    reviews: Any, provider: Any, cli: Any
) -> None:
    provider.latency = 0.05
    job = job_of(reviews, TEXT, limits="{concurrency: 4, requests_per_minute: 60000}")
    assert planned(cli, job)["bound_by"] == "the job's limit, 60,000 requests a minute"
    assert cli("plan", job) == 0
    assert "latency is not known yet" in cli.out
    assert "default estimate of 150 tokens per answer (fewer than 20 observed)" in cli.out
    assert cli.run(job, "--limit", "40", "--sink", str(reviews.folder / "out-try"))["exit_code"] == 0
    usage = f"'{reviews.folder}/out-try/usage/*.parquet'"
    ((mean,),) = duckdb.sql(f"select avg(latency_ms) from {usage}").fetchall()
    plan = planned(cli, job)
    assert plan["seconds"] == pytest.approx(plan["requests"] * mean / 1000 / 4, rel=0.001)
    assert plan["bound_by"] == f"answers that take {mean:,.0f} ms, 4 at a time"
    assert cli("plan", job) == 0
    assert "bound by answers that take" in cli.out
    assert "default estimate" not in cli.out and "not known yet" not in cli.out
    # Another step with the same model is assumed to take as long.
    other = planned(cli, job_of(reviews, TEXT.replace("answer", "other"), limits="{concurrency: 4}"))
    assert other["steps"][0]["latency_ms"] == pytest.approx(mean)


def test_a_plan_whose_answers_are_all_in_the_ledger_costs_nothing(reviews: Any, cli: Any) -> None:
    assert cli.run(job_of(reviews, TEXT))["exit_code"] == 0
    assert cli("plan", job_of(reviews, TEXT, sink="{parquet: elsewhere}")) == 0
    assert "cost   nothing: every answer is in the ledger" in cli.out
    assert "time   a few seconds: no requests needed" in cli.out


def test_the_batch_api_costs_half_and_a_model_without_a_price_is_not_known(reviews: Any, cli: Any) -> None:
    plan = planned(cli, job_of(reviews, TEXT))
    assert plan["batch_usd"] == pytest.approx(plan["expected_usd"] / 2, rel=0.01)
    assert cli("plan", reviews.folder / "job.yaml", "--delivery", "batch") == 0
    assert "through the Batch API, as the job sets" in cli.out
    job = job_of(reviews, TEXT, "unknown-model")
    plan = planned(cli, job)
    assert (plan["low_usd"], plan["expected_usd"], plan["high_usd"], plan["batch_usd"]) == (None, None, None, None)
    assert cli("plan", job) == 0
    assert "cost   not known: there is no price for unknown-model" in cli.out


def test_the_time_is_that_of_the_tightest_limit(reviews: Any, cli: Any) -> None:
    plan = planned(cli, job_of(reviews, TEXT, limits="{requests_per_minute: 100, tokens_per_minute: 1000000}"))
    assert plan["seconds"] == pytest.approx(240, rel=0.02)


def test_a_sample_of_many_rows_is_scaled_up(reviews: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews.write("rows.csv", "id,text\n" + "".join(f"{n},text number {n}\n" for n in range(3000)))
    job = job_of(reviews, TEXT)
    whole = build_plan(load_job(job))
    monkeypatch.setattr("pipelines.planning.dry_run.MAX_SCANNED_ROWS", 1000)
    part = build_plan(load_job(job))
    assert (whole.whole, whole.reckoned_rows, part.whole) == (True, 3000, False)
    assert part.reckoned_rows < 1500
    assert part.requests == pytest.approx(whole.requests, rel=0.01)
    assert part.expected_usd == pytest.approx(whole.expected_usd, rel=0.05)


def test_files_are_measured_and_urls_counted_without_a_request(reviews: Any, provider: Any, cli: Any) -> None:
    clip = (Path(__file__).parents[3] / "jobs/data/audio/jfk.flac").read_bytes()
    (reviews.folder / "jfk.flac").write_bytes(clip)
    reviews.write("rows.csv", f"id,file\n1,jfk.flac\n2,{provider.base_url}/sound.mp3\n3,missing.wav\n")
    steps = "- {name: text, endpoint: transcription, provider: test, model: whisper-1, file: file}\n"
    plan = planned(cli, job_of(reviews, steps))
    (step,) = plan["steps"]
    assert (step["rows"], step["unaskable"], step["fetched"]) == (2, 1, 1)
    assert step["audio_seconds"] == pytest.approx(11 + 60, abs=0.5)
    assert plan["expected_usd"] == pytest.approx(71 / 60 * 0.006, rel=0.02)
    assert provider.seen == []


def test_the_embedded_provider_is_free(reviews: Any, cli: Any) -> None:
    free = job_of(reviews, TEXT.replace("provider: test", "provider: local"))
    assert cli("plan", free) == 0
    assert "cost   nothing: the embedded provider runs on this machine" in cli.out
    (step,) = planned(cli, free)["steps"]
    assert (step["free"], step["high_usd"]) == (True, 0)


@pytest.mark.parametrize("steps", [LABEL, TEXT, LABEL + AFTER], ids=["typed", "text", "two steps"])
def test_the_cost_of_the_embedded_provider_with_a_price_is_between_low_and_high(
    reviews: Any, cli: Any, steps: str
) -> None:
    with EmulatorServer(EmulatorOptions()) as server:
        reviews.write("rowmill.yaml", f"{PRICES}providers: {{test: {{base_url: '{server.base_url}'}}}}\n")
        job = job_of(reviews, steps)
        plan = planned(cli, job)
        report = cli.run(job)
    assert report["exit_code"] == 0
    assert plan["low_usd"] <= report["cost_usd"] <= plan["high_usd"]
    assert report["cost_usd"] > 0


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("responses", "20"),
        ("conversations", "20"),
        ("vision", "3"),
        ("from-csv", "20"),
        ("two-steps", "20"),
        ("speech", "1"),
        ("transcription", "4"),
        ("translation", "2"),
        ("image-generation", "2"),
    ],
)
def test_the_cost_of_every_endpoint_is_between_low_and_high(workspace: Any, cli: Any, name: str, rows: str) -> None:
    jobs = Path(__file__).parents[3] / "jobs"
    text = (jobs / f"{name}.yaml").read_text().replace("provider: local", "provider: test")
    job = workspace.write(f"{name}.yaml", text.replace("rowmill-sentiment", "gpt-4o-mini"))
    shutil.copytree(jobs / "data", workspace.folder / "data")
    flags = ("--limit", rows, "--sink", str(workspace.folder / "out"))
    with EmulatorServer(EmulatorOptions()) as server:
        workspace.write("rowmill.yaml", f"providers: {{test: {{base_url: '{server.base_url}'}}}}\n")
        plan = planned(cli, job, *flags)
        report = cli.run(job, *flags)
    assert report["rows_failed"] == 0, cli.err
    assert report["cost_usd"] > 0
    assert plan["low_usd"] <= report["cost_usd"] <= plan["high_usd"]
    ((billed,),) = duckdb.sql(f"select sum(cost_usd) from '{workspace.folder}/out/usage/*.parquet'").fetchall()
    assert billed == pytest.approx(report["cost_usd"])


def test_overrides_change_the_plan_as_they_change_the_run(reviews: Any) -> None:
    job = job_of(reviews, TEXT)
    assert build_plan(load_job(job, Overrides(limit=10))).new == 10
    expensive = build_plan(load_job(job, Overrides(assignments=("steps.answer.model=gpt-4o",))))
    cheap = build_plan(load_job(job))
    assert expensive.expected_usd is not None and cheap.expected_usd is not None
    assert expensive.expected_usd > 10 * cheap.expected_usd


def test_the_screen_of_a_plan(reviews: Any, cli: Any, screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(reviews.folder)
    reviews.write("rowmill.yaml", f"{PRICES}providers: {{test: {{base_url: 'http://127.0.0.1:1/v1'}}}}\n")
    job_of(reviews, LABEL + VECTOR, budget="{usd: 5}", limits="{requests_per_minute: 3000}")
    assert cli("plan", "job.yaml") == 0
    screen("plan.txt", cli.out)
    assert max(len(line) for line in cli.out.splitlines()) <= 80


@pytest.mark.parametrize("limit", [", params: {max_tokens: 20}", ""], ids=["limit", "no limit"])
def test_the_plan_says_if_only_the_model_bounds_an_answer(cli: Cli, workspace: Workspace, limit: str) -> None:
    workspace.csv(2)
    with (workspace.folder / "rowmill.yaml").open("a") as file:
        file.write("  gpt-4o-mini: {input_per_million: 1, output_per_million: 2}\n")
    model = "endpoint: chat, provider: test, model: gpt-4o-mini"
    step = f'{{name: a, {model}, messages: [{{user: "{{{{ text }}}}"}}]{limit}}}'
    assert cli("plan", workspace.job(steps=f"[{step}]")) == 0
    note = "without max_tokens, the highest cost counts answers of 16,384 tokens"
    assert (note in cli.out) == (limit == "")


def test_the_plan_names_constant_text_that_follows_row_text(cli: Cli, workspace: Workspace) -> None:
    workspace.csv(3)
    rules = "Answer with exactly one of the words billing, bug, praise or other, in lower case and without a full stop."
    messages = (
        f'[{{name: answer, endpoint: chat, provider: test, model: m, messages: [{{user: "{{{{ text }}}}. {rules}"}}]}}]'
    )
    assert cli("plan", workspace.job(steps=messages), "--json") == 0
    (step,) = json.loads(cli.out)["steps"]
    assert 20 <= step["late_constant_tokens"] <= 30
    assert cli("plan", workspace.folder / "job.yaml") == 0
    assert f"{step['late_constant_tokens']} tokens of constant text follow row text in each request" in cli.out
