"""How batches end besides in success: what is kept, what counts as paid, and what is not submitted again."""

import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from tests.behaviour.runs.test_batches import BATCH, assert_nothing_is_left, start_run
from tests.support.forked import ended

Body = dict[str, Any]
Read = Callable[..., list[Body]]
WORST_CASE_USD = 2e-5
"""Of a line: 20 tokens out at half of 2 dollars a million, besides its input."""


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.batch.lifecycle.NOT_FOUND_SECONDS", 0.3)


def test_passing_404s_on_a_batch_and_its_files_lose_nothing(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(10)
    left = Counter(dict.fromkeys(("batch_0", "file-output-batch_0/content", "file-error-batch_0/content"), 2))
    batches.script = lambda text, body: {"status_code": 400, "body": {}} if text == "text 3" else None

    def refuse(method: str, path: str) -> web.Response | None:
        name = path.removeprefix("/v1/batches/").removeprefix("/v1/files/")
        left[name] -= 1
        return batches.error(404, "No such object") if method == "GET" and left[name] >= 0 else None

    batches.refuse = refuse
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["requests"]) == (1, 9, 1, 10)
    assert set(batches.submitted.values()) == {1}
    assert_nothing_is_left(batches, workspace.folder)


def test_a_file_that_the_provider_does_not_know_at_once_is_asked_for_again(
    workspace: Any, batches: Any, cli: Any
) -> None:
    workspace.csv(3)
    replies = [batches.error(404, "No such File object: file-0"), batches.error(400, "file-0 is still processing")]
    batches.refuse = lambda method, path: (
        replies.pop() if (method, path) == ("POST", "/v1/batches") and replies else None
    )
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"], replies) == (0, 3, [])
    assert_nothing_is_left(batches, workspace.folder)


def test_a_batch_that_was_cancelled_outside_keeps_its_answers_and_stops_the_run(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(10)
    batches.held = True
    batches.script = lambda text, body: "answered" if text in ("text 1", "text 2") else None

    def cancel(method: str, path: str) -> None:
        if path == "/v1/batches/batch_0" and batches.batches["batch_0"]["status"] == "in_progress":
            batches.batches["batch_0"]["status"] = "cancelling"

    batches.refuse = cancel
    job = workspace.job(**BATCH)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["rows_left"]) == (3, 2, 0, 8)
    assert report["stopped"] == (
        "test: batch_0 was cancelled outside of this job; its answers are kept, and the next run submits the rest"
    )
    assert (batches.lines_of_batches, report["requests"], report["cost_usd"]) == ([10], 2, pytest.approx(2e-5))
    assert read(workspace.folder / "out", "errors") == []
    batches.held, batches.refuse = False, lambda method, path: None
    again = cli.run(job)
    assert (again["exit_code"], again["rows_ok"], again["requests"]) == (0, 10, 8)
    assert batches.lines_of_batches == [10, 8]
    assert_nothing_is_left(batches, workspace.folder)


def failed(*errors: Body) -> Callable[[Body], None]:
    """Return what makes a batch fail before it begins."""

    def change(batch: Body) -> None:
        batch.update(status="failed", output_file_id=None, error_file_id=None, errors={"data": list(errors)})

    return change


NO_MODEL = {
    "code": "model_not_found",
    "message": "The provided model is not supported by the Batch API.",
    "param": "body.model",
    "line": 1,
}


