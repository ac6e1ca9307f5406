"""`select` and `keep`: columns without a request, and outputs that only later steps see."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli, ReadTable, ScriptedProvider, Workspace

ASK = '{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: "{{ prompt }}"}]}'


def local_job(workspace: Workspace, *steps: str, **blocks: str) -> Path:
    return workspace.job(steps=f"[{', '.join(steps)}]", **blocks)


def test_a_select_adds_typed_columns_that_later_steps_see(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    workspace.csv(3)
    select = (
        "{name: made, select: {prompt: \"upper(text) || '!'\", words: \"string_split(text, ' ')\", even: id % 2 = 0}}"
    )
    late = "{name: late, select: {size: length(answer)}, when: even}"
    report = cli.run(local_job(workspace, select, ASK, late))
    assert (report["exit_code"], report["requests"], report["rows_ok"]) == (0, 3, 3)
    assert sorted(provider.prompts()) == ["TEXT 1!", "TEXT 2!", "TEXT 3!"]
    rows = read(workspace.folder / "out")
    assert [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows] == [
        {"id": n, "prompt": f"TEXT {n}!", "words": ["text", str(n)], "even": n == 2, "answer": f"TEXT {n}!",
         "size": 7 if n == 2 else None}
        for n in (1, 2, 3)
    ]  # fmt: skip


def test_a_row_whose_values_break_a_select_is_an_input_error_and_the_others_go_on(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    workspace.write("rows.csv", "id,text\n1,5\n2,five\n3,7\n")
    select = "{name: number, select: {prompt: cast(cast(text as integer) * 2 as varchar)}}"
    report = cli.run(local_job(workspace, select, ASK))
    assert (report["exit_code"], report["requests"], report["rows_ok"], report["rows_failed"]) == (1, 2, 2, 1)
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["step"], error["error_class"]) == (2, "number", "input")
    assert error["message"].startswith("steps.number: Could not convert string 'five' to INT32")
    # The next run does not try it again; a correction of the row does.
    assert cli.run(local_job(workspace, select, ASK))["requests"] == 0
    workspace.write("rows.csv", "id,text\n1,5\n2,6\n3,7\n")
    assert cli.run(local_job(workspace, select, ASK))["requests"] == 1
    assert [row["prompt"] for row in read(workspace.folder / "out")] == ["10", "12", "14"]


def test_a_job_of_local_steps_alone_sends_nothing_and_needs_no_provider(
    cli: Cli, workspace: Workspace, read: ReadTable
) -> None:
    workspace.write("rowmill.yaml", "{}")
    workspace.csv(2)
    job = local_job(workspace, "{name: made, select: {size: length(text)}}")
    assert cli("validate", job) == 0
    assert cli("plan", job) == 0
    report = cli.run(job)
    assert (report["exit_code"], report["requests"], report["rows_ok"]) == (0, 0, 2)
    assert [row["size"] for row in read(workspace.folder / "out")] == [6, 6]
    assert cli.run(job)["rows_reused"] == 2
    assert cli("rebuild", job) == 0
    assert [row["size"] for row in read(workspace.folder / "out")] == [6, 6]


def test_outputs_that_are_not_kept_are_seen_by_later_steps_and_in_no_table(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    workspace.csv(2)
    select = "{name: made, select: {prompt: upper(text)}, keep: false}"
    hidden = ASK.replace("}]}", "}], keep: false}")
    shown = "{name: shown, select: {last: 'right(answer, 1)'}}"
    job = local_job(workspace, select, hidden, shown)
    assert cli.run(job)["requests"] == 2
    names = ["id", "last", "_run_id", "_row_fingerprint"]
    rows = read(workspace.folder / "out")
    assert [list(row) for row in rows] == [names] * 2
    assert [row["last"] for row in rows] == ["1", "2"]
    assert cli("rebuild", job) == 0
    assert read(workspace.folder / "out") == rows
    # Keeping it changes the columns, and needs no request.
    kept = local_job(workspace, select, ASK, shown)
    assert cli("run", kept, "--quiet") == 2
    assert cli.run(kept, "--schema-change", "backfill")["requests"] == 0
    assert [row["answer"] for row in read(workspace.folder / "out")] == ["TEXT 1", "TEXT 2"]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("random()", "steps.made.select.x: random gives another value each time"),
        ("sum(id)", "steps.made.select.x: aggregates rows, and it sees one row"),
        ("row_number() over ()", "steps.made.select.x: has a window function"),
        ("body", "steps.made.select.x: no column body here"),
        ("(select 1)", "steps.made.select.x: contains a query"),
        ("ago(interval 1 day)", "steps.made.select.x: ago gives another value each time"),
        ("format_type(1, 1)", "steps.made.select.x: format_type contains a query"),
        ("regexp_split_to_table(text, ' ')", "steps.made.select.x: regexp_split_to_table makes several rows of one"),
        ("id, text", "steps.made.select.x: has 2 expressions"),
    ],
    ids=["random", "aggregate", "window", "unknown", "query", "clock", "inner-query", "rows", "two"],
)
def test_an_expression_that_is_not_about_one_row_is_refused(
    cli: Cli, workspace: Workspace, capsys: pytest.CaptureFixture[str], sql: str, words: str
) -> None:
    workspace.csv(1)
    assert cli("validate", local_job(workspace, f'{{name: made, select: {{x: "{sql}"}}}}')) == 2
    assert words in cli.err


def test_a_deleted_table_is_written_again_without_the_values_that_do_not_fit_its_new_types(
    cli: Cli, workspace: Workspace, read: ReadTable
) -> None:
    workspace.write("rows.csv", "id,text\n1,7\n2,x\n3,9\n")
    cli.run(local_job(workspace, "{name: made, select: {kind: text}}"))
    shutil.rmtree(workspace.folder / "out")
    workspace.write("rows.csv", "id,text\n1,7\n2,8\n3,9\n")
    job = local_job(workspace, "{name: made, select: {kind: 'cast(text as bigint)'}}")
    assert cli("rebuild", job) == 0
    assert [(row["id"], row["kind"]) for row in read(workspace.folder / "out")] == [(1, 7), (3, 9)]
    assert cli.run(job)["exit_code"] == 0
    assert [(row["id"], row["kind"]) for row in read(workspace.folder / "out")] == [(1, 7), (2, 8), (3, 9)]


def test_steps_of_two_kinds_or_of_none_are_refused(cli: Cli, workspace: Workspace) -> None:
    workspace.csv(1)
    assert cli("validate", local_job(workspace, "{name: a, select: {x: '1'}, endpoint: chat}")) == 2
    assert "a second kind of step next to select" in cli.err
    assert cli("validate", local_job(workspace, "{name: a, each: {split: text, tokens: 9, list: '[1]'}}")) == 2
    assert "a second kind of each next to split" in cli.err
    assert cli("validate", local_job(workspace, "{name: a}")) == 2
    assert "a step without a request has select:" in cli.err
