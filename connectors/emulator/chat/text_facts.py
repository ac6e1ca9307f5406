"""Parts of a text from which answers are built: sentences, names, numbers, word stems."""

import re
from collections.abc import Iterable
from functools import lru_cache

MAX_CHARACTERS = 20_000
"""Characters that are analysed."""

_SENTENCE = re.compile(r"[^\s.!?。!?][^.!?。!?\n]*(?:[.!?](?=\S)[^.!?。!?\n]*)*[.!?。!?]*")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:[.,]\d{3})*(?:\.\d+)?(?![\w])")
_NAME = re.compile(r"(?:[A-Z][\w’'-]+)(?:,? (?:[A-Z]{2}\b|[A-Z][\w’'-]+))*")
_STOP_WORD_LIST = (
    "a an and are at be by can did do does for from get give had has have how i if in is it its list me my of on or our"
    " please s show tell that the their them there this to was we were what when where which who why will with would"
    " you your could should make find compare write create generate describe summarize translate call use let search"
    " also then here about analyze explain hello hi hey yes no not but so one"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
"""Words without content, which are not names at the beginning of a sentence either."""


def subject_of(text: str) -> str:
    """The text of a prompt without a short instruction paragraph before it."""
    text = text[:MAX_CHARACTERS].strip()
    first, gap, rest = text.partition("\n\n")
    return rest.strip() if gap and len(first) <= 300 and rest.strip() else text


def sentences(text: str) -> list[str]:
    """The sentences in order, with normalised whitespace."""
    parts = (" ".join(match.group().split()) for match in _SENTENCE.finditer(text[:MAX_CHARACTERS]))
    return [sentence for sentence in parts if sentence]


def first_sentence(text: str, index: int = 0, max_characters: int = 200) -> str:
    """The sentence at an index modulo their number, truncated at a word."""
    all_sentences = sentences(text)
    sentence = all_sentences[index % len(all_sentences)] if all_sentences else " ".join(text.split())
    if len(sentence) <= max_characters:
        return sentence
    return sentence[:max_characters].rsplit(" ", 1)[0]


def proper_names(text: str) -> list[str]:
    """Capitalised names, without common first words: `Boston`, `New York`."""
    names: dict[str, None] = {}
    sentence_starts: dict[str, None] = {}
    end = 0
    for match in _NAME.finditer(text[:MAX_CHARACTERS]):
        name = match.group()
        before = text[end : match.start()].rstrip()
        is_sentence_start = (end == 0 and not before) or before.endswith((".", "!", "?", ":"))
        end = match.end()
        first, _, rest = name.partition(" ")
        if first.lower().rstrip(",") in _STOP_WORDS or "'" in first or "’" in first:
            name, is_sentence_start = rest, False
        if len(name) > 1:
            (sentence_starts if is_sentence_start and " " not in name else names)[name] = None
    # The first word of a sentence is always capitalised: it counts only if there is no other name.
    return list(names or sentence_starts)


def numbers(text: str) -> list[float]:
    """The numbers in a text; `1,000` is a thousand."""
    return [float(match.replace(",", "")) for match in _NUMBER.findall(text[:MAX_CHARACTERS])]


def overlap(phrase: str, stems: frozenset[str]) -> int:
    """The number of word stems that a phrase shares with `stems`."""
    return len(stems_of(phrase) & stems)


def overlaps(phrases: Iterable[str], text: str) -> list[int]:
    """The overlap of each phrase with a text."""
    stems = stems_of(text)
    return [overlap(phrase, stems) for phrase in phrases]


@lru_cache(maxsize=2048)
def stems_of(text: str) -> frozenset[str]:
    """The stems of the content words, so that `booking` and `books` match."""
    words = (word.lower() for word in _WORD.findall(text[:MAX_CHARACTERS].replace("_", " ")))
    return frozenset(_stem(word) for word in words if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    for ending in ("ings", "ing", "ies", "es", "ed", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
