"""Who answers a dialogue: the emulator at once, or a real model in the thread of its own."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from connectors.emulator.chat.answers import Answer, Asked, Heard, answer, has_pictures, hear
from connectors.emulator.real_models.catalogue import REAL_MODELS, in_its_thread
from connectors.emulator.real_models.llm import answer_for_real

T = TypeVar("T")

_ANSWERERS: Mapping[str, Callable[[Asked, Heard, int], Answer]] = {"smollm2-135m-instruct": answer_for_real}


def answer_by_model(asked: Asked, heard: Heard, choice: int = 0) -> Answer:
    """One choice; the same for the same request."""
    return _ANSWERERS.get(asked.model, answer)(asked, heard, choice)


async def answers_by_model(asked: Asked, count: int = 1) -> list[Answer]:
    """So many choices."""

    def work() -> list[Answer]:
        heard = hear(asked.messages)
        return [answer_by_model(asked, heard, choice) for choice in range(count)]

    if asked.model in REAL_MODELS or has_pictures(asked.messages):
        return await in_its_thread(asked.model, work)
    return work()
