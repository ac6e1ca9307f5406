"""What the image endpoints take, by model: after the descriptions in CreateImageRequest and CreateImageEditRequest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connectors.emulator.images.drawing import Size
from connectors.emulator.validation import (
    Check,
    check_fields,
    flag,
    list_of,
    one_of,
    record,
    refuse,
    string,
    whole,
    wrong_type,
)


@dataclass(frozen=True, slots=True)
class Family:
    """Models that take the same parameters."""

    generation: Mapping[str, Check]
    edit: Mapping[str, Check]
    default_size: str
    is_gpt: bool = False
    """Answers with base64 and token usage; else with URLs unless asked otherwise."""
    revises: bool = False
    """Tells the prompt that it made of the caller's."""


def _any_size(value: Any, where: str) -> None:
    """`WIDTHxHEIGHT`, both divisible by 16, at most 3840x2160 pixels, no side more than three times the other."""
    if not isinstance(value, str):
        raise wrong_type(where, "a string", value)
    if value == "auto":
        return
    found = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", value, re.ASCII)
    if found is None:
        raise refuse(
            where, f"Invalid value: '{value}'. A size is written as WIDTHxHEIGHT, e.g. '1536x864'.", "invalid_value"
        )
    width, height = int(found[1]), int(found[2])
    if width % 16 or height % 16:
        raise refuse(where, f"Invalid value: '{value}'. Width and height must be divisible by 16.", "invalid_value")
    if max(width, height) > 3 * min(width, height):
        raise refuse(where, f"Invalid value: '{value}'. The aspect ratio must be between 1:3 and 3:1.", "invalid_value")
    if width * height > 3840 * 2160 or max(width, height) > 3840:
        raise refuse(where, f"Invalid value: '{value}'. At most 3840x2160 is supported.", "invalid_value")


def _common(longest: int, most: int, size: Check) -> dict[str, Check]:
    return {
        "prompt": string(longest=longest, shortest=1),
        "model": string(shortest=1),
        "n": whole(1, most),
        "size": size,
        "user": string(),
    }


_RETURNED: dict[str, Check] = {"response_format": one_of("url", "b64_json")}
_GPT: dict[str, Check] = {
    "quality": one_of("low", "medium", "high", "auto"),
    "background": one_of("transparent", "opaque", "auto"),
    "moderation": one_of("low", "auto"),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": whole(0, 100),
    "stream": flag,
    "partial_images": whole(0, 3),
}
_FIDELITY: dict[str, Check] = {"input_fidelity": one_of("high", "low")}
_SMALL_SIZES = one_of("256x256", "512x512", "1024x1024")
_GPT_SIZES = one_of("auto", "1024x1024", "1536x1024", "1024x1536")
_DALL_E_2 = _common(1000, 10, _SMALL_SIZES)
_GPT_COMMON = _common(32_000, 10, _GPT_SIZES)
_GPT_FREE = _common(32_000, 10, _any_size)

DALL_E_2 = Family(
    {**_DALL_E_2, **_RETURNED, "quality": one_of("standard", "auto")},
    {**_DALL_E_2, **_RETURNED, "quality": one_of("standard", "auto")},
    "1024x1024",
)
DALL_E_3 = Family(
    {
        **_common(4000, 1, one_of("1024x1024", "1792x1024", "1024x1792")),
        **_RETURNED,
        "quality": one_of("standard", "hd", "auto"),
        "style": one_of("vivid", "natural"),
    },
    {},
    "1024x1024",
    revises=True,
)
GPT_IMAGE = Family({**_GPT_COMMON, **_GPT}, {**_GPT_COMMON, **_GPT, **_FIDELITY}, "auto", is_gpt=True)
GPT_IMAGE_MINI = Family({**_GPT_COMMON, **_GPT}, {**_GPT_COMMON, **_GPT}, "auto", is_gpt=True)
GPT_IMAGE_2 = Family({**_GPT_FREE, **_GPT}, {**_GPT_FREE, **_GPT, **_FIDELITY}, "auto", is_gpt=True)
OTHER = Family(
    {**_GPT_FREE, **_RETURNED, "quality": string(), "style": string()},
    {**_GPT_FREE, **_RETURNED, "quality": string()},
    "1024x1024",
)
"""Models that are not OpenAI's."""

