"""GET /models and /models/{id}, DELETE of fine-tuned ones."""

from typing import Any

from aiohttp import web

from connectors.emulator.api import LOCAL_NAME, ApiError, Incoming, Route, json_answer
from connectors.emulator.real_models.catalogue import REAL_MODELS, check_real_model, installed_models
from connectors.emulator.validation import model_not_found

CREATED = 1_686_935_002
"""When every model was made, in seconds since 1970: the same in every answer."""

NAMES = (
    "dall-e-2",
    "dall-e-3",
    "gpt-3.5-turbo",
    "gpt-4",
    "gpt-4-turbo",
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-4.1-nano",
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-tts",
    "gpt-4o-transcribe",
    "gpt-5",
    "gpt-5-mini",
    "gpt-5-nano",
    "gpt-image-1",
    "o3",
    "o4-mini",
    "text-embedding-3-large",
    "text-embedding-3-small",
    "text-embedding-ada-002",
    "tts-1",
    "tts-1-hd",
    "whisper-1",
    "rowmill-chat",
    "rowmill-embeddings",
    "rowmill-sentiment",
)
"""The emulated ones that are listed; other names are answered as well, but those that begin with `no-such-`."""


async def list_models(incoming: Incoming) -> web.StreamResponse:
    """All names that are listed, and the real models that are installed."""
    return json_answer({"object": "list", "data": [_model(name) for name in (*NAMES, *installed_models())]})


async def show_model(incoming: Incoming) -> web.StreamResponse:
    """One model."""
    return json_answer(_model(_known(incoming)))


async def delete_model(incoming: Incoming) -> web.StreamResponse:
    """Of a fine-tuned model: said to be deleted; the others are not the caller's."""
    name = _known(incoming)
    if not name.startswith("ft:"):
        raise ApiError(403, f"The model `{name}` is not yours to delete; only fine-tuned models are.", param="model")
    return json_answer({"id": name, "object": "model", "deleted": True})


def _known(incoming: Incoming) -> str:
    name = incoming.request.match_info["model"]
    if name.startswith("no-such-"):
        raise model_not_found(name)
    if name in REAL_MODELS:
        check_real_model(name, REAL_MODELS[name].task)
    return name


def _model(name: str) -> dict[str, Any]:
    real = REAL_MODELS.get(name)
    told = {"id": name, "object": "model", "created": CREATED, "owned_by": LOCAL_NAME if real is None else real.owner}
    return {**told, "kind": "emulated"} if real is None else {**told, "kind": "real", "licence": real.licence}


ROUTES: tuple[Route, ...] = (
    Route("GET", "/models", list_models, limited=False),
    Route("GET", "/models/{model:.+}", show_model, limited=False),
    Route("DELETE", "/models/{model:.+}", delete_model, limited=False),
)
