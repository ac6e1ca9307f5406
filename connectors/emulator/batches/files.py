"""POST and GET /files, GET and DELETE /files/{id}, GET /files/{id}/content."""

import asyncio

import orjson
from aiohttp import web

from connectors.emulator.api import ApiError, Incoming, Route, json_answer
from connectors.emulator.api_schemas import TEXT, RequestSchema, enum, integer, record
from connectors.emulator.parameters import form_values, query_values, uploaded_files
from connectors.emulator.store import add_file, delete_file, file_content, find, json_lines, list_objects, page
from connectors.emulator.validation import check_body, refuse

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
LARGEST = 512 * 1024 * 1024
"""Bytes of one file; a request with more is refused when it is read."""

EXPIRY = record("anchor seconds", anchor=enum("created_at"), seconds=integer(3600, 2_592_000))

UPLOAD = RequestSchema(record("purpose", purpose=enum(*PURPOSES), expires_after=EXPIRY))

_QUERY = RequestSchema(record(purpose=TEXT, limit=integer(1, 10_000), order=enum("asc", "desc"), after=TEXT))


async def upload(incoming: Incoming) -> web.StreamResponse:
    """Keep a file."""
    body = form_values(incoming, UPLOAD)
    check_body(body, UPLOAD)
    ((name, content),) = uploaded_files(incoming, {"file": 1}, "file")["file"]
    purpose = body["purpose"]
    if purpose in ("batch", "fine-tune"):
        await asyncio.to_thread(_check_lines, content, purpose)
    seconds = body["expires_after"]["seconds"] if "expires_after" in body else None
    return json_answer(await asyncio.to_thread(add_file, incoming.state, name, content, purpose, seconds))


async def list_files(incoming: Incoming) -> web.StreamResponse:
    """The files, the newest first."""
    asked = query_values(incoming, _QUERY)
    found = await asyncio.to_thread(list_objects, incoming.state, "file")
    if "purpose" in asked:
        found = [one for one in found if one["purpose"] == asked["purpose"]]
    if asked.get("order", "desc") == "desc":
        found.reverse()
    return json_answer(page(found, asked.get("after"), asked.get("limit", 10_000)))


async def show(incoming: Incoming) -> web.StreamResponse:
    """One file, without its content."""
    return json_answer(find(incoming.state, "file", _id(incoming)))


async def content(incoming: Incoming) -> web.StreamResponse:
    """The bytes of a file."""
    file_id = _id(incoming)
    name = find(incoming.state, "file", file_id)["filename"]
    body = await asyncio.to_thread(file_content, incoming.state, file_id)
    response = web.Response(body=body, content_type="application/octet-stream")
    response.headers["content-disposition"] = _disposition(name)
    return response


async def delete(incoming: Incoming) -> web.StreamResponse:
    """Forget a file."""
    file_id = _id(incoming)
    await asyncio.to_thread(delete_file, incoming.state, file_id)
    return json_answer({"id": file_id, "object": "file", "deleted": True})


def _check_lines(raw: bytes, purpose: str) -> None:
    """ApiError if the file is not JSON lines at all: each begins an object. A batch tells its other faults later."""
    if not raw.strip():
        raise ApiError(400, "The file is empty.", param="file", code="empty_file")
    for line_number, line in json_lines(raw):
        if not line.lstrip().startswith(b"{"):
            message = f"Invalid file format for {purpose}: line {line_number} is no JSON object. Must be .jsonl"
            raise refuse("file", message, "invalid_file_format")
        return


def _disposition(name: str) -> str:
    """A file's name as a header may hold it."""
    quoted = orjson.dumps(name.encode("ascii", "replace").decode()).decode()
    return f"attachment; filename={quoted}"


def _id(incoming: Incoming) -> str:
    return incoming.request.match_info["file_id"]


ROUTES: tuple[Route, ...] = (
    Route("POST", "/files", upload),
    Route("GET", "/files", list_files, limited=False),
    Route("GET", "/files/{file_id}", show, limited=False),
    Route("DELETE", "/files/{file_id}", delete, limited=False),
    Route("GET", "/files/{file_id}/content", content, limited=False),
)
