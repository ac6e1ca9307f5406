"""Rules of the image endpoints by model, from the descriptions in CreateImageRequest and CreateImageEditRequest."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from msgspec import Struct

from connectors.emulator.api_schemas import (
    NON_EMPTY,
    TEXT,
    RequestSchema,
    Schema,
    array,
    enum,
    integer,
    record,
    request_schema,
    text,
)
from connectors.emulator.images.drawing import Size
from connectors.emulator.validation import check_body, missing, refuse

REFERENCE = record(image_url=text(20_971_520), file_id=TEXT)
"""Reference to a picture in JSON; the caller checks that exactly one of the two is set."""

_GPT_ONLY = "background moderation output_format output_compression stream partial_images"


class ImageModelFamily(Struct, frozen=True, eq=False):
    """Models with the same parameters."""

    only: str
    """Names of the parameters, besides those of all models."""
    rules: Mapping[str, Schema]
    """Parameters that this family restricts further than the API's description."""
    is_gpt: bool = False
    """Whether answers have base64 and token usage; else they have URLs by default."""
    has_any_size: bool = False
    can_edit: bool = True
    revises_prompt: bool = False
    """Whether answers contain a revised prompt."""

    @property
    def default_size(self) -> str:
        """The size of a picture if the request has none."""
        return "auto" if self.is_gpt else "1024x1024"

    def schema(self, request: str, **more: Schema) -> RequestSchema:
        """The schema of a request such as `CreateImageRequest` for this family."""
        rules = {"model": NON_EMPTY, "output_compression": integer(0, 100), **self.rules, **more}
        return request_schema(request, rules, only=f"prompt model n size user {self.only} {' '.join(more)}")


_GPT_QUALITY = enum("low", "medium", "high", "auto")
_GPT = {
    "prompt": text(32_000, 1),
    "n": integer(1, 10),
    "quality": _GPT_QUALITY,
    "moderation": enum("low", "auto"),
}
_GPT_SIZES = enum("auto", "1024x1024", "1536x1024", "1024x1536")
_SMALL_SIZES = enum("256x256", "512x512", "1024x1024")

DALL_E_2 = ImageModelFamily(
    "response_format quality",
    {"prompt": text(1000, 1), "n": integer(1, 10), "size": _SMALL_SIZES, "quality": enum("standard", "auto")},
)
DALL_E_3 = ImageModelFamily(
    "response_format quality style",
    {
        "prompt": text(4000, 1),
        "n": integer(1, 1),
        "size": enum("1024x1024", "1792x1024", "1024x1792"),
        "quality": enum("standard", "hd", "auto"),
    },
    can_edit=False,
    revises_prompt=True,
)
GPT_IMAGE = ImageModelFamily(f"quality input_fidelity {_GPT_ONLY}", {**_GPT, "size": _GPT_SIZES}, is_gpt=True)
GPT_IMAGE_MINI = ImageModelFamily(f"quality {_GPT_ONLY}", {**_GPT, "size": _GPT_SIZES}, is_gpt=True)
GPT_IMAGE_2 = ImageModelFamily(f"quality input_fidelity {_GPT_ONLY}", _GPT, is_gpt=True, has_any_size=True)
OTHER = ImageModelFamily("response_format quality style", {**_GPT, "quality": TEXT, "style": TEXT}, has_any_size=True)
"""All other models."""

FAMILIES: Mapping[str, ImageModelFamily] = {
    "dall-e-2": DALL_E_2,
    "dall-e-3": DALL_E_3,
    "gpt-image-1": GPT_IMAGE,
    "gpt-image-1.5": GPT_IMAGE,
    "chatgpt-image-latest": GPT_IMAGE,
    "gpt-image-1-mini": GPT_IMAGE_MINI,
    "gpt-image-2": GPT_IMAGE_2,
    "gpt-image-2-2026-04-21": GPT_IMAGE_2,
}

EDIT_FORM = request_schema("CreateImageEditRequest", {}, without="image mask")
VARIATION = request_schema("CreateImageVariationRequest", {"model": NON_EMPTY}, without="image")

