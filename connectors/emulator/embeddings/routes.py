"""POST /embeddings: texts or token ids in, unit vectors out."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from connectors.emulator.api import ApiError, Incoming, Route
from connectors.emulator.api_schemas import ANY, NON_EMPTY, integer, request_schema
from connectors.emulator.embeddings.vectors import MODEL_DIMENSIONS, embed_texts
from connectors.emulator.rate_limits import USED_TOKENS
from connectors.emulator.validation import check_body, check_model, refuse, wrong_type
from connectors.tokens import count_many, decode_tokens

DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
    "wordllama-l2-supercat-256": 256,
}
MAX_DIMENSIONS = 3072
"""Numbers of one vector."""
MAX_INPUTS = 2048
"""Texts of one request."""
MAX_INPUT_TOKENS = 8192
"""Tokens of one text."""
MAX_REQUEST_TOKENS = 300_000
"""Of one request."""
MAX_INLINE_TEXTS = 16
"""So many texts are embedded before a thread for them would have begun."""

REQUEST = request_schema(
    "CreateEmbeddingRequest", {"model": NON_EMPTY, "input": ANY, "dimensions": integer(1, MAX_DIMENSIONS)}
)


async def embed(incoming: Incoming) -> web.StreamResponse:
    """The vectors, in the order of the inputs."""
    body = incoming.body
    check_body(body, REQUEST)
    model = check_model(body, "embeddings")
    size = _dimensions(model, body.get("dimensions"))
    texts = _input_texts(body["input"], model)
    counts = count_many(texts, model)
    for place, count in enumerate(counts):
        if count > MAX_INPUT_TOKENS:
            raise refuse(
                f"input[{place}]" if isinstance(body["input"], list) else "input",
                f"This model's maximum context length is {MAX_INPUT_TOKENS} tokens, however you requested {count} tokens. "
                "Please reduce your input.",
                "context_length_exceeded",
            )
    used = sum(counts)
    if used > MAX_REQUEST_TOKENS:
        raise refuse(
            "input",
            f"Requested {used} tokens, max {MAX_REQUEST_TOKENS} tokens per request.",
            "max_tokens_per_request",
        )
    if len(texts) <= MAX_INLINE_TEXTS:
        found = embed_texts(texts, size)
    else:
        found = await asyncio.to_thread(embed_texts, texts, size)
    if body.get("encoding_format", "float") == "base64":
        written = [base64.b64encode(row.tobytes()).decode() for row in found]
    else:
        written = list(found)
    incoming.request[USED_TOKENS] = used
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(written)],
        "model": model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    return web.Response(body=orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), content_type="application/json")


def _dimensions(model: str, asked: int | None) -> int:
    known = DIMENSIONS.get(model)
    if asked is None:
        return known or MODEL_DIMENSIONS
    if model == "text-embedding-ada-002":
        raise ApiError(400, "This model does not support specifying dimensions.", param="dimensions")
    if known is not None and asked > known:
        raise refuse(
            "dimensions",
            f"Invalid value for 'dimensions' = {asked}. Must be less than or equal to {known}.",
            "integer_above_max_value",
        )
    return asked


def _input_texts(given: Any, model: str) -> list[str]:
    """The inputs as texts; token ids are read as the model's."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list):
        raise wrong_type("input", "a string or an array", given)
    if not given:
        raise refuse("input", "Invalid 'input': empty array. Expected at least one input.", "empty_array")
    if all(type(one) is int for one in given):
        given = [given]
    if len(given) > MAX_INPUTS:
        raise refuse(
            "input",
            f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, but got an array with "
            f"length {len(given)} instead.",
            "array_above_max_length",
        )
    return [_input_text(one, f"input[{place}]", model) for place, one in enumerate(given)]


def _input_text(one: Any, where: str, model: str) -> str:
    if isinstance(one, str):
        if not one:
            raise refuse(where, f"Invalid '{where}': input cannot be an empty string.", "empty_string")
        return one
    if not isinstance(one, list) or not all(type(token) is int for token in one):
        raise wrong_type(where, "a string or an array of integers", one)
    if not one:
        raise refuse(where, f"Invalid '{where}': empty array. Expected at least one token.", "empty_array")
    try:
        return decode_tokens(one, model)
    except ValueError as exc:
        raise refuse(where, f"Invalid '{where}': these are no tokens of {model} ({exc}).", "invalid_tokens") from exc


ROUTES: tuple[Route, ...] = (Route("POST", "/embeddings", embed),)
