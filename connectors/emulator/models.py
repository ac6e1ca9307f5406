"""GET /models and /models/{id}, DELETE of fine-tuned ones."""

from typing import Any

from aiohttp import web

from connectors.emulator.api import LOCAL_NAME, ApiError, ApiRequest, ApiRoute, json_answer
from connectors.emulator.real_models.catalogue import REAL_MODELS, check_real_model, installed_models
from connectors.emulator.validation import model_not_found

CREATED = 1_686_935_002
"""Creation time of every model, in seconds since 1970."""

EMULATED_MODELS = (
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
"""Emulated models in the list; any other name works too, unless it begins with `no-such-`."""


async def list_models(api_request: ApiRequest) -> web.StreamResponse:
    """The emulated models and the installed real ones."""
    return json_answer(
        {"object": "list", "data": [_model_object(name) for name in (*EMULATED_MODELS, *installed_models())]}
    )


async def show_model(api_request: ApiRequest) -> web.StreamResponse:
    """Describe one model."""
    return json_answer(_model_object(_existing_model(api_request)))


async def delete_model(api_request: ApiRequest) -> web.StreamResponse:
    """Confirm the deletion of a fine-tuned model; ApiError 403 for any other."""
    name = _existing_model(api_request)
    if not name.startswith("ft:"):
        raise ApiError(403, f"The model `{name}` is not yours to delete; only fine-tuned models are.", param="model")
    return json_answer({"id": name, "object": "model", "deleted": True})


def _existing_model(api_request: ApiRequest) -> str:
    name = api_request.http_request.match_info["model"]
    if name.startswith("no-such-"):
        raise model_not_found(name)
    if name in REAL_MODELS:
        check_real_model(name, REAL_MODELS[name].task)
    return name


def _model_object(name: str) -> dict[str, Any]:
    real = REAL_MODELS.get(name)
    model = {"id": name, "object": "model", "created": CREATED, "owned_by": LOCAL_NAME if real is None else real.owner}
    return {**model, "kind": "emulated"} if real is None else {**model, "kind": "real", "licence": real.licence}


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("GET", "/models", list_models, is_rate_limited=False),
    ApiRoute("GET", "/models/{model:.+}", show_model, is_rate_limited=False),
    ApiRoute("DELETE", "/models/{model:.+}", delete_model, is_rate_limited=False),
)
