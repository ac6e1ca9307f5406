"""The first screen of the report: how good the answers are, what they cost, and what to do about failed rows."""

import re
import sqlite3
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.conftest import Cli, ScriptedProvider, Workspace, chat_reply

STEP = """
  - {name: label, endpoint: chat, provider: test, model: gpt-4o-mini, messages: [{user: "{{ text }}"}], repairs: 0,
     params: {max_tokens: 60}, output: {topic: {type: string, enum: [billing, bug, other]}, stars: {type: integer}},
     check: ["stars > 1", {that: "stars > 10 or topic <> 'bug'", message: Bugs have many stars.}]}
"""
SINKS = {
    "parquet": "{parquet: out}",
    "duckdb": "{duckdb: out.duckdb, table: t}",
    "delta": "{delta: out}",
    "parquet at s3": "{parquet: BUCKET/out}",
    "delta at s3": "{delta: BUCKET/out}",
}


def page_of(cli: Cli, workspace: Workspace, job: Path) -> str:
    out = workspace.folder / "page.html"
    assert cli("report", job, "-o", out) == 0, cli.err
    return unescape(out.read_text())


def facts_of(page: str, prefix: str) -> dict[str, str]:
    found = re.findall(rf'<data data-fact="{prefix}([^"]*)" value="([^"]*)">', page)
    return dict(found)


@pytest.fixture
def labelling(workspace: Workspace, provider: ScriptedProvider) -> Workspace:
    """A provider that answers row n with a topic and n stars."""

    def script(path: str, body: dict[str, Any], count: int) -> Any:
        number = int(str(body["messages"][-1]["content"]).rpartition(" ")[2])
        topic = "bug" if number % 4 == 0 else "billing"
        return chat_reply(f'{{"topic": "{topic}", "stars": {number}}}', "gpt-4o-mini", 10, 5)

    provider.script = script
    workspace.write("rows.csv", "id,text\n" + "".join(f"{n},row {n}\n" for n in range(1, 13)))
    return workspace


@pytest.mark.parametrize("kind", list(SINKS))
def test_every_sink_has_the_distribution_of_each_answer(
    labelling: Workspace, cli: Cli, kind: str, request: pytest.FixtureRequest
) -> None:
    sink = SINKS[kind]
    if "BUCKET" in sink:
        sink = sink.replace("BUCKET", request.getfixturevalue("bucket"))
    job = labelling.job(steps=STEP, sink=sink)
    assert cli.run(job)["rows_failed"] == 3
    page = page_of(cli, labelling, job)
    # `other` is declared; no row has it.
    assert facts_of(page, "values.topic.") == {"billing": "8", "bug": "1", "other": "0"}
    bars = re.findall(r"<title>(\d+): (\d+) rows?</title>", page)
    assert [stars for stars, rows in bars if rows == "1"] == ["2", "3", "5", "6", "7", "9", "10", "11", "12"]
    assert facts_of(page, "rows") | facts_of(page, "rows_failed") == {"": "3", "_share": "0.75", "_failed": "3"}


def test_failed_checks_are_counted_by_condition(labelling: Workspace, cli: Cli) -> None:
    job = labelling.job(steps=STEP)
    cli.run(job)
    page = page_of(cli, labelling, job)
    # Rows 4 and 8 fail the second condition, row 1 fails the first, which is a prefix of no other.
    assert facts_of(page, r"checks\.") == {"label.stars > 1": "1", "label.stars > 10 or topic <> 'bug'": "2"}
    assert facts_of(page, r"errors\.") == {"check_failed.label": "3"}
    assert "the answer fails a check (check_failed)" in page
    assert "correct the prompt or the check" in page


def test_a_killed_run_is_named_as_in_status(labelling: Workspace, cli: Cli) -> None:
    job = labelling.job(steps=STEP)
    cli.run(job)
    # What a killed run leaves: a run without an end.
    with closing(sqlite3.connect(labelling.folder / ".rowmill" / "ledger.sqlite")) as db, db:
        db.execute("update runs set state = 'open', ended_at = null, exit_code = null, stopped = null, report = null")
    assert cli("status", job) == 0
    assert "killed" in cli.out
    page = page_of(cli, labelling, job)
    assert '<span class="state bad">killed</span>' in page
    assert "cut short" not in page


def test_cost_is_given_for_a_row_a_thousand_rows_and_a_day(labelling: Workspace, cli: Cli) -> None:
    job = labelling.job(steps=STEP)
    cost = cli.run(job)["cost_usd"]
    # Half of the exchanges took place a day before.
    usage = next((labelling.folder / "out" / "usage").glob("????????-*.parquet"))
    moved = usage.with_suffix(".moved")
    duckdb.sql(
        f"copy (select * replace (started_at - case when keys[1]::int <= 6 then interval 1 day else interval 0 day end "
        f"as started_at) from '{usage}') to '{moved}' (format parquet)"
    )
    moved.rename(usage)
    page = page_of(cli, labelling, job)
    facts = {name: float(value) for name, value in facts_of(page, "cost_usd").items() if "." not in name}
    assert facts == {
        "": pytest.approx(cost),
        "_per_row": pytest.approx(cost / 9),
        "_per_1000": pytest.approx(1000 * cost / 9),
        "_per_day": pytest.approx(cost / 2),
    }
    days = [float(amount) for amount in re.findall(r"<title>\d{4}-\d\d-\d\d: ([0-9.e-]+) US dollars</title>", page)]
    assert sum(days) == pytest.approx(cost, rel=0.001)
    assert len(days) == 2
