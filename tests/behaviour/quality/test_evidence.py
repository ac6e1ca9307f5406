"""`evidence`: the places of quotations are columns of the results, which checks and later steps may use."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply

STEP = (
    '{name: find, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
    "output: {quote: {type: string, nullable: true}, topic: {type: string}}, evidence: {quote: text}, MORE}"
)


def evidence_job(workspace: Workspace, more: str = "reuse: true", **blocks: str) -> Path:
    return workspace.job(steps=f"[{STEP.replace('MORE', more)}]", **blocks)


def quotes(**by_row: str | None) -> Any:
    """A script that answers the row whose text begins with a word with its quotation."""

    def script(path: str, body: Body, count: int) -> Body | None:
        text = body["messages"][0]["content"]
        quote = by_row.get(text.split()[0], "x")
        return chat_reply(json.dumps({"quote": quote, "topic": "t"})) if "response_format" in body else None

    return script


PLACES = ("quote", "quote_start", "quote_end", "quote_match")


def places(read: ReadTable, workspace: Workspace) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in PLACES) for row in read(workspace.folder / "out")]


def test_each_quotation_has_its_place_after_the_outputs_of_the_step(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = quotes(a="one", b="ONE  TWO", c="three", d=None)
    workspace.write("rows.csv", "id,text\n1,a one two\n2,b one two\n3,c one\n4,d one\n")
    assert cli.run(evidence_job(workspace))["exit_code"] == 0
    assert places(read, workspace) == [
        ("one", 2, 5, "exact"),
        ("ONE  TWO", 2, 9, "normalized"),
        ("three", None, None, "none"),
        (None, None, None, None),
    ]
    columns = list(read(workspace.folder / "out")[0])
    assert columns[:6] == ["id", "quote", "topic", "quote_start", "quote_end", "quote_match"]


def test_a_check_and_a_later_step_use_the_evidence(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = quotes(a="one", b="two")
    workspace.write("rows.csv", "id,text\n1,a one\n2,b one\n")
    first = STEP.replace("MORE", "check: [\"quote_match <> 'none'\"]")
    second = '{name: later, endpoint: chat, provider: test, model: m, messages: [{user: "at {{ quote_start }}"}]}'
    report = cli.run(workspace.job(steps=f"[{first}, {second}]"))
    assert (report["rows_ok"], report["rows_failed"], report["requests"]) == (1, 1, 4)
    assert [row["later"] for row in read(workspace.folder / "out")] == ["AT 2"]
    assert [row["code"] for row in read(workspace.folder / "out", "errors")] == ["check_failed"]


def test_rows_that_when_excludes_have_no_evidence(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = quotes(a="one")
    workspace.write("rows.csv", "id,text\n1,a one\n2,b one\n")
    cli.run(evidence_job(workspace, "when: id = 1"))
    assert places(read, workspace) == [("one", 2, 5, "exact"), (None, None, None, None)]


def test_rebuilt_tables_have_the_evidence_without_the_source(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = quotes(a="one", b="two")
    workspace.write("rows.csv", "id,text\n1,a one\n2,b one\n")
    job = evidence_job(workspace)
    cli.run(job)
    before = read(workspace.folder / "out")
    workspace.write("rows.csv", "id,text\n3,c one\n")
    assert cli("rebuild", job) == 0
    assert read(workspace.folder / "out") == before


@pytest.mark.parametrize("is_pruned", [False, True], ids=["answers", "no answers"])
def test_evidence_that_is_added_later_is_computed_without_a_request(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, is_pruned: bool
) -> None:
    provider.script = quotes(a="one")
    workspace.write("rows.csv", "id,text\n1,a one\n")
    steps = f"[{STEP.replace(', evidence: {quote: text}, MORE', '')}]"
    assert cli.run(workspace.job(steps=steps))["requests"] == 1
    if is_pruned:
        assert cli("ledger", "prune", "--job", "job", "--workspace", workspace.folder) == 0
    job = evidence_job(workspace)
    assert cli("run", job, "--quiet") == 2
    assert cli.run(job, "--schema-change", "backfill")["requests"] == 0
    assert places(read, workspace) == [("one", 2, 5, "exact")]
    # Removed again: the rows are accepted as they are.
    assert cli.run(workspace.job(steps=steps), "--schema-change", "cast")["requests"] == 0


@pytest.mark.parametrize("change", ["cast", "backfill"])
def test_another_column_of_evidence_is_searched_without_a_request(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable, change: str
) -> None:
    provider.script = quotes(a="one")
    workspace.write("rows.csv", "id,text,other\n1,a one,one\n")
    cli.run(evidence_job(workspace))
    steps = f"[{STEP.replace('quote: text}, MORE', 'quote: other}')}]"
    assert cli.run(workspace.job(steps=steps), "--schema-change", change)["requests"] == 0
    assert places(read, workspace) == [("one", 0, 3, "exact")]


def test_evidence_of_a_plain_answer_and_of_several(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, read: ReadTable
) -> None:
    provider.script = lambda path, body, count: chat_reply("one")
    workspace.write("rows.csv", "id,text\n1,a one\n")
    step = (
        '{name: find, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
        "output: said, evidence: {said: text}}"
    )
    cli.run(workspace.job(steps=f"[{step}]"))
    (row,) = read(workspace.folder / "out")
    assert (row["said_start"], row["said_end"], row["said_match"]) == (2, 5, "exact")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{quote: text}", "{topik: text}", "no output topik of this step; did you mean topic?"),
        ("{quote: text}", "{quote: txt}", "no column txt before this step; did you mean text?"),
        ("topic: {type: string}", "quote_start: {type: string}", "has a column quote_start as well"),
    ],
)
def test_validate_names_wrong_evidence(
    cli: Cli, workspace: Workspace, provider: ScriptedProvider, old: str, new: str, message: str
) -> None:
    workspace.csv(1)
    job = workspace.job(steps=f"[{STEP.replace(', MORE', '').replace(old, new)}]")
    assert cli("validate", job) == 2
    (line,) = cli.err.splitlines()
    assert message in line
