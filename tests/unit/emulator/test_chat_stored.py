"""Completions of the local provider that are kept: list, show, change, delete, their messages."""

from typing import Any

import httpx2 as httpx
import openai
import pytest


def stored(client: openai.OpenAI, text: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="gpt-4o-mini", messages=messages, store=True, **more)


def test_a_stored_completion_is_shown_changed_and_deleted(
    client: openai.OpenAI, base_url: str, http: httpx.Client
) -> None:
    got = stored(client, "Keep this.", metadata={"batch": "1"})
    kept = client.chat.completions.retrieve(got.id)
    assert (kept.choices, kept.usage, kept.metadata) == (got.choices, got.usage, {"batch": "1"})  # type: ignore[attr-defined]
    changed = client.chat.completions.update(got.id, metadata={"batch": "2"})
    assert changed.metadata == {"batch": "2"}  # type: ignore[attr-defined]
    # Not by the SDK: its type says that every message is the assistant's.
    (message,) = http.get(f"{base_url}/chat/completions/{got.id}/messages").json()["data"]
    assert message == {"id": f"{got.id}-0", "role": "user", "content": "Keep this.", "content_parts": None}
    assert client.chat.completions.delete(got.id).deleted is True
    for ask in (client.chat.completions.retrieve, client.chat.completions.delete):
        with pytest.raises(openai.NotFoundError):
            ask(got.id)


def test_stored_completions_are_listed_by_model_and_metadata(client: openai.OpenAI) -> None:
    first, second = (stored(client, f"List {place}.", metadata={"run": "a"}).id for place in (1, 2))
    other = stored(client, "List 3.", metadata={"run": "b"}).id
    unkept = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Not kept."}]).id

    def listed(**more: Any) -> list[str]:
        return [one.id for one in client.chat.completions.list(**more)]

    assert {first, second, other} <= set(listed()) and unkept not in listed()
    assert listed(metadata={"run": "a"}) == [first, second]
    assert listed(metadata={"run": "a"}, order="desc", limit=1) == [second, first]
    assert listed(model="gpt-4") == []
    with pytest.raises(openai.BadRequestError):
        listed(limit=0)


def test_only_so_many_answers_are_kept(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(client, "The first.").id
    monkeypatch.setattr("connectors.emulator.store.MAX_STORED_OBJECTS", 10)
    for place in range(30):
        stored(client, f"Another {place}.")
        client.responses.create(model="gpt-4o-mini", input=f"Another {place}.")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(first)
