"""Every error of the reference in the errors table: the provider's message, with its class."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.behaviour.api.parameters import GROUPS
from tests.behaviour.api.recorder import REPLIES, Recorder, Refusal
from tests.behaviour.api.row import write_row

Read = Callable[..., list[dict[str, Any]]]


def body(message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None) -> Any:
    """An error object of the API."""
    return {"message": message, "type": kind, "param": param, "code": code}


@dataclass(frozen=True, slots=True)
class Case:
    """A status and an error, with the expected result of a run."""

    name: str
    status: int
    error: Mapping[str, Any]
    error_class: str
    exit_code: int = 1
    attempts: int = 1
    group: str = "chat"
    details: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""
    """What the message has behind the provider's words."""


def recorded(kind: str) -> Any:
    """An error of section 2.11."""
    return json.loads((REPLIES / f"reference-error-{kind}.json").read_bytes())["error"]


CASES = (
    Case("13.3.1", 401, body("Incorrect API key provided", code="invalid_api_key"), "access_denied", 3),
    Case("13.3.2", 400, body("Invalid request: missing required parameter 'model'", param="model"), "bad_request"),
    Case("13.3.3", 429, body("Rate limit reached for requests", "requests", code="rate_limit_exceeded"), "rate_limit",
         3, attempts=0, headers={"retry-after": "1000"}),
    Case("13.3.4", 500, body("The server had an error while processing your request", "server_error"), "server",
         attempts=2),
    Case("2.11.1", 400, recorded("format"), "bad_request", group="reference",
         details={"details": {"missing_fields": ["summary"], "schema_path": "$.properties.summary"}}),
    Case("2.11.2", 400, recorded("template"), "bad_request", group="reference",
         details={"available_templates": ["project_status", "sales_report", "technical_doc"]}),
    Case("2.11.3", 400, recorded("tool"), "bad_request", group="reference", details={"tool_call_id": "call_abc123"}),
    Case("403", 403, body("Country not supported", "request_forbidden", code="unsupported_country_region_territory"),
         "access_denied", 3),
    Case("404", 404, body("The model `m` does not exist", param="model", code="model_not_found"), "setup", 3,
         remedy="; correct `model` of step it, or make gpt-4o-mini available at test, and run again"),
    Case("413", 413, body("Request too large", code="request_too_large"), "bad_request"),
    Case("422", 422, body("Input should be a valid string", param="messages.0.content"), "bad_request"),
    Case("429 quota", 429, body("You exceeded your current quota", "insufficient_quota", code="insufficient_quota"),
         "quota", 3),
    Case("400 filter", 400, body("Your request was rejected", "image_generation_user_error",
                                 code="content_policy_violation"), "content_filter"),
    Case("502", 502, body("Bad gateway", "server_error"), "server", attempts=2),
    Case("503", 503, body("The engine is overloaded", "server_error", code="overloaded"), "server", attempts=2),
)  # fmt: skip


def run(case: Case, route: str, recorder: Recorder, cli: Any, folder: Path) -> dict[str, Any]:
    """The output of `rowmill run --json` for a job whose only request gets this error."""
    recorder.refusals[route] = Refusal(case.status, json.dumps({"error": case.error}).encode(), case.headers)
    write_row(folder)
    provider = {"base_url": f"{recorder.address}/{route}/v1"}
    YAML(typ="safe").dump({"providers": {"test": provider}}, folder / "rowmill.yaml")
    job = {
        "name": "job",
        "source": {"parquet": "row.parquet", "key": "id"},
        "steps": [{"name": "it", "provider": "test", **GROUPS[case.group].step}],
        "sink": {"parquet": "out"},
        "retry": {"attempts": 2, "longest_wait": 0.01, "longest_hold": 5},
    }
    YAML(typ="safe").dump(job, folder / "job.yaml")
    found: dict[str, Any] = cli.run(folder / "job.yaml")
    return found


def check(case: Case, route: str, report: Mapping[str, Any], recorder: Recorder, read: Read, folder: Path) -> None:
    (error,) = read(folder / "out", "errors")
    details = error.pop("details")
    assert (None if details is None else json.loads(details)) == case.details
    del error["failed_at"], error["fingerprint"]
    assert error == {
        "id": 1, "step": "it", "error_class": case.error_class, "http_status": case.status,
        "type": case.error["type"], "param": case.error["param"], "code": case.error["code"],
        "message": case.error["message"] + case.remedy, "request_id": f"req-{route}", "attempts": case.attempts,
        "run_id": report["run_id"],
    }  # fmt: skip
    usage = read(folder / "out", "usage")
    assert [(row["http_status"], row["error_class"], row["request_id"]) for row in usage] == [
        (case.status, case.error_class, f"req-{route}")
    ] * len(recorder.seen[route])
    # A rate limit uses no attempt.
    assert len(usage) == report["requests"] == max(1, case.attempts)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (case.exit_code, 0, 1)
    assert (report["stopped"] is not None) == (case.exit_code == 3)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_errors_table_has_each_error_as_the_provider_sent_it(
    case: Case, recorder: Recorder, cli: Any, read: Read, tmp_path: Path
) -> None:
    route = f"error-{CASES.index(case)}"
    check(case, route, run(case, route, recorder, cli, tmp_path), recorder, read, tmp_path)


@pytest.mark.parametrize("group", GROUPS)
def test_every_endpoint_reports_errors_equally(
    group: str, recorder: Recorder, cli: Any, read: Read, tmp_path: Path
) -> None:
    case = Case(group, 400, body("This is not taken", param="p", code="c"), "bad_request", group=group)
    route = f"error-{group}"
    check(case, route, run(case, route, recorder, cli, tmp_path), recorder, read, tmp_path)
