"""Stored objects: files and batches, in memory or below a folder shared by several processes; and stored answers.

The folder is authoritative: every lookup reads it. Only one process at a time runs a batch; it holds the lock of the
batch for its lifetime.
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

from connectors.emulator.api import ApiError, EmulatorState, derived_id
from connectors.emulator.validation import refuse

OBJECT_NAMES = {"file": "File", "batch": "Batch"}
"""`object` of a stored object -> its name in messages."""
ANCHOR_SUFFIXES = {"file": ".content", "batch": ".lock"}
"""`object` -> suffix of the file that reserves an id exclusively; its time gives the order of creation."""

BATCH_FILE_SECONDS = 30 * 24 * 3600
"""Lifetime of a file with purpose batch."""


def find_object(state: EmulatorState, kind: str, object_id: str, param: str = "id") -> dict[str, Any]:
    """The file or batch with this id; ApiError 404 if there is none."""
    stored = get_object(state, kind, object_id)
    if stored is None or _is_expired(stored):
        raise _not_found(kind, object_id, param)
    return stored


def get_object(state: EmulatorState, kind: str, object_id: str) -> dict[str, Any] | None:
    """The current file or batch with this id, even if expired; None if there is none."""
    if state.folder is None or object_id in state.tasks:
        in_memory = state.objects.get(object_id)
        return in_memory if in_memory is not None and in_memory.get("object") == kind else None
    # Clients can send any id.
    if not re.fullmatch(r"[\w-]+", object_id, re.ASCII):
        return None
    try:
        stored: dict[str, Any] = orjson.loads(_path(state.folder, kind, object_id).read_bytes())
    except FileNotFoundError:
        return None
    if kind == "batch" and stored["status"] in ("validating", "in_progress"):
        requested_at = cancel_requested_at(state, object_id)
        if requested_at is not None:
            return {**stored, "status": "cancelling", "cancelling_at": requested_at}
    return stored


def list_objects(state: EmulatorState, kind: str) -> list[dict[str, Any]]:
    """The files or the batches, the oldest first."""
    if state.folder is None:
        current = [item for item in state.objects.values() if item.get("object") == kind and not _is_expired(item)]
        return sorted(current, key=lambda item: int(item["created_at"]))
    dated: list[tuple[int, int, dict[str, Any]]] = []
    for path in (state.folder / kind).glob("*.json"):
        item = get_object(state, kind, path.stem)
        if item is not None and not _is_expired(item):
            dated.append(
                (
                    int(item["created_at"]),
                    _creation_order(path.with_suffix(ANCHOR_SUFFIXES[kind])),
                    item,
                )
            )
    return [item for *_, item in sorted(dated, key=lambda each: each[:2])]


def save_object(state: EmulatorState, item: dict[str, Any]) -> dict[str, Any]:
    """Store the current state of a file or batch."""
    if state.folder is None:
        state.objects[item["id"]] = item
    else:
        _write(_path(state.folder, item["object"], item["id"]), orjson.dumps(item))
    return item


def new_id(state: EmulatorState, kind: str, prefix: str, *parts: object) -> str:
    """A new id derived from the parts, unique across processes."""
    count = 0
    while True:
        object_id = derived_id(prefix, *parts, count)
        if object_id not in state.objects and (state.folder is None or _take_id(state.folder, kind, object_id)):
            return object_id
        count += 1


def add_file(
    state: EmulatorState, name: str, content: bytes, purpose: str, expires_in: int | None = None
) -> dict[str, Any]:
    """Store a new file; its id is derived from name and content."""
    seconds = BATCH_FILE_SECONDS if expires_in is None and purpose == "batch" else expires_in
    file_id = new_id(state, "file", "file-", name, hashlib.sha256(content).hexdigest(), purpose)
    if state.folder is None:
        state.contents[file_id] = content
    else:
        _write(_anchor_path(state.folder, "file", file_id), content)
    created = int(time.time())
    file: dict[str, Any] = {
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
    return save_object(state, file)


def file_content(state: EmulatorState, file_id: str, param: str = "id") -> bytes:
    """The bytes of a file; ApiError 404 if there is none."""
    find_object(state, "file", file_id, param)
    if state.folder is None:
        return state.contents[file_id]
    try:
        return _anchor_path(state.folder, "file", file_id).read_bytes()
    except FileNotFoundError as exc:
        # Another process deleted it in the meantime.
        raise _not_found("file", file_id, param) from exc


def delete_file(state: EmulatorState, file_id: str) -> None:
    """Delete a file; ApiError 404 if there is none."""
    find_object(state, "file", file_id)
    state.objects.pop(file_id, None)
    state.contents.pop(file_id, None)
    if state.folder is not None:
        _path(state.folder, "file", file_id).unlink(missing_ok=True)
        _anchor_path(state.folder, "file", file_id).unlink(missing_ok=True)


# Batches: one process at a time runs a batch.


def claim_batch(state: EmulatorState, batch_id: str) -> BinaryIO | None:
    """Lock a batch for this process; the caller closes the lock. None if another server runs the batch."""
    if state.folder is None:
        return io.BytesIO()
    lock = _anchor_path(state.folder, "batch", batch_id).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def request_cancel(state: EmulatorState, batch_id: str) -> None:
    """Ask the process that runs a batch to cancel it."""
    if state.folder is not None:
        _cancel_path(state.folder, batch_id).touch()


def cancel_requested_at(state: EmulatorState, batch_id: str) -> int | None:
    """When another process requested cancellation; None if none did."""
    try:
        return None if state.folder is None else int(_cancel_path(state.folder, batch_id).stat().st_mtime)
    except FileNotFoundError:
        return None


def page(objects: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list: what follows the object with the id `after`."""
    start = 0
    if after is not None:
        places = [index for index, item in enumerate(objects) if item["id"] == after]
        if not places:
            raise refuse("after", f"Invalid 'after': there is no object '{after}' in this list.", "invalid_value")
        start = places[0] + 1
    page_objects = objects[start : start + limit]
    return {
        "object": "list",
        "data": page_objects,
        "first_id": page_objects[0]["id"] if page_objects else None,
        "last_id": page_objects[-1]["id"] if page_objects else None,
        "has_more": start + limit < len(objects),
    }


