"""Token counts before a request is sent, and the limits of models."""

import base64
import io
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from connectors import tokens
from connectors.tokens import (
    chat_tokens,
    chat_upper_bound,
    context_window,
    count_many,
    count_tokens,
    has_known_tokenizer,
    image_tokens,
    max_output_tokens,
    smallest_output,
    token_upper_bound,
)

BIRTHDAY = "お誕生日おめでとう"
ANY_TEXT = st.text(st.characters(), max_size=200)  # lone surrogates as well


# Counts of https://github.com/openai/openai-cookbook, "How to count tokens with tiktoken".
@pytest.mark.parametrize(
    ("text", "o200k", "cl100k"),
    [("antidisestablishmentarianism", 6, 6), ("2 + 2 = 4", 7, 7), (BIRTHDAY, 8, 9), ("", 0, 0)],
)
def test_texts_have_as_many_tokens_as_tiktoken_counts(text: str, o200k: int, cl100k: int) -> None:
    for model in ("gpt-4o-mini", "gpt-4.1", "gpt-5", "o3", "o4-mini", "chatgpt-4o-latest", "ft:gpt-4o:acme::1"):
        assert count_tokens(text, model) == o200k
    for model in ("gpt-4", "gpt-4-turbo", "gpt-3.5-turbo", "text-embedding-3-small", "openai/gpt-4"):
        assert count_tokens(text, model) == cl100k


@pytest.mark.parametrize(
    ("model", "exact"),
    [
        ("gpt-4o-mini-2024-07-18", True),
        ("gpt-4.1-nano", True),
        ("gpt-5.1", True),
        ("o1", True),
        ("o3-mini", True),
        ("gpt-4-0613", True),
        ("gpt-35-turbo", True),
        ("text-embedding-ada-002", True),
        ("ft:gpt-3.5-turbo:acme::1", True),
        ("gpt-4.2", False),
        ("gpt-99", False),
        ("o1x", False),
        ("my-gpt-4o", False),
        ("claude-sonnet-4-5", False),
        ("meta-llama/Llama-3.1-8B-Instruct", False),
        ("text-embedding-004", False),
        ("", False),
    ],
)
def test_openais_models_have_a_known_tokenizer_and_all_others_an_estimate(model: str, exact: bool) -> None:
    assert has_known_tokenizer(model) is exact
    assert exact or count_tokens(BIRTHDAY, model) == 8


def test_a_special_token_in_a_text_is_counted_as_text() -> None:
    assert count_tokens("<|endoftext|>", "gpt-4o") > 1


def test_a_text_of_more_than_a_million_characters_is_counted() -> None:
    assert count_tokens("word " * 300_000, "gpt-4o") == 300_001


def test_a_lone_surrogate_is_counted_as_its_replacement() -> None:
    assert count_tokens("a\ud800b", "gpt-4o") == count_tokens("a\ufffdb", "gpt-4o")
    assert count_tokens("\ud83e\udd96", "gpt-4o") == count_tokens("🦖", "gpt-4o")
    assert count_many(["a\ud800b", "ab"], "gpt-4o") == [count_tokens("a\ufffdb", "gpt-4o"), 1]


@given(ANY_TEXT, st.sampled_from(["gpt-4o", "gpt-4", "some-model"]))
def test_no_text_has_more_tokens_than_its_upper_bound(text: str, model: str) -> None:
    assert bool(text) <= count_tokens(text, model) <= token_upper_bound(text)


@given(st.text())
def test_the_upper_bound_is_the_number_of_utf8_bytes(text: str) -> None:
    assert token_upper_bound(text) == len(text.encode())


@given(st.lists(ANY_TEXT, max_size=20), st.sampled_from(["gpt-4o", "gpt-4"]))
def test_many_texts_are_counted_as_each_of_them_alone(texts: list[str], model: str) -> None:
    assert count_many(texts, model) == [count_tokens(text, model) for text in texts]


def test_counting_needs_no_network() -> None:
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('a connection')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from connectors.tokens import count_tokens\n"
        "print(count_tokens('2 + 2 = 4', 'gpt-4o'), count_tokens('2 + 2 = 4', 'gpt-4'))"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["7", "7"]


# --- conversations ---


def test_a_message_has_three_tokens_more_than_its_texts_and_the_answer_three() -> None:
    messages = [{"role": "system", "content": "2 + 2 = 4"}, {"role": "user", "content": BIRTHDAY}]
    assert chat_tokens(messages, "gpt-4o") == 3 + (3 + 1 + 7) + (3 + 1 + 8)
    assert chat_tokens(messages, "gpt-4") == 3 + (3 + 1 + 7) + (3 + 1 + 9)
    assert chat_tokens([], "gpt-4o") == 3


def test_a_name_adds_one_token() -> None:
    plain, named = {"role": "user", "content": "2 + 2 = 4"}, {"role": "user", "name": "user", "content": "2 + 2 = 4"}
    assert chat_tokens([named], "gpt-4o") == chat_tokens([plain], "gpt-4o") + 2


def test_a_message_without_content_counts_its_tool_calls_as_json() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    bare = chat_tokens([{"role": "assistant", "content": None}], "gpt-4o")
    assert bare == 3 + 3 + 1
    written = '[{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]'
    assert chat_tokens([{"role": "assistant", "content": None, "tool_calls": calls}], "gpt-4o") == bare + count_tokens(
        written, "gpt-4o"
    )


