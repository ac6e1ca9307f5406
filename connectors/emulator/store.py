"""Files and batches: kept in memory, or below a folder that servers of several processes may share.

A folder is the truth: each object is read from it when it is asked for, and a batch is worked on by one process at a
time, which holds the lock of the batch as long as it lives.
"""

import fcntl
import hashlib
import io
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from connectors.emulator.api import ApiError, State, derived_id
from connectors.emulator.validation import refuse

OBJECT_NAMES = {"file": "File", "batch": "Batch"}
"""`object` of what is kept here -> its name in messages."""
ANCHOR_SUFFIXES = {"file": ".content", "batch": ".lock"}
"""Of each a file that is made once, by whoever was the first to take the id: it also tells the order of creation."""

BATCH_FILE_SECONDS = 30 * 24 * 3600
"""Seconds after which a file with purpose batch expires."""


def find(state: State, kind: str, object_id: str, param: str = "id") -> dict[str, Any]:
    """The file or batch with this id; ApiError 404 if there is none."""
    found = get_object(state, kind, object_id)
    if found is None or _is_expired(found):
        raise _not_found(kind, object_id, param)
    return found


def get_object(state: State, kind: str, object_id: str) -> dict[str, Any] | None:
    """The file or batch with this id as it is now, also one that has expired; None if there is none."""
    if state.folder is None or object_id in state.tasks:
        held = state.objects.get(object_id)
        return held if held is not None and held.get("object") == kind else None
    # An id may be anything that a client writes.
    if not re.fullmatch(r"[\w-]+", object_id, re.ASCII):
        return None
    try:
        found: dict[str, Any] = orjson.loads(_path(state.folder, kind, object_id).read_bytes())
    except FileNotFoundError:
        return None
    if kind == "batch" and found["status"] in ("validating", "in_progress"):
        asked_at = cancel_requested_at(state, object_id)
        if asked_at is not None:
            return {**found, "status": "cancelling", "cancelling_at": asked_at}
    return found


def list_objects(state: State, kind: str) -> list[dict[str, Any]]:
    """The files or the batches, the oldest first."""
    if state.folder is None:
        found = [one for one in state.objects.values() if one.get("object") == kind and not _is_expired(one)]
        return sorted(found, key=lambda one: int(one["created_at"]))
    dated: list[tuple[int, int, dict[str, Any]]] = []
    for path in (state.folder / kind).glob("*.json"):
        one = get_object(state, kind, path.stem)
        if one is not None and not _is_expired(one):
            dated.append((int(one["created_at"]), _creation_order(path.with_suffix(ANCHOR_SUFFIXES[kind])), one))
    return [one for *_, one in sorted(dated, key=lambda each: each[:2])]


def save_object(state: State, one: dict[str, Any]) -> dict[str, Any]:
    """Remember a file or a batch as it now is."""
    if state.folder is None:
        state.objects[one["id"]] = one
    else:
        _write(_path(state.folder, one["object"], one["id"]), orjson.dumps(one))
    return one


def new_id(state: State, kind: str, prefix: str, *parts: object) -> str:
    """An id chosen by the parts that no object has yet, and none of another process takes."""
    count = 0
    while True:
        chosen = derived_id(prefix, *parts, count)
        if chosen not in state.objects and (state.folder is None or _take_id(state.folder, kind, chosen)):
            return chosen
        count += 1


def add_file(state: State, name: str, content: bytes, purpose: str, expires_in: int | None = None) -> dict[str, Any]:
    """The file object for new content; its id is chosen by name and content."""
    seconds = BATCH_FILE_SECONDS if expires_in is None and purpose == "batch" else expires_in
    file_id = new_id(state, "file", "file-", name, hashlib.sha256(content).hexdigest(), purpose)
    if state.folder is None:
        state.contents[file_id] = content
    else:
        _write(_anchor_path(state.folder, "file", file_id), content)
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
    return save_object(state, told)


