"""Tokens: counted before sending, without a network, and how many a model takes and gives.

Counts are exact for the text of OpenAI's models (`is_exact`); for any other model they are an estimate, and
`upper_bound` is what a budget can rely on.
"""

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from math import ceil
from typing import Any

_O200K = re.compile(r"(chatgpt-4o|gpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|gpt-oss|codex-mini|o1|o3|o4)(?![a-z0-9])")
_CL100K = re.compile(r"(gpt-4|gpt-3\.5|gpt-35|text-embedding-3|text-embedding-ada-002)(?![a-z0-9.])")


def count_tokens(text: str, model: str | None) -> int:
    """How many tokens a text takes; of a model whose tokenizer is not known, as many as gpt-4o would take.

    `model` None: a rough estimate, which needs no vocabulary (70 MB): a token for every four bytes.
    """
    if model is None:
        return -(-upper_bound(text) // 4)
    count = _counter(model)
    try:
        return count(text)
    except UnicodeEncodeError:
        return count(_mended(text))


def count_many(texts: Sequence[str], model: str) -> list[int]:
    """`count_tokens` of each text."""
    count = _counter(model)
    try:
        return [count(text) for text in texts]
    except UnicodeEncodeError:
        return [count(_mended(text)) for text in texts]


def is_exact(model: str) -> bool:
    """Whether the model's tokenizer is known, so that texts are counted and not estimated."""
    return _encoding(model) is not None


def upper_bound(text: str) -> int:
    """The most tokens that a text can take: its UTF-8 bytes, as a byte-level BPE makes none of less than a byte."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def chat_tokens(
    messages: Sequence[Mapping[str, object]], model: str | None, sizes: Mapping[str, tuple[int, int]] | None = None
) -> int:
    """How many tokens a dialogue takes: its texts, 3 for each message, 1 for a name, 3 to prime the answer.

    After https://github.com/openai/openai-cookbook, "How to count tokens with tiktoken". Pictures count by
    `image_tokens`; tool calls, and parts of kinds not known here, as their JSON. `sizes`: URL or name of a picture ->
    its pixels.
    """
    return _dialogue(messages, model or "gpt-4o", lambda text: count_tokens(text, model), sizes or {})


def chat_upper_bound(messages: Sequence[Mapping[str, object]], model: str) -> int:
    """`chat_tokens` with `upper_bound` in place of each count."""
    return _dialogue(messages, model, upper_bound, {})


def image_tokens(model: str, detail: str | None = None, size: tuple[int, int] | None = None) -> int:
    """The most tokens that a picture of `size` pixels (width, height; None: any) takes in a chat request.

    After https://developers.openai.com/api/docs/guides/images-vision, by tiles of 512 pixels or patches of 32; a
    model that is not listed there counts as gpt-4o.
    """
    name = _base_name(model)
    rule = next(rule for pattern, rule in _PICTURES if pattern.match(name))
    return rule.tokens(detail, size)


def max_output_tokens(model: str) -> int | None:
    """The most tokens that one answer can have, for OpenAI's models; None: not known."""
    limits = _limits(model)
    return None if limits is None else limits[1]


def context_window(model: str) -> int | None:
    """The most tokens that a model takes, for chat models with the answer; None: not known."""
    limits = _limits(model)
    return _listed_window(_base_name(model)) if limits is None else limits[0]


def token_pieces(text: str, model: str) -> list[tuple[str, int]]:
    """A text cut at its tokens, with the tokens of each piece: 1, or more where a character is of several tokens."""
    tokenizer = _load(_encoding(model) or "o200k_base")
    pieces: list[tuple[str, int]] = []
    held: list[int] = []
    for token in tokenizer.encode(_mended(text)):
        held.append(token)
        try:
            pieces.append((tokenizer.decode(held), len(held)))
        except ValueError:
            continue
        held = []
    return pieces


def text_of_tokens(tokens: Sequence[int], model: str) -> str:
    """The text that these tokens are; ValueError where they are none of the model's, or no UTF-8."""
    encoding = _encoding(model) or "o200k_base"
    # The compiled module reads past its table, and the process dies, for a number that is no token.
    if any(not 0 <= token < _VOCABULARY[encoding] for token in tokens):
        raise ValueError(f"a token is a number from 0 to {_VOCABULARY[encoding] - 1}")
    text: str = _load(encoding).decode(list(tokens))
    return text


_VOCABULARY = {"o200k_base": 199_998, "cl100k_base": 100_256}
"""Tokens of each encoding, the special ones left out."""


@lru_cache(maxsize=1024)
def _counter(model: str) -> Callable[[str], int]:
    count: Callable[[str], int] = _load(_encoding(model) or "o200k_base").count
    return count


@cache
def _load(encoding: str) -> Any:
    # Importing the package unpacks all its vocabularies once more in Python (0.6 s, 70 MB, a DeprecationWarning), and
    # its Encoding has no count. The compiled module in it, loaded alone, counts, and is there in 0.1 s.
    package = find_spec("bpe_openai")
    folders = None if package is None else package.submodule_search_locations
    spec = PathFinder.find_spec("bpe_openai._bindings", folders)
    if spec is None or spec.loader is None:
        raise ImportError("bpe_openai._bindings is not installed; install bpe-openai")
    bindings = module_from_spec(spec)
    spec.loader.exec_module(bindings)
    return bindings.tokenizer_for_encoding(encoding)


def _encoding(model: str) -> str | None:
    name = _base_name(model)
    if _O200K.match(name):
        return "o200k_base"
    return "cl100k_base" if _CL100K.match(name) else None


def _base_name(model: str) -> str:
    """The model that a fine-tuned one (`ft:gpt-4o:org::id`) comes of, without the prefix that routers put before it."""
    name = model.removeprefix("openai/")
    return name.removeprefix("ft:").partition(":")[0] if name.startswith("ft:") else name


def _mended(text: str) -> str:
    """A text without lone surrogates, which have no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _dialogue(
    messages: Sequence[Mapping[str, object]],
    model: str,
    count: Callable[[str], int],
    sizes: Mapping[str, tuple[int, int]],
) -> int:
    tokens = 3
    for message in messages:
        tokens += 3
        for key, value in message.items():
            if isinstance(value, str):
                tokens += count(value) + (key == "name")
            elif key == "content" and isinstance(value, Sequence):
                tokens += sum(_part(part, model, count, sizes) for part in value)
            elif value is not None:
                tokens += count(_json(value))
    return tokens


def _part(part: object, model: str, count: Callable[[str], int], sizes: Mapping[str, tuple[int, int]]) -> int:
    """A part of a message, as chat completions or as responses write it."""
    if isinstance(part, str):
        return count(part)
    if not isinstance(part, Mapping):
        return count(_json(part))
    if part.get("type") in ("image_url", "input_image"):
        image = part.get("image_url")
        shown = image if isinstance(image, Mapping) else {"url": image, "detail": part.get("detail")}
        detail, url = shown.get("detail"), shown.get("url")
        size = (sizes.get(url) or _pixels(url)) if isinstance(url, str) else None
        return image_tokens(model, detail if isinstance(detail, str) else None, size)
    text = part.get("text")
    return count(text) if isinstance(text, str) else count(_json(part))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Fitted into 2,048 pixels, then to 768 on the shorter side: at most 8 tiles of 512."""

    base: int
    tile: int

    def tokens(self, detail: str | None, size: tuple[int, int] | None) -> int:
        if detail == "low":
            return self.base
        return self.base + self.tile * (8 if size is None else _tiles(*size))


@dataclass(frozen=True, slots=True)
class _Patches:
    """Patches of 32 pixels, at most so many of them by detail, each so many hundredths of a token."""

    hundredths: int
    high: int = 1_536
    auto: int = 1_536
    original: int = 1_536

    def tokens(self, detail: str | None, size: tuple[int, int] | None) -> int:
        most = {"low": 256, "high": self.high, "original": self.original}.get(detail or "auto", self.auto)
        patches = most if size is None or detail == "low" else min(most, -(-size[0] // 32) * -(-size[1] // 32))
        return -(-patches * self.hundredths // 100)


_PICTURES: tuple[tuple[re.Pattern[str], _Tiles | _Patches], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"gpt-4o-mini", _Tiles(2_833, 5_667)),
        (r"gpt-4\.1-mini|gpt-5-mini|gpt-5\.4-mini", _Patches(162)),
        (r"gpt-4\.1-nano|gpt-5-nano|gpt-5\.4-nano", _Patches(246)),
        (r"o4-mini", _Patches(172)),
        (r"o1|o3", _Tiles(75, 150)),
        (r"gpt-5\.[23]|gpt-5.*codex", _Patches(120)),
        (r"gpt-5\.4", _Patches(120, high=2_500, auto=2_500, original=10_000)),
        (r"gpt-5\.5", _Patches(120, high=2_500, auto=10_000, original=10_000)),
        (r"gpt-5\.[6-9]|gpt-6", _Patches(120, high=2_500, auto=30_000, original=30_000)),
        (r"gpt-5", _Tiles(70, 140)),
        (r"", _Tiles(85, 170)),
    )
)


def _tiles(width: int, height: int) -> int:
    scale = min(1.0, 2_048 / max(width, height))
    scale *= min(1.0, 768 / (min(width, height) * scale))
    across, down = (ceil(round(side * scale, 3) / 512) for side in (width, height))
    return across * down


def _pixels(url: str) -> tuple[int, int] | None:
    """Width and height of the picture in a data URL, by its first bytes; None: no data URL, or not to be read."""
    head, comma, body = url.partition(";base64,")
    if not comma or not head.startswith("data:"):
        return None
    try:
        data = a2b_base64(body[:262_144])
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


# Context window and longest answer of OpenAI's models, each after its page below
# https://developers.openai.com/api/docs/models; a dated name goes by the name without its date.
_LIMITS: Mapping[str, tuple[int, int]] = {
    name: limits
    for limits, names in {
        (8_192, 8_192): "gpt-4 gpt-4-0314 gpt-4-0613",
        (16_385, 4_096): "gpt-3.5-turbo gpt-3.5-turbo-0125 gpt-3.5-turbo-1106 gpt-35-turbo",
        (16_000, 2_000): "gpt-4o-transcribe gpt-4o-mini-transcribe gpt-4o-transcribe-diarize",
        (128_000, 4_096): "gpt-4-turbo gpt-4-turbo-preview gpt-4-0125-preview gpt-4-1106-preview gpt-4o-2024-05-13",
        (128_000, 16_384): "gpt-4o gpt-4o-mini chatgpt-4o-latest gpt-4o-audio-preview gpt-4o-mini-audio-preview"
        " gpt-4o-search-preview gpt-4o-mini-search-preview gpt-4.5-preview gpt-audio gpt-audio-mini"
        " gpt-5-chat-latest gpt-5.1-chat-latest gpt-5.2-chat-latest gpt-5.3-chat-latest",
        (128_000, 32_768): "o1-preview",
        (128_000, 65_536): "o1-mini",
        (131_072, 131_072): "gpt-oss-20b gpt-oss-120b",
        (200_000, 100_000): "o1 o1-pro o3 o3-mini o3-pro o3-deep-research o4-mini o4-mini-deep-research"
        " codex-mini-latest",
        (400_000, 128_000): "gpt-5 gpt-5-mini gpt-5-nano gpt-5-codex gpt-5.1 gpt-5.1-codex gpt-5.1-codex-max"
        " gpt-5.1-codex-mini gpt-5.2 gpt-5.2-pro gpt-5.2-codex gpt-5.3-codex gpt-5.4-mini gpt-5.4-nano",
        (400_000, 272_000): "gpt-5-pro",
        (1_047_576, 32_768): "gpt-4.1 gpt-4.1-mini gpt-4.1-nano",
        (1_050_000, 128_000): "gpt-5.4 gpt-5.4-pro gpt-5.5 gpt-5.5-pro gpt-5.6 gpt-5.6-sol gpt-5.6-terra gpt-5.6-luna"
        " gpt-6-astra gpt-6-sol gpt-6-luna gpt-6.1-sol gpt-6.1-terra",
    }.items()
    for name in names.split()
}

_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def _limits(model: str) -> tuple[int, int] | None:
    name = _base_name(model)
    return _LIMITS.get(name) or _LIMITS.get(_DATE.sub("", name))


@lru_cache(maxsize=1024)
def _listed_window(name: str) -> int | None:
    """The window that genai-prices lists: OpenAI's, else the maker's, else the widest of the hosts'."""
    from genai_prices.data_snapshot import get_snapshot  # 0.2 s, and only for models not in the table above

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
