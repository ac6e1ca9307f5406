"""Files and batches: kept in memory, or below a folder, where the next server finds them again."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from connectors.local.api import ApiError, State, id_of
from connectors.local.checks import refuse

WORDS = {"file": "File", "batch": "Batch"}
"""`object` of what is kept here -> its name in messages."""

BATCH_FILES_LAST = 30 * 24 * 3600
"""Seconds after which a file with purpose batch expires."""


def recall(state: State) -> None:
    """Fill the objects with what an earlier server left below the folder."""
    if state.folder is not None:
        paths = [path for kind in WORDS for path in (state.folder / kind).glob("*.json")]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            found: dict[str, Any] = orjson.loads(path.read_bytes())
            state.objects[found["id"]] = found


def find(state: State, kind: str, object_id: str, param: str = "id") -> dict[str, Any]:
    """The file or batch with this id; ApiError 404 if there is none."""
    found = state.objects.get(object_id)
    if found is None or found.get("object") != kind or _expired(found):
        raise ApiError(404, f"No such {WORDS[kind]} object: {object_id}", param=param)
    return found


def all_of(state: State, kind: str) -> list[dict[str, Any]]:
    """The files or the batches, the oldest first."""
    found = [one for one in state.objects.values() if one.get("object") == kind and not _expired(one)]
    return sorted(found, key=lambda one: int(one["created_at"]))


def keep(state: State, one: dict[str, Any]) -> dict[str, Any]:
    """Remember a file or a batch as it now is."""
    state.objects[one["id"]] = one
    if state.folder is not None:
        _write(_path(state.folder, one["object"], one["id"]), orjson.dumps(one))
    return one


def new_id(state: State, prefix: str, *parts: object) -> str:
    """An id chosen by the parts that no object has yet."""
    count = 0
    while (chosen := id_of(prefix, *parts, count)) in state.objects:
        count += 1
    return chosen


def add_file(state: State, name: str, content: bytes, purpose: str, expires_in: int | None = None) -> dict[str, Any]:
    """The file object for new content; its id is chosen by name and content."""
    seconds = BATCH_FILES_LAST if expires_in is None and purpose == "batch" else expires_in
    file_id = new_id(state, "file-", name, hashlib.sha256(content).hexdigest(), purpose)
    if state.folder is None:
        state.contents[file_id] = content
    else:
        _write(_content_path(state.folder, file_id), content)
    created = int(time.time())
    told: dict[str, Any] = {
        "id": file_id,
        "object": "file",
        "bytes": len(content),
        "created_at": created,
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None if seconds is None else created + seconds,
    }
    return keep(state, told)


def content_of(state: State, file_id: str, param: str = "id") -> bytes:
    """The bytes of a file; ApiError 404 if there is none."""
    find(state, "file", file_id, param)
    if state.folder is None:
        return state.contents[file_id]
    return _content_path(state.folder, file_id).read_bytes()


def delete_file(state: State, file_id: str) -> None:
    """Forget a file; ApiError 404 if there is none."""
    find(state, "file", file_id)
    del state.objects[file_id]
    state.contents.pop(file_id, None)
    if state.folder is not None:
        _path(state.folder, "file", file_id).unlink()
        _content_path(state.folder, file_id).unlink()


def page(found: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A list as the API pages it: what comes after the object `after`."""
    start = 0
    if after is not None:
        places = [place for place, one in enumerate(found) if one["id"] == after]
        if not places:
            raise refuse("after", f"Invalid 'after': there is no object '{after}' in this list.", "invalid_value")
        start = places[0] + 1
    shown = found[start : start + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + limit < len(found),
    }


def lines_of(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of JSON lines, the blank ones left out."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _expired(one: dict[str, Any]) -> bool:
    # A batch has an expires_at as well: it is the end of its window, not of the object.
    return one["object"] == "file" and one["expires_at"] is not None and one["expires_at"] < time.time()


def _path(folder: Path, kind: str, object_id: str) -> Path:
    return folder / kind / f"{object_id}.json"


def _content_path(folder: Path, file_id: str) -> Path:
    return folder / "file" / f"{file_id}.content"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)
