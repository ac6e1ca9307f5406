"""Audits: SQL over a job's tables after the run, validated before it; and drift against earlier runs."""

import json
from pathlib import Path
from typing import Any

import pytest

SINKS = {"parquet": "{parquet: out}", "duckdb": "{duckdb: out.duckdb, table: t}"}


@pytest.fixture(params=SINKS)
def sink(request: pytest.FixtureRequest) -> str:
    """Each kind of sink."""
    return SINKS[request.param]


def test_an_audit_with_too_many_rows_exits_with_5_keeps_the_results_and_closes_the_run(
    workspace: Any, provider: Any, cli: Any, sink: str
) -> None:
    workspace.csv(5)
    audits = """
  - {name: none loud, sql: "select * from results where answer = upper(answer)", max: 4}
  - {name: all asked once, sql: "select u.keys from usage u group by 1 having count(*) > 1"}
  - {name: no errors, sql: "with bad as (select * from errors) select * from bad, range(2)"}"""
    report = cli.run(workspace.job(sink=sink, audits=audits))
    assert (report["exit_code"], report["stopped"], report["rows_ok"]) == (5, None, 5)
    assert report["audits"] == [
        {"name": "none loud", "rows": 5, "max": 4, "passed": False},
        {"name": "all asked once", "rows": 0, "max": 0, "passed": True},
        {"name": "no errors", "rows": 0, "max": 0, "passed": True},
    ]
    assert cli.err == "job: audit failed: none loud: 5 rows, at most 4 allowed\n"
    again = cli.run(workspace.folder / "job.yaml")
    assert (again["exit_code"], again["requests"], again["rows_reused"]) == (5, 0, 5)
    assert again["run_id"] != report["run_id"]


def test_passed_audits_do_not_change_the_exit_code(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(3)
    job = workspace.job(audits='[{name: few, sql: "select * from errors;", max: 1}]')
    provider.script = lambda path, body, count: error_reply(400, "no") if "text 1" in str(body) else None
    report = cli.run(job)
    assert (report["exit_code"], report["audits"]) == (1, [{"name": "few", "rows": 1, "max": 1, "passed": True}])


def test_a_stopped_run_is_not_audited(workspace: Any, provider: Any, cli: Any) -> None:
    from tests.conftest import error_reply

    workspace.csv(3)
    provider.script = lambda path, body, count: error_reply(401, "no such key")
    report = cli.run(workspace.job(audits='[{name: some, sql: "select 1 from range(9)"}]'))
    assert (report["exit_code"], "audits" in report) == (3, False)


def test_an_audit_may_name_the_run(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(3)
    sql = "select * from results where _run_id <> getvariable('run_id')"
    job = workspace.job(audits=f'[{{name: mine, sql: "{sql}"}}]')
    assert cli.run(job)["exit_code"] == 0
    workspace.csv(4)
    assert cli.run(job)["audits"] == [{"name": "mine", "rows": 3, "max": 0, "passed": False}]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select * from results where topik is null", 'Referenced column "topik" not found'),
        ("select * from result", "no table result here; did you mean results?"),
        ("selec", "write one query"),
        ("select 1; select 2", "is more than one query"),
        ("delete from results", "is not a SELECT"),
        ("copy results to 'x.csv'", "is not a SELECT"),
        ("select * from read_csv('rows.csv')", "read_csv() is not allowed here"),
        ("select * from read_text('/etc/hostname')", "read_text() is not allowed here"),
        ("select (select count(*) from glob('*'))", "glob() is not allowed here"),
        ("select * from 'rows.csv'", "no table rows.csv here"),
        ("with rows as (select * from 'rows.csv') select * from rows", "no table rows.csv here"),
        ("select * from information_schema.tables", "no table tables here"),
        ("select * from query('select 1')", "query() is not allowed here"),
        ("from results, (values (1)) as other, duckdb_settings()", "duckdb_settings() is not allowed here"),
    ],
)
def test_invalid_sql_is_reported_with_its_line_before_anything_is_sent(
    workspace: Any, provider: Any, cli: Any, sql: str, message: str
) -> None:
    workspace.csv(2)
    job = workspace.job(audits=f'[{{name: a, sql: "{sql}"}}]')
    assert cli("validate", job) == 2
    assert "job.yaml:6: audits.0.sql: " in cli.err
    assert message in cli.err
    assert cli.run(job)["exit_code"] == 2
    assert provider.seen == []