FAMILIES: Mapping[str, Family] = {
    "dall-e-2": DALL_E_2,
    "dall-e-3": DALL_E_3,
    "gpt-image-1": GPT_IMAGE,
    "gpt-image-1.5": GPT_IMAGE,
    "chatgpt-image-latest": GPT_IMAGE,
    "gpt-image-1-mini": GPT_IMAGE_MINI,
    "gpt-image-2": GPT_IMAGE_2,
    "gpt-image-2-2026-04-21": GPT_IMAGE_2,
}

VARIATION: Mapping[str, Check] = {
    "model": string(shortest=1),
    "n": whole(1, 10),
    "size": _SMALL_SIZES,
    "user": string(),
    **_RETURNED,
}

REFERENCE = record({"image_url": string(longest=20_971_520), "file_id": string()})
"""A picture named in JSON; the caller sees to it that it is one of the two."""

REFERENCES: Mapping[str, Check] = {"images": list_of(REFERENCE, least=1, most=16), "mask": REFERENCE}

_GPT_TOKENS: Mapping[str, tuple[int, int, int]] = {
    "low": (272, 408, 400),
    "medium": (1056, 1584, 1568),
    "high": (4160, 6240, 6208),
}
"""Output tokens of a square, a tall and a wide picture: https://platform.openai.com/docs/guides/image-generation."""


def check_generation(body: Mapping[str, Any], model: str) -> Family:
    """The family of the model; ApiError for what it does not take."""
    family = FAMILIES.get(model, OTHER)
    check_fields(body, family.generation, ("prompt",))
    _check_transparency(body)
    return family


def check_edit(body: Mapping[str, Any], model: str, *, is_json: bool) -> Family:
    """The family of the model; ApiError for what it does not take in an edit."""
    family = FAMILIES.get(model, OTHER)
    if not family.edit:
        allowed = ", ".join(f"'{name}'" for name in FAMILIES if FAMILIES[name].edit)
        raise refuse("model", f"Invalid value: '{model}'. Supported values are: {allowed}.", "invalid_value")
    if is_json and family is DALL_E_2:
        raise refuse("model", "Edits with 'dall-e-2' must be sent as multipart/form-data.", "invalid_value")
    fields = {**family.edit, **REFERENCES} if is_json else family.edit
    check_fields(body, fields, ("images", "prompt") if is_json else ("prompt",))
    _check_transparency(body)
    return family


def output_tokens(quality: str, size: Size) -> int:
    """Of one picture by a GPT image model; of an unusual size by its share of the pixels."""
    width, height = size
    square, tall, wide = _GPT_TOKENS[quality]
    known = {(1024, 1024): square, (1024, 1536): tall, (1536, 1024): wide}
    return known.get(size) or round(square * width * height / (1024 * 1024))


def input_image_tokens(size: Size) -> int:
    """Of one picture given to a GPT image model: 65, and 129 a tile of 512 pixels, its shorter side scaled to 512."""
    width, height = size
    scale = 512 / min(width, height)
    return 65 + 129 * -(-round(width * scale) // 512) * -(-round(height * scale) // 512)


def _check_transparency(body: Mapping[str, Any]) -> None:
    kind = body.get("output_format", "png")
    if body.get("background") == "transparent" and kind == "jpeg":
        raise refuse(
            "background", "Transparent background is not supported for the output format 'jpeg'.", "invalid_value"
        )
    if body.get("output_compression", 100) != 100 and kind == "png":
        raise refuse(
            "output_compression", "Compression less than 100 is not supported for PNG output format.", "invalid_value"
        )