def json_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the non-blank lines."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _not_found(kind: str, object_id: str, param: str) -> ApiError:
    return ApiError(404, f"No such {OBJECT_NAMES[kind]} object: {object_id}", param=param)


def _is_expired(item: dict[str, Any]) -> bool:
    # The expires_at of a batch is the end of its completion window, not of the object.
    return item["object"] == "file" and item["expires_at"] is not None and item["expires_at"] < time.time()


def _path(folder: Path, kind: str, object_id: str) -> Path:
    return folder / kind / f"{object_id}.json"


def _cancel_path(folder: Path, batch_id: str) -> Path:
    return folder / "batch" / f"{batch_id}.cancel"


def _anchor_path(folder: Path, kind: str, object_id: str) -> Path:
    return folder / kind / f"{object_id}{ANCHOR_SUFFIXES[kind]}"


def _take_id(folder: Path, kind: str, object_id: str) -> bool:
    """Reserve an id; False if it is taken."""
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
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.unfinished")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)


MAX_STORED_OBJECTS = 20_000
"""Maximum number of objects of all kinds; above it the oldest answers are evicted."""

EVICTABLE_KINDS = frozenset({"response", "chat.completion"})


def dialogue_id(answer_id: str) -> str:
    """The id of the stored messages of an answer."""
    return f"{answer_id}/dialogue"


def evict_oldest(state: EmulatorState) -> None:
    """Delete the oldest answer if there are too many objects."""
    if len(state.objects) > MAX_STORED_OBJECTS:
        oldest = next(
            (item["id"] for item in state.objects.values() if item.get("object") in EVICTABLE_KINDS),
            None,
        )
        if oldest is not None:
            delete_answer(state, oldest)


def delete_answer(state: EmulatorState, answer_id: str) -> None:
    """Delete a stored answer and its messages."""
    del state.objects[answer_id]
    del state.objects[dialogue_id(answer_id)]