def test_sql_that_fails_on_a_value_is_a_failed_audit(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.csv(2)
    report = cli.run(
        workspace.job(audits='[{name: number, sql: "select * from results where cast(answer as int) > 0"}]')
    )
    assert report["exit_code"] == 5
    (audit,) = report["audits"]
    assert (audit["rows"], audit["passed"]) == (None, False)
    assert "Could not convert string 'TEXT 1' to INT32" in audit["found"][0]


def test_an_audit_has_either_sql_or_drift(workspace: Any, cli: Any) -> None:
    workspace.csv(1)
    assert cli("validate", workspace.job(audits="[{name: a, max: 1}]")) == 2
    assert "audits.0.sql: missing" in cli.err
    assert cli("validate", workspace.job(audits='[{name: a, sql: "select 1", drift: {}}]')) == 2
    assert "audits.0.drift: cannot be combined with sql" in cli.err
    assert cli("validate", workspace.job(audits="[{name: a, drift: {nul_share: 1}}]")) == 2
    assert "did you mean null_share?" in cli.err


STEPS = (
    '[{name: label, endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}], '
    "params: {max_tokens: 50}, output: {topic: {type: [string, 'null'], enum: [a, b, null]}, why: {type: string}}}]"
)


def drifting(
    workspace: Any, provider: Any, cli: Any, now: Any, audit: str = "{name: drift, drift: {}}"
) -> dict[str, Any]:
    """The report of a run over 30 new rows, answered as `now` says, after one over 30 rows that were all alike."""
    from tests.conftest import chat_reply

    def script(path: str, body: dict[str, Any], count: int) -> dict[str, Any]:
        number = int(str(body["messages"][-1]["content"]).removeprefix("text "))
        topic, why, made = ("a" if number % 2 else "b", "because of it", 5) if number <= 30 else now(number)
        return chat_reply(json.dumps({"topic": topic, "why": why}), made=made)

    provider.script = script
    job: Path = workspace.job(steps=STEPS, audits=f"[{audit}]")
    workspace.csv(30)
    first = cli.run(job)
    assert first["audits"] == [{"name": "drift", "rows": 0, "max": json_max(audit), "passed": True}]
    workspace.csv(60)
    report: dict[str, Any] = cli.run(job)
    return report


def json_max(audit: str) -> int:
    return int(audit.split("max: ")[1].rstrip("}")) if "max: " in audit else 0


def test_a_run_like_the_earlier_ones_has_no_drift(workspace: Any, provider: Any, cli: Any) -> None:
    report = drifting(workspace, provider, cli, lambda n: ("a" if n % 2 else "b", "because of me", 5))
    assert (report["exit_code"], report["audits"]) == (0, [{"name": "drift", "rows": 0, "max": 0, "passed": True}])


def test_drift_reports_nulls_shares_lengths_and_cost(workspace: Any, provider: Any, cli: Any) -> None:
    report = drifting(workspace, provider, cli, lambda n: (None if n > 45 else "a", "no", 25))
    assert report["exit_code"] == 5
    (audit,) = report["audits"]
    assert audit["found"] == [
        "topic: share of nulls 0.000 before, 0.500 now",
        "topic = a: share 0.500 before, 1.000 now",
        "topic = b: share 0.500 before, 0.000 now",
        "why: length 13.0 before, 2.0 now",
        "cost a row $0.000020 before, $0.000060 now",
    ]
    assert audit["rows"] == 5
    assert "job: audit failed: drift: topic: share of nulls 0.000 before, 0.500 now; topic = a" in cli.err


def test_drift_bounds_can_be_widened_or_omitted(workspace: Any, provider: Any, cli: Any) -> None:
    audit = "{name: drift, drift: {null_share: null, enum_share: 0.6, length: 0.9, cost_per_row: 1.5}, max: 1}"
    report = drifting(workspace, provider, cli, lambda n: (None if n > 45 else "a", "no", 25), audit)
    assert (report["exit_code"], report["audits"][0]["found"]) == (0, ["cost a row $0.000020 before, $0.000060 now"])


def test_unreadable_tables_fail_the_audits_and_the_run_is_still_closed(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.sinks.parquet_table.ParquetTables.usage_sql", lambda self: "(select * from gone)")
    workspace.csv(2)
    job = workspace.job(audits='[{name: some, sql: "select * from results", max: 5}]')
    report = cli.run(job)
    assert report["exit_code"] == 5
    assert "gone does not exist" in report["audits"][0]["found"][0]
    assert cli("status", job, "--json") == 0
    assert '"state":"closed"' in cli.out
