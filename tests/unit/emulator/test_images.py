"""Pictures of the emulator, through the official SDK."""

import base64
import io
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
from PIL import Image

from connectors.emulator.images.request_checks import input_image_tokens

PROMPT = "A cute baby sea otter wearing a beret"


def picture_of(image: Any, http: httpx.Client | None = None) -> Image.Image:
    """The picture in an answer, from base64 or from its URL."""
    if image.b64_json is not None:
        return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))
    assert http is not None
    return Image.open(io.BytesIO(http.get(image.url).raise_for_status().content))


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def photo(width: int = 64, height: int = 64, mode: str = "RGB") -> Image.Image:
    """A picture in which every pixel has a different colour."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=2)
    return Image.fromarray(pixels.astype(np.uint8), "RGB").convert(mode)


def hole(width: int = 64, height: int = 64) -> Image.Image:
    """A mask with a transparent centre."""
    mask = Image.new("RGBA", (width, height), "white")
    mask.paste((0, 0, 0, 0), (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    return mask


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("dall-e-2", "256x256", (256, 256)),
        ("dall-e-2", "512x512", (512, 512)),
        ("dall-e-2", None, (1024, 1024)),
        ("dall-e-3", "1792x1024", (1792, 1024)),
        ("dall-e-3", "1024x1792", (1024, 1792)),
        ("gpt-image-1", None, (1024, 1024)),
        ("gpt-image-1", "auto", (1024, 1024)),
        ("gpt-image-1", "1536x1024", (1536, 1024)),
        ("gpt-image-2", "1536x864", (1536, 864)),
        ("a-model-of-others", "640x320", (640, 320)),
    ],
)
def test_a_picture_has_the_requested_size(
    client: openai.OpenAI, http: httpx.Client, model: str, size: Any, expected: tuple[int, int]
) -> None:
    options = {} if size is None else {"size": size}
    (image,) = client.images.generate(prompt=PROMPT, model=model, **options).data or ()
    picture = picture_of(image, http)
    assert (picture.format, picture.size) == ("PNG", expected)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_gpt_image_models_answer_in_the_requested_format_with_token_usage(client: openai.OpenAI, kind: Any) -> None:
    answer = client.images.generate(prompt=PROMPT, model="gpt-image-1", output_format=kind, quality="low", n=2)
    assert [picture_of(image).format for image in answer.data or ()] == [kind.upper()] * 2
    assert (answer.output_format, answer.quality, answer.size, answer.background) == (
        kind,
        "low",
        "1024x1024",
        "opaque",
    )
    usage = answer.usage
    assert usage is not None
    assert (usage.output_tokens, usage.input_tokens_details.image_tokens) == (2 * 272, 0)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_lower_quality_makes_smaller_files(client: openai.OpenAI) -> None:
    sizes = [
        len(
            client.images.generate(
                prompt=PROMPT, model="gpt-image-1", output_format="jpeg", output_compression=compression
            )
            .data[0]
            .b64_json  # type: ignore[index]
            or ""
        )
        for compression in (100, 50, 0)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_a_transparent_background_is_transparent(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, model="gpt-image-1", background="transparent")
    (image,) = answer.data or ()
    assert picture_of(image).getchannel("A").getextrema() == (0, 255)
    assert answer.background == "transparent"


def test_equal_requests_give_equal_pictures_and_the_pictures_of_one_differ(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    def generate(**more: Any) -> list[bytes]:
        answer = client.images.generate(**{"prompt": PROMPT, "model": "dall-e-2", "size": "256x256", "n": 3, **more})
        return [picture_of(image, http).tobytes() for image in answer.data or ()]

    first = generate()
    assert len(set(first)) == 3
    assert generate() == generate(response_format="b64_json") == first
    assert not set(generate(prompt="Something else")) & set(first)


def test_only_dall_e_3_returns_a_revised_prompt(client: openai.OpenAI) -> None:
    (image,) = client.images.generate(prompt=PROMPT, model="dall-e-3", style="natural", quality="hd").data or ()
    assert image.revised_prompt is not None
    assert PROMPT in image.revised_prompt
    (other,) = client.images.generate(prompt=PROMPT, model="dall-e-2", size="256x256").data or ()
    assert other.revised_prompt is None


def test_the_default_model_is_dall_e_2_unless_a_parameter_requires_another(client: openai.OpenAI) -> None:
    (image,) = client.images.generate(prompt=PROMPT, size="256x256").data or ()
    assert image.url is not None
    (image,) = client.images.generate(prompt=PROMPT, output_format="webp").data or ()
    assert image.b64_json is not None


def test_streamed_pictures_are_partial_first_and_then_complete(client: openai.OpenAI) -> None:
    events: list[Any] = list(client.images.generate(prompt=PROMPT, model="gpt-image-1", stream=True, partial_images=2))
    assert [image.type for image in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [image.partial_image_index for image in events[:2]] == [0, 1]
    (whole,) = client.images.generate(prompt=PROMPT, model="gpt-image-1").data or ()
    assert events[-1].b64_json == whole.b64_json
    assert events[-1].usage.output_tokens == 1056


def test_an_unknown_picture_is_a_404(base_url: str, http: httpx.Client) -> None:
    assert http.get(f"{base_url}/local/pictures/picture-none").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 1001, "model": "dall-e-2"}, "prompt"),
        ({"prompt": "x" * 4001, "model": "dall-e-3"}, "prompt"),
        ({"prompt": "x" * 32001, "model": "gpt-image-1"}, "prompt"),
        ({"model": "dall-e-2", "n": 11}, "n"),
        ({"model": "dall-e-2", "n": "2"}, "n"),
        ({"model": "dall-e-3", "n": 2}, "n"),
        ({"model": "dall-e-2", "size": "1792x1024"}, "size"),
        ({"model": "dall-e-3", "size": "256x256"}, "size"),
        ({"model": "gpt-image-1", "size": "512x512"}, "size"),
        ({"model": "gpt-image-2", "size": "1000x1000"}, "size"),
        ({"model": "gpt-image-2", "size": "3200x800"}, "size"),
        ({"model": "gpt-image-2", "size": "big"}, "size"),
        ({"model": "dall-e-2", "style": "vivid"}, "style"),
        ({"model": "dall-e-2", "quality": "hd"}, "quality"),
        ({"model": "dall-e-3", "quality": "high"}, "quality"),
        ({"model": "gpt-image-1", "response_format": "url"}, "response_format"),
        ({"model": "gpt-image-1", "background": "transparent", "output_format": "jpeg"}, "background"),
        ({"model": "gpt-image-1", "output_compression": 50}, "output_compression"),
        ({"model": "gpt-image-1", "partial_images": 4}, "partial_images"),
        ({"response_format": "file"}, "response_format"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_invalid_parameter_is_a_400_that_names_it(
    base_url: str, http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    reply = http.post(f"{base_url}/images/generations", json={"prompt": PROMPT, **body})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_an_edit_changes_only_the_transparent_area_of_the_mask(client: openai.OpenAI) -> None:
    source = photo(256, 256)
    (image,) = (
        client.images.edit(
            model="dall-e-2",
            image=("a.png", file_of(source)),
            mask=("m.png", file_of(hole(256, 256))),
            prompt=PROMPT,
            size="256x256",
            response_format="b64_json",
        ).data
        or ()
    )
    changed = (np.asarray(picture_of(image)) != np.asarray(source)).any(axis=2)
    assert changed[64:192, 64:192].mean() > 0.9
    changed[64:192, 64:192] = False
    assert not changed.any()


def test_without_a_mask_the_transparent_part_of_the_picture_is_filled(client: openai.OpenAI) -> None:
    source = photo(256, 256, "RGBA")
    source.putalpha(hole(256, 256).getchannel("A"))
    (image,) = (
        client.images.edit(
            model="dall-e-2", image=file_of(source), prompt=PROMPT, size="256x256", response_format="b64_json"
        ).data
        or ()
    )
    changed = (np.asarray(picture_of(image)) != np.asarray(source.convert("RGB"))).any(axis=2)
    assert changed[64:192, 64:192].mean() > 0.9
    assert not changed[:64].any()


def test_several_pictures_are_edited_into_one(client: openai.OpenAI) -> None:
    images = [file_of(photo(96, 64), kind) for kind in ("PNG", "JPEG", "WEBP")]
    options: dict[str, Any] = {"model": "gpt-image-1", "prompt": PROMPT, "size": "1536x1024", "input_fidelity": "high"}
    image = client.images.edit(image=images, mask=("m.png", file_of(hole(96, 64))), **options)
    assert [picture_of(made).size for made in image.data or ()] == [(1536, 1024)]
    assert image.usage is not None
    assert image.usage.input_tokens_details.image_tokens == 3 * input_image_tokens((96, 64))
    fewer = client.images.edit(image=images[:1], mask=("m.png", file_of(hole(96, 64))), **options)
    assert (image.data or [None])[0] != (fewer.data or [None])[0]


def test_an_edit_in_json_refers_to_pictures_by_data_url_or_file(
    client: openai.OpenAI, base_url: str, http: httpx.Client
) -> None:
    uploaded = client.files.create(file=("a.png", file_of(photo())), purpose="vision")
    url = f"data:image/png;base64,{base64.b64encode(file_of(photo())).decode()}"
    mask = f"data:image/png;base64,{base64.b64encode(file_of(hole())).decode()}"
    replies = [
        http.post(
            f"{base_url}/images/edits",
            json={"model": "gpt-image-1", "prompt": PROMPT, "images": [image], "mask": {"image_url": mask}},
        ).json()
        for image in ({"image_url": url}, {"file_id": uploaded.id})
    ]
    assert replies[0]["data"] == replies[1]["data"]


@pytest.mark.parametrize(
    ("fields", "image", "mask", "param", "code"),
    [
        ({"model": "dall-e-2"}, file_of(photo(64, 32)), None, "image", "invalid_image_size"),
        ({"model": "dall-e-2"}, file_of(photo()), None, "image", "invalid_image_format"),
        ({"model": "dall-e-2"}, file_of(photo(), "JPEG"), file_of(hole()), "image", "invalid_image_format"),
        ({"model": "dall-e-2"}, bytes(4 * 1024 * 1024), file_of(hole()), "image", "image_too_large"),
        ({"model": "gpt-image-1"}, file_of(photo(), "GIF"), None, "image", "invalid_image_format"),
        ({"model": "gpt-image-1"}, b"no picture", None, "image", "invalid_image_file"),
        ({"model": "gpt-image-1"}, file_of(photo())[:100], None, "image", "invalid_image_file"),
        ({"model": "gpt-image-1"}, file_of(photo()), file_of(hole(32, 32)), "mask", "invalid_image_size"),
        ({"model": "gpt-image-1"}, file_of(photo()), file_of(photo()), "mask", "invalid_image_format"),
        ({"model": "dall-e-3"}, file_of(photo()), None, "model", "invalid_value"),
        (
            {"model": "gpt-image-1-mini", "input_fidelity": "high"},
            file_of(photo()),
            None,
            "input_fidelity",
            "unknown_parameter",
        ),
        ({"model": "gpt-image-1", "n": "11"}, file_of(photo()), None, "n", "integer_above_max_value"),
        ({"prompt": ""}, file_of(photo()), None, "prompt", "empty_string"),
        ({}, None, file_of(hole()), "image", "missing_required_parameter"),
    ],
)
def test_a_picture_that_the_model_does_not_accept_is_a_400(
    base_url: str, http: httpx.Client, fields: dict[str, str], image: bytes, mask: bytes, param: str, code: str
) -> None:
    files = {name: ("a.png", file) for name, file in (("image", image), ("mask", mask)) if file is not None}
    reply = http.post(f"{base_url}/images/edits", data={"prompt": PROMPT, **fields}, files=files)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert "object at 0x" not in error["message"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variations_resemble_the_picture_and_differ_from_one_another(client: openai.OpenAI, http: httpx.Client) -> None:
    answer = client.images.create_variation(image=file_of(photo(256, 256)), n=3, size="256x256")
    pictures = [picture_of(image, http) for image in answer.data or ()]
    assert [image.size for image in pictures] == [(256, 256)] * 3
    assert len({image.tobytes() for image in pictures}) == 3
    again = client.images.create_variation(
        image=file_of(photo(256, 256)), n=3, size="256x256", response_format="b64_json"
    )
    assert [picture_of(image).tobytes() for image in again.data or ()] == [image.tobytes() for image in pictures]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"model": "dall-e-3"}, "model"), ({"n": "0"}, "n"), ({"size": "1x1"}, "size"), ({"prompt": "x"}, "prompt")],
)
def test_an_invalid_parameter_of_a_variation_is_a_400(
    base_url: str, http: httpx.Client, fields: dict[str, str], param: str
) -> None:
    reply = http.post(f"{base_url}/images/variations", data=fields, files={"image": ("a.png", file_of(photo()))})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_the_url_of_a_picture_needs_no_key(serve: Callable[..., str], http: httpx.Client) -> None:
    with openai.OpenAI(base_url=serve(api_key="sesame"), api_key="sesame") as client:
        (image,) = client.images.generate(prompt=PROMPT, model="dall-e-2", size="256x256").data or ()
    assert picture_of(image, http).size == (256, 256)
