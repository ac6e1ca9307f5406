"""The Batch API of the emulator, through the official SDK."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from connectors.emulator.batches import input_file
from connectors.emulator.batches.input_file import check_lines

FINAL_STATUSES = ("completed", "failed", "expired", "cancelled")
Line = dict[str, Any]


def chat_line(custom_id: str, text: str = "Hello there.", **more: Any) -> Line:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(client: openai.OpenAI, lines: Iterable[Line | str]) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return client.files.create(file=("lines.jsonl", "\n".join(texts).encode()), purpose="batch").id


def begin(
    client: openai.OpenAI, lines: Iterable[Line | str], endpoint: Any = "/v1/chat/completions", **metadata: str
) -> Any:
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint=endpoint, completion_window="24h", metadata=metadata
    )


def finished(client: openai.OpenAI, batch: Any) -> Any:
    """Wait for the batch to finish."""
    until = time.monotonic() + 20
    while batch.status not in FINAL_STATUSES:
        assert time.monotonic() < until
        batch = client.batches.retrieve(batch.id)
    return batch


def json_lines(client: openai.OpenAI, file_id: str | None) -> dict[str, Line]:
    """The lines of an output or error file by custom_id."""
    if file_id is None:
        return {}
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line for line in lines}


@pytest.fixture
def fresh(serve: Callable[..., str]) -> openai.OpenAI:
    """The SDK with an emulator that has no batches."""
    return openai.OpenAI(base_url=serve(), api_key="any", max_retries=0, _strict_response_validation=True)


def test_a_batch_goes_from_validating_to_completed_and_answers_every_line(fresh: openai.OpenAI) -> None:
    begun = begin(fresh, [chat_line("a", "One."), chat_line("b", "Two.")], night="7")
    assert (begun.status, begun.metadata, begun.output_file_id) == ("validating", {"night": "7"}, None)
    assert begun.expires_at == begun.created_at + 24 * 3600
    batch = finished(fresh, begun)
    assert (batch.status, batch.model, batch.error_file_id, batch.errors) == ("completed", "gpt-4o-mini", None, None)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert (batch.failed_at, batch.expired_at, batch.cancelled_at) == (None, None, None)
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 2, "failed": 0}
    output = json_lines(fresh, batch.output_file_id)
    assert list(output) == ["a", "b"]
    for custom_id, text in (("a", "One."), ("b", "Two.")):
        line = output[custom_id]
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        alone = fresh.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])
        assert line["response"]["body"]["choices"][0]["message"]["content"] == alone.choices[0].message.content
    used = [line["response"]["body"]["usage"]["total_tokens"] for line in output.values()]
    assert batch.usage.total_tokens == sum(used)
    file = fresh.files.retrieve(batch.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 8}, "list"),
        ("/v1/responses", {"model": "gpt-4o-mini", "input": "Hello."}, "response"),
        ("/v1/images/generations", {"model": "dall-e-2", "prompt": "x", "size": "256x256"}, None),
    ],
)
def test_every_endpoint_of_the_batch_api_is_answered(
    client: openai.OpenAI, endpoint: str, body: dict[str, Any], kind: str | None
) -> None:
    line = {"custom_id": "1", "method": "POST", "url": endpoint, "body": body}
    batch = finished(client, begin(client, [line], endpoint))
    answer = json_lines(client, batch.output_file_id)["1"]["response"]
    assert (answer["status_code"], answer["body"].get("object")) == (200, kind)


def test_rejected_lines_are_in_the_error_file_as_replies_not_as_errors(
    client: openai.OpenAI,
) -> None:
    lines = [chat_line("good"), chat_line("hot", temperature=3), chat_line("live", stream=True)]
    batch = finished(client, begin(client, lines))
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 1, "failed": 2}
    assert list(json_lines(client, batch.output_file_id)) == ["good"]
    errors = json_lines(client, batch.error_file_id)
    assert list(errors) == ["hot", "live"]
    assert (errors["hot"]["error"], errors["hot"]["response"]["status_code"]) == (None, 400)
    assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["live"]["response"]["body"]["error"]["param"] == "stream"


def test_a_batch_of_rejected_lines_only_has_no_output_file(client: openai.OpenAI) -> None:
    batch = finished(client, begin(client, [chat_line("hot", temperature=3)]))
    assert (batch.status, batch.output_file_id) == ("completed", None)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([chat_line("a"), "no json"], ("invalid_json_line", None, 2)),
        ([chat_line("a"), "[]"], ("invalid_json_line", None, 2)),
        ([chat_line("a"), "", chat_line("a")], ("duplicate_custom_id", "custom_id", 3)),
        ([{**chat_line("a"), "custom_id": None}], ("missing_required_parameter", "custom_id", 1)),
        ([{**chat_line("a"), "body": None}], ("missing_required_parameter", "body", 1)),
        ([{**chat_line("a"), "method": "GET"}], ("invalid_method", "method", 1)),
        ([{**chat_line("a"), "url": "/v1/embeddings"}], ("mismatched_url", "url", 1)),
        ([chat_line("a"), chat_line("b", model="gpt-4o")], ("mismatched_model", "body.model", 2)),
    ],
)
def test_an_invalid_line_fails_the_batch_and_is_named(
    client: openai.OpenAI, lines: list[Line | str], expected: tuple[str, str | None, int]
) -> None:
    batch = finished(client, begin(client, lines))
    assert (batch.status, batch.output_file_id, batch.in_progress_at) == ("failed", None, None)
    assert [(one.code, one.param, one.line) for one in batch.errors.data] == [expected]


def test_too_many_lines_bytes_or_inputs_fail_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "\n".join(json.dumps(chat_line(str(number))) for number in range(3)).encode()

    def codes(content: bytes, endpoint: str = "/v1/chat/completions") -> list[str]:
        return [one["code"] for one in check_lines(content, endpoint).errors]

    assert codes(content) == []
    assert codes(b"\n \n") == ["empty_file"]
    monkeypatch.setattr(input_file, "MAX_LINES", 2)
    assert codes(content) == ["too_many_tasks"]
    monkeypatch.setattr(input_file, "MAX_BYTES", 10)
    assert codes(content) == ["file_too_large"]
    monkeypatch.undo()
    monkeypatch.setattr(input_file, "MAX_INPUTS", 2)
    for given, expected in ((["a", "b"], []), (["a", "b", "c"], ["too_many_embedding_inputs"]), ([1, 2, 3], [])):
        line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": given}}
        assert codes(json.dumps(line).encode(), "/v1/embeddings") == expected


def test_the_limits_are_those_of_the_batch_api() -> None:
    assert (input_file.MAX_LINES, input_file.MAX_BYTES, input_file.MAX_INPUTS) == (50_000, 209_715_200, 50_000)


def test_a_share_of_the_lines_can_expire(client: openai.OpenAI) -> None:
    lines = [chat_line(str(number)) for number in range(5)]
    batch = finished(client, begin(client, lines, rowmill_expire_share="0.4"))
    assert batch.status == "expired"
    assert (batch.expired_at is None, batch.completed_at) == (False, None)
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 3, "failed": 2}
    assert list(json_lines(client, batch.output_file_id)) == ["0", "1", "2"]
    errors = json_lines(client, batch.error_file_id)
    assert [(line["response"], line["error"]["code"]) for line in errors.values()] == [(None, "batch_expired")] * 2


def test_metadata_can_make_a_batch_fail(client: openai.OpenAI) -> None:
    batch = finished(client, begin(client, [chat_line("a")], rowmill_fail="out_of_order"))
    assert (batch.status, [one.code for one in batch.errors.data]) == ("failed", ["out_of_order"])


def test_a_delayed_batch_stays_in_progress_and_can_be_cancelled(client: openai.OpenAI) -> None:
    lines = [chat_line(str(number)) for number in range(3)]
    begun = begin(client, lines, rowmill_delay_s="0.1")
    start = time.monotonic()
    assert finished(client, begun).status == "completed"
    assert time.monotonic() - start > 0.05
    # Six hours between lines: only earlier lines have answers.
    slow = begin(client, lines, rowmill_delay_s="64800")
    while client.batches.retrieve(slow.id).status != "in_progress":
        pass
    assert client.batches.cancel(slow.id).status == "cancelling"
    batch = finished(client, slow)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    assert batch.cancelling_at <= batch.cancelled_at
    with pytest.raises(openai.ConflictError) as refused:
        client.batches.cancel(slow.id)
    assert refused.value.code == "batch_not_cancellable"


def test_the_enqueued_token_limit_fails_a_batch_until_an_earlier_one_is_done(fresh: openai.OpenAI) -> None:
    lines = [chat_line("a", "word " * 100)]
    first = begin(fresh, lines, rowmill_delay_s="64800")
    while fresh.batches.retrieve(first.id).status != "in_progress":
        pass
    second = finished(fresh, begin(fresh, lines, rowmill_enqueued_tokens="200"))
    assert (second.status, [one.code for one in second.errors.data]) == ("failed", ["token_limit_exceeded"])
    other = finished(fresh, begin(fresh, [chat_line("a", "word " * 100, model="o3")], rowmill_enqueued_tokens="200"))
    assert other.status == "completed"
    fresh.batches.cancel(first.id)
    finished(fresh, first)
    assert finished(fresh, begin(fresh, lines, rowmill_enqueued_tokens="200")).status == "completed"


def test_batches_are_listed_the_newest_first_in_pages(fresh: openai.OpenAI) -> None:
    begun = [begin(fresh, [chat_line("a")]).id for _ in range(3)]
    assert len(set(begun)) == 3
    page = fresh.batches.list(limit=2)
    assert ([one.id for one in page.data], page.has_more) == (begun[:0:-1], True)
    assert [one.id for one in fresh.batches.list(limit=2, after=begun[1]).data] == begun[:1]


def test_output_files_expire_as_the_batch_requests(client: openai.OpenAI) -> None:
    begun = client.batches.create(
        input_file_id=upload(client, [chat_line("a")]),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    file = client.files.retrieve(finished(client, begun).output_file_id)
    assert file.expires_at == file.created_at + 7200


def test_the_next_server_resumes_an_unfinished_batch(serve: Callable[..., str], tmp_path: Path) -> None:
    from connectors.emulator.server import EmulatorOptions, EmulatorServer

    with (
        EmulatorServer(EmulatorOptions(folder=tmp_path)) as server,
        openai.OpenAI(base_url=server.base_url, api_key="k") as one,
    ):
        begun = begin(one, [chat_line("a")], rowmill_delay_s="64800")
        while one.batches.retrieve(begun.id).status != "in_progress":
            pass
    path = tmp_path / "batch" / f"{begun.id}.json"
    left = json.loads(path.read_text())
    assert left["status"] == "in_progress"
    path.write_text(json.dumps({**left, "metadata": None}))
    with openai.OpenAI(base_url=serve(folder=tmp_path), api_key="k") as other:
        batch = finished(other, other.batches.retrieve(begun.id))
        assert (batch.status, list(json_lines(other, batch.output_file_id))) == ("completed", ["a"])


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"input_file_id": "file-none"}, 404, "input_file_id"),
        ({"endpoint": "/v1/audio/speech"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {"rowmill_delay_s": "soon"}}, 400, "metadata.rowmill_delay_s"),
        ({"metadata": {"rowmill_expire_share": "2"}}, 400, "metadata.rowmill_expire_share"),
        ({"output_expires_after": {"anchor": "created_at"}}, 400, "output_expires_after.seconds"),
        ({"colour": "red"}, 400, "colour"),
    ],
)
def test_an_invalid_parameter_is_named_in_the_error(
    client: openai.OpenAI, base_url: str, http: httpx.Client, body: dict[str, Any], status: int, param: str
) -> None:
    right = {
        "input_file_id": upload(client, [chat_line("a")]),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    reply = http.post(f"{base_url}/batches", json={**right, **body})
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


def test_only_batch_files_are_accepted_and_unknown_batches_are_a_404(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    assert refused.value.param == "input_file_id"
    for ask in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask("batch_none")
