"""Answers by model: from the emulator, or from a real model in its dedicated thread."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from connectors.emulator.chat.answers import (
    Answer,
    AnswerRequest,
    ConversationFacts,
    answer,
    conversation_facts,
    has_images,
    truncated,
)
from connectors.emulator.chat.packed import packed_items, packed_text
from connectors.emulator.real_models.catalogue import REAL_MODELS, run_in_model_thread
from connectors.emulator.real_models.llm import answer_with_llm

T = TypeVar("T")

_REAL_MODELS: Mapping[str, Callable[[AnswerRequest, ConversationFacts, int], Answer]] = {
    "smollm2-135m-instruct": answer_with_llm
}


def answer_choice(request: AnswerRequest, facts: ConversationFacts, choice: int = 0) -> Answer:
    """One choice; equal requests give equal answers."""
    return _REAL_MODELS.get(request.model, answer)(request, facts, choice)


async def answer_choices(request: AnswerRequest, count: int = 1) -> list[Answer]:
    """`count` choices; a packed request has one, with an answer for each of its items."""

    def work() -> list[Answer]:
        if items := packed_items(request):
            alone = [answer_choice(item.request, conversation_facts(item.request.messages)) for item in items]
            return [truncated(packed_text(items, [one.text or "" for one in alone]), request)]
        facts = conversation_facts(request.messages)
        return [answer_choice(request, facts, choice) for choice in range(count)]

    if request.model in REAL_MODELS or has_images(request.messages):
        return await run_in_model_thread(request.model, work)
    return work()
