"""What is true of a picture in a request: its format, its size, its dominant colour."""

import binascii
import io
import warnings
from base64 import b64decode
from collections import Counter
from dataclasses import dataclass

from connectors.emulator.validation import refuse

LARGEST = 20 * 1024 * 1024
"""Bytes of one picture."""
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


@dataclass(frozen=True, slots=True)
class Sight:
    """One picture."""

    format: str
    width: int
    height: int
    colour: str

    def words(self) -> str:
        """In a sentence."""
        return f"a {self.format} image of {self.width} x {self.height} pixels, mostly {self.colour}"

    def facts(self) -> dict[str, str | int]:
        """By the names that a schema may give them."""
        colours = ("color", "colour", "dominant_color", "dominant_colour", "main_color", "main_colour")
        return {
            "format": self.format,
            "width": self.width,
            "height": self.height,
            **dict.fromkeys(colours, self.colour),
        }


def look(url: str, where: str) -> Sight | None:
    """What a data URL shows; None for http(s) URLs, which are not fetched; ApiError 400 for what is no picture."""
    if url.startswith(("http://", "https://")):
        return None
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise refuse(
            where,
            f"Invalid '{where}': expected an http(s) URL or a base64-encoded data URL of an image.",
            "invalid_image",
        )
    try:
        data = b64decode(body, validate=True)
    except binascii.Error as exc:
        raise refuse(where, f"Invalid '{where}': the base64 of this data URL cannot be read.", "invalid_image") from exc
    if len(data) > LARGEST:
        raise refuse(where, f"Invalid '{where}': this image is larger than 20 MB.", "image_too_large")
    return _seen(data, where)


def _seen(data: bytes, where: str) -> Sight:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                form, (width, height) = image.format or "", image.size
                if form not in FORMATS:
                    raise refuse(
                        where,
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
        raise refuse(where, f"Invalid '{where}': this is no image that can be read.", "invalid_image") from exc
    raw = small.tobytes()
    seen = Counter(_name(*raw[at : at + 3]) for at in range(0, len(raw), 4) if raw[at + 3] >= 128)
    return Sight(form, width, height, seen.most_common(1)[0][0] if seen else "transparent")


def _name(red: int, green: int, blue: int) -> str:
    return min(
        _COLOURS,
        key=lambda name: sum((one - two) ** 2 for one, two in zip(_COLOURS[name], (red, green, blue), strict=True)),
    )