@pytest.mark.parametrize(
    "errors",
    [
        [NO_MODEL],
        [{**NO_MODEL, "param": None, "code": None}],
        [{"code": "invalid_value", "message": "no such value", "param": "body.max_tokens", "line": 1}],
        [{"code": "invalid_file_format", "message": "no JSON lines", "param": None, "line": None}],
        [{"code": "billing_hard_limit_reached", "message": "Billing hard limit reached.", "line": None}],
        [{"code": "odd", "message": f"Line {n}: refused", "line": n} for n in range(1, 11)],
        [],
    ],
    ids=["the model", "words about the model", "a parameter", "the file", "the account", "every line", "no reason"],
)
def test_a_batch_that_is_refused_as_a_whole_stops_the_run_after_one_attempt(
    workspace: Any, batches: Any, cli: Any, read: Read, errors: list[Body]
) -> None:
    workspace.csv(10)
    batches.change_end = failed(*errors)
    job = workspace.job(**BATCH)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"], report["rows_left"]) == (3, 0, 0, 10)
    assert (batches.lines_of_batches, report["requests"], report["cost_usd"]) == ([10], 0, 0)
    words = errors[0]["message"] if errors else "the batch failed without a reason"
    assert f"test says: {words}; batch_0 was refused as a whole" in report["stopped"]
    assert read(workspace.folder / "out", "errors") == []
    batches.change_end = lambda batch: None
    again = cli.run(job)
    assert (again["exit_code"], again["rows_ok"], again["requests"]) == (0, 10, 10)


def test_a_batch_that_the_provider_refuses_to_create_is_not_submitted_by_the_next_run_of_a_corrected_job(
    workspace: Any, batches: Any, cli: Any
) -> None:
    workspace.csv(3)
    refused: list[str] = []

    def refuse(method: str, path: str) -> web.Response | None:
        if (method, path) == ("POST", "/v1/batches") and len(refused) < 1:
            refused.append(path)
            return batches.error(400, "This model takes no batches.", "invalid_value")
        return None

    batches.refuse = refuse
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_left"], len(refused)) == (3, 3, 1)
    assert "This model takes no batches." in report["stopped"]
    steps = '[{name: answer, endpoint: chat, provider: test, model: e, messages: [{user: "{{ text }}"}]}]'
    assert cli.run(workspace.job(steps=steps, **BATCH))["rows_ok"] == 3
    assert [batch["lines"][0]["body"]["model"] for batch in batches.batches.values()] == ["e"]
    assert_nothing_is_left(batches, workspace.folder)


def test_a_line_that_makes_a_batch_fail_is_left_out_once_and_the_same_failure_again_stops_the_run(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(10)
    batches.change_end = failed({"code": "c", "message": "Line 3 is bad", "param": "body.messages[0]", "line": 3})
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_failed"], batches.lines_of_batches) == (3, 1, [10, 9])
    assert [(row["id"], row["error_class"]) for row in read(workspace.folder / "out", "errors")] == [(3, "bad_request")]


def test_an_output_file_that_is_gone_counts_at_its_worst_case_and_its_lines_are_not_sent_again_by_the_same_run(
    workspace: Any, batches: Any, cli: Any, read: Read
) -> None:
    workspace.csv(10)
    batches.refuse = lambda method, path: (
        batches.error(404, "it has expired") if "file-output-batch_0" in path else None
    )
    job = workspace.job(budget="{usd: 0.01}", **BATCH)
    report = cli.run(job)
    assert (report["exit_code"], report["rows_failed"], report["rows_left"], report["requests"]) == (3, 0, 10, 10)
    assert report["stopped"].startswith(
        "test: the answers of batch_0 are out of reach (its output file file-output-batch_0 cannot be downloaded: "
        "it has expired); they count at their worst case, $0.0"
    )
    assert report["cost_usd"] >= 10 * WORST_CASE_USD
    assert list(batches.files) == ["file-output-batch_0"]
    assert not any(method == "DELETE" and "output" in path for method, path in batches.seen)
    again = cli.run(job)
    assert (again["exit_code"], again["rows_ok"], again["requests"]) == (0, 10, 10)
    usage = read(workspace.folder / "out", "usage")
    assert Counter(row["error_class"] for row in usage) == {"unknown": 10, None: 10}
    assert sum(row["cost_usd"] for row in usage) == pytest.approx(report["cost_usd"] + again["cost_usd"])


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "change", [half, lambda content: b"", lambda content: b"<html>\n" * 9], ids=["half", "empty", "html"]
)
def test_lines_that_a_complete_output_file_lacks_count_at_their_worst_case_and_are_sent_again(
    workspace: Any, batches: Any, cli: Any, read: Read, change: Callable[[bytes], bytes]
) -> None:
    workspace.csv(10)

    def shorten(batch: Body) -> None:
        if batch["id"] == "batch_0":
            name = batch["output_file_id"]
            batches.files[name] = (name, change(batches.files[name][1]))
            batch["request_counts"] = {"total": 10, "completed": 10, "failed": 0}

    batches.change_end = shorten
    report = cli.run(workspace.job(budget="{usd: 0.01}", **BATCH))
    first, second = batches.lines_of_batches
    assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 10, 10 + second)
    usage = read(workspace.folder / "out", "usage")
    unknown = [row["cost_usd"] for row in usage if row["error_class"] == "unknown"]
    assert (first, len(unknown), min(unknown) >= WORST_CASE_USD) == (10, second, True)
    assert report["cost_usd"] == pytest.approx(sum(unknown) + 10e-5)
    assert list(batches.files) == ["file-output-batch_0"]


