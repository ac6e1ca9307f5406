"""Models, files and batches of a provider: the requests that are sent, pages, and error replies."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from connectors.contracts import Provider
from connectors.errors import JobError, Stopped
from connectors.records import Call, Reply
from pipelines.runtime import provider_api
from pipelines.runtime.event_loop import run_loop
from pipelines.runtime.provider_api import ProviderApi, RequestRefused, call_provider


def json_reply(value: Any, status: int = 200) -> Reply:
    return Reply(status, {}, orjson.dumps(value), 0.0)


class FakeTransport:
    """Returns scripted replies and records the calls."""

    def __init__(self, *replies: Reply) -> None:
        self.replies: Iterator[Reply] = iter(replies)
        self.calls: list[tuple[str, str, Any]] = []

    async def send(self, provider: Provider, call: Call) -> Reply:
        body = None if call.body is None else orjson.loads(call.body)
        self.calls.append((call.method, call.path, body))
        return next(self.replies)

    async def upload(
        self,
        provider: Provider,
        path: str,
        fields: Mapping[str, str],
        file: Path,
        name: str,
        on_progress: Callable[[int], None],
    ) -> Reply:
        self.calls.append(("POST", path, {**fields, "name": name}))
        return next(self.replies)

    async def download(self, provider: Provider, path: str, write: Callable[[bytes], object]) -> Reply:
        self.calls.append(("GET", path, None))
        write(b"content")
        return next(self.replies)

    async def close(self) -> None:
        pass


def api_of(*replies: Reply) -> tuple[ProviderApi, FakeTransport]:
    transport = FakeTransport(*replies)
    return ProviderApi(transport, Provider("box", "http://box/v1")), transport  # type: ignore[arg-type]


def test_names_are_quoted_in_paths() -> None:
    api, transport = api_of(json_reply({"id": "a/b"}), json_reply({"id": "f"}), json_reply({"id": "f"}))

    async def calls() -> None:
        assert await api.get_model("ft:a/b c") == {"id": "a/b"}
        await api.get_file("file/1")
        await api.cancel_batch("batch 1")

    run_loop(calls())
    assert transport.calls == [
        ("GET", "/models/ft:a/b%20c", None),
        ("GET", "/files/file%2F1", None),
        ("POST", "/batches/batch%201/cancel", None),
    ]


def test_pages_are_followed_until_the_last_one() -> None:
    pages = [
        json_reply({"data": [{"id": "a"}, {"id": "b"}], "has_more": True}),
        json_reply({"data": [{"id": "c"}], "has_more": False}),
    ]
    api, transport = api_of(*pages)

    async def calls() -> list[Any]:
        return [batch["id"] async for batch in api.list_batches()]

    assert run_loop(calls()) == ["a", "b", "c"]
    assert [path for _, path, _ in transport.calls] == ["/batches?limit=100", "/batches?limit=100&after=b"]


@pytest.mark.parametrize("name", ["a", 1, None])
def test_a_server_that_ignores_after_is_not_asked_for_ever(name: object) -> None:
    page = json_reply({"data": [{"id": name}], "has_more": True})
    api, transport = api_of(page, page)
    assert run_loop(api.list_files("batch")) == [{"id": name}, {"id": name}]
    assert [path for _, path, _ in transport.calls] == ["/files?purpose=batch", f"/files?purpose=batch&after={name}"]


def test_a_batch_is_created_for_the_requests_of_a_file(tmp_path: Path) -> None:
    api, transport = api_of(json_reply({"id": "file-1"}), json_reply({"id": "batch-1"}))

    async def calls() -> None:
        await api.upload_file(tmp_path / "x", "x.jsonl", "batch")
        await api.create_batch("file-1", "/v1/embeddings", {"run": "1"})

    run_loop(calls())
    assert transport.calls == [
        ("POST", "/files", {"purpose": "batch", "name": "x.jsonl"}),
        (
            "POST",
            "/batches",
            {
                "input_file_id": "file-1",
                "endpoint": "/v1/embeddings",
                "completion_window": "24h",
                "metadata": {"run": "1"},
            },
        ),
    ]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (json_reply({"error": {"message": "no such file"}}, 404), "no such file"),
        (Reply(200, {}, b"<html>", 0.0), "the reply is not JSON"),
        (json_reply(["a"]), "the reply is not a JSON object"),
    ],
)
def test_a_reply_that_is_not_an_object_of_the_api_is_refused(reply: Reply, message: str) -> None:
    api, _ = api_of(reply)
    with pytest.raises(RequestRefused, match=message):
        run_loop(api.get_file("f"))


def test_a_download_that_fails_is_refused() -> None:
    api, transport = api_of(json_reply({"error": {"message": "gone"}}, 404))
    with pytest.raises(RequestRefused, match="gone"):
        run_loop(api.download_file("f", lambda chunk: None))
    assert transport.calls == [("GET", "/files/f/content", None)]


@pytest.mark.parametrize(("status", "error"), [(404, JobError), (401, Stopped)])
def test_a_command_ends_with_the_providers_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception]
) -> None:
    (tmp_path / "rowmill.yaml").write_text("providers: {box: {base_url: http://localhost/v1}}")
    monkeypatch.chdir(tmp_path)
    transport = FakeTransport(json_reply({"error": {"message": "not\nallowed"}}, status))
    monkeypatch.setattr(provider_api, "HttpTransport", lambda *_: transport)
    with pytest.raises(error, match=r"^box: not allowed$"):
        call_provider("box", lambda api: api.get_file("f"))


def test_a_command_says_what_to_do_about_a_reply_that_is_none_of_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rowmill.yaml").write_text("providers: {box: {base_url: http://localhost/v1}}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provider_api, "HttpTransport", lambda *_: FakeTransport(json_reply(["a"])))
    message = "box: the reply is not a JSON object; see whether http://localhost/v1 is the address of its API"
    with pytest.raises(JobError, match=f"^{message}$"):
        call_provider("box", lambda api: api.list_models())
