"""Deeply nested replies and transcripts with impossible times: malformed, never a defect."""

import copy
import json
from typing import Any

import pytest

from connectors.endpoints.audio.transcript_replies import merge_transcripts
from tests.fuzz.test_mutated_replies import CASES, SEEDS, paths_of, process_reply

DEEP = b"[" * 300 + b"]" * 300
MARKER = "replaced by deep nesting"


@pytest.mark.parametrize("case", CASES)
def test_deep_nesting_near_the_top_of_a_reply_is_malformed_or_ignored(case: str) -> None:
    for seed in SEEDS:
        for path in [path for path in paths_of(seed)[1:] if len(path) <= 2]:
            whole = copy.deepcopy(seed)
            outer: Any = whole
            for key in path[:-1]:
                outer = outer[key]
            outer[path[-1]] = MARKER
            process_reply(case, json.dumps(whole).encode().replace(json.dumps(MARKER).encode(), DEEP))


@pytest.mark.parametrize(
    "duration", [b"-1", b"1e308", b'"nan"', b'"inf"', b"1e999", b"18446744073709551615", b'"9e99"']
)
@pytest.mark.parametrize("name", [b'"duration": %b', b'"usage": {"seconds": %b}'], ids=["duration", "usage"])
def test_an_impossible_duration_is_not_billed(name: bytes, duration: bytes) -> None:
    for case in ("transcription", "transcription verbose"):
        process_reply(case, b'{"text": "a", ' + name.replace(b"%b", duration) + b"}")


PART: dict[str, Any] = {
    "text": "a",
    "duration": 3.0,
    "segments": [{"id": 0, "seek": 0, "start": 0.0, "end": 1.0, "text": "a", "tokens": [1]}],
    "words": [{"word": "a", "start": 0, "end": 1}],
    "logprobs": [{"token": "a"}],
}
ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    [1],
    ["x"],
    1,
    "x",
    "nan",
    "inf",
    1e308,
    -1e308,
    2**64 - 1,
    True,
    [[1]],
    "9" * 400,
)


@pytest.mark.parametrize("form", ["json", "verbose_json", "diarized_json"])
def test_transcripts_with_any_value_anywhere_are_merged(form: str) -> None:
    for path in [path for path in paths_of(PART)[1:] if path != ("text",)]:
        for odd in ODD:
            part = copy.deepcopy(PART)
            outer: Any = part
            for key in path[:-1]:
                outer = outer[key]
            outer[path[-1]] = odd
            for parts in ((part, PART), (PART, part), (part, part)):
                whole = json.loads(merge_transcripts([json.dumps(each).encode() for each in parts], [0.0, 3.0], form))
                assert whole["text"] == ("a\na" if form == "diarized_json" else "a a")
