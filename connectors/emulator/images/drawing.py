"""Emulated pictures: colours and shapes from a digest, with the prompt written on them."""

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
"""Pixels of a picture that is read."""

_SHAPE_COUNT = 8


def draw_picture(prompt: str, size: Size, *parts: object, transparent: bool = False) -> "Image":
    """Draw a picture; equal arguments give equal pictures. `transparent` gives RGBA without a background."""
    from PIL import Image, ImageDraw, ImageFont

    digest = digest_of("picture", prompt, size, *parts) * 3
    if transparent:
        picture = Image.new("RGBA", size, (0, 0, 0, 0))
    else:
        # The colours of the four corners are interpolated.
        corners = Image.frombytes("RGB", (2, 2), digest[:12])
        picture = corners.resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    width, height = size
    for shape in range(_SHAPE_COUNT):
        x, y, reach, red, green, blue, image_format = digest[12 + 7 * shape : 19 + 7 * shape]
        centre = (x * width // 255, y * height // 255)
        radius = min(size) * (reach + 40) // 1000
        if image_format % 3 == 0:
            draw.regular_polygon(
                (*centre, radius), 3 + image_format % 5, rotation=image_format, fill=(red, green, blue)
            )
        else:
            box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
            draw.ellipse(box, fill=(red, green, blue))
    font_size = max(min(size) // 18, 10)
    lines = textwrap.wrap(prompt, max(width // (font_size * 5 // 9) - 3, 8), max_lines=5, placeholder=" …")
    # Since Pillow 10.1 the size is a float; the built-in font needs no file.
    font = ImageFont.load_default(float(font_size))
    draw.multiline_text(
        (font_size, height - font_size * (len(lines) * 4 // 3 + 2)),
        "\n".join(lines),
        font=font,
        fill="white",
        stroke_width=max(font_size // 12, 1),
        stroke_fill="black",
    )
    return picture


def edit_picture(images: Sequence["Image"], mask: "Image | None", prompt: str, size: Size, *parts: object) -> "Image":
    """The first image at the given size, with a new picture in the transparent area of the mask.

    Without a mask, the transparent area of the image counts; if it has none, the new picture is blended in. Further
    images are placed along the right edge.
    """
    from PIL import Image

    base = images[0].convert("RGBA").resize(size)
    generated = draw_picture(prompt, size, *parts).convert("RGBA")
    alpha = (base if mask is None else mask.convert("RGBA").resize(size, Image.Resampling.NEAREST)).getchannel("A")
    if alpha.getextrema()[0] == 255:
        result = Image.blend(base, generated, 0.35)
    else:
        result = Image.composite(base, generated, alpha.point(lambda value: 255 if value else 0))
    edge = max(min(size) // 6, 1)
    for index, other in enumerate(images[1:]):
        small = other.convert("RGBA").resize((edge, edge))
        result.paste(small, (size[0] - edge, edge * index % max(size[1] - edge, 1)))
    return result.convert("RGB")


def vary_picture(image: "Image", size: Size, *parts: object) -> "Image":
    """The image with rotated hues and possibly mirrored, depending on its pixels and `parts`."""
    from PIL import Image, ImageOps

    base = image.convert("RGB").resize(size)
    digest = digest_of("variation", hashlib.sha256(base.tobytes()).hexdigest(), *parts)
    hue, saturation, value = base.convert("HSV").split()
    rotated = hue.point([(shade + 20 + digest[0] % 200) % 256 for shade in range(256)])
    result = Image.merge("HSV", (rotated, saturation, value)).convert("RGB")
    return ImageOps.mirror(result) if digest[1] % 2 else result


def preview(picture: "Image", step: int) -> "Image":
    """A partial image: blocks that become smaller from step to step."""
    from PIL import Image

    blocks = (max(picture.width >> (6 - step), 1), max(picture.height >> (6 - step), 1))
    return picture.resize(blocks).resize(picture.size, Image.Resampling.NEAREST)


def encode_image(picture: "Image", image_format: str, compression: int = 100) -> bytes:
    """Encode as png, jpeg or webp; `compression` is output_compression, with 100 as the best quality."""
    out = io.BytesIO()
    if image_format == "png":
        # Level 1 takes a third of the default's time, with a quarter more bytes.
        picture.save(out, "PNG", compress_level=1)
    elif image_format == "jpeg":
        picture.convert("RGB").save(out, "JPEG", quality=max(min(compression, 95), 1))
    else:
        picture.save(out, "WEBP", quality=compression, method=0)
    return out.getvalue()


def open_image(content: bytes) -> tuple["Image", str]:
    """(picture, format such as PNG); ValueError if it is unreadable."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"it has more than {MAX_PIXELS} pixels")
        picture.load()
    except UnidentifiedImageError as exc:
        raise ValueError("it is not a readable picture") from exc
    except (OSError, SyntaxError, Image.DecompressionBombError) as exc:
        raise ValueError(f"it is not a readable picture ({exc})") from exc
    return picture, picture.format or ""
