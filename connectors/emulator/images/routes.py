"""POST /images/generations, /images/edits and /images/variations, and GET of the pictures by URL."""

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from aiohttp import web
from msgspec import Struct

from connectors.emulator.api import ApiError, ApiRequest, ApiRoute, EmulatorState, json_answer
from connectors.emulator.images.drawing import (
    Size,
    draw_picture,
    edit_picture,
    encode_image,
    open_image,
    preview,
    vary_picture,
)
from connectors.emulator.images.request_checks import (
    DALL_E_2,
    EDIT_FORM,
    FAMILIES,
    VARIATION,
    ImageModelFamily,
    check_edit,
    check_generation,
    input_image_tokens,
    output_tokens,
)
from connectors.emulator.parameters import form_values, uploaded_files
from connectors.emulator.rate_limits import USED_TOKENS
from connectors.emulator.sse_stream import event, event_stream
from connectors.emulator.store import file_content
from connectors.emulator.validation import check_body, check_media_packages, check_model, refuse
from connectors.tokens import count_tokens

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DALL_E_2_BYTES = 4 * 1024 * 1024
"""Maximum size of a picture for dall-e-2, and of any mask."""
MAX_IMAGE_BYTES = 50 * 1024 * 1024
"""Maximum size of a picture for the GPT image models."""
MAX_STORED_PICTURES = 1024
"""Pictures available by URL; the oldest are dropped, as the API does after an hour."""

_GPT_ONLY = ("background", "moderation", "output_format", "output_compression", "stream", "partial_images")


class ImageOrder(Struct, frozen=True):
    """A validated image request and the function that draws its pictures."""

    name: str
    """Prefix of the event types: `image_generation` or `image_edit`."""
    family: ImageModelFamily
    body: dict[str, Any]
    size: Size
    draw: Callable[[int], "Image"]
    """Draw the picture with this index."""
    input_tokens: tuple[int, int]
    """(text tokens, image tokens)."""

    @property
    def count(self) -> int:
        """Number of pictures."""
        return int(self.body.get("n", 1))

    @property
    def kind(self) -> str:
        """Format of the files."""
        return str(self.body.get("output_format", "png"))

    def file(self, picture: "Image") -> bytes:
        """Encode a picture as a file."""
        return encode_image(picture, self.kind, self.body.get("output_compression", 100))


async def generate(api_request: ApiRequest) -> web.StreamResponse:
    """Generate pictures from a prompt."""
    check_media_packages()
    body = {name: value for name, value in api_request.body.items() if value is not None}
    fallback = "gpt-image-1.5" if any(name in body for name in _GPT_ONLY) else "dall-e-2"
    model = check_model({"model": body.get("model", fallback)})
    family = check_generation(body, model)
    size = _size(body, family)
    prompt, style = body["prompt"], (body.get("style"), body.get("quality"))
    clear = body.get("background") == "transparent"

    def draw(number: int) -> "Image":
        return draw_picture(prompt, size, model, style, number, transparent=clear)

    order = ImageOrder("image_generation", family, body, size, draw, (count_tokens(prompt, "gpt-4o"), 0))
    return await _answer(api_request, order)


async def edit(api_request: ApiRequest) -> web.StreamResponse:
    """Edit one or more pictures, within the mask if there is one."""
    check_media_packages()
    is_json = api_request.http_request.content_type != "multipart/form-data"
    body = form_values(api_request, EDIT_FORM)
    fallback = "dall-e-2" if "response_format" in body else "gpt-image-1.5"
    model = check_model({"model": body.get("model", fallback)})
    if is_json:
        family = check_edit(body, model, is_json=True)
        contents = [
            _referenced_content(reference, f"images[{index}]", api_request.state)
            for index, reference in enumerate(body["images"])
        ]
        mask_content = _referenced_content(body["mask"], "mask", api_request.state) if "mask" in body else None
    else:
        files = uploaded_files(api_request, {"image": 1 if model == "dall-e-2" else 16, "mask": 1}, "image")
        family = check_edit(body, model, is_json=False)
        contents = [content for _, content in files["image"]]
        mask_content = files["mask"][0][1] if "mask" in files else None
    images = [await asyncio.to_thread(_decode_picture, content, "image", family is DALL_E_2) for content in contents]
    mask = None if mask_content is None else await asyncio.to_thread(_decode_mask, mask_content, images[0].size)
    if family is DALL_E_2 and mask is None and "A" not in images[0].getbands():
        message = f"Invalid input image - format must be in ['RGBA', 'LA'] without a mask, got {images[0].mode}."
        raise refuse("image", message, "invalid_image_format")
    size, prompt = _size(body, family), body["prompt"]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]

    def draw(number: int) -> "Image":
        return edit_picture(images, mask, prompt, size, model, digests, number)

    tokens = (count_tokens(prompt, "gpt-4o"), sum(input_image_tokens(image.size) for image in images))
    return await _answer(api_request, ImageOrder("image_edit", family, body, size, draw, tokens))


