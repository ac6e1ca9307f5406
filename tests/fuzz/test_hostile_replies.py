"""Replies that are nested beyond measure, and transcripts whose times are none: told, never a defect."""

import copy
import json
from typing import Any

import pytest

from connectors.endpoints.audio.transcript_replies import merge_transcripts
from tests.fuzz.test_mutated_replies import CASES, SEEDS, digested, paths_of

DEEP = b"[" * 300 + b"]" * 300
HERE = "the place of what is deep"


@pytest.mark.parametrize("case", CASES)
def test_depth_in_any_of_the_first_places_of_a_reply_is_malformed_or_passed_over(case: str) -> None:
    for seed in SEEDS:
        for path in [path for path in paths_of(seed)[1:] if len(path) <= 2]:
            whole = copy.deepcopy(seed)
            outer: Any = whole
            for key in path[:-1]:
                outer = outer[key]
            outer[path[-1]] = HERE
            digested(case, json.dumps(whole).encode().replace(json.dumps(HERE).encode(), DEEP))


@pytest.mark.parametrize("told", [b"-1", b"1e308", b'"nan"', b'"inf"', b"1e999", b"18446744073709551615", b'"9e99"'])
@pytest.mark.parametrize("name", [b'"duration": %b', b'"usage": {"seconds": %b}'], ids=["duration", "usage"])
def test_a_length_that_no_sound_has_is_not_billed(name: bytes, told: bytes) -> None:
    for case in ("transcription", "transcription verbose"):
        digested(case, b'{"text": "a", ' + name.replace(b"%b", told) + b"}")


PIECE: dict[str, Any] = {
    "text": "a",
    "duration": 3.0,
    "segments": [{"id": 0, "seek": 0, "start": 0.0, "end": 1.0, "text": "a", "tokens": [1]}],
    "words": [{"word": "a", "start": 0, "end": 1}],
    "logprobs": [{"token": "a"}],
}
ODD = (None, [], {}, [1], ["x"], 1, "x", "nan", "inf", 1e308, -1e308, 2**64 - 1, True, [[1]], "9" * 400)


@pytest.mark.parametrize("form", ["json", "verbose_json", "diarized_json"])
def test_pieces_with_anything_in_them_are_joined(form: str) -> None:
    for path in [path for path in paths_of(PIECE)[1:] if path != ("text",)]:
        for odd in ODD:
            piece = copy.deepcopy(PIECE)
            outer: Any = piece
            for key in path[:-1]:
                outer = outer[key]
            outer[path[-1]] = odd
            for pieces in ((piece, PIECE), (PIECE, piece), (piece, piece)):
                whole = json.loads(merge_transcripts([json.dumps(each).encode() for each in pieces], [0.0, 3.0], form))
                assert whole["text"] == ("a\na" if form == "diarized_json" else "a a")
