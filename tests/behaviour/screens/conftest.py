"""A provider that answers real text with realistic usage, and the screens that are kept as text files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors.tokens import chat_tokens, count_tokens

DATA = Path(__file__).parents[3] / "jobs" / "data"

Body = dict[str, Any]
Screen = Callable[[str, str], None]


def billed(path: str, body: Body, count: int) -> Body | None:
    """Return an answer that fits the request and counts the tokens of its texts; None for ordinary embeddings."""
    if path == "embeddings":
        return None
    model = body["model"]
    schema = body.get("response_format")
    given = chat_tokens(body["messages"], model) + (count_tokens(json.dumps(schema), model) if schema else 0)
    if schema is None:
        content = " ".join(str(body["messages"][-1]["content"]).split()[: 3 + count % 40])
    elif count % 20 == 7 and len(body["messages"]) < 3:
        content = "I cannot say."
    else:
        properties = schema["json_schema"]["schema"]["properties"]
        content = json.dumps({name: _value(spec, count) for name, spec in properties.items()})
    made = count_tokens(content, model)
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}


def _value(spec: Body, count: int) -> Any:
    if "enum" in spec:
        return spec["enum"][count % len(spec["enum"])]
    if spec["type"] == "array":
        return ["one", "two"][: count % 3]
    return {"string": "a short remark about it", "integer": count % 5, "number": 0.5, "boolean": True}[spec["type"]]


@pytest.fixture
def reviews(workspace: Any, provider: Any) -> Any:
    """A workspace with 400 real reviews, and a provider that bills real tokens."""
    lines = (DATA / "reviews.csv").read_text().splitlines(keepends=True)
    workspace.write("rows.csv", "".join(lines[:401]))
    provider.script = billed
    return workspace


@pytest.fixture
def screen() -> Screen:
    """Return what compares a text with the file of this name; with ROWMILL_SCREENS=write it writes the file."""

    def compare(name: str, text: str) -> None:
        file = Path(__file__).parent / name
        if os.environ.get("ROWMILL_SCREENS") == "write":
            file.write_text(text)
        assert text == file.read_text()

    return compare
