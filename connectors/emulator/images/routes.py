"""POST /images/generations, /images/edits and /images/variations, and the pictures that their URLs name."""

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

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
from connectors.emulator.validation import check_body, check_model, refuse
from connectors.tokens import count_tokens

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DALL_E_2_BYTES = 4 * 1024 * 1024
"""Bytes of a picture or mask for dall-e-2."""
MAX_IMAGE_BYTES = 50 * 1024 * 1024
"""Bytes of a picture for the GPT image models."""
MAX_STORED_PICTURES = 1024
"""Pictures kept for their URLs; of more, the oldest are forgotten, as the API does after an hour."""

_GPT_ONLY = ("background", "moderation", "output_format", "output_compression", "stream", "partial_images")


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """What is to be made, and how it is handed over."""

    name: str
    """`image_generation` or `image_edit`, as the events are called."""
    family: ImageModelFamily
    body: dict[str, Any]
    size: Size
    make: Callable[[int], "Image"]
    """The picture of this number, counted from 0."""
    input_tokens: tuple[int, int]
    """Of text, of pictures."""

    @property
    def count(self) -> int:
        """How many pictures."""
        return int(self.body.get("n", 1))

    @property
    def kind(self) -> str:
        """The format of the files."""
        return str(self.body.get("output_format", "png"))

    def file(self, picture: "Image") -> bytes:
        """The picture as a file."""
        return encode_image(picture, self.kind, self.body.get("output_compression", 100))


async def generate(api_request: ApiRequest) -> web.StreamResponse:
    """Pictures of a prompt."""
    body = {name: value for name, value in api_request.body.items() if value is not None}
    fallback = "gpt-image-1.5" if any(name in body for name in _GPT_ONLY) else "dall-e-2"
    model = check_model({"model": body.get("model", fallback)})
    family = check_generation(body, model)
    size = _size(body, family)
    prompt, style = body["prompt"], (body.get("style"), body.get("quality"))
    clear = body.get("background") == "transparent"

    def make(number: int) -> "Image":
        return draw_picture(prompt, size, model, style, number, transparent=clear)

    order = ImageOrder("image_generation", family, body, size, make, (count_tokens(prompt, "gpt-4o"), 0))
    return await _answer(api_request, order)


async def edit(api_request: ApiRequest) -> web.StreamResponse:
    """Pictures made of one or more others, where a mask allows it."""
    is_json = api_request.http_request.content_type != "multipart/form-data"
    body = form_values(api_request, EDIT_FORM)
    fallback = "dall-e-2" if "response_format" in body else "gpt-image-1.5"
    model = check_model({"model": body.get("model", fallback)})
    if is_json:
        family = check_edit(body, model, is_json=True)
        contents = [
            _referenced_content(one, f"images[{place}]", api_request.state) for place, one in enumerate(body["images"])
        ]
        given_mask = _referenced_content(body["mask"], "mask", api_request.state) if "mask" in body else None
    else:
        files = uploaded_files(api_request, {"image": 1 if model == "dall-e-2" else 16, "mask": 1}, "image")
        family = check_edit(body, model, is_json=False)
        contents = [content for _, content in files["image"]]
        given_mask = files["mask"][0][1] if "mask" in files else None
    images = [await asyncio.to_thread(_picture, content, "image", family is DALL_E_2) for content in contents]
    mask = None if given_mask is None else await asyncio.to_thread(_mask, given_mask, images[0].size)
    if family is DALL_E_2 and mask is None and "A" not in images[0].getbands():
        message = f"Invalid input image - format must be in ['RGBA', 'LA'] without a mask, got {images[0].mode}."
        raise refuse("image", message, "invalid_image_format")
    size, prompt = _size(body, family), body["prompt"]
    marks = [hashlib.sha256(content).hexdigest() for content in contents]

    def make(number: int) -> "Image":
        return edit_picture(images, mask, prompt, size, model, marks, number)

    tokens = (count_tokens(prompt, "gpt-4o"), sum(input_image_tokens(image.size) for image in images))
    return await _answer(api_request, ImageOrder("image_edit", family, body, size, make, tokens))


async def vary(api_request: ApiRequest) -> web.StreamResponse:
    """Pictures that resemble another."""
    files = uploaded_files(api_request, {"image": 1}, "image")
    body = form_values(api_request, VARIATION)
    check_body(body, VARIATION)
    model = check_model({"model": body.get("model", "dall-e-2")})
    if model in FAMILIES and model != "dall-e-2":
        raise refuse("model", f"Invalid value: '{model}'. Value must be 'dall-e-2'.", "invalid_value")
    image = await asyncio.to_thread(_picture, files["image"][0][1], "image", True)
    size = _size(body, DALL_E_2)
    order = ImageOrder(
        "image_variation", DALL_E_2, body, size, lambda number: vary_picture(image, size, number), (0, 0)
    )
    return await _answer(api_request, order)


