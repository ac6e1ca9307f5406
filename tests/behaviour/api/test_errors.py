"""Every error of the reference in the errors table: in the provider's own words, with the class that it has here."""

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


def told(message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None) -> Any:
    """An error as the API words it."""
    return {"message": message, "type": kind, "param": param, "code": code}


@dataclass(frozen=True, slots=True)
class Case:
    """A status and an error, and what a run makes of them."""

    name: str
    status: int
    error: Mapping[str, Any]
    error_class: str
    exit_code: int = 1
    attempts: int = 1
    group: str = "chat"
    details: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def recorded(kind: str) -> Any:
    """Of section 2.11."""
    return json.loads((REPLIES / f"reference-error-{kind}.json").read_bytes())["error"]


CASES = (
    Case("13.3.1", 401, told("Incorrect API key provided", code="invalid_api_key"), "access_denied", 3),
    Case("13.3.2", 400, told("Invalid request: missing required parameter 'model'", param="model"), "bad_request"),
    Case("13.3.3", 429, told("Rate limit reached for requests", "requests", code="rate_limit_exceeded"), "rate_limit",
         3, attempts=0, headers={"retry-after": "1000"}),
    Case("13.3.4", 500, told("The server had an error while processing your request", "server_error"), "server",
         attempts=2),
    Case("2.11.1", 400, recorded("format"), "bad_request", group="reference",
         details={"details": {"missing_fields": ["summary"], "schema_path": "$.properties.summary"}}),
    Case("2.11.2", 400, recorded("template"), "bad_request", group="reference",
         details={"available_templates": ["project_status", "sales_report", "technical_doc"]}),
    Case("2.11.3", 400, recorded("tool"), "bad_request", group="reference", details={"tool_call_id": "call_abc123"}),
    Case("403", 403, told("Country not supported", "request_forbidden", code="unsupported_country_region_territory"),
         "access_denied", 3),
    Case("404", 404, told("The model `m` does not exist", param="model", code="model_not_found"), "bad_request"),
    Case("413", 413, told("Request too large", code="request_too_large"), "bad_request"),
    Case("422", 422, told("Input should be a valid string", param="messages.0.content"), "bad_request"),
    Case("429 quota", 429, told("You exceeded your current quota", "insufficient_quota", code="insufficient_quota"),
         "quota", 3),
    Case("400 filter", 400, told("Your request was rejected", "image_generation_user_error",
                                 code="content_policy_violation"), "content_filter"),
    Case("502", 502, told("Bad gateway", "server_error"), "server", attempts=2),
    Case("503", 503, told("The engine is overloaded", "server_error", code="overloaded"), "server", attempts=2),
)  # fmt: skip


def run(case: Case, who: str, recorder: Recorder, cli: Any, folder: Path) -> dict[str, Any]:
    """What `rowmill run --json` tells of a job whose one request is refused so."""
    recorder.refusals[who] = Refusal(case.status, json.dumps({"error": case.error}).encode(), case.headers)
    write_row(folder)
    provider = {"base_url": f"{recorder.address}/{who}/v1"}
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


def check(case: Case, who: str, said: Mapping[str, Any], recorder: Recorder, read: Read, folder: Path) -> None:
    (error,) = read(folder / "out", "errors")
    details = error.pop("details")
    assert (None if details is None else json.loads(details)) == case.details
    del error["failed_at"], error["fingerprint"]
    assert error == {
        "id": 1, "step": "it", "error_class": case.error_class, "http_status": case.status,
        "type": case.error["type"], "param": case.error["param"], "code": case.error["code"],
        "message": case.error["message"], "request_id": f"req-{who}", "attempts": case.attempts,
        "run_id": said["run_id"],
    }  # fmt: skip
    usage = read(folder / "out", "usage")
    assert [(row["http_status"], row["error_class"], row["request_id"]) for row in usage] == [
        (case.status, case.error_class, f"req-{who}")
    ] * len(recorder.seen[who])
    # A rate limit uses up no attempt.
    assert len(usage) == said["requests"] == max(1, case.attempts)
    assert (said["exit_code"], said["rows_ok"], said["rows_failed"]) == (case.exit_code, 0, 1)
    assert (said["stopped"] is not None) == (case.exit_code == 3)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_an_error_stands_in_the_errors_table_as_the_provider_told_it(
    case: Case, recorder: Recorder, cli: Any, read: Read, tmp_path: Path
) -> None:
    who = f"error-{CASES.index(case)}"
    check(case, who, run(case, who, recorder, cli, tmp_path), recorder, read, tmp_path)


@pytest.mark.parametrize("group", GROUPS)
def test_every_endpoint_tells_an_error_so(group: str, recorder: Recorder, cli: Any, read: Read, tmp_path: Path) -> None:
    case = Case(group, 400, told("This is not taken", param="p", code="c"), "bad_request", group=group)
    who = f"error-{group}"
    check(case, who, run(case, who, recorder, cli, tmp_path), recorder, read, tmp_path)
