"""Replies of real servers that deviate from the reference."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import chat_reply

Read = Callable[..., list[dict[str, Any]]]


def sent(body: bytes, kind: str = "application/json") -> Callable[..., web.Response]:
    return lambda *_: web.Response(body=body, content_type=kind)


@pytest.mark.parametrize("stream", [False, True])
def test_a_byte_order_mark_before_a_reply_is_ignored(
    workspace: Any, provider: Any, cli: Any, read: Read, stream: bool
) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    whole = json.dumps(chat_reply("hi")).encode()
    provider.script = sent(b"\xef\xbb\xbf" + (event if stream else whole), "text/event-stream" if stream else "text/x")
    workspace.csv(2)
    job = workspace.job(
        steps="[{name: answer, endpoint: chat, provider: test, model: m, params: {max_tokens: 20}, "
        f'stream: {str(stream).lower()}, messages: [{{user: "{{{{ text }}}}"}}]}}]'
    )
    assert (cli.run(job)["exit_code"], len(provider.seen)) == (0, 2)
    assert [row["answer"] for row in read(workspace.folder / "out")] == ["hi", "hi"]


def test_an_answer_truncated_by_a_content_filter_is_not_an_answer(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    provider.script = lambda *_: chat_reply("the first half of", finish="content_filter")
    workspace.csv(1)
    assert cli.run(workspace.job())["exit_code"] == 1
    assert read(workspace.folder / "out") == []
    (error,) = read(workspace.folder / "out", "errors")
    assert error["error_class"] == "content_filter"
    (usage,) = read(workspace.folder / "out", "usage")
    assert (usage["http_status"], usage["finish_reason"], usage["cost_usd"]) == (200, "content_filter", 2e-05)


@pytest.mark.parametrize(
    "usage", [None, {}, {"completion_tokens": 5}, {"prompt_tokens": 2**70, "completion_tokens": 5}]
)
def test_a_partial_token_count_costs_the_worst_case(
    workspace: Any, provider: Any, cli: Any, read: Read, usage: Any
) -> None:
    """A missing count is charged at its maximum, so that the budget still holds."""
    provider.script = lambda *_: chat_reply("a") | {"usage": usage}
    workspace.csv(1)
    report = cli.run(workspace.job())
    assert report["exit_code"] == 0
    # 20 output tokens at 2 dollars a million, and the maximum input tokens of the request's bytes at 1 dollar.
    body = len(json.dumps(provider.seen[0][1], separators=(",", ":")))
    assert report["cost_usd"] == pytest.approx((20 * 2 + body) / 1e6)
    (row,) = read(workspace.folder / "out", "usage")
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (None, None, report["cost_usd"])


def test_an_error_of_vllm_with_status_200_belongs_to_the_row(
    workspace: Any, provider: Any, cli: Any, read: Read
) -> None:
    provider.script = lambda *_: {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}
    workspace.csv(1)
    assert (cli.run(workspace.job())["exit_code"], len(provider.seen)) == (1, 1)
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["error_class"], error["message"]) == ("bad_request", "too long")
