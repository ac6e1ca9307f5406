"""Token counts before a request is sent, without a network, and the limits of models (`models.toml`).

Counts are exact for the text of OpenAI's models (`has_known_tokenizer`). For any other model they are an estimate, and
`token_upper_bound` is what a budget can rely on.
"""

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Any

_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_DEFAULT_ENCODING = "o200k_base"
"""Of models without a known tokenizer: an estimate."""
_MAX_PATCHES = {"low": 256, "high": 1_536, "auto": 1_536, "original": 1_536}
"""Patches of a picture by its detail, if `models.toml` gives no others."""
_DOCUMENT_TOKENS = 1_500
"""Of a page with its picture."""
_DOCUMENT_BYTES_PER_TOKEN = 40
"""Of a PDF with fonts and pictures."""
_AUDIO_BYTES_PER_SECOND = 16_000
"""Of MP3."""
_HEADER_CHARACTERS = 262_144
"""Base64 of a picture that is read for its size."""


def count_tokens(text: str, model: str | None) -> int:
    """Return the tokens of a text, by gpt-4o's tokenizer if the model's is unknown.

    `model` None: a rough estimate of four bytes a token, which needs no vocabulary (60 MB).
    """
    if model is None:
        # As `token_upper_bound`, without a call for each row.
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return -(-size // 4)
    count = _counter(model)
    try:
        return count(text)
    except UnicodeEncodeError:
        return count(_without_surrogates(text))


def count_many(texts: Sequence[str], model: str) -> list[int]:
    """Return `count_tokens` of each text."""
    count = _counter(model)
    try:
        return [count(text) for text in texts]
    except UnicodeEncodeError:
        return [count(_without_surrogates(text)) for text in texts]


def token_counter(model: str) -> Callable[[str], int]:
    """Return a faster `count_tokens` for many texts of one model, without lone surrogates."""
    return _counter(model)


def has_known_tokenizer(model: str) -> bool:
    """Return whether texts are counted exactly and not estimated."""
    return _encoding(model) is not None


def token_upper_bound(text: str) -> int:
    """Return the most tokens a text can have: its UTF-8 bytes, as no token of a byte-level BPE is shorter."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def chat_tokens(
    messages: Sequence[Mapping[str, object]],
    model: str | None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    files: Mapping[str, int] | None = None,
) -> int:
    """Return the tokens of a conversation: its texts, 3 for each message, 1 for a name, 3 to prime the answer.

    After https://github.com/openai/openai-cookbook, "How to count tokens with tiktoken". Pictures count by
    `image_tokens`; documents and audio by `file_tokens`; tool calls, and parts of unknown kinds, as their JSON.
    `sizes`: URL or name of a picture -> (width, height) in pixels. `files`: name of a document or audio -> tokens.
    """
    return _conversation_tokens(
        messages, model or "gpt-4o", lambda text: count_tokens(text, model), sizes or {}, files or {}
    )


def chat_upper_bound(messages: Sequence[Mapping[str, object]], model: str) -> int:
    """Return `chat_tokens` with `token_upper_bound` in place of each count."""
    return _conversation_tokens(messages, model, token_upper_bound, {}, {})


def image_tokens(model: str, detail: str | None = None, size: tuple[int, int] | None = None) -> int:
    """Return the most tokens of a picture in a chat request; `size`: (width, height) in pixels, None: any."""
    rule = _picture_rule(model)
    if tiles := rule.get("tiles"):
        tile_count = 0 if detail == "low" else 8 if size is None else _count_tiles(*size)
        return int(tiles["base"] + tile_count * tiles["tile"])
    limits = {**_MAX_PATCHES, **rule["patches"]}
    patches: int = limits[detail if detail in _MAX_PATCHES else "auto"]
    if size is not None and detail != "low":
        patches = min(patches, -(-size[0] // 32) * -(-size[1] // 32))
    return int(-(-patches * limits["hundredths"] // 100))


def file_tokens(size: int, seconds: float | None = None) -> int:
    """Estimate the tokens of a document of so many bytes, or of audio of so many seconds, in a chat request.

    Only the provider knows: a page counts by its text and by its picture. A second of audio is 10 tokens.
    """
    return _DOCUMENT_TOKENS + size // _DOCUMENT_BYTES_PER_TOKEN if seconds is None else ceil(seconds * 10)


def max_output_tokens(model: str) -> int | None:
    """Return the most tokens of one answer, for OpenAI's models; None: unknown."""
    limits = _limits(model)
    return None if limits is None else limits[1]


def shares_tokenizer(model: str, other: str) -> bool:
    """Return whether a count for one model is exact for the other one too."""
    return (encoding := _encoding(model)) is not None and encoding == _encoding(other)


def largest_output(models: Sequence[str]) -> int | None:
    """Return the most tokens of one answer by any of the models; None if one of them is unknown."""
    known = [max_output_tokens(model) for model in models]
    return None if None in known else max((limit for limit in known if limit is not None), default=None)


def smallest_output(models: Sequence[str]) -> int | None:
    """Return the most tokens of one answer that every model can give, as far as they are known; None: unknown."""
    return min((limit for model in models if (limit := max_output_tokens(model)) is not None), default=None)


def context_window(model: str) -> int | None:
    """Return the most tokens that a model takes, for chat models with the answer; None: unknown."""
    limits = _limits(model)
    return _window_in_price_list(_base_name(model)) if limits is None else limits[0]


def token_pieces(text: str, model: str) -> list[tuple[str, int]]:
    """Split a text at its tokens: (piece, tokens); more than one token if a character has several."""
    tokenizer = _load(_encoding(model) or _DEFAULT_ENCODING)
    pieces: list[tuple[str, int]] = []
    pending: list[int] = []
    for token in tokenizer.encode_ordinary(_without_surrogates(text)):
        pending.append(token)
        try:
            pieces.append((tokenizer.decode_bytes(pending).decode(), len(pending)))
        except UnicodeDecodeError:
            continue
        pending = []
    return pieces


def decode_tokens(tokens: Sequence[int], model: str) -> str:
    """Return the text of these tokens; ValueError for an unknown token or invalid UTF-8."""
    encoding = _encoding(model) or _DEFAULT_ENCODING
    (count,) = (each["ordinary_tokens"] for each in _model_facts()["encodings"] if each["encoding"] == encoding)
    # The tokenizer gives no text for a number that is not a token.
    if any(not 0 <= token < count for token in tokens):
        raise ValueError(f"a token is a number from 0 to {count - 1}")
    text: str = _load(encoding).decode_bytes(list(tokens)).decode()
    return text


@cache
def _model_facts() -> dict[str, Any]:
    import tomllib  # 3 ms, and not for every command

    return tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1024)