def file_content(state: State, file_id: str, param: str = "id") -> bytes:
    """The bytes of a file; ApiError 404 if there is none."""
    find(state, "file", file_id, param)
    if state.folder is None:
        return state.contents[file_id]
    try:
        return _anchor_path(state.folder, "file", file_id).read_bytes()
    except FileNotFoundError as exc:
        # Another process has deleted it since.
        raise _not_found("file", file_id, param) from exc


def delete_file(state: State, file_id: str) -> None:
    """Forget a file; ApiError 404 if there is none."""
    find(state, "file", file_id)
    state.objects.pop(file_id, None)
    state.contents.pop(file_id, None)
    if state.folder is not None:
        _path(state.folder, "file", file_id).unlink(missing_ok=True)
        _anchor_path(state.folder, "file", file_id).unlink(missing_ok=True)


# A batch is one process's work at a time.


def claim_batch(state: State, batch_id: str) -> BinaryIO | None:
    """Take the work on a batch; to be closed when that ends. None where another server is at it."""
    if state.folder is None:
        return io.BytesIO()
    lock = _anchor_path(state.folder, "batch", batch_id).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def request_cancel(state: State, batch_id: str) -> None:
    """Tell whoever works on a batch to cancel it."""
    if state.folder is not None:
        _cancel_path(state.folder, batch_id).touch()


def cancel_requested_at(state: State, batch_id: str) -> int | None:
    """When another process has asked for that; None where none has."""
    try:
        return None if state.folder is None else int(_cancel_path(state.folder, batch_id).stat().st_mtime)
    except FileNotFoundError:
        return None


def page(found: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
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


def json_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of JSON lines, the blank ones left out."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _not_found(kind: str, object_id: str, param: str) -> ApiError:
    return ApiError(404, f"No such {OBJECT_NAMES[kind]} object: {object_id}", param=param)


def _is_expired(one: dict[str, Any]) -> bool:
    # A batch has an expires_at as well: it is the end of its window, not of the object.
    return one["object"] == "file" and one["expires_at"] is not None and one["expires_at"] < time.time()


def _path(folder: Path, kind: str, object_id: str) -> Path:
    return folder / kind / f"{object_id}.json"


def _cancel_path(folder: Path, batch_id: str) -> Path:
    return folder / "batch" / f"{batch_id}.cancel"


def _anchor_path(folder: Path, kind: str, object_id: str) -> Path:
    return folder / kind / f"{object_id}{ANCHOR_SUFFIXES[kind]}"


def _take_id(folder: Path, kind: str, object_id: str) -> bool:
    """Whether this id was free, and is ours from now on."""
    anchor = _anchor_path(folder, kind, object_id)
    anchor.parent.mkdir(parents=True, exist_ok=True)
    if _path(folder, kind, object_id).exists():
        return False
    try:
        anchor.open("xb").close()
    except FileExistsError:
        return False
    return True


def _creation_order(anchor: Path) -> int:
    try:
        return anchor.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(content)
    unfinished.replace(path)


MAX_STORED_OBJECTS = 20_000
"""Objects of all kinds; beyond it the oldest answers are forgotten."""

EVICTABLE_KINDS = frozenset({"response", "chat.completion"})


def dialogue_id(answer_id: str) -> str:
    """The id under which the dialogue of a remembered answer is kept."""
    return f"{answer_id}/dialogue"


def evict_oldest(state: State) -> None:
    """Forget the oldest answer where there are too many objects."""
    if len(state.objects) > MAX_STORED_OBJECTS:
        oldest = next((one["id"] for one in state.objects.values() if one.get("object") in EVICTABLE_KINDS), None)
        if oldest is not None:
            delete_answer(state, oldest)


def delete_answer(state: State, answer_id: str) -> None:
    """A remembered answer and its dialogue."""
    del state.objects[answer_id]
    del state.objects[dialogue_id(answer_id)]
