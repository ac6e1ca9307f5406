"""Regressions: each is reproduced by one run of the command line."""

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace, chat_reply, error_reply, noon

TYPED = (
    '[{name: c, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
    "output: {y: {type: integer}}}]"
)
VECTOR = '[{{name: v, endpoint: embeddings, provider: test, model: {}, dimensions: {}, input: "{{{{ text }}}}"}}]'
NOTHING = {
    "run_id": None, "rows": None, "rows_ok": None, "rows_reused": None, "rows_failed": None, "rows_left": None,
    "rows_out": None, "requests": None, "retries": None, "input_tokens": None, "output_tokens": None, "cost_usd": None,
    "seconds": None, "exit_code": 2, "tables": None,
}  # fmt: skip


def step(prompt: str = "{{ text }}", more: str = "") -> str:
    messages = f"messages: [{{user: {json.dumps(prompt)}}}]"
    return f"[{{name: answer, endpoint: chat, provider: test, model: m, {messages}{more}}}]"


def refusing(*kinds: str) -> Any:
    """A server that rejects these kinds of response_format."""

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        kind = body.get("response_format", {}).get("type")
        if kind in kinds:
            return error_reply(400, f"response_format {kind} is not supported")
        return chat_reply('{"y": 4}')

    return script


def formats(provider: ScriptedProvider) -> Counter[str | None]:
    return Counter(body.get("response_format", {}).get("type") for _, body in provider.seen)


@pytest.mark.parametrize(
    ("unknown", "asked"),
    [
        (("json_schema",), {"json_schema": 1, "json_object": 1200}),
        (("json_schema", "json_object"), {"json_schema": 1, "json_object": 1, None: 1200}),
        ((), {"json_schema": 1200}),
    ],
)
def test_one_row_probes_how_a_server_takes_typed_output_and_no_other_row_is_refused(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, unknown: tuple[str, ...], asked: dict[str | None, int]
) -> None:
    provider.script = refusing(*unknown)
    workspace.csv(1200)
    report = cli.run(workspace.job(steps=TYPED, limits="{concurrency: 8}"))
    assert (report["rows_ok"], report["rows_failed"], report["exit_code"]) == (1200, 0, 0)
    assert formats(provider) == asked


def test_a_row_that_the_predicate_excludes_is_not_used_as_probe(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    provider.script = refusing("json_schema")
    workspace.csv(40)
    report = cli.run(
        workspace.job(steps=TYPED.replace("output:", 'when: "id > 20", output:'), limits="{concurrency: 8}")
    )
    assert (report["rows_ok"], report["requests"]) == (40, 21)
    assert formats(provider) == {"json_schema": 1, "json_object": 20}


def test_rows_that_failed_in_an_earlier_step_stay_in_errors_despite_a_probe(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    def script(path: str, body: dict[str, Any], count: int) -> Any:
        if "response_format" not in body:
            return error_reply(400, "no") if body["messages"][-1]["content"] == "text 2" else None
        return refusing("json_schema")(path, body, count)

    provider.script = script
    workspace.csv(4)
    both = step()[:-1] + ", " + TYPED[1:].replace("{{ text }}", "{{ answer }}")
    report = cli.run(workspace.job(steps=both))
    assert (report["rows_ok"], report["rows_failed"]) == (3, 1)
    assert [(row["id"], row["step"]) for row in read(workspace.folder / "out", "errors")] == [(2, "answer")]


def test_csv_columns_of_numbers_and_dates_with_gaps_keep_their_type(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    workspace.write("rows.csv", "id,text,n,day\na,x,,\nb,y,2,2024-01-31\n")
    job = workspace.job(steps=step("n={{ n }} day={{ day }}"), sink="{parquet: out, columns: [n, day]}")
    assert cli.run(job)["exit_code"] == 0
    assert [(row["n"], row["day"]) for row in read(workspace.folder / "out")] == [
        (None, None),
        (2, datetime.date(2024, 1, 31)),
    ]
    assert sorted(provider.prompts()) == ["n= day=", "n=2 day=2024-01-31"]


@pytest.mark.parametrize("sink", ["{parquet: out}", "{duckdb: out.db, table: t}"])
def test_a_job_whose_source_was_empty_at_first_runs_when_it_has_rows(workspace: Workspace, cli: Cli, sink: str) -> None:
    workspace.write("rows.csv", "id,text\n")
    job = workspace.job(sink=sink)
    first = cli.run(job)
    workspace.csv(2)  # Now the key is a whole number.
    second = cli.run(job)
    assert [(report["rows_ok"], report["exit_code"]) for report in (first, second)] == [(0, 0), (2, 0)]


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ text[:5] }}", "hello"),
        ("{{ text[-5:]|upper }} {{ {'a': n}['a'] }}", "WORLD 3"),
        ('{{ row["text"][n:][:2] }}', "lo"),
        ("{{ text|truncate(8, true, '', 0) }}", "hello wo"),
        ("{{ text|wordcount }} of {{ text|length }}", "2 of 11"),
    ],
)
def test_templates_slice_text_as_jinja_does(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, template: str, prompt: str
) -> None:
    workspace.write("rows.csv", "id,text,n\n1,hello world,3\n")
    assert cli.run(workspace.job(steps=step(template)))["rows_ok"] == 1
    assert provider.prompts() == [prompt]


