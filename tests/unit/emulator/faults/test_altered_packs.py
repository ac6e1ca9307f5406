"""Altered packs: the items of the reply are those that the entry names, and other replies stay."""

import httpx2 as httpx
import orjson
import pytest

from connectors.emulator.faults.altered_packs import UNKNOWN_ID
from connectors.emulator.server import EmulatorOptions, EmulatorServer
from connectors.endpoints.conversation.packing.pack_format import packed_content, packed_schema

IDS = ["aaaaaa", "bbbbbb", "cccccc"]
ALTERED_IDS = {
    "pack-drop": IDS[1:],
    "pack-repeat": [*IDS, IDS[0]],
    "pack-rename": [UNKNOWN_ID, *IDS[1:]],
    "pack-reorder": IDS[::-1],
}


@pytest.mark.parametrize("fault", ALTERED_IDS)
def test_the_items_of_a_reply_are_those_of_the_entry(http: httpx.Client, fault: str) -> None:
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": packed_content(IDS, [b'"one"', b'"two"', b'"three"'])}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "strict": True, "schema": packed_schema(None)},
        },
    }
    with EmulatorServer(EmulatorOptions(script=fault)) as server:
        reply = http.post(f"{server.base_url}/chat/completions", json=body).json()
    items = orjson.loads(reply["choices"][0]["message"]["content"])["answers"]
    assert [item["id"] for item in items] == ALTERED_IDS[fault]


def test_a_reply_without_items_stays(http: httpx.Client) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello."}]}
    with EmulatorServer(EmulatorOptions(script="200,pack-drop,pack-cut")) as server:
        texts = [
            http.post(f"{server.base_url}/chat/completions", json=body).json()["choices"][0]["message"]["content"]
            for _ in range(3)
        ]
    assert len(set(texts)) == 1