async def vary(api_request: ApiRequest) -> web.StreamResponse:
    """Vary a picture."""
    check_media_packages()
    files = uploaded_files(api_request, {"image": 1}, "image")
    body = form_values(api_request, VARIATION)
    check_body(body, VARIATION)
    model = check_model({"model": body.get("model", "dall-e-2")})
    if model in FAMILIES and model != "dall-e-2":
        raise refuse("model", f"Invalid value: '{model}'. Value must be 'dall-e-2'.", "invalid_value")
    image = await asyncio.to_thread(_decode_picture, files["image"][0][1], "image", True)
    size = _size(body, DALL_E_2)
    order = ImageOrder(
        "image_variation", DALL_E_2, body, size, lambda number: vary_picture(image, size, number), (0, 0)
    )
    return await _answer(api_request, order)


async def show(api_request: ApiRequest) -> web.StreamResponse:
    """Return the picture of a URL from an answer."""
    content = api_request.state.contents.get(api_request.http_request.match_info["picture_id"])
    if content is None:
        raise ApiError(404, "This picture does not exist, or its URL has expired.", code="picture_not_found")
    kinds = {b"\x89PN": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIF": "image/webp"}
    return web.Response(body=content, content_type=kinds[content[:3]])


async def _answer(api_request: ApiRequest, order: ImageOrder) -> web.StreamResponse:
    is_gpt = order.family.is_gpt
    common_fields = _common_fields(order) if is_gpt else {}
    if is_gpt:
        api_request.http_request[USED_TOKENS] = common_fields["usage"]["total_tokens"]
    pictures = [await asyncio.to_thread(order.draw, number) for number in range(order.count)]
    files = [await asyncio.to_thread(order.file, picture) for picture in pictures]
    if is_gpt and order.body.get("stream"):
        events = await asyncio.to_thread(lambda: list(_events(order, pictures, files, common_fields)))
        return await event_stream(api_request, events)
    by_url = not is_gpt and order.body.get("response_format", "url") == "url"
    data: list[dict[str, Any]] = [
        {"url": _store_picture(api_request, file)} if by_url else {"b64_json": base64.b64encode(file).decode()}
        for file in files
    ]
    if order.family.revises_prompt:
        for entry in data:
            entry["revised_prompt"] = _revised_prompt(order.body)
    return json_answer({"created": int(time.time()), **common_fields, "data": data})


def _common_fields(order: ImageOrder) -> dict[str, Any]:
    """The fields of a GPT image model's answer besides the pictures."""
    quality_option, background = order.body.get("quality", "auto"), order.body.get("background", "auto")
    quality = "medium" if quality_option == "auto" else quality_option
    text, pictures = order.input_tokens
    output = output_tokens(quality, order.size) * order.count
    return {
        "background": "opaque" if background == "auto" else background,
        "output_format": order.kind,
        "quality": quality,
        "size": f"{order.size[0]}x{order.size[1]}",
        "usage": {
            "input_tokens": text + pictures,
            "input_tokens_details": {"text_tokens": text, "image_tokens": pictures},
            "output_tokens": output,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": output},
            "total_tokens": text + pictures + output,
        },
    }


def _events(
    order: ImageOrder, pictures: list["Image"], files: list[bytes], common_fields: dict[str, Any]
) -> Iterator[bytes]:
    shared = {**common_fields, "created_at": int(time.time())}
    usage = shared.pop("usage")
    for picture, file in zip(pictures, files, strict=True):
        for step in range(order.body.get("partial_images", 0)):
            partial = base64.b64encode(order.file(preview(picture, step))).decode()
            kind = f"{order.name}.partial_image"
            yield event({"type": kind, "b64_json": partial, "partial_image_index": step, **shared}, kind)
        kind = f"{order.name}.completed"
        yield event({"type": kind, "b64_json": base64.b64encode(file).decode(), **shared, "usage": usage}, kind)


def _revised_prompt(body: dict[str, Any]) -> str:
    style = "natural" if body.get("style") == "natural" else "vivid"
    return f"A {style} picture of shapes and colours, with these words written on it: {body['prompt']}"


def _size(body: dict[str, Any], family: ImageModelFamily) -> Size:
    quality_option = body.get("size", family.default_size)
    if quality_option == "auto":
        quality_option = "1024x1024"
    width, _, height = quality_option.partition("x")
    return int(width), int(height)


def _store_picture(api_request: ApiRequest, file: bytes) -> str:
    """Store a picture; its URL."""
    contents = api_request.state.contents
    picture_id = f"picture-{hashlib.sha256(file).hexdigest()[:24]}"
    contents.pop(picture_id, None)
    contents[picture_id] = file
    pictures = [name for name in contents if name.startswith("picture-")]
    for name in pictures[:-MAX_STORED_PICTURES]:
        del contents[name]
    return f"{api_request.http_request.url.origin()}/v1/local/pictures/{picture_id}"


def _decode_picture(content: bytes, param: str, for_dall_e_2: bool) -> "Image":
    """Decode an uploaded picture; ApiError if the model does not accept it."""
    max_bytes = MAX_DALL_E_2_BYTES if for_dall_e_2 else MAX_IMAGE_BYTES
    if len(content) >= max_bytes:
        raise refuse(
            param, f"Invalid input image - must be less than {max_bytes // (1024 * 1024)} MB.", "image_too_large"
        )
    try:
        picture, kind = open_image(content)
    except ValueError as exc:
        raise refuse(param, f"Invalid input image - {exc}.", "invalid_image_file") from exc
    allowed = ("PNG",) if for_dall_e_2 else ("PNG", "JPEG", "WEBP")
    if kind not in allowed:
        message = f"Invalid input image - must be {' or '.join(allowed)}, got {kind}."
        raise refuse(param, message, "invalid_image_format")
    if for_dall_e_2 and picture.width != picture.height:
        message = f"Invalid input image - must be square, got {picture.width}x{picture.height}."
        raise refuse(param, message, "invalid_image_size")
    return picture


def _decode_mask(content: bytes, size: Size) -> "Image":
    if len(content) >= MAX_DALL_E_2_BYTES:
        raise refuse("mask", "Invalid mask - must be less than 4 MB.", "image_too_large")
    try:
        mask, kind = open_image(content)
    except ValueError as exc:
        raise refuse("mask", f"Invalid mask - {exc}.", "invalid_image_file") from exc
    if kind != "PNG" or "A" not in mask.getbands():
        message = f"Invalid mask - must be a PNG with an alpha channel, got {kind} {mask.mode}."
        raise refuse("mask", message, "invalid_image_format")
    if mask.size != size:
        message = (
            f"Invalid mask - must have the size of the image, {size[0]}x{size[1]}, got {mask.width}x{mask.height}."
        )
        raise refuse("mask", message, "invalid_image_size")
    return mask


def _referenced_content(reference: dict[str, str], param: str, state: EmulatorState) -> bytes:
    """The content of a picture that JSON refers to."""
    if len(reference) != 1:
        raise refuse(param, f"Invalid '{param}': give exactly one of 'image_url' and 'file_id'.", "invalid_value")
    if "file_id" in reference:
        return file_content(state, reference["file_id"], f"{param}.file_id")
    head, comma, data = reference["image_url"].partition(",")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        message = "Could not download the image: the embedded provider has no network; send a data URL or a file_id."
        raise refuse(f"{param}.image_url", message, "invalid_image_url")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as exc:
        raise refuse(f"{param}.image_url", "The data URL is not base64.", "invalid_image_url") from exc


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/images/generations", generate),
    ApiRoute("POST", "/images/edits", edit),
    ApiRoute("POST", "/images/variations", vary),
    ApiRoute("GET", "/local/pictures/{picture_id}", show, is_rate_limited=False, requires_key=False),
)
