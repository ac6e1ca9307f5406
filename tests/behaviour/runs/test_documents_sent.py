"""Documents and audio that rows name, sent as they are."""

from typing import Any

import pytest

from tests.support.documents import pdf

USAGE = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}
REPLY = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": USAGE}
PRICES = """providers: {{test: {{base_url: "{url}"}}}}
prices:
  gpt-4.1: {{input_per_million: 2, output_per_million: 8}}
  unknown: {{input_per_million: 2, output_per_million: 8}}
"""


def step(model: str, provider: str = "test") -> str:
    return (
        f"[{{name: answer, endpoint: chat, provider: {provider}, model: {model}, params: {{max_tokens: 60}}, "
        "messages: [{user: [{text: What is it?}, {file: doc}]}]}]"
    )


@pytest.fixture
def prices(workspace: Any, provider: Any) -> None:
    workspace.write("rowmill.yaml", PRICES.format(url=provider.base_url))


@pytest.fixture
def rows(workspace: Any) -> Any:
    (workspace.folder / "a.pdf").write_bytes(pdf(["one"]))
    (workspace.folder / "b.pdf").write_bytes(b"\x00 no document")
    (workspace.folder / "rows.csv").write_text("id,doc\n1,a.pdf\n2,b.pdf\n3,\n4,a.pdf\n")
    return workspace


def test_equal_documents_are_sent_once_and_a_file_of_another_type_is_its_rows_error(
    rows: Any, cli: Any, read: Any
) -> None:
    job = rows.job(steps=step("gpt-4o-mini", "local"))
    report = cli.run(job)
    assert (report["exit_code"], report["requests"], report["rows_failed"]) == (1, 2, 1)
    answers = {row["id"]: row["answer"] for row in read(rows.folder / "out", "results")}
    size = len(pdf(["one"]))
    assert f"a pdf file of {size} bytes, document.pdf" in answers[1] == answers[4] != answers[3]
    (error,) = read(rows.folder / "out", "errors")
    assert (error["id"], error["error_class"]) == (2, "input")
    assert error["message"].startswith("doc: b.pdf is of an unknown type")
    assert cli.run(job)["requests"] == 0


def test_a_document_is_reserved_as_the_whole_context_window(rows: Any, provider: Any, cli: Any, prices: None) -> None:
    provider.script = lambda path, body, count: REPLY
    (rows.folder / "rows.csv").write_text("id,doc\n1,a.pdf\n")
    # The window of 1,047,576 tokens costs $2.0952.
    job = rows.job(steps=step("gpt-4.1"), budget="{usd: 2.09}")
    assert cli.run(job)["exit_code"] == 3
    assert provider.seen == []
    report = cli.run(job, "--budget-usd", "2.1")
    assert (report["exit_code"], report["cost_usd"]) == (0, 0.00208)


def test_a_document_for_a_model_of_unknown_window_is_refused_under_a_budget(
    rows: Any, provider: Any, cli: Any, prices: None
) -> None:
    assert cli("run", rows.job(steps=step("unknown"), budget="{usd: 5}")) == 2
    assert (
        "the context window of unknown is not known, nor the tokens of a document, so a budget cannot be guaranteed"
        in cli.err
    )
    assert provider.seen == []