@pytest.mark.parametrize(
    ("blocks", "error"),
    [
        ({"steps": step("{{ text|shout }}")}, "steps.answer.messages.0.user: no filter shout"),
        ({"steps": step().replace("provider: test", "provider: tset")}, "steps.answer.provider: no provider tset"),
        ({"steps": TYPED.replace("integer}", "integer, maximun: 3}")}, "steps.c.output.y.maximun: no such key"),
        ({"steps": TYPED.replace("integer}", "string, enum: []}")}, "steps.c.output.y.enum: found []"),
        (
            {"steps": TYPED.replace("integer}", "integer, enum: [a]}")},
            "steps.c.output.y.enum: 'a' is not a valid integer",
        ),
        (
            {"steps": TYPED.replace("integer}", "integer, minimum: 5, maximum: 1}")},
            "steps.c.output.y.minimum: 5 is more than maximum 1",
        ),
        (
            {"steps": VECTOR.format("text-embedding-3-small", 5000)},
            "steps.v.dimensions: found 5000, text-embedding-3-small makes at most 1,536",
        ),
        (
            {"steps": VECTOR.format("text-embedding-ada-002", 512)},
            "steps.v.dimensions: found 512, text-embedding-ada-002 makes 1,536 only",
        ),
        ({"source": "{csv: rows.csv, key: id, encoding: utf-99}"}, "source.encoding: utf-99: no such encoding"),
        ({"source": '{csv: rows.csv, key: id, where: ""}'}, 'source.where: found ""'),
        ({"steps": step(more=', when: ""')}, 'steps.answer.when: found ""'),
    ],
)
def test_an_error_is_reported_in_one_line_with_its_key_and_nothing_is_sent(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, blocks: dict[str, str], error: str
) -> None:
    workspace.csv(2)
    job = workspace.job(**blocks)
    assert cli("run", job, "--quiet") == 2
    (message,) = cli.err.splitlines()
    location, _, rest = message.partition(": ")
    assert location.rpartition(":")[0] == str(job)
    assert rest.startswith(error)
    assert ";" in rest
    assert (cli.out, provider.seen) == ("", [])


def test_a_flag_that_changes_answers_is_refused_if_it_names_the_sink_of_the_job(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    workspace.csv(2)
    job = workspace.job()
    cli.run(job)
    before = read(workspace.folder / "out")
    own = str(workspace.folder / "x" / ".." / "out")
    report = cli.run(job, "--set", "steps.answer.model=other", "--sink", own)
    assert (report["exit_code"], len(provider.seen), read(workspace.folder / "out")) == (2, 2, before)
    assert cli.run(job, "--set", "steps.answer.model=other", "--sink", str(workspace.folder / "o2"))["rows_ok"] == 2


def parse_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_error_between_jobs_is_reported_as_json_for_each_job(workspace: Workspace, cli: Cli) -> None:
    one, two = workspace.job("one"), workspace.job("two")
    assert cli("run", one, two, "--json") == 2
    message = f"{two}: sink: out is the sink of {one} too; give each job a separate sink"
    assert parse_lines(cli.out) == [{"job": name, **NOTHING, "stopped": message} for name in ("one", "two")]
    assert cli.err == message + "\n"


@pytest.mark.parametrize("arguments", [["--lmit", "3"], ["--limit", "x"]])
def test_an_invalid_command_line_is_reported_as_json_too(workspace: Workspace, cli: Cli, arguments: list[str]) -> None:
    assert cli("run", workspace.job(), "--json", *arguments) == 2
    (report,) = parse_lines(cli.out)
    assert report == {"job": None, **NOTHING, "stopped": cli.err.rstrip("\n")}


def test_a_spent_daily_budget_is_reported_with_the_key_to_raise(workspace: Workspace, cli: Cli) -> None:
    file: Path = workspace.folder / "rowmill.yaml"
    file.write_text(file.read_text() + "budget: {usd_per_day: 0.0005}\n" + noon())
    workspace.csv(30)
    report = cli.run(workspace.job(limits="{concurrency: 1}"))
    assert report["exit_code"] == 3
    assert report["stopped"].startswith(
        "budget: the day's budget of $0.000500 is nearly spent and the next request might"
    )
    assert "`usd_per_day` in rowmill.yaml" in report["stopped"]


EMBEDDING = '[{name: v, endpoint: embeddings, provider: test, model: e, input: "{{ text }}"}]'


def test_a_refused_row_does_not_prevent_the_probe_of_dimensions(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    provider.script = lambda path, body, count: error_reply(400, "no") if "text 1" in body["input"] else None
    workspace.csv(4)
    report = cli.run(workspace.job(steps=EMBEDDING))
    assert (report["rows_ok"], report["rows_failed"], report["exit_code"]) == (3, 1, 1)
    assert [(row["id"], row["error_class"]) for row in read(workspace.folder / "out", "errors")] == [(1, "bad_request")]
    assert [len(row["v"]) for row in read(workspace.folder / "out")] == [4, 4, 4]


def test_dimensions_are_probed_with_a_row_that_passes_the_predicate(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(4)
    job = workspace.job(steps=EMBEDDING.replace("input:", 'when: "id > 2", input:'))
    assert cli.run(job)["rows_ok"] == 4
    assert sorted(text for _, body in provider.seen for text in body["input"]) == ["text 3", "text 4"]
    none = workspace.job("none", steps=EMBEDDING.replace("input:", 'when: "id > 9", input:'), sink="{parquet: o2}")
    before = len(provider.seen)
    assert (cli.run(none)["rows_ok"], len(provider.seen)) == (4, before)
