"""Faults of the set-up: the run stops early, its rows are not blamed, and the next run sends them again."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import Cli, ScriptedProvider, Workspace, error_reply

Read = Callable[..., list[dict[str, Any]]]
Words = Callable[[int, dict[str, Any]], str]


def refusing(words: Words, status: int = 400, code: str = "unsupported") -> Callable[..., web.Response]:
    """Refuse every request with these words."""
    return lambda path, body, count: error_reply(status, words(count, body), code)


def classes(read: Read, workspace: Workspace) -> Counter[str]:
    return Counter(row["error_class"] for row in read(workspace.folder / "out", "errors"))


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_one_fault_of_the_first_twenty_rows_stops_the_run(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read, concurrency: int
) -> None:
    workspace.csv(200)
    job = workspace.job(limits=f"{{concurrency: {concurrency}}}")
    provider.latency = 0.01
    provider.script = refusing(lambda count, body: f"'seed' {count} is not supported in \"{body['messages'][-1]}\"")
    first = cli.run(job)
    assert (first["exit_code"], first["requests"], first["rows_failed"], first["rows_left"]) == (3, 20, 20, 180)
    assert first["stopped"].startswith("setup: each of the first 20 rows of step answer met the same fault at test: ")
    assert classes(read, workspace) == {"setup": 20}

    provider.script = lambda path, body, count: None
    second = cli.run(job)
    assert (second["exit_code"], second["requests"], second["rows_ok"]) == (0, 200, 200)
    assert classes(read, workspace) == {}


def test_fewer_rows_with_one_fault_stay_rows_that_were_refused(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    workspace.csv(12)
    job = workspace.job(limits="{concurrency: 8}")
    provider.script = refusing(lambda count, body: "not supported")
    first, second = cli.run(job), cli.run(job)
    assert (first["exit_code"], first["requests"], first["stopped"]) == (1, 12, None)
    assert (second["exit_code"], second["requests"]) == (1, 0)
    assert classes(read, workspace) == {"bad_request": 12}


@pytest.mark.parametrize(
    "other",
    [
        error_reply(400, "another parameter", "unsupported"),
        error_reply(400, "not supported", "another_code"),
        error_reply(422, "not supported", "unsupported"),
        error_reply(400, "not supported", "content_filter"),
        error_reply(413, "too large"),
    ],
)
def test_another_fault_among_the_first_rows_blames_each_row(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read, other: web.Response
) -> None:
    workspace.csv(30)
    job = workspace.job(limits="{concurrency: 4}")
    status, body = other.status, other.body
    assert isinstance(body, bytes)
    provider.script = lambda path, asked, count: (
        web.Response(status=status, body=body) if count == 15 else error_reply(400, "not supported", "unsupported")
    )
    report = cli.run(job)
    assert (report["exit_code"], report["requests"], report["stopped"]) == (1, 30, None)
    assert "setup" not in classes(read, workspace)


def test_an_answer_of_an_earlier_run_shows_that_the_set_up_works(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    workspace.csv(1)
    job = workspace.job(limits="{concurrency: 4}")
    assert cli.run(job)["rows_ok"] == 1
    workspace.csv(31)
    provider.script = refusing(lambda count, body: "not supported")
    report = cli.run(job)
    assert (report["exit_code"], report["requests"]) == (1, 30)
    assert classes(read, workspace) == {"bad_request": 30}


def test_a_retry_takes_equal_failures_for_the_rows_own(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    workspace.csv(25)
    job = workspace.job(limits="{concurrency: 4}")
    provider.script = refusing(lambda count, body: f"fault {chr(65 + count)}")
    assert cli.run(job)["exit_code"] == 1
    provider.script = refusing(lambda count, body: "not supported")
    assert cli("retry", job, "--quiet") == 1
    assert classes(read, workspace) == {"bad_request": 25}


EMBEDDINGS = '[{name: answer, endpoint: embeddings, provider: test, model: e, dimensions: 4, input: "{{ text }}"}]'


def test_a_group_that_is_refused_as_a_whole_does_not_take_hundreds_of_requests(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    workspace.csv(400)
    job = workspace.job(steps=EMBEDDINGS, limits="{concurrency: 8}")
    provider.script = refusing(lambda count, body: "the parameter is not supported")
    report = cli.run(job)
    # The size of the group is halved before its texts are sent alone.
    assert (report["exit_code"], report["requests"] < 40) == (3, True)
    assert classes(read, workspace) == {"setup": 20}


def test_one_text_that_is_refused_does_not_blame_the_set_up(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    workspace.csv(100)
    job = workspace.job(steps=EMBEDDINGS, limits="{concurrency: 8}")
    provider.script = lambda path, body, count: error_reply(400, "no") if "text 50" in body["input"] else None
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["stopped"]) == (1, 99, None)
    assert classes(read, workspace) == {"bad_request": 1}


POOL = """
providers:
  good: {{base_url: "{good}"}}
  bad: {{base_url: "{bad}"}}
  both: {{members: [good, bad]}}
