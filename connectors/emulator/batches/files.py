"""POST and GET /files, GET and DELETE /files/{id}, GET /files/{id}/content."""

import asyncio

import orjson
from aiohttp import web

from connectors.emulator.api import ApiError, ApiRequest, ApiRoute, json_answer
from connectors.emulator.api_schemas import TEXT, RequestSchema, enum, integer, record
from connectors.emulator.parameters import form_values, query_values, uploaded_files
from connectors.emulator.store import add_file, delete_file, file_content, find_object, json_lines, list_objects, page
from connectors.emulator.validation import check_body, refuse

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
EXPIRY = record("anchor seconds", anchor=enum("created_at"), seconds=integer(3600, 2_592_000))

UPLOAD = RequestSchema(record("purpose", purpose=enum(*PURPOSES), expires_after=EXPIRY))

_QUERY = RequestSchema(record(purpose=TEXT, limit=integer(1, 10_000), order=enum("asc", "desc"), after=TEXT))


async def upload(api_request: ApiRequest) -> web.StreamResponse:
    """Store a file."""
    body = form_values(api_request, UPLOAD)
    check_body(body, UPLOAD)
    ((name, content),) = uploaded_files(api_request, {"file": 1}, "file")["file"]
    purpose = body["purpose"]
    if purpose in ("batch", "fine-tune"):
        await asyncio.to_thread(_check_lines, content, purpose)
    seconds = body["expires_after"]["seconds"] if "expires_after" in body else None
    return json_answer(await asyncio.to_thread(add_file, api_request.state, name, content, purpose, seconds))


async def list_files(api_request: ApiRequest) -> web.StreamResponse:
    """List the files, the newest first."""
    query = query_values(api_request, _QUERY)
    files = await asyncio.to_thread(list_objects, api_request.state, "file")
    if "purpose" in query:
        files = [file for file in files if file["purpose"] == query["purpose"]]
    if query.get("order", "desc") == "desc":
        files.reverse()
    return json_answer(page(files, query.get("after"), query.get("limit", 10_000)))


async def show(api_request: ApiRequest) -> web.StreamResponse:
    """Describe one file."""
    return json_answer(find_object(api_request.state, "file", _file_id(api_request)))


async def content(api_request: ApiRequest) -> web.StreamResponse:
    """Return the content of a file."""
    file_id = _file_id(api_request)
    name = find_object(api_request.state, "file", file_id)["filename"]
    body = await asyncio.to_thread(file_content, api_request.state, file_id)
    response = web.Response(body=body, content_type="application/octet-stream")
    response.headers["content-disposition"] = _disposition(name)
    return response


async def delete(api_request: ApiRequest) -> web.StreamResponse:
    """Delete a file."""
    file_id = _file_id(api_request)
    await asyncio.to_thread(delete_file, api_request.state, file_id)
    return json_answer({"id": file_id, "object": "file", "deleted": True})


def _check_lines(raw: bytes, purpose: str) -> None:
    """Raise ApiError if the first line begins no JSON object; the batch reports all other faults."""
    if not raw.strip():
        raise ApiError(400, "The file is empty.", param="file", code="empty_file")
    for line_number, line in json_lines(raw):
        if not line.lstrip().startswith(b"{"):
            message = f"Invalid file format for {purpose}: line {line_number} is not a JSON object. Must be .jsonl"
            raise refuse("file", message, "invalid_file_format")
        return


def _disposition(name: str) -> str:
    """The content-disposition header for a file name."""
    quoted = orjson.dumps(name.encode("ascii", "replace").decode()).decode()
    return f"attachment; filename={quoted}"


def _file_id(api_request: ApiRequest) -> str:
    return api_request.http_request.match_info["file_id"]


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/files", upload),
    ApiRoute("GET", "/files", list_files, is_rate_limited=False),
    ApiRoute("GET", "/files/{file_id}", show, is_rate_limited=False),
    ApiRoute("DELETE", "/files/{file_id}", delete, is_rate_limited=False),
    ApiRoute("GET", "/files/{file_id}/content", content, is_rate_limited=False),
)