_GPT_TOKENS: Mapping[str, tuple[int, int, int]] = {
    "low": (272, 408, 400),
    "medium": (1056, 1584, 1568),
    "high": (4160, 6240, 6208),
}
"""Output tokens of a square, a portrait and a landscape picture: https://platform.openai.com/docs/guides/image-generation."""


def check_generation(body: Mapping[str, Any], model: str) -> ImageModelFamily:
    """The family of the model; ApiError for parameters that it does not accept."""
    family = FAMILIES.get(model, OTHER)
    _check(body, family, _generation_schema(family))
    return family


def check_edit(body: Mapping[str, Any], model: str, *, is_json: bool) -> ImageModelFamily:
    """The family of the model; ApiError for parameters that it does not accept in an edit."""
    family = FAMILIES.get(model, OTHER)
    if not family.can_edit:
        allowed = ", ".join(f"'{name}'" for name in FAMILIES if FAMILIES[name].can_edit)
        raise refuse("model", f"Invalid value: '{model}'. Supported values are: {allowed}.", "invalid_value")
    if is_json and family is DALL_E_2:
        raise refuse("model", "Edits with 'dall-e-2' must be sent as multipart/form-data.", "invalid_value")
    if is_json and body.get("images") is None:
        raise missing("images")
    _check(body, family, _edit_schema(family, is_json))
    return family


def _check(body: Mapping[str, Any], family: ImageModelFamily, schema: RequestSchema) -> None:
    check_body(body, schema)
    if family.has_any_size and "size" in body:
        _check_size(body["size"])
    _check_transparency(body)


@cache
def _generation_schema(family: ImageModelFamily) -> RequestSchema:
    return family.schema("CreateImageRequest")


@cache
def _edit_schema(family: ImageModelFamily, is_json: bool) -> RequestSchema:
    references = {"images": array(REFERENCE, minItems=1, maxItems=16), "mask": REFERENCE} if is_json else {}
    return family.schema("CreateImageEditRequest", **references)


def output_tokens(quality: str, size: Size) -> int:
    """Output tokens of one picture by a GPT image model; unlisted sizes scale by pixels."""
    width, height = size
    square, tall, wide = _GPT_TOKENS[quality]
    known = {(1024, 1024): square, (1024, 1536): tall, (1536, 1024): wide}
    return known.get(size) or round(square * width * height / (1024 * 1024))


def input_image_tokens(size: Size) -> int:
    """Input tokens of one picture for a GPT image model: 65, plus 129 per 512-pixel tile at a shorter side of 512."""
    width, height = size
    scale = 512 / min(width, height)
    return 65 + 129 * -(-round(width * scale) // 512) * -(-round(height * scale) // 512)


def _check_transparency(body: Mapping[str, Any]) -> None:
    output_format = body.get("output_format", "png")
    if body.get("background") == "transparent" and output_format == "jpeg":
        raise refuse(
            "background", "Transparent background is not supported for the output format 'jpeg'.", "invalid_value"
        )
    if body.get("output_compression", 100) != 100 and output_format == "png":
        raise refuse(
            "output_compression", "Compression less than 100 is not supported for PNG output format.", "invalid_value"
        )


def _check_size(value: str) -> None:
    """`WIDTHxHEIGHT`, both divisible by 16, at most 3840x2160 pixels, no side more than three times the other."""
    if value == "auto":
        return
    match = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", value, re.ASCII)
    if match is None:
        raise refuse(
            "size", f"Invalid value: '{value}'. A size is written as WIDTHxHEIGHT, e.g. '1536x864'.", "invalid_value"
        )
    width, height = int(match[1]), int(match[2])
    if width % 16 or height % 16:
        raise refuse("size", f"Invalid value: '{value}'. Width and height must be divisible by 16.", "invalid_value")
    if max(width, height) > 3 * min(width, height):
        raise refuse(
            "size", f"Invalid value: '{value}'. The aspect ratio must be between 1:3 and 3:1.", "invalid_value"
        )
    if width * height > 3840 * 2160 or max(width, height) > 3840:
        raise refuse("size", f"Invalid value: '{value}'. At most 3840x2160 is supported.", "invalid_value")
