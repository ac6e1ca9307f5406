"""Replies of the image endpoints: pictures in base64 or at URLs, which become files named by content."""

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import orjson
from msgspec.structs import replace

from connectors.contracts import MalformedReply
from connectors.media.file_types import HEAD_BYTES, detect_type
from connectors.records import Reply, RowError, Usage, compact_copy
from connectors.transport.reply_body import error_in_body, parse_json_events, parse_object
from connectors.transport.sse import is_event_stream
from connectors.transport.token_usage import token_usage


def stored_answer(reply: Reply) -> bytes | RowError:
    """Return the answer of a 2xx reply for the ledger: JSON with `data`, each entry with `b64_json` or `url`."""
    body = _parse_body(reply.body)
    problem = error_in_body(reply, body)
    if problem is not None:
        return problem
    entries = body.get("data")
    if not isinstance(entries, list) or not entries:
        raise MalformedReply("the reply has no pictures")
    pictures: list[dict[str, Any]] = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise MalformedReply("an entry of the reply is not an object")
        picture = {
            name: entry[name] for name in ("b64_json", "url", "revised_prompt") if isinstance(entry.get(name), str)
        }
        # Some servers send a data URL in either key.
        for name in ("url", "b64_json"):
            if str(picture.get(name)).startswith("data:"):
                picture["b64_json"] = picture[name].partition(",")[2]
        if "b64_json" in picture:
            picture.pop("url", None)
            _file_name(_decode(picture["b64_json"]))
        elif "url" not in picture:
            raise MalformedReply("an entry of the reply has neither b64_json nor url")
        pictures.append(picture)
    return compact_copy(orjson.dumps({"data": pictures}))


def image_usage(reply: Reply) -> Usage:
    """Return the number of pictures, and the tokens that the reply reports."""
    body = _parse_body(reply.body)
    entries = body.get("data")
    return replace(token_usage(body, None), images=len(entries) if isinstance(entries, list) else None)


def expiring_urls(answer: bytes) -> Sequence[str]:
    """Return the URLs in a stored answer whose contents are not yet in it."""
    return [entry["url"] for entry in _entries(answer) if "b64_json" not in entry]


def with_contents(answer: bytes, contents: Sequence[bytes]) -> bytes:
    """Return the stored answer with the contents of its URLs; one that is not a picture leaves its URL in place."""
    remaining = iter(contents)
    entries = _entries(answer)
    for entry in entries:
        if "b64_json" not in entry:
            content = next(remaining)
            if _suffix(content) is not None:
                entry["b64_json"] = base64.b64encode(content).decode()
                del entry["url"]
    return compact_copy(orjson.dumps({"data": entries}))


def files(answer: bytes) -> Sequence[tuple[str, bytes]]:
    """Return (name by content, content) of every picture in a stored answer; those at URLs are left out."""
    contents = [_decode(entry["b64_json"]) for entry in _entries(answer) if "b64_json" in entry]
    return [(_file_name(content), content) for content in contents]


def file_names(answer: bytes) -> list[str] | RowError:
    """Return the files' names in the order of the reply; an error if one is still at a URL."""
    if expiring_urls(answer):
        return RowError("connection", "a picture was made, but its URL returned no picture")
    return [name for name, _ in files(answer)]


def revised_prompts(answer: bytes) -> list[str | None]:
    """Return the rewritten prompt of every picture."""
    return [entry.get("revised_prompt") for entry in _entries(answer)]


def _parse_body(body: bytes) -> dict[str, Any]:
    if not is_event_stream(body):
        return parse_object(body)
    completed = [event for event in parse_json_events(body) if str(event.get("type")).endswith(".completed")]
    if not completed:
        raise MalformedReply("the stream of the picture ended before its last event")
    return {"data": completed, "usage": completed[-1].get("usage")}


def _entries(answer: bytes) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = orjson.loads(answer)["data"]
    return entries


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise MalformedReply(f"a picture is not valid base64: {exc}") from exc


def _suffix(content: bytes) -> str | None:
    kind = detect_type(content[:HEAD_BYTES])
    return kind.suffix if kind is not None and kind.group == "image" else None


def _file_name(content: bytes) -> str:
    suffix = _suffix(content)
    if suffix is None:
        raise MalformedReply("the reply has a content that is not a picture")
    return f"{sha256(content).hexdigest()[:32]}.{suffix}"
