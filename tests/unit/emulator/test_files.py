"""Files of the emulator, through the official SDK."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {}}\n'


@pytest.fixture
def fresh(serve: Callable[..., str]) -> openai.OpenAI:
    """The SDK with an emulator that has no files."""
    return openai.OpenAI(base_url=serve(), api_key="any", max_retries=0, _strict_response_validation=True)


def test_a_file_is_returned_as_it_was_uploaded(fresh: openai.OpenAI) -> None:
    content = bytes(range(256)) * 5000
    uploaded = fresh.files.create(file=("späte Zeilen.bin", content), purpose="user_data")
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose, uploaded.status) == (
        len(content),
        "späte Zeilen.bin",
        "user_data",
        "processed",
    )
    assert fresh.files.retrieve(uploaded.id) == uploaded
    assert fresh.files.content(uploaded.id).read() == content


def test_a_deleted_file_is_not_found(fresh: openai.OpenAI) -> None:
    uploaded = fresh.files.create(file=("a.txt", b"text"), purpose="assistants")
    assert fresh.files.delete(uploaded.id).deleted
    for ask in (fresh.files.retrieve, fresh.files.content, fresh.files.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            ask(uploaded.id)
        assert refused.value.body == {
            "message": f"No such File object: {uploaded.id}",
            "type": "invalid_request_error",
            "param": "id",
            "code": None,
        }
    assert fresh.files.list().data == []


def test_files_are_listed_by_purpose_order_and_page(fresh: openai.OpenAI) -> None:
    names = [f"{number}.txt" for number in range(5)]
    uploaded = [fresh.files.create(file=(name, b"x"), purpose="user_data") for name in names]
    fresh.files.create(file=("lines.jsonl", LINE), purpose="batch")

    def listed(**query: Any) -> list[str]:
        return [one.filename for one in fresh.files.list(**query)]

    assert listed(order="asc") == [*names, "lines.jsonl"]
    assert listed() == ["lines.jsonl", *names[::-1]]
    assert listed(purpose="batch") == ["lines.jsonl"]
    assert listed(order="asc", limit=2, after=uploaded[1].id) == [*names[2:], "lines.jsonl"]
    page = fresh.files.list(order="asc", limit=2, after=uploaded[1].id)
    assert ([one.filename for one in page.data], page.has_more) == (names[2:4], True)


def test_batch_files_expire_and_other_files_only_on_request(fresh: openai.OpenAI) -> None:
    batch = fresh.files.create(file=("a.jsonl", LINE), purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 24 * 3600
    other = fresh.files.create(file=("a", b"x"), purpose="vision")
    assert other.expires_at is None
    expiring = fresh.files.create(
        file=("b", b"x"), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert expiring.expires_at == expiring.created_at + 3600


def test_a_folder_keeps_files_for_the_next_server(serve: Callable[..., str], tmp_path: Path) -> None:
    with openai.OpenAI(base_url=serve(folder=tmp_path), api_key="any") as first:
        uploaded = [first.files.create(file=(name, b"same"), purpose="user_data") for name in ("a", "b", "b")]
        gone = first.files.create(file=("c", b"x"), purpose="user_data")
        first.files.delete(gone.id)
    with openai.OpenAI(base_url=serve(folder=tmp_path), api_key="any", max_retries=0) as second:
        assert second.files.content(uploaded[1].id).read() == b"same"
        new = second.files.create(file=("b", b"same"), purpose="user_data")
        assert list(second.files.list(order="asc")) == [*uploaded, new]
        assert len({one.id for one in (*uploaded, new)}) == 4
        with pytest.raises(openai.NotFoundError):
            second.files.retrieve(gone.id)


def test_no_id_can_escape_the_folder(serve: Callable[..., str], http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"id": "secret", "object": "file", "expires_at": null}')
    base_url = serve(folder=tmp_path / "files")
    for file_id in ("..%2F..%2Fsecret", "%2E%2E%2F%2E%2E%2Fsecret", "secret"):
        assert http.get(f"{base_url}/files/{file_id}").status_code == 404


@pytest.mark.parametrize(
    ("fields", "name", "content", "param"),
    [
        ({}, "file", b"x", "purpose"),
        ({"purpose": "fun"}, "file", b"x", "purpose"),
        ({"purpose": "batch"}, "file", b"id,text\n1,x\n", "file"),
        ({"purpose": "fine-tune"}, "file", b"", "file"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "file", b"x", "expires_after.anchor"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "file",
            b"x",
            "expires_after.seconds",
        ),
        ({"expires_after": '{"anchor": "created_at"}'}, "file", b"x", "expires_after.seconds"),
        ({"purpose": "evals", "colour": "red"}, "file", b"x", "colour"),
        ({"purpose": "evals"}, "picture", b"x", "picture"),
        ({"purpose": "evals", "file": "text"}, "mask", b"x", "file"),
    ],
)
def test_an_invalid_upload_is_a_400(
    base_url: str, http: httpx.Client, fields: dict[str, str], name: str, content: bytes, param: str
) -> None:
    form = fields if "purpose" in fields or not fields else {"purpose": "evals", **fields}
    reply = http.post(f"{base_url}/files", data=form, files={name: ("a.jsonl", content)})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "order=up", "after=file-none", "colour=red"])
def test_an_invalid_query_is_a_400(base_url: str, http: httpx.Client, query: str) -> None:
    reply = http.get(f"{base_url}/files?{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, query.partition("=")[0])
