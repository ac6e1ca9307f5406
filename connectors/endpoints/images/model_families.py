"""Parameters and token costs of each family of image models; unknown models are not checked."""

import re
from collections.abc import Mapping
from math import ceil
from typing import Any

from msgspec import Struct

from connectors.errors import JobError, KeyPath

_GPT_ONLY = ("background", "moderation", "output_format", "output_compression", "input_fidelity", "partial_images")


class ModelFamily(Struct, frozen=True):
    """Models with the same parameters: the reference, section 8, and the OpenAPI description."""

    name: str
    sizes: frozenset[str] | None
    """None: any that `_fits_gpt_image_2` accepts."""
    qualities: frozenset[str]
    max_images: int
    max_prompt_characters: int
    refused_params: tuple[str, ...]
    """Parameters of other families."""
    is_billed_by_token: bool


DALL_E_2 = ModelFamily(
    "dall-e-2",
    frozenset({"256x256", "512x512", "1024x1024"}),
    frozenset({"standard", "auto"}),
    10,
    1_000,
    ("style", "stream", *_GPT_ONLY),
    False,
)
DALL_E_3 = ModelFamily(
    "dall-e-3",
    frozenset({"1024x1024", "1792x1024", "1024x1792"}),
    frozenset({"standard", "hd", "auto"}),
    1,
    4_000,
    ("stream", *_GPT_ONLY),
    False,
)
_GPT_QUALITIES = frozenset({"low", "medium", "high", "auto"})
GPT_IMAGE = ModelFamily(
    "gpt-image-1",
    frozenset({"1024x1024", "1536x1024", "1024x1536", "auto"}),
    _GPT_QUALITIES,
    10,
    32_000,
    ("style", "response_format"),
    True,
)
GPT_IMAGE_2 = ModelFamily("gpt-image-2", None, _GPT_QUALITIES, 10, 32_000, ("style", "response_format"), True)


def family_of(model: str) -> ModelFamily | None:
    """Return a model's family; None if it is unknown."""
    for start, family in (
        ("dall-e-2", DALL_E_2),
        ("dall-e-3", DALL_E_3),
        ("gpt-image-2", GPT_IMAGE_2),
        ("gpt-image-1", GPT_IMAGE),
        ("chatgpt-image", GPT_IMAGE),
    ):
        if model.startswith(start):
            return family
    return None


def check_family_params(fixed: Mapping[str, Any], family: ModelFamily | None, where: KeyPath) -> None:
    """Raise JobError below `where` for a parameter that models of the family refuse."""
    if family is None:
        return
    for name in family.refused_params:
        if name in fixed:
            raise JobError((*where, name), f"{fixed['model']} does not accept it", "leave it out")
    size, quality, count = fixed.get("size"), fixed.get("quality"), image_count(fixed)
    if family.sizes is None and size is not None and not _fits_gpt_image_2(str(size)):
        raise JobError(
            (*where, "size"),
            f"found {size}, {fixed['model']} accepts auto or WIDTHxHEIGHT, both multiples of 16, at most "
            "3840x2160 pixels, no side more than three times the other",
            "correct it",
        )
    if family.sizes is not None and size is not None and size not in family.sizes:
        choices = _join_choices(family.sizes)
        raise JobError((*where, "size"), f"found {size}, {fixed['model']} accepts {choices}", "correct it")
    if quality is not None and quality not in family.qualities:
        raise JobError(
            (*where, "quality"),
            f"found {quality}, {fixed['model']} accepts {_join_choices(family.qualities)}",
            "correct it",
        )
    if count > family.max_images:
        raise JobError(
            (*where, "n"), f"found {count}, {fixed['model']} makes at most {family.max_images}", "correct it"
        )


def image_count(fixed: Mapping[str, Any]) -> int:
    """Return the number of pictures in a request."""
    count = fixed.get("n")
    return count if isinstance(count, int) and count > 0 else 1


def prompt_problem(prompt: str, family: ModelFamily | None) -> str | None:
    """Return why a prompt would be refused; None if it is accepted."""
    if not prompt:
        return "prompt: the text is empty"
    if family is not None and len(prompt) > family.max_prompt_characters:
        return f"prompt: {len(prompt):,} characters, {family.name} accepts {family.max_prompt_characters:,}"
    return None


def output_token_bound(fixed: Mapping[str, Any], family: ModelFamily | None) -> int | None:
    """Return the most output tokens of a request; None for an unknown model.

    After https://developers.openai.com/api/docs/guides/image-generation: 272, 1,056 and 4,160 tokens for 1024x1024 in
    low, medium and high quality, more for more pixels; 100 for each partial image. Doubled and 1,000 added, because
    later models count a little differently and write text as well.
    """
    if family is None:
        return None
    if not family.is_billed_by_token:
        return 0
    tokens = {"low": 272, "medium": 1_056}.get(str(fixed.get("quality")), 4_160)
    width, height = _sides(str(fixed.get("size"))) or (1536, 1024)
    per_image = (
        ceil(2 * tokens * max(1.0, width * height / (1 << 20))) + 100 * int(fixed.get("partial_images") or 0) + 1_000
    )
    return per_image * image_count(fixed)


def input_image_tokens(fixed: Mapping[str, Any], family: ModelFamily | None) -> int:
    """Return about the most tokens of an input picture.

    They are 65, 129 for each tile, and some 6,240 more at high fidelity, which models after gpt-image-1 always use.
    """
    if family is None or not family.is_billed_by_token:
        return 0
    has_low_fidelity = re.match(r"gpt-image-1(-mini)?(-\d{4}|$)", str(fixed["model"])) is not None
    return 1_100 if has_low_fidelity and fixed.get("input_fidelity") != "high" else 7_340


def _sides(size: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    return (int(match[1]), int(match[2])) if match else None


def _fits_gpt_image_2(size: str) -> bool:
    if size == "auto":
        return True
    sides = _sides(size)
    if sides is None:
        return False
    short, long = sorted(sides)
    return short > 0 and short % 16 == 0 and long % 16 == 0 and long <= 3 * short and long <= 3840 and short <= 2160


def _join_choices(choices: frozenset[str]) -> str:
    return ", ".join(sorted(choices, key=lambda choice: (len(choice), choice)))