"""


@pytest.mark.parametrize("status", [404, 400])
def test_a_pool_loses_only_the_member_whose_set_up_is_wrong(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read, status: int
) -> None:
    workspace.csv(200)
    other = ScriptedProvider()
    try:
        other.script = refusing(lambda count, body: "no such model" if status == 404 else "not supported", status)
        workspace.write("rowmill.yaml", POOL.format(good=provider.base_url, bad=other.base_url))
        steps = workspace.job().read_text().splitlines()[2].removeprefix("steps: ").replace("test", "both")
        job = workspace.job(steps=steps, limits="{concurrency: 4}")
        report = cli.run(job)
        refused = len(other.seen)
        other.script = provider.script
        second = cli.run(job)
    finally:
        other.close()
    assert (report["stopped"], report["exit_code"], report["rows_ok"]) == (None, 0, 200)
    assert 0 < refused <= (4 if status == 404 else 24)
    assert (second["rows_ok"], second["requests"]) == (200, 0)


@pytest.mark.parametrize(
    ("status", "rows", "error_class"), [(400, 40, "setup"), (404, 40, "setup"), (400, 12, "bad_request")]
)
def test_lines_that_all_meet_one_fault_are_the_set_ups(
    workspace: Any, batches: Any, cli: Cli, read: Read, status: int, rows: int, error_class: str
) -> None:
    workspace.csv(rows)
    job = workspace.job(delivery="batch")
    code = "model_not_found" if status == 404 else "unsupported"
    batches.script = lambda text, body: {
        "status_code": status, "body": {"error": {"message": f"no such thing for '{text}'", "code": code}},
    }  # fmt: skip
    report = cli.run(job)
    is_setup = error_class == "setup"
    assert (report["exit_code"], set(classes(read, workspace))) == (3 if is_setup else 1, {error_class})
    batches.script = lambda text, body: None
    assert cli.run(job)["rows_ok"] == (rows if is_setup else 0)


def test_a_missing_embedding_model_is_named_before_its_dimensions_are_learned(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli
) -> None:
    workspace.csv(3)
    job = workspace.job(steps=EMBEDDINGS.replace("dimensions: 4, ", ""))
    provider.script = refusing(lambda count, body: "no such model: e", 404)
    report = cli.run(job)
    assert (report["exit_code"], len(provider.seen)) == (3, 1)
    assert report["stopped"] == (
        "setup: test says: no such model: e; correct `model` of step answer, or make e available at test, and run again"
    )


PAGE = "<!DOCTYPE html><html><title>Sign in</title></html>"


def test_a_web_page_in_place_of_the_first_answer_names_the_address_and_costs_nothing(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    workspace.csv(9)
    job = workspace.job(limits="{concurrency: 1}")
    provider.script = lambda path, body, count: web.Response(text=PAGE, content_type="text/html")
    first = cli.run(job)
    assert (first["exit_code"], first["requests"], first["cost_usd"] or 0) == (3, 1, 0)
    assert "the reply is a web page, not an answer (POST http" in first["stopped"]
    assert "correct base_url of the provider test" in first["stopped"]

    provider.script = lambda path, body, count: None
    second = cli.run(job)
    assert (second["exit_code"], second["requests"], second["rows_ok"]) == (0, 9, 9)


def test_web_pages_between_answers_are_replies_to_be_sent_again(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, read: Read
) -> None:
    workspace.csv(9)
    job = workspace.job(limits="{concurrency: 1}", retry="{attempts: 5, longest_wait: 0.01}")
    page = web.Response
    provider.script = lambda path, body, count: page(text=PAGE, content_type="text/html") if 4 <= count < 8 else None
    report = cli.run(job)
    assert (report["exit_code"], report["rows_ok"], report["stopped"]) == (0, 9, None)
