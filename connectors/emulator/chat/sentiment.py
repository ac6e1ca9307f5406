"""Sentiment of a text, from vaderSentiment's lexicon.

A text without a word of the lexicon counts as negative, since most such reviews are (402 of 619 among the 3,000 in
jobs/data). With this rule 82 % of the reviews are labelled correctly; with the opposite rule, 76 %. Other texts were
not measured.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

MAX_CHARACTERS = 4000
"""Characters that are analysed."""

_LABELS = {
    "positive": 1, "pos": 1, "good": 1, "happy": 1, "satisfied": 1, "favorable": 1, "favourable": 1, "approve": 1,
    "very positive": 2, "very_positive": 2, "very good": 2, "excellent": 2,
    "negative": -1, "neg": -1, "bad": -1, "unhappy": -1, "unsatisfied": -1, "dissatisfied": -1, "unfavorable": -1,
    "unfavourable": -1, "disapprove": -1,
    "very negative": -2, "very_negative": -2, "very bad": -2, "terrible": -2,
    "neutral": 0, "mixed": 0, "none": 0, "unclear": 0,
}  # fmt: skip
"""Label -> level from -2 (very negative) to 2 (very positive)."""

_SENTIMENT_QUESTION = re.compile(r"\bpositive\b.*\bnegative\b|\bnegative\b.*\bpositive\b", re.I | re.S)
_LABEL_WORDS = re.compile(r"\b(positive|negative|neutral)\b", re.I)


@lru_cache(maxsize=256)
def compound(text: str) -> float:
    """The score from -1 (negative) to 1 (positive)."""
    score: float = _analyzer().polarity_scores(text[:MAX_CHARACTERS])["compound"]
    return score


def strength(score: float) -> float:
    """The confidence of a label, from 0.5 to 1."""
    return round(0.5 + abs(score) / 2, 4)


def sentiment_label(labels: Sequence[Any], text: str) -> Any | None:
    """The label for the text's sentiment, as spelled in `labels`; None if the labels name no sentiments."""
    levels = [_LABELS.get(label.strip().lower()) if isinstance(label, str) else None for label in labels]
    known = [level for level in levels if level is not None]
    if not known or len(known) < sum(label is not None for label in labels) or max(known) <= 0 or min(known) >= 0:
        return None
    score = compound(text)
    wanted = 0.0 if 0 in known and abs(score) < 0.05 else (1 if score > 0 else -1) * (2 if abs(score) > 0.75 else 1)
    if not -1 <= wanted <= 1 and wanted not in known:
        wanted /= 2
    return min(zip(levels, labels, strict=True), key=lambda pair: 9 if pair[0] is None else abs(pair[0] - wanted))[1]


def asks_for_sentiment(prompt: str) -> bool:
    """Whether a prompt asks to choose between positive and negative."""
    return len(prompt) < MAX_CHARACTERS and _SENTIMENT_QUESTION.search(prompt) is not None


def without_labels(text: str) -> str:
    """The text without the label words: a question that names them expresses no sentiment."""
    return _LABEL_WORDS.sub(" ", text)


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