async def show(api_request: ApiRequest) -> web.StreamResponse:
    """A picture by the URL that an answer told."""
    content = api_request.state.contents.get(api_request.http_request.match_info["picture_id"])
    if content is None:
        raise ApiError(404, "This picture is not there, or its URL has expired.", code="picture_not_found")
    kinds = {b"\x89PN": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIF": "image/webp"}
    return web.Response(body=content, content_type=kinds[content[:3]])


async def _answer(api_request: ApiRequest, order: ImageOrder) -> web.StreamResponse:
    is_gpt = order.family.is_gpt
    told = _image_facts(order) if is_gpt else {}
    if is_gpt:
        api_request.http_request[USED_TOKENS] = told["usage"]["total_tokens"]
    pictures = [await asyncio.to_thread(order.make, number) for number in range(order.count)]
    files = [await asyncio.to_thread(order.file, picture) for picture in pictures]
    if is_gpt and order.body.get("stream"):
        events = await asyncio.to_thread(lambda: list(_events(order, pictures, files, told)))
        return await event_stream(api_request, events)
    by_url = not is_gpt and order.body.get("response_format", "url") == "url"
    data: list[dict[str, Any]] = [
        {"url": _store_picture(api_request, file)} if by_url else {"b64_json": base64.b64encode(file).decode()}
        for file in files
    ]
    if order.family.revises:
        for one in data:
            one["revised_prompt"] = _revised_prompt(order.body)
    return json_answer({"created": int(time.time()), **told, "data": data})


def _image_facts(order: ImageOrder) -> dict[str, Any]:
    """What a GPT image model says of its pictures beside them."""
    asked, background = order.body.get("quality", "auto"), order.body.get("background", "auto")
    quality = "medium" if asked == "auto" else asked
    text, pictures = order.input_tokens
    made = output_tokens(quality, order.size) * order.count
    return {
        "background": "opaque" if background == "auto" else background,
        "output_format": order.kind,
        "quality": quality,
        "size": f"{order.size[0]}x{order.size[1]}",
        "usage": {
            "input_tokens": text + pictures,
            "input_tokens_details": {"text_tokens": text, "image_tokens": pictures},
            "output_tokens": made,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
            "total_tokens": text + pictures + made,
        },
    }


def _events(order: ImageOrder, pictures: list["Image"], files: list[bytes], told: dict[str, Any]) -> Iterator[bytes]:
    shared = {**told, "created_at": int(time.time())}
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
    asked = body.get("size", family.default_size)
    if asked == "auto":
        asked = "1024x1024"
    width, _, height = asked.partition("x")
    return int(width), int(height)


def _store_picture(api_request: ApiRequest, file: bytes) -> str:
    """The URL under which a picture can be fetched."""
    contents = api_request.state.contents
    picture_id = f"picture-{hashlib.sha256(file).hexdigest()[:24]}"
    contents.pop(picture_id, None)
    contents[picture_id] = file
    pictures = [name for name in contents if name.startswith("picture-")]
    for name in pictures[:-MAX_STORED_PICTURES]:
        del contents[name]
    return f"{api_request.http_request.url.origin()}/v1/local/pictures/{picture_id}"


def _picture(content: bytes, where: str, for_dall_e_2: bool) -> "Image":
    """The picture in a file; ApiError if the model does not take it."""
    most = MAX_DALL_E_2_BYTES if for_dall_e_2 else MAX_IMAGE_BYTES
    if len(content) >= most:
        raise refuse(where, f"Invalid input image - must be less than {most // (1024 * 1024)} MB.", "image_too_large")
    try:
        picture, kind = open_image(content)
    except ValueError as exc:
        raise refuse(where, f"Invalid input image - {exc}.", "invalid_image_file") from exc
    allowed = ("PNG",) if for_dall_e_2 else ("PNG", "JPEG", "WEBP")
    if kind not in allowed:
        message = f"Invalid input image - must be {' or '.join(allowed)}, got {kind}."
        raise refuse(where, message, "invalid_image_format")
    if for_dall_e_2 and picture.width != picture.height:
        message = f"Invalid input image - must be square, got {picture.width}x{picture.height}."
        raise refuse(where, message, "invalid_image_size")
    return picture


def _mask(content: bytes, size: Size) -> "Image":
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


def _referenced_content(reference: dict[str, str], where: str, state: EmulatorState) -> bytes:
    """The bytes of a picture named in JSON."""
    if len(reference) != 1:
        raise refuse(where, f"Invalid '{where}': give exactly one of 'image_url' and 'file_id'.", "invalid_value")
    if "file_id" in reference:
        return file_content(state, reference["file_id"], f"{where}.file_id")
    head, comma, data = reference["image_url"].partition(",")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        message = "Could not download the image: the local provider has no network; send a data URL or a file_id."
        raise refuse(f"{where}.image_url", message, "invalid_image_url")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as exc:
        raise refuse(f"{where}.image_url", "The data URL is not base64.", "invalid_image_url") from exc


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute("POST", "/images/generations", generate),
    ApiRoute("POST", "/images/edits", edit),
    ApiRoute("POST", "/images/variations", vary),
    ApiRoute("GET", "/local/pictures/{picture_id}", show, is_rate_limited=False, requires_key=False),
)
