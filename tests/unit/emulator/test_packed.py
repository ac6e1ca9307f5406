"""Packed requests at the embedded provider: each item is answered as if it were alone."""

import json
from typing import Any

import aiohttp
import pytest

from connectors.emulator.server import EmulatorOptions, EmulatorServer
from connectors.endpoints.conversation.packing.pack_format import packed_content, packed_schema, row_ids

SENTIMENT = {"sentiment": {"type": "string", "enum": ["positive", "negative"]}}
TEXTS = [
    b'"I love this phone, it is wonderful."',
    b'"Terrible, it broke after a day and I hate it."',
    b'"Great value!"',
]
"""As JSON."""
IDS = row_ids([bytes([number]) * 16 for number in range(3)])


def body(properties: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    form = {"name": "s", "strict": True, "schema": packed_schema(properties)}
    return {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "Is the review positive or negative?"},
            {"role": "user", "content": packed_content(IDS, TEXTS)},
        ],
        "response_format": {"type": "json_schema", "json_schema": form},
        **more,
    }


async def post(path: str, request: dict[str, Any]) -> dict[str, Any]:
    with EmulatorServer(EmulatorOptions()) as server:
        async with aiohttp.ClientSession() as session, session.post(f"{server.base_url}{path}", json=request) as reply:
            answer: dict[str, Any] = await reply.json()
            assert reply.status == 200, answer
            return answer


async def test_typed_items_have_their_own_answers() -> None:
    reply = await post("/chat/completions", body(SENTIMENT))
    answers = json.loads(reply["choices"][0]["message"]["content"])["answers"]
    assert answers == [
        {"id": identity, "sentiment": sentiment}
        for identity, sentiment in zip(IDS, ["positive", "negative", "positive"], strict=True)
    ]


async def test_text_items_have_a_text_each() -> None:
    reply = await post("/chat/completions", body(None))
    answers = json.loads(reply["choices"][0]["message"]["content"])["answers"]
    assert [answer["id"] for answer in answers] == IDS
    assert all(isinstance(answer["answer"], str) and answer["answer"] for answer in answers)


async def test_the_answer_is_cut_at_max_tokens() -> None:
    choice = (await post("/chat/completions", body(SENTIMENT, max_tokens=20)))["choices"][0]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("form", [{"type": "json_object"}, None])
async def test_the_schema_may_be_in_the_prompt(form: dict[str, str] | None) -> None:
    request = body(None)
    del request["response_format"]
    schema = json.dumps(packed_schema(SENTIMENT))
    request["messages"][0]["content"] += f" Answer with nothing but JSON that fits this JSON Schema: {schema}"
    if form is not None:
        request["response_format"] = form
    answers = json.loads((await post("/chat/completions", request))["choices"][0]["message"]["content"])["answers"]
    assert [answer["sentiment"] for answer in answers] == ["positive", "negative", "positive"]


async def test_responses_answer_packs_too() -> None:
    form = {"type": "json_schema", "name": "s", "strict": True, "schema": packed_schema(SENTIMENT)}
    request = {"model": "gpt-4o-mini", "input": packed_content(IDS, TEXTS), "text": {"format": form}}
    reply = await post("/responses", request)
    answers = json.loads(reply["output"][0]["content"][0]["text"])["answers"]
    assert [answer["sentiment"] for answer in answers] == ["positive", "negative", "positive"]
