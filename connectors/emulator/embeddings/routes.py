"""POST /embeddings: texts or token ids in, unit vectors out."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from connectors.emulator.api import ApiError, ApiRequest, ApiRoute
from connectors.emulator.api_schemas import NON_EMPTY, TEXT, array, integer, request_schema
from connectors.emulator.embeddings.vectors import MODEL_DIMENSIONS, embed_texts
from connectors.emulator.rate_limits import USED_TOKENS
from connectors.emulator.validation import check_body, check_model, refuse
from connectors.tokens import count_many, decode_tokens

DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
    "wordllama-l2-supercat-256": 256,
}
MAX_DIMENSIONS = 3072
"""Dimensions of one vector."""
MAX_INPUTS = 2048
"""Texts per request."""
MAX_INPUT_TOKENS = 8192
"""Tokens per text."""
MAX_REQUEST_TOKENS = 300_000
"""Tokens per request."""
MAX_INLINE_TEXTS = 16
"""Up to this many texts, a thread costs more time than the embedding."""

_TOKENS = array({"type": "integer"}, minItems=1)
_INPUT = {
    "anyOf": [
        TEXT,
        array(NON_EMPTY, minItems=1, maxItems=MAX_INPUTS),
        _TOKENS,
        array(_TOKENS, minItems=1, maxItems=MAX_INPUTS),
    ]
}
REQUEST = request_schema(
    "CreateEmbeddingRequest", {"model": NON_EMPTY, "input": _INPUT, "dimensions": integer(1, MAX_DIMENSIONS)}
)


async def embed(api_request: ApiRequest) -> web.StreamResponse:
    """Answer with the vectors, in the order of the inputs."""
    body = dict(api_request.body)
    is_list = isinstance(body.get("input"), list)
    if isinstance(body.get("input"), str):
        body["input"] = [body["input"]]
    check_body(body, REQUEST)
    model = check_model(body, "embeddings")
    size = _dimensions(model, body.get("dimensions"))
    texts = _input_texts(body["input"], model)
    counts = count_many(texts, model)
    for index, count in enumerate(counts):
        if count > MAX_INPUT_TOKENS:
            raise refuse(
                f"input[{index}]" if is_list else "input",
                f"This model's maximum context length is {MAX_INPUT_TOKENS} tokens, however you requested {count} "
                "tokens. Please reduce your input.",
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
        vectors = embed_texts(texts, size)
    else:
        vectors = await asyncio.to_thread(embed_texts, texts, size)
    if body.get("encoding_format", "float") == "base64":
        embeddings: list[Any] = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    else:
        embeddings = [vector.tolist() for vector in vectors]
    api_request.http_request[USED_TOKENS] = used
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(embeddings)],
        "model": model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    return web.Response(body=orjson.dumps(answer), content_type="application/json")


def _dimensions(model: str, dimensions: int | None) -> int:
    model_dimensions = DIMENSIONS.get(model)
    if dimensions is None:
        return model_dimensions or MODEL_DIMENSIONS
    if model == "text-embedding-ada-002":
        raise ApiError(400, "This model does not support specifying dimensions.", param="dimensions")
    if model_dimensions is not None and dimensions > model_dimensions:
        raise refuse(
            "dimensions",
            f"Invalid value for 'dimensions' = {dimensions}. Must be less than or equal to {model_dimensions}.",
            "integer_above_max_value",
        )
    return dimensions


def _input_texts(inputs: Any, model: str) -> list[str]:
    """The inputs as texts; token ids are decoded by the model's tokenizer."""
    if isinstance(inputs[0], int):
        inputs = [inputs]
    return [_input_text(item, f"input[{index}]", model) for index, item in enumerate(inputs)]


def _input_text(item: str | list[int], param: str, model: str) -> str:
    if isinstance(item, str):
        return item
    try:
        return decode_tokens(item, model)
    except ValueError as exc:
        raise refuse(param, f"Invalid '{param}': these are not tokens of {model} ({exc}).", "invalid_tokens") from exc


ROUTES: tuple[ApiRoute, ...] = (ApiRoute("POST", "/embeddings", embed),)