def _picture_rule(model: str) -> Mapping[str, Any]:
    name = _base_name(model)
    rules: list[dict[str, Any]] = _model_facts()["pictures"]
    return next(rule for rule in rules if re.match(rule["pattern"], name))


@lru_cache(maxsize=1024)
def _limits(model: str) -> tuple[int, int] | None:
    """(context window, most output tokens)."""
    name = _base_name(model)
    table = {name: row for row in _model_facts()["limits"] for name in row["names"]}
    row = table.get(name) or table.get(_DATE.sub("", name))
    return None if row is None else (row["context_window"], row["max_output_tokens"])


@lru_cache(maxsize=1024)
def _window_in_price_list(name: str) -> int | None:
    """Return the window that genai-prices lists: OpenAI's, else the maker's, else the widest of the hosts'."""
    from genai_prices.data_snapshot import get_snapshot  # 0.2 s, and only for models that models.toml does not list

    snapshot = get_snapshot()
    for provider in ("openai", None):
        try:
            window = snapshot.find_provider_model(name, None, provider, None)[1].context_window
        except LookupError:
            continue
        if window is not None:
            return window
    hosted = (host.find_model(name) for host in snapshot.providers)
    return max((m.context_window for m in hosted if m is not None and m.context_window is not None), default=None)


@lru_cache(maxsize=1024)
def _encoding(model: str) -> str | None:
    name = _base_name(model)
    return next((each["encoding"] for each in _model_facts()["encodings"] if re.match(each["pattern"], name)), None)


