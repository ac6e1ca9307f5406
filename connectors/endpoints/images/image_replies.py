"""Replies of the three image endpoints: pictures in base64 or behind URLs, become files named by content."""

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import orjson

from connectors.contracts import MalformedReply
from connectors.media.file_types import HEAD_BYTES, detect_type
from connectors.records import Reply, RowError, Usage, compact_copy
from connectors.transport.reply_body import error_in_body, parse_json_events, parse_object
from connectors.transport.sse import is_event_stream
from connectors.transport.token_usage import parse_count


def stored_answer(reply: Reply) -> bytes | RowError:
    """What the ledger keeps of a 2xx reply: JSON with `data`, each entry with `b64_json` or `url`."""
    found = _whole(reply.body)
    problem = error_in_body(reply, found)
    if problem is not None:
        return problem
    entries = found.get("data")
    if not isinstance(entries, list) or not entries:
        raise MalformedReply("the reply has no pictures")
    told: list[dict[str, Any]] = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise MalformedReply("an entry of the reply is no object")
        picture = {
            name: entry[name] for name in ("b64_json", "url", "revised_prompt") if isinstance(entry.get(name), str)
        }
        # Some servers write a data URL, here or there.
        for name in ("url", "b64_json"):
            if str(picture.get(name)).startswith("data:"):
                picture["b64_json"] = picture[name].partition(",")[2]
        if "b64_json" in picture:
            picture.pop("url", None)
            _named(_decoded(picture["b64_json"]))
        elif "url" not in picture:
            raise MalformedReply("an entry of the reply has neither b64_json nor url")
        told.append(picture)
    return compact_copy(orjson.dumps({"data": told}))


def image_usage(reply: Reply) -> Usage:
    """The pictures that came, and tokens where the reply counts them."""
    found = _whole(reply.body)
    used = found.get("usage")
    used = used if isinstance(used, dict) else {}
    entries = found.get("data")
    return Usage(
        input_tokens=parse_count(used.get("input_tokens")),
        output_tokens=parse_count(used.get("output_tokens")),
        images=len(entries) if isinstance(entries, list) else None,
    )


def expiring_urls(answer: bytes) -> Sequence[str]:
    """The URLs in a kept answer whose contents are not in it yet."""
    return [entry["url"] for entry in _entries(answer) if "b64_json" not in entry]


def with_contents(answer: bytes, contents: Sequence[bytes]) -> bytes:
    """The kept answer with the contents of its links; what is no picture leaves its link in place."""
    left = iter(contents)
    entries = _entries(answer)
    for entry in entries:
        if "b64_json" not in entry:
            content = next(left)
            if _suffix(content) is not None:
                entry["b64_json"] = base64.b64encode(content).decode()
                del entry["url"]
    return compact_copy(orjson.dumps({"data": entries}))


def files(answer: bytes) -> Sequence[tuple[str, bytes]]:
    """(name by content, content) of every picture in a kept answer; those behind links are left out."""
    contents = [_decoded(entry["b64_json"]) for entry in _entries(answer) if "b64_json" in entry]
    return [(_named(content), content) for content in contents]


def file_names(answer: bytes) -> list[str] | RowError:
    """The files' names, in the order of the reply; an error while one is behind a link still."""
    if expiring_urls(answer):
        return RowError("connection", "a picture was made, but no picture came from its URL")
    return [name for name, _ in files(answer)]


def revised_prompts(answer: bytes) -> list[str | None]:
    """What the model made of the prompt, for every picture."""
    return [entry.get("revised_prompt") for entry in _entries(answer)]


def _whole(body: bytes) -> dict[str, Any]:
    if not is_event_stream(body):
        return parse_object(body)
    finished = [event for event in parse_json_events(body) if str(event.get("type")).endswith(".completed")]
    if not finished:
        raise MalformedReply("the stream of the picture ended before its last event")
    return {"data": finished, "usage": finished[-1].get("usage")}


def _entries(answer: bytes) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = orjson.loads(answer)["data"]
    return entries


def _decoded(told: str) -> bytes:
    try:
        return base64.b64decode(told, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise MalformedReply(f"a picture's base64 is broken: {exc}") from exc


def _suffix(content: bytes) -> str | None:
    kind = detect_type(content[:HEAD_BYTES])
    return kind.suffix if kind is not None and kind.group == "image" else None


def _named(content: bytes) -> str:
    suffix = _suffix(content)
    if suffix is None:
        raise MalformedReply("what came is no picture")
    return f"{sha256(content).hexdigest()[:32]}.{suffix}"