@pytest.mark.parametrize(
    ("parts", "tokens"),
    [
        ([{"type": "text", "text": "2 + 2 = 4"}], 7),
        ([{"type": "input_text", "text": "2 + 2 = 4"}, "2 + 2 = 4"], 14),
        ([{"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}], 85),
        ([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}], 85 + 8 * 170),
        ([{"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"}], 85),
        ([{"type": "input_image", "file_id": "file-1"}], 85 + 8 * 170),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,abcde"}}], 85 + 8 * 170),
        ([], 0),
    ],
)
def test_parts_are_counted_by_their_kind_in_either_format(parts: list[object], tokens: int) -> None:
    assert chat_tokens([{"role": "user", "content": parts}], "gpt-4o") == 3 + 3 + 1 + tokens


PARTS = st.text(max_size=30) | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=30)}))


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.none() | PARTS}), max_size=4))
def test_no_conversation_has_more_tokens_than_its_upper_bound(messages: list[dict[str, object]]) -> None:
    assert chat_tokens(messages, "gpt-4o") <= chat_upper_bound(messages, "gpt-4o")


# --- pictures ---


# The examples of https://developers.openai.com/api/docs/guides/images-vision.
@pytest.mark.parametrize(
    ("model", "detail", "size", "tokens"),
    [
        ("gpt-4o", "high", (1024, 1024), 765),
        ("gpt-4o", "high", (2048, 4096), 1105),
        ("gpt-4o", "low", (4096, 8192), 85),
        ("gpt-4o", "auto", (512, 512), 255),
        ("gpt-4o", None, None, 1445),
        ("gpt-4o-mini", None, (1024, 1024), 2833 + 4 * 5667),
        ("o1", None, (512, 513), 75 + 2 * 150),
        ("gpt-5", "low", None, 70),
        ("gpt-4.1-mini", None, (1024, 1024), 1659),
        ("gpt-4.1-mini", None, (1800, 2400), 2489),
        ("gpt-5.4", "high", (1024, 1024), 1229),
        ("gpt-5.4", None, None, 3000),
        ("gpt-6-luna", None, None, 36_000),
        ("gpt-6-luna", "low", (4096, 8192), 308),
        ("some-model", None, (1024, 1024), 765),
    ],
)
def test_pictures_are_counted_by_tiles_or_patches(
    model: str, detail: str | None, size: tuple[int, int] | None, tokens: int
) -> None:
    assert image_tokens(model, detail, size) == tokens


SIDES = st.tuples(st.integers(1, 20_000), st.integers(1, 20_000))


@given(SIDES, st.sampled_from(["gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-4.1-mini", "gpt-5.4", "gpt-6-luna"]))
def test_a_picture_of_unknown_size_counts_as_the_largest(size: tuple[int, int], model: str) -> None:
    assert 0 < image_tokens(model, None, size) <= image_tokens(model)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + b"x" * 5000}),
        ("WEBP", {"quality": 50}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"icc_profile": b"x" * 200}),
    ],
)
def test_the_size_of_a_picture_is_read_from_its_data_url(kind: str, options: dict[str, object]) -> None:
    file = io.BytesIO()
    Image.new("RGB", (513, 1025), "teal").save(file, kind, **options)
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    assert chat_tokens(messages, "gpt-4o") == 3 + 3 + 1 + 85 + 6 * 170


@given(
    st.binary(max_size=60),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"RIFF1234WEBPVP8X", b""]),
)
def test_a_broken_picture_counts_as_one_of_unknown_size_or_less(rest: bytes, start: bytes) -> None:
    url = f"data:image/png;base64,{base64.b64encode(start + rest).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    assert 85 <= chat_tokens(messages, "gpt-4o") - 7 <= 1445


# --- limits ---


@pytest.mark.parametrize(
    ("model", "window", "output"),
    [
        ("gpt-4o-mini", 128_000, 16_384),
        ("gpt-4o-mini-2024-07-18", 128_000, 16_384),
        ("gpt-4o-2024-05-13", 128_000, 4_096),
        ("gpt-4.1", 1_047_576, 32_768),
        ("o3-mini-2025-01-31", 200_000, 100_000),
        ("gpt-5-mini", 400_000, 128_000),
        ("ft:gpt-4o-mini-2024-07-18:acme::1", 128_000, 16_384),
        ("openai/gpt-4o", 128_000, 16_384),
        ("text-embedding-3-small", 8_192, None),
        ("claude-3-5-haiku-latest", 200_000, None),
        ("my-model", None, None),
    ],
)
def test_limits_are_known_for_openais_models_and_windows_for_models_with_a_price(
    model: str, window: int | None, output: int | None
) -> None:
    assert (context_window(model), max_output_tokens(model)) == (window, output)


def test_every_model_is_listed_once() -> None:
    facts = tomllib.loads(Path(tokens.__file__).with_name("models.toml").read_text())
    names = [name for row in facts["limits"] for name in row["names"]]
    assert sorted(set(names)) == sorted(names)
    assert [row["pattern"] for row in facts["pictures"]][-1] == ""


def test_a_pack_must_fit_the_smallest_model_whose_limit_is_known() -> None:
    assert smallest_output(["gpt-4o-mini", "unknown", "gpt-3.5-turbo"]) == 4096
    assert smallest_output(["unknown"]) is None
