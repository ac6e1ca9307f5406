"""The splitter: pieces of a text by tokens, with exact offsets."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.tokens import count_tokens
from pipelines.transforms.splitter import Piece, split_text

MODEL = "text-embedding-3-small"

FRAGMENTS = st.sampled_from(
    [
        *("word ", "Hello. ", "No! ", "a.b ", "x\n", "line\r\n", "\n\n", "\n \n", "\f", "\u2029", " ", "\t", "   " * 9),
        *("漢字", "かな。", "カタカナ", "สวัสดี", "안녕", "العربية؟ ", "हिन्दी। ", "e\u0301"),
        *("\u0301" * 40, "🇩🇪", "👨\u200d👩\u200d👧", "🏽"),
        *("z" * 90, "0123456789", "<a href='x'>", "{}[](),;", "Ünïcödé ", "\x00", "\ufeff", "\u200d", "İ"),
    ]
)
TEXTS = st.one_of(st.lists(FRAGMENTS, max_size=60).map("".join), st.text(max_size=300))


def texts(text: str, pieces: list[Piece]) -> list[str]:
    return [text[piece.start : piece.end] for piece in pieces]


def split(text: str, tokens: int, overlap: int = 0) -> list[str]:
    return texts(text, list(split_text(text, tokens, overlap, MODEL)))


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.integers(4, 60), st.integers(0, 20))
def test_pieces_cover_every_character_within_the_limit_and_repeat_at_most_the_overlap(
    text: str, tokens: int, overlap: int
) -> None:
    overlap = min(overlap, tokens - 1)
    pieces = list(split_text(text, tokens, overlap, MODEL))
    assert [piece.start for piece in pieces[:1]] == [0] * bool(text)
    assert [piece.end for piece in pieces[-1:]] == [len(text)] * bool(text)
    for before, after in pairwise(pieces):
        assert before.start < after.start <= before.end < after.end
        assert count_tokens(text[after.start : before.end], MODEL) <= overlap
    assert all(count_tokens(part, MODEL) <= tokens for part in texts(text, pieces))
    assert list(split_text(text, tokens, overlap, MODEL)) == pieces


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("", 9, []),
        (" \n", 9, [" \n"]),
        # Paragraphs that fit are not cut, and share a piece.
        ("One. Two.\n\nThree.\n\nFour five six. Seven.", 9, ["One. Two.\n\nThree.\n\n", "Four five six. Seven."]),
        # A paragraph that fits into no piece is cut between sentences, and fills the piece before.
        (
            "Title\n\nOne two three. Four five six. Seven eight nine. Ten.",
            9,
            ["Title\n\nOne two three. ", "Four five six. Seven eight nine. ", "Ten."],
        ),
        # Neither a number nor an abbreviation before a small letter nor an initial ends a sentence.
        ("Pi is 3.14 ca. right. J. Doe said so.", 12, ["Pi is 3.14 ca. right. ", "J. Doe said so."]),
        # A sentence that fits into no piece is cut between lines, and a line between words.
        ("- a b c d\n- e f g h\n- i j k l", 8, ["- a b c d\n", "- e f g h\n", "- i j k l"]),
        ("a b c d e f g h i j", 4, ["a b c ", "d e f ", "g h i j"]),
        # A word that fits into no piece is cut between characters; a huge character between its code points.
        ("x 👨‍👩‍👧👨‍👩‍👧 y", 14, ["x 👨‍👩‍👧", "👨‍👩‍👧 y"]),
        ("👨‍👩‍👧 y", 10, ["👨\u200d👩\u200d", "👧 y"]),
        ("日本語の文。次の文です。", 8, ["日本語の文。", "次の文です。"]),
    ],
)
def test_a_piece_ends_at_the_largest_unit_that_can_be_kept_whole(text: str, tokens: int, expected: list[str]) -> None:
    assert split(text, tokens) == expected


def test_the_last_whole_words_of_a_piece_are_repeated_at_the_start_of_the_next() -> None:
    words = " ".join(f"w{chr(97 + n % 26)}" for n in range(60))
    pieces = list(split_text(words, 20, 6, MODEL))
    repeated = [words[after.start : before.end] for before, after in pairwise(pieces)]
    assert all(words[piece.start - 1] == " " for piece in pieces[1:])
    assert {count_tokens(text, MODEL) for text in repeated} <= {5, 6}


def test_a_word_that_fits_alone_goes_before_repeated_text() -> None:
    long_word = "0123456789" * 4
    assert count_tokens(long_word, MODEL) == 14
    assert split(f"one two three four five six seven eight nine {long_word}", 16, 6)[-1] == long_word


@pytest.mark.parametrize(
    "unit",
    ["x", "字", "é" + "\u0301" * 30, "🇩🇪", " ", "\n", "a.", ".", "!.)", "\u0301"],
    ids=lambda unit: ascii(unit)[:12],
)
def test_the_work_grows_with_the_text_even_if_it_is_one_word_of_100_000_characters(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    pieces = list(split_text(text, 300, 30, MODEL))
    assert sum(len(part) for part in texts(text, pieces)) < 1.2 * len(text)
    assert pieces[-1].end == len(text)


@pytest.mark.parametrize(("tokens", "overlap"), [(3, 0), (8, 8), (8, -1)])
def test_limits_that_no_piece_can_keep_are_refused(tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="found"):
        split_text("text", tokens, overlap, MODEL)
