"""What answers are made of: the sentences, names, numbers and words of a text."""

import re
from collections.abc import Iterable
from functools import lru_cache

MAX_CHARACTERS = 20_000
"""Characters that are looked at."""

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
"""Words that say nothing of a subject, nor are names at the beginning of a sentence."""


def subject_of(text: str) -> str:
    """What a prompt is about: the text without a short paragraph before it that says what to do."""
    text = text[:MAX_CHARACTERS].strip()
    first, gap, rest = text.partition("\n\n")
    return rest.strip() if gap and len(first) <= 300 and rest.strip() else text


def sentences(text: str) -> list[str]:
    """In order, without the white space around them."""
    found = (" ".join(match.group().split()) for match in _SENTENCE.finditer(text[:MAX_CHARACTERS]))
    return [sentence for sentence in found if sentence]


def first_sentence(text: str, place: int = 0, longest: int = 200) -> str:
    """The sentence at a place, counted around; cut at a word where it is longer."""
    all_of_them = sentences(text)
    sentence = all_of_them[place % len(all_of_them)] if all_of_them else " ".join(text.split())
    if len(sentence) <= longest:
        return sentence
    return sentence[:longest].rsplit(" ", 1)[0]


def proper_names(text: str) -> list[str]:
    """What is written with capitals and is no usual first word: `Boston`, `New York`."""
    found: dict[str, None] = {}
    unsure: dict[str, None] = {}
    end = 0
    for match in _NAME.finditer(text[:MAX_CHARACTERS]):
        name = match.group()
        before = text[end : match.start()].rstrip()
        starts = (end == 0 and not before) or before.endswith((".", "!", "?", ":"))
        end = match.end()
        first, _, rest = name.partition(" ")
        if first.lower().rstrip(",") in _STOP_WORDS or "'" in first or "’" in first:
            name, starts = rest, False
        if len(name) > 1:
            (unsure if starts and " " not in name else found)[name] = None
    # A first word has its capital anyway: it is a name only where there is no other.
    return list(found or unsure)


def numbers(text: str) -> list[float]:
    """Every number in it; `1,000` is a thousand."""
    return [float(match.replace(",", "")) for match in _NUMBER.findall(text[:MAX_CHARACTERS])]


def overlap(phrase: str, stems: frozenset[str]) -> int:
    """How many of a phrase's words are among the stems."""
    return len(stems_of(phrase) & stems)


def overlaps(phrases: Iterable[str], text: str) -> list[int]:
    """The overlap of each phrase with a text."""
    stems = stems_of(text)
    return [overlap(phrase, stems) for phrase in phrases]


@lru_cache(maxsize=2048)
def stems_of(text: str) -> frozenset[str]:
    """The words of a text that say something, cut so that `booking` and `books` meet."""
    words = (word.lower() for word in _WORD.findall(text[:MAX_CHARACTERS].replace("_", " ")))
    return frozenset(_stem(word) for word in words if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    for ending in ("ings", "ing", "ies", "es", "ed", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
