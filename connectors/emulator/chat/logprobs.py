"""Log probabilities of an answer's tokens: made up, but plausible and always the same."""

from math import exp, log
from typing import Any

from connectors.emulator.api import digest_of
from connectors.emulator.chat.answers import Answer
from connectors.tokens import token_pieces

_OTHERS = (
    " the", " a", " and", " of", " to", " in", " is", " it", ".", ",", " not", " for", " on", " that", " with", " as",
    " this", " be", " or", " at", "\n", " no",
)  # fmt: skip
"""What might have stood there instead."""


def logprobs_of(text: str, model: str, top: int) -> list[dict[str, Any]]:
    """One entry a token, each with the `top` likeliest tokens at its place, itself the first."""
    return [_entry(piece, top) for piece, _ in token_pieces(text, model)]


def told_logprobs(answer: Answer, model: str, top: int) -> list[Any]:
    """Of a whole answer: the real ones where a real model told them."""
    return logprobs_of(answer.text or "", model, top) if answer.logprobs is None else list(answer.logprobs)


def _entry(piece: str, top: int) -> dict[str, Any]:
    drawn = digest_of(piece)
    likely = 0.5 + drawn[0] / 512
    own = _token(piece, log(likely))
    others: list[dict[str, Any]] = []
    rest = 1 - likely
    start = drawn[1]
    for place in range(len(_OTHERS)):
        other = _OTHERS[(start + place) % len(_OTHERS)]
        if other != piece and len(others) < top - 1:
            rest /= 2
            others.append(_token(other, log(max(rest, exp(-20)))))
    return {**own, "top_logprobs": [own, *others] if top else []}


def _token(piece: str, logprob: float) -> dict[str, Any]:
    return {"token": piece, "logprob": round(logprob, 6), "bytes": list(piece.encode())}
