"""Facts about an image in a request: format, size, dominant colour."""

import binascii
import io
import warnings
from base64 import b64decode
from collections import Counter

from msgspec import Struct

from connectors.emulator.validation import check_media_packages, refuse

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""Maximum size of one image."""
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")

_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (220, 30, 30),
    "orange": (245, 140, 30),
    "yellow": (240, 220, 50),
    "green": (40, 150, 50),
    "cyan": (50, 200, 210),
    "blue": (40, 70, 200),
    "purple": (130, 50, 160),
    "pink": (245, 160, 190),
    "brown": (120, 75, 40),
}


class ImageFacts(Struct, frozen=True):
    """Facts about one image."""

    format: str
    width: int
    height: int
    colour: str

    def description(self) -> str:
        """The facts as part of a sentence."""
        return f"a {self.format} image of {self.width} x {self.height} pixels, mostly {self.colour}"

    def values(self) -> dict[str, str | int]:
        """The facts by the names that a schema may use."""
        colours = ("color", "colour", "dominant_color", "dominant_colour", "main_color", "main_colour")
        return {
            "format": self.format,
            "width": self.width,
            "height": self.height,
            **dict.fromkeys(colours, self.colour),
        }


def inspect_image(url: str, param: str) -> ImageFacts | None:
    """Decode the image of a data URL; None for http(s) URLs, which are not fetched; ApiError 400 for a bad image."""
    if url.startswith(("http://", "https://")):
        return None
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise refuse(
            param,
            f"Invalid '{param}': expected an http(s) URL or a base64-encoded data URL of an image.",
            "invalid_image",
        )
    try:
        data = b64decode(body, validate=True)
    except binascii.Error as exc:
        raise refuse(param, f"Invalid '{param}': the base64 of this data URL cannot be read.", "invalid_image") from exc
    if len(data) > MAX_IMAGE_BYTES:
        raise refuse(param, f"Invalid '{param}': this image is larger than 20 MB.", "image_too_large")
    return _decode_facts(data, param)


def _decode_facts(data: bytes, param: str) -> ImageFacts:
    check_media_packages()
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image_format, (width, height) = image.format or "", image.size
                if image_format not in FORMATS:
                    raise refuse(
                        param,
                        "You uploaded an unsupported image. Please make sure your image has one of the following "
                        "formats: ['png', 'jpeg', 'gif', 'webp'].",
                        "invalid_image_format",
                    )
                image.draft("RGB", (64, 64))
                small = image.convert("RGBA").resize((32, 32))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as exc:
        raise refuse(param, f"Invalid '{param}': this is not a readable image.", "invalid_image") from exc
    raw = small.tobytes()
    pixels = Counter(_colour_name(*raw[at : at + 3]) for at in range(0, len(raw), 4) if raw[at + 3] >= 128)
    return ImageFacts(image_format, width, height, pixels.most_common(1)[0][0] if pixels else "transparent")


def _colour_name(red: int, green: int, blue: int) -> str:
    return min(
        _COLOURS,
        key=lambda name: sum(
            (first - second) ** 2 for first, second in zip(_COLOURS[name], (red, green, blue), strict=True)
        ),
    )