@lru_cache(maxsize=1024)
def _counter(model: str) -> Callable[[str], int]:
    count: Callable[[str], int] = _load(_encoding(model) or _DEFAULT_ENCODING).count
    return count


@cache
def _load(encoding: str) -> Any:
    # The package's public functions give no token numbers; this one is the same tokenizer with all its methods.
    from toktok import _encoding as load_tokenizer  # 0.2 s for a vocabulary

    return load_tokenizer(encoding)


def _base_name(model: str) -> str:
    """Return the base of a fine-tuned model (`ft:gpt-4o:org::id`), without the prefix that routers add."""
    name = model.removeprefix("openai/")
    return name.removeprefix("ft:").partition(":")[0] if name.startswith("ft:") else name


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which have no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _conversation_tokens(
    messages: Sequence[Mapping[str, object]],
    model: str,
    count: Callable[[str], int],
    sizes: Mapping[str, tuple[int, int]],
    files: Mapping[str, int],
) -> int:
    tokens = 3
    for message in messages:
        tokens += 3
        for key, value in message.items():
            if isinstance(value, str):
                tokens += count(value) + (key == "name")
            elif key == "content" and isinstance(value, Sequence):
                tokens += sum(_part_tokens(part, model, count, sizes, files) for part in value)
            elif value is not None:
                tokens += count(_json(value))
    return tokens


def _part_tokens(
    part: object,
    model: str,
    count: Callable[[str], int],
    sizes: Mapping[str, tuple[int, int]],
    files: Mapping[str, int],
) -> int:
    """Count a part of a message, in the format of chat completions or of responses."""
    if isinstance(part, str):
        return count(part)
    if not isinstance(part, Mapping):
        return count(_json(part))
    if part.get("type") in ("image_url", "input_image"):
        image = part.get("image_url")
        source = image if isinstance(image, Mapping) else {"url": image, "detail": part.get("detail")}
        detail, url = source.get("detail"), source.get("url")
        size = (sizes.get(url) or _pixels(url)) if isinstance(url, str) else None
        return image_tokens(model, detail if isinstance(detail, str) else None, size)
    if part.get("type") in ("file", "input_file", "input_audio"):
        return _file_part_tokens(part, files)
    text = part.get("text")
    return count(text) if isinstance(text, str) else count(_json(part))


def _file_part_tokens(part: Mapping[str, Any], files: Mapping[str, int]) -> int:
    """Return the tokens of a named document or audio; estimate another one by its base64."""
    nested = part.get("file") or part.get("input_audio")
    source = nested if isinstance(nested, Mapping) else part
    data = source.get("file_data") or source.get("data")
    if not isinstance(data, str):
        return _DOCUMENT_TOKENS
    if data in files:
        return files[data]
    size = len(data) * 3 // 4
    return file_tokens(size, size / _AUDIO_BYTES_PER_SECOND if part.get("type") == "input_audio" else None)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _count_tiles(width: int, height: int) -> int:
    """Return the tiles of 512 pixels of a picture fitted into 2,048 pixels, then to 768 on its shorter side."""
    scale = min(1.0, 2_048 / max(width, height))
    scale *= min(1.0, 768 / (min(width, height) * scale))
    across, down = (ceil(round(side * scale, 3) / 512) for side in (width, height))
    return across * down


def _pixels(url: str) -> tuple[int, int] | None:
    """Return (width, height) of the picture in a data URL, by its first bytes; None: no data URL, or unreadable."""
    head, comma, body = url.partition(";base64,")
    if not comma or not head.startswith("data:"):
        return None
    try:
        data = a2b_base64(body[:_HEADER_CHARACTERS])
    except Base64Error:
        return None
    size: tuple[int, int] | None = None
    if data.startswith(b"\x89PNG"):
        size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    elif data.startswith(b"GIF8"):
        size = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    elif data.startswith(b"\xff\xd8"):
        size = _jpeg_pixels(data)
    elif data[8:15] == b"WEBPVP8":
        size = _webp_pixels(data)
    return size if size is not None and min(size) > 0 else None


def _jpeg_pixels(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _webp_pixels(data: bytes) -> tuple[int, int]:
    if data[15:16] == b"X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[15:16] == b"L":
        sides = int.from_bytes(data[21:25], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
