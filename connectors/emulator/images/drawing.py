"""Pictures drawn from a digest: colours and shapes of its bytes, with the words of the prompt written on them."""

import hashlib
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from connectors.emulator.api import digest_of

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_PIXELS = 64_000_000
"""Of a picture that is read."""

_SHAPES = 8


def draw_picture(prompt: str, size: Size, *parts: object, transparent: bool = False) -> "Image":
    """A picture; the same prompt, size and parts give the same one. RGBA if `transparent`: only shapes and words."""
    from PIL import Image, ImageDraw, ImageFont

    digest = digest_of("picture", prompt, size, *parts) * 3
    if transparent:
        picture = Image.new("RGBA", size, (0, 0, 0, 0))
    else:
        # The four corners' colours, blended between them.
        corners = Image.frombytes("RGB", (2, 2), digest[:12])
        picture = corners.resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    width, height = size
    for shape in range(_SHAPES):
        x, y, reach, red, green, blue, kind = digest[12 + 7 * shape : 19 + 7 * shape]
        centre = (x * width // 255, y * height // 255)
        radius = min(size) * (reach + 40) // 1000
        if kind % 3 == 0:
            draw.regular_polygon((*centre, radius), 3 + kind % 5, rotation=kind, fill=(red, green, blue))
        else:
            box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
            draw.ellipse(box, fill=(red, green, blue))
    letters = max(min(size) // 18, 10)
    lines = textwrap.wrap(prompt, max(width // (letters * 5 // 9) - 3, 8), max_lines=5, placeholder=" …")
    # The size of the font is a float since Pillow 10.1; the built-in one needs no file.
    font = ImageFont.load_default(float(letters))
    draw.multiline_text(
        (letters, height - letters * (len(lines) * 4 // 3 + 2)),
        "\n".join(lines),
        font=font,
        fill="white",
        stroke_width=max(letters // 12, 1),
        stroke_fill="black",
    )
    return picture


def edit_picture(images: Sequence["Image"], mask: "Image | None", prompt: str, size: Size, *parts: object) -> "Image":
    """The first image, fitted to the size, with a new picture where the mask is transparent.

    Without a mask the image's own transparent area is filled; if it has none, the new picture shines through
    everywhere. Further images are set into the right-hand edge.
    """
    from PIL import Image

    base = images[0].convert("RGBA").resize(size)
    fresh = draw_picture(prompt, size, *parts).convert("RGBA")
    alpha = (base if mask is None else mask.convert("RGBA").resize(size, Image.Resampling.NEAREST)).getchannel("A")
    if alpha.getextrema()[0] == 255:
        result = Image.blend(base, fresh, 0.35)
    else:
        result = Image.composite(base, fresh, alpha.point(lambda value: 255 if value else 0))
    edge = max(min(size) // 6, 1)
    for place, other in enumerate(images[1:]):
        small = other.convert("RGBA").resize((edge, edge))
        result.paste(small, (size[0] - edge, edge * place % max(size[1] - edge, 1)))
    return result.convert("RGB")


def vary_picture(image: "Image", size: Size, *parts: object) -> "Image":
    """The image with its colours turned and maybe mirrored, chosen by its pixels and the parts."""
    from PIL import Image, ImageOps

    base = image.convert("RGB").resize(size)
    chosen = digest_of("variation", hashlib.sha256(base.tobytes()).hexdigest(), *parts)
    hue, saturation, value = base.convert("HSV").split()
    turned = hue.point([(shade + 20 + chosen[0] % 200) % 256 for shade in range(256)])
    result = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return ImageOps.mirror(result) if chosen[1] % 2 else result


def preview(picture: "Image", step: int) -> "Image":
    """As a picture looks while it is made: in blocks that become smaller from step to step."""
    from PIL import Image

    blocks = (max(picture.width >> (6 - step), 1), max(picture.height >> (6 - step), 1))
    return picture.resize(blocks).resize(picture.size, Image.Resampling.NEAREST)


def encode_image(picture: "Image", kind: str, compression: int = 100) -> bytes:
    """The bytes of a file: png, jpeg or webp; `compression` as output_compression, 100 the best quality."""
    out = io.BytesIO()
    if kind == "png":
        # Level 1 takes a third of the time of the default, for a quarter more bytes.
        picture.save(out, "PNG", compress_level=1)
    elif kind == "jpeg":
        picture.convert("RGB").save(out, "JPEG", quality=max(min(compression, 95), 1))
    else:
        picture.save(out, "WEBP", quality=compression, method=0)
    return out.getvalue()


def open_image(content: bytes) -> tuple["Image", str]:
    """(picture, its format in capitals, e.g. PNG); ValueError if it is none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"it has more than {MAX_PIXELS} pixels")
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as exc:
        raise ValueError(f"it is no picture that can be read ({exc})") from exc
    return picture, picture.format or ""
