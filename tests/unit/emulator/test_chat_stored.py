"""Stored completions of the emulator: list, retrieve, update, delete, messages."""

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
    completion = stored(client, "Keep this.", metadata={"batch": "1"})
    retrieved = client.chat.completions.retrieve(completion.id)
    assert (retrieved.choices, retrieved.usage, retrieved.metadata) == (
        completion.choices,
        completion.usage,
        {"batch": "1"},
    )  # type: ignore[attr-defined]
    changed = client.chat.completions.update(completion.id, metadata={"batch": "2"})
    assert changed.metadata == {"batch": "2"}  # type: ignore[attr-defined]
    # Without the SDK, whose type expects every message to be the assistant's.
    (message,) = http.get(f"{base_url}/chat/completions/{completion.id}/messages").json()["data"]
    assert message == {"id": f"{completion.id}-0", "role": "user", "content": "Keep this.", "content_parts": None}
    assert client.chat.completions.delete(completion.id).deleted is True
    for ask in (client.chat.completions.retrieve, client.chat.completions.delete):
        with pytest.raises(openai.NotFoundError):
            ask(completion.id)


def test_stored_completions_are_listed_by_model_and_metadata(client: openai.OpenAI) -> None:
    first, second = (stored(client, f"List {place}.", metadata={"run": "a"}).id for place in (1, 2))
    other = stored(client, "List 3.", metadata={"run": "b"}).id
    not_stored = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Not kept."}]
    ).id

    def listed(**more: Any) -> list[str]:
        return [one.id for one in client.chat.completions.list(**more)]

    assert {first, second, other} <= set(listed()) and not_stored not in listed()
    assert listed(metadata={"run": "a"}) == [first, second]
    assert listed(metadata={"run": "a"}, order="desc", limit=1) == [second, first]
    assert listed(model="gpt-4") == []
    with pytest.raises(openai.BadRequestError):
        listed(limit=0)


def test_the_number_of_stored_answers_is_limited(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(client, "The first.").id
    monkeypatch.setattr("connectors.emulator.store.MAX_STORED_OBJECTS", 10)
    for place in range(30):
        stored(client, f"Another {place}.")
        client.responses.create(model="gpt-4o-mini", input=f"Another {place}.")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(first)