def test_an_output_file_that_is_short_at_first_is_read_again(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(10)
    whole: list[tuple[str, bytes]] = []

    def shorten(batch: Body) -> None:
        name = batch["output_file_id"]
        whole.append(batches.files[name])
        batches.files[name] = (name, half(whole[0][1]))
        batch["request_counts"] = {"total": 10, "completed": 10, "failed": 0}

    def restore(method: str, path: str) -> None:
        if batches.seen.count(("GET", "/v1/files/file-output-batch_0/content")) == 2:
            batches.files["file-output-batch_0"] = whole[0]

    batches.change_end, batches.refuse = shorten, restore
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["requests"], batches.lines_of_batches) == (0, 10, [10])
    assert_nothing_is_left(batches, workspace.folder)


def test_the_answers_of_a_cancelled_batch_that_cannot_be_read_count_at_their_worst_case(
    workspace: Any, batches: Any, cli: Any
) -> None:
    workspace.csv(10)

    def end(batch: Body) -> None:
        batch.update(status="canceled", output_file_id=None, request_counts={"total": 10, "completed": 4, "failed": 0})

    batches.change_end = end
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_left"], report["requests"]) == (3, 10, 10)
    assert report["cost_usd"] >= 10 * WORST_CASE_USD


def test_a_batch_that_never_ends_stops_the_run_and_the_next_one_waits_for_it(
    workspace: Any, batches: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(3)
    batches.held = True
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.batch.lifecycle.MAX_WAIT_SECONDS", 0.2)
        report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_left"]) == (3, 3)
    assert report["stopped"].startswith("test: batch_0 has not ended in 0 hours, it is in the state in_progress; ")
    batches.held = False
    assert cli.run(workspace.folder / "job.yaml")["rows_ok"] == 3
    assert set(batches.submitted.values()) == {1}


def test_a_reply_without_an_id_creates_no_second_batch(workspace: Any, batches: Any, cli: Any) -> None:
    workspace.csv(3)
    real = batches._create
    lost = [True]

    async def create(request: web.Request) -> web.Response:
        reply: web.Response = await real(request)
        return web.json_response({}) if lost and lost.pop() else reply

    batches.create = create
    report = cli.run(workspace.job(**BATCH))
    assert (report["exit_code"], report["rows_ok"], batches.lines_of_batches) == (0, 3, [3])
    assert_nothing_is_left(batches, workspace.folder)


@pytest.mark.parametrize("moment", ["counted as unknown", "polled"])
def test_a_run_after_a_kill_counts_what_cannot_be_read_once(
    workspace: Any, batches: Any, read: Read, cli: Any, moment: str
) -> None:
    workspace.csv(5)
    batches.refuse = lambda method, path: (
        batches.error(404, "it has expired") if path == "/v1/files/file-output-batch_0/content" else None
    )
    job = workspace.job(**BATCH)
    code, _ = ended(start_run(moment, job))
    assert code == -signal.SIGKILL
    first = cli.run(job)
    again = cli.run(job) if first["exit_code"] == 3 else first
    assert (again["exit_code"], again["rows_ok"]) == (0, 5)
    usage = read(workspace.folder / "out", "usage")
    assert Counter(row["error_class"] for row in usage) == {"unknown": 5, None: 5}
    assert batches.lines_of_batches == [5, 5]
