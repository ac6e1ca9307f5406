"""The report of an invocation: its JSON object, its record in the ledger, and its way between processes."""

from typing import Any

import pytest

from pipelines.runtime.run_report import AuditResult, ComparedRow, RunReport, StepReport, StoppedBeforeStart

REPORT = RunReport(
    "job",
    "run-1",
    rows=10,
    rows_ok=7,
    rows_reused=2,
    rows_failed=1,
    rows_left=2,
    rows_out=7,
    requests=6,
    retries=1,
    input_tokens=100,
    output_tokens=50,
    cost_usd=0.25,
    seconds=1.5,
    stopped="budget",
    exit_code=3,
    tables={"results": "out/results/*.parquet"},
    audits=(AuditResult("a", 2, 1), AuditResult("b", None, 0, ("broken SQL",))),
    steps=(StepReport("label", 6, 0.25),),
    times={"bound_by": "provider"},
)
COUNTS = [
    "job",
    "run_id",
    "rows",
    "rows_ok",
    "rows_reused",
    "rows_failed",
    "rows_left",
    "rows_out",
    "requests",
    "retries",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "seconds",
    "stopped",
    "exit_code",
    "tables",
]


def test_every_count_is_in_the_json_object_null_or_not() -> None:
    empty = RunReport("job", exit_code=2, stopped="x").to_json()
    assert list(empty) == COUNTS
    assert empty == dict.fromkeys(COUNTS) | {"job": "job", "exit_code": 2, "stopped": "x"}


def test_the_json_object_has_audits_but_neither_steps_nor_times() -> None:
    found = REPORT.to_json()
    assert list(found) == [*COUNTS, "audits"]
    assert found["audits"] == [
        {"name": "a", "rows": 2, "max": 1, "passed": False},
        {"name": "b", "rows": None, "max": 0, "passed": False, "found": ["broken SQL"]},
    ]


def test_the_record_has_steps_and_times_too() -> None:
    record = REPORT.to_record()
    assert record["steps"] == [{"step": "label", "requests": 6, "cost_usd": 0.25}]
    assert record["times"] == {"bound_by": "provider"}


def test_a_report_survives_its_way_from_another_process() -> None:
    again = RunReport.from_json(REPORT.to_record())
    assert again.to_json() == REPORT.to_json()


def test_compared_rows_are_part_of_the_json_object() -> None:
    report = RunReport("job", compared=[ComparedRow("1", None, {"topic": "a"})])
    assert report.to_json()["compare"] == [{"key": "1", "old": None, "new": {"topic": "a"}}]


@pytest.mark.parametrize(
    ("audit", "passed", "problem"),
    [
        (AuditResult("a", 1, 1), True, "audit failed: a: 1 row, at most 1 allowed"),
        (AuditResult("a", 2000, 1), False, "audit failed: a: 2,000 rows, at most 1 allowed"),
        (AuditResult("a", None, 5, ("x", "y")), False, "audit failed: a: x; y"),
    ],
)
def test_an_audit_passes_with_at_most_the_allowed_rows(audit: AuditResult, passed: bool, problem: str) -> None:
    assert (audit.passed, audit.problem) == (passed, problem)


def test_a_report_without_counts_is_of_a_run_that_did_not_begin() -> None:
    assert (RunReport("job").has_begun, REPORT.has_begun) == (False, True)
    error: Any = StoppedBeforeStart(RunReport("job", stopped="why", exit_code=3))
    assert (str(error), error.exit_code, error.report.job) == ("why", 3, "job")


def test_a_notebook_shows_the_report_as_a_table_without_markup_from_the_job() -> None:
    page = RunReport("<b>", rows=2, rows_ok=1)._repr_html_()
    assert "<caption>&lt;b&gt;</caption>" in page
    assert "<td>1 of 2</td>" in page
