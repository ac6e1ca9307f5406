"""Synthetic log probabilities of an answer's tokens: plausible and deterministic."""

from math import exp, log
from typing import Any

from connectors.emulator.api import digest_of
from connectors.emulator.chat.answers import Answer
from connectors.tokens import token_pieces

_ALTERNATIVES = (
    " the", " a", " and", " of", " to", " in", " is", " it", ".", ",", " not", " for", " on", " that", " with", " as",
    " this", " be", " or", " at", "\n", " no",
)  # fmt: skip
"""Alternative tokens."""


def synthetic_logprobs(text: str, model: str, top: int) -> list[dict[str, Any]]:
    """One entry per token, each with the `top` likeliest tokens at its position, itself first."""
    return [_entry(piece, top) for piece, _ in token_pieces(text, model)]


def answer_logprobs(answer: Answer, model: str, top: int) -> list[Any]:
    """The log probabilities of a whole answer: the real ones if a real model returned them."""
    return synthetic_logprobs(answer.text or "", model, top) if answer.logprobs is None else list(answer.logprobs)


def _entry(piece: str, top: int) -> dict[str, Any]:
    digest = digest_of(piece)
    probability = 0.5 + digest[0] / 512
    own = _token(piece, log(probability))
    alternatives: list[dict[str, Any]] = []
    remainder = 1 - probability
    start = digest[1]
    for offset in range(len(_ALTERNATIVES)):
        alternative = _ALTERNATIVES[(start + offset) % len(_ALTERNATIVES)]
        if alternative != piece and len(alternatives) < top - 1:
            remainder /= 2
            alternatives.append(_token(alternative, log(max(remainder, exp(-20)))))
    return {**own, "top_logprobs": [own, *alternatives] if top else []}


def _token(piece: str, logprob: float) -> dict[str, Any]:
    return {"token": piece, "logprob": round(logprob, 6), "bytes": list(piece.encode())}
