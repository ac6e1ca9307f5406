"""Image endpoints: parameters are checked before sending, pictures are files named by content."""

import base64
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import web

from connectors.contracts import Endpoint, MalformedReply, Provider, StepContext
from connectors.endpoints.image_edit import ImageEditStep
from connectors.endpoints.image_generation import ImageGenerationStep
from connectors.endpoints.image_variation import ImageVariationStep
from connectors.errors import JobError
from connectors.records import Media, Reply, Request, RowError, Usage
from connectors.transport.client import HttpTransport, RequestTimeouts
from pipelines.pricing.prices import image_price, max_cost
from pipelines.pricing.published_prices import resolve_price

REPLIES = Path(__file__).parents[2] / "replies"
COLUMNS = {"title": pa.string(), "photo": pa.binary(), "area": pa.string(), "more": pa.list_(pa.string())}
FACTS = StepContext("p@there", COLUMNS, Path("/"), (), (), files_prefix="files/")
STEPS = {
    "image_generation": (ImageGenerationStep, {"prompt": "{{ title }}"}),
    "image_edit": (ImageEditStep, {"prompt": "{{ title }}", "image": "photo"}),
    "image_variation": (ImageVariationStep, {"image": "photo"}),
}


def endpoint(kind: str = "image_generation", model: str = "dall-e-2", **keys: Any) -> Endpoint:
    step, usual = STEPS[kind]
    given = {"name": "picture", "endpoint": kind, "model": model, **usual, **keys}
    return step.model_validate(given).build(FACTS)


def picture(form: str = "PNG", size: tuple[int, int] = (8, 8), colour: str = "red") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def media(size: tuple[int, int] = (8, 8), form: str = "PNG", colour: str = "red") -> Media:
    content = picture(form, size, colour)
    suffix = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif"}[form]
    return Media(
        hashlib.sha256(content).hexdigest(), len(content), f"image/{form.lower()}", suffix, data=content, pixels=size
    )


def row(**values: Any) -> dict[str, Any]:
    return {"title": "a sea otter", "photo": media(), "area": None, "more": None, **values}


def request_of(it: Endpoint, **values: Any) -> Request:
    request = it.request(row(**values), "1")
    assert isinstance(request, Request), request
    return request


def refused(it: Endpoint, **values: Any) -> str:
    request = it.request(row(**values), "1")
    assert isinstance(request, RowError) and request.error_class == "input", request
    return request.message


def name_of(content: bytes, suffix: str = "png") -> str:
    return f"{hashlib.sha256(content).hexdigest()[:32]}.{suffix}"


def reply(body: Any, kind: str = "application/json") -> Reply:
    return Reply(200, {"content-type": kind}, body if isinstance(body, bytes) else orjson.dumps(body), 1.0)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def stored_answer(it: Endpoint, received: Reply) -> bytes:
    (answer,) = it.answers([request_of(it)], received)
    assert isinstance(answer, bytes)
    return answer


def test_every_key_is_in_the_body() -> None:
    it = endpoint(
        model="dall-e-3",
        size="1792x1024",
        quality="hd",
        style="natural",
        n=1,
        params={"user": "u"},
        extra_body={"x": 1},
    )
    assert orjson.loads(request_of(it).body) == {
        "model": "dall-e-3",
        "n": 1,
        "prompt": "a sea otter",
        "quality": "hd",
        "response_format": "b64_json",
        "size": "1792x1024",
        "style": "natural",
        "user": "u",
        "x": 1,
    }
    assert it.image_terms == ("1792x1024", "hd")
    assert "response_format" not in orjson.loads(request_of(endpoint(model="gpt-image-1")).body)
    assert "response_format" not in orjson.loads(request_of(endpoint(model="flux")).body)


def test_a_recorded_reply_becomes_a_file_of_its_content() -> None:
    it = endpoint(model="gpt-image-1")
    body = (REPLIES / "image-generation.json").read_text().replace('"..."', f'"{b64(picture("WEBP"))}"')
    received = reply(body.encode())
    answer = stored_answer(it, received)
    name = name_of(picture("WEBP"), "webp")
    assert it.values(answer) == (f"files/{name}",)
    assert it.files(answer) == [(name, picture("WEBP"))]
    assert it.expiring_urls(answer) == []
    assert it.usage([request_of(it)], received) == Usage(input_tokens=50, output_tokens=50, images=1)
    assert it.arrays([(f"files/{name}",), None])[0].to_pylist() == [f"files/{name}", None]


def test_pictures_at_urls_replace_the_urls() -> None:
    it = endpoint("image_variation", n=2)
    urls = iter(("https://x/1", "https://x/2"))
    body = (REPLIES / "image-variation.json").read_text().replace("https://...", "%s")
    received = reply((body % tuple(urls)).encode())
    answer = stored_answer(it, received)
    assert it.expiring_urls(answer) == ["https://x/1", "https://x/2"]
    assert isinstance(it.values(answer), RowError) and it.files(answer) == []
    contents = [picture(colour="red"), picture("JPEG", colour="blue")]
    whole = it.with_contents(answer, contents)
    names = [name_of(contents[0]), name_of(contents[1], "jpg")]
    assert it.values(whole) == ([f"files/{name}" for name in names],)
    assert it.files(whole) == list(zip(names, contents, strict=True))
    assert it.expiring_urls(whole) == []
    assert it.usage([request_of(it)], received) == Usage(images=2)
    assert it.fields[0].type == pa.list_(pa.string())
    # A page that says that the picture is gone, with status 200.
    partly = it.with_contents(answer, [contents[0], b"<html>"])
    assert it.expiring_urls(partly) == ["https://x/2"]
    assert isinstance(it.values(partly), RowError)


def test_fewer_pictures_than_n_are_an_error_unless_a_table_has_them() -> None:
    it = endpoint(n=2)
    answer = stored_answer(it, reply({"data": [{"b64_json": b64(picture())}]}))
    message = "the server sent 1 of 2 pictures; it does not support n; leave n out"
    assert it.values(answer) == RowError("invalid_answer", message)
    assert it.committed_values(answer) == ([f"files/{name_of(picture())}"],)


def test_the_prompt_as_dall_e_3_rewrote_it_is_a_column() -> None:
    it = endpoint(model="dall-e-3")
    assert [(field.name, field.type) for field in it.fields] == [
        ("picture", pa.string()),
        ("picture_revised_prompt", pa.string()),
    ]
    answer = stored_answer(it, reply({"data": [{"b64_json": b64(picture()), "revised_prompt": "An otter"}]}))
    assert it.values(answer) == (f"files/{name_of(picture())}", "An otter")
    answer = stored_answer(it, reply({"data": [{"url": f"data:image/png;base64,{b64(picture())}"}]}))
    assert it.values(answer) == (f"files/{name_of(picture())}", None)
    assert [array.to_pylist() for array in it.arrays([None])] == [[None], [None]]


def test_a_stream_of_events_is_read_to_its_last() -> None:
    it = endpoint("image_edit", model="gpt-image-1.5", params={"stream": True, "partial_images": 1})
    assert it.call([request_of(it)]).stream
    body = (REPLIES / "image-edit-streaming.sse").read_text().replace('"..."', f'"{b64(picture())}"')
    received = reply(body.encode(), "text/event-stream")
    assert it.values(stored_answer(it, received)) == (f"files/{name_of(picture())}",)
    assert it.usage([request_of(it)], received) == Usage(input_tokens=50, output_tokens=50, images=1)
    with pytest.raises(MalformedReply, match="before its last event"):
        it.answers([request_of(it)], reply(body[: body.index("event: image_edit.completed")].encode()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        {"data": []},
        {"created": 1},
        {"data": [{}]},
        {"data": ["x"]},
        {"data": [{"b64_json": "?"}]},
        {"data": [{"b64_json": b64(b"no picture")}]},
        {"error": {"message": "m", "code": 503}},
    ],
)
def test_a_reply_without_a_picture_is_malformed(body: Any) -> None:
    with pytest.raises(MalformedReply):
        endpoint().answers([request_of(endpoint())], reply(body))


def test_a_refusal_with_status_200_is_an_error_of_the_row() -> None:
    (error,) = endpoint().answers(
        [request_of(endpoint())], reply({"error": {"message": "m", "code": "content_filter"}})
    )
    assert isinstance(error, RowError) and error.error_class == "content_filter"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"size": "64x64"}, "size: found 64x64, dall-e-2 accepts 256x256, 512x512, 1024x1024; correct it"),
        (
            {"model": "dall-e-3", "size": "512x512"},
            "size: found 512x512, dall-e-3 accepts 1024x1024, 1024x1792, 1792x1024; correct it",
        ),
        ({"model": "dall-e-3", "n": 2}, "n: found 2, dall-e-3 makes at most 1; correct it"),
        ({"quality": "hd"}, "quality: found hd, dall-e-2 accepts auto, standard; correct it"),
        ({"style": "vivid"}, "style: dall-e-2 does not accept it; leave it out"),
        ({"params": {"background": "opaque"}}, "background: dall-e-2 does not accept it; leave it out"),
        (
            {"model": "gpt-image-1", "params": {"response_format": "url"}},
            "response_format: gpt-image-1 does not accept it; leave it out",
        ),
        ({"params": {"n": 11}}, "params.n: found 11, expected an integer from 1 to 10; correct it"),
        ({"n": 2, "params": {"n": 2}}, "n: is also in params; write it in one place"),
        ({"prompt": "{{ titel }}"}, "prompt: no column titel here; did you mean title?"),
    ],
)
def test_an_invalid_key_is_an_error_before_anything_is_sent(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        endpoint(**keys)
    assert str(caught.value) == f"steps.picture.{message}"


def test_gpt_image_2_accepts_many_sizes() -> None:
    for size in ("auto", "1536x864", "3840x2160", "2160x3840", "16x48"):
        endpoint(model="gpt-image-2", size=size)
    for size in ("1537x864", "3856x2160", "16x64", "0x0", "big"):
        with pytest.raises(JobError, match="multiples of 16"):
            endpoint(model="gpt-image-2", size=size)


def test_the_file_columns_and_models_are_checked() -> None:
    for kind, keys, message in (
        ("image_edit", {"image": "foto"}, "steps.picture.image: no column foto; did you mean photo?"),
        ("image_edit", {"mask": "arae"}, "steps.picture.mask: no column arae; did you mean area?"),
        ("image_edit", {"mask": "photo"}, "steps.picture.mask: is also the column of the image; name another"),
        ("image_edit", {"model": "dall-e-3"}, "steps.picture.model: dall-e-3 makes no edits; take dall-e-2 or"),
        ("image_edit", {"image": ["pic", "other"]}, "steps.picture.image: dall-e-2 edits one picture; name one column"),
        ("image_variation", {"model": "gpt-image-1"}, "steps.picture.model: gpt-image-1 makes no variations;"),
    ):
        with pytest.raises(JobError) as caught:
            endpoint(kind, **keys)
        assert str(caught.value).startswith(message)


def test_the_maximum_length_of_a_prompt_depends_on_the_model() -> None:
    for model, max_characters in (("dall-e-2", 1000), ("dall-e-3", 4000), ("gpt-image-1", 32000)):
        it = endpoint(model=model)
        request_of(it, title="x" * max_characters)
        assert refused(it, title="x" * (max_characters + 1)).startswith(
            f"prompt: {max_characters + 1:,} characters, {model} accepts"
        )
    assert refused(endpoint(), title="") == "prompt: the text is empty"
    request_of(endpoint(model="flux"), title="x" * 50_000)


def test_pictures_are_checked_before_they_are_sent() -> None:
    it = endpoint("image_edit", mask="area")
    assert (it.media["photo"].max_bytes, it.media["area"].max_bytes) == (4 << 20, 4 << 20)
    assert refused(it, photo=None) == "image: column photo is null: there is no file"
    assert refused(it, photo=media((8, 9))) == "image: 8x9 pixels, expected a square png"
    assert refused(it, photo=media(form="JPEG")) == "image: a jpg picture, expected a square png"
    assert refused(it, photo=[media(), media()]) == "image: 2 pictures, expected at most 1"
    assert refused(it, area=media((9, 9))) == "mask: 9x9 pixels, but the image has 8x8; they must be the same"
    assert refused(it, area=media(form="JPEG")) == "mask: a jpg picture, expected a png"
    assert orjson.loads(request_of(it, area=media(colour="blue")).body)["mask"] == media(colour="blue").name
    assert "mask" not in orjson.loads(request_of(it).body)
    it = endpoint("image_edit", model="gpt-image-1", image=["photo", "more"])
    assert it.media["photo"].max_bytes == 50 << 20
    assert refused(it, more=[media(form="GIF")]) == "image: a gif picture, expected png, webp or jpeg"
    assert refused(it, more=[media()] * 16) == "image: 17 pictures, expected at most 16"
    bad = RowError("input", "no picture")
    assert it.request(row(photo=bad), "1") is bad


def test_the_maximum_cost_of_a_request_depends_on_the_model() -> None:
    it = endpoint(model="dall-e-3", size="1792x1024", quality="hd")
    request = request_of(it)
    assert (request.images, request.input_tokens, request.output_bound) == (1, 0, 0)
    price = resolve_price("dall-e-3", {}, {})
    assert price is not None and it.image_terms is not None
    worst = max_cost(image_price(price, *it.image_terms), 0, 0, images=request.images)
    assert worst == 120_000_000_000
    low, high = (endpoint(model="gpt-image-1", quality=quality, n=2).output_bound for quality in ("low", "high"))
    assert low is not None and high is not None and 2 * 408 < low < 2 * 6240 < high
    assert request_of(endpoint("image_edit", model="gpt-image-1")).input_tokens > 1_100
    assert endpoint(model="flux").output_bound is None


@pytest.fixture
async def seen() -> AsyncIterator[tuple[str, list[Any]]]:
    """(address, received parts): a server with aiohttp's parser that records each part of a form."""
    received: list[Any] = []

    async def record(request: web.Request) -> web.Response:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            received.append((part.name, part.filename, part.headers.get("Content-Type"), bytes(await part.read())))  # type: ignore[union-attr]
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/{path:.*}", record)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", received
    await runner.cleanup()


async def test_a_server_receives_the_form(seen: tuple[str, list[Any]]) -> None:
    address, received = seen
    it = endpoint(
        "image_edit", model="gpt-image-1", image=["photo", "more"], mask="area", n=2, params={"input_fidelity": "high"}
    )
    request = request_of(it, more=[media(form="JPEG"), media(form="WEBP")], area=media(colour="blue"))
    transport = HttpTransport(RequestTimeouts(), 1)
    try:
        await transport.send(Provider("p", address), it.call([request]))
    finally:
        await transport.close()
    text = "text/plain; charset=utf-8"
    assert received == [
        ("image[]", "image.png", "image/png", picture()),
        ("image[]", "image.jpg", "image/jpeg", picture("JPEG")),
        ("image[]", "image.webp", "image/webp", picture("WEBP")),
        ("input_fidelity", None, text, b"high"),
        ("mask", "mask.png", "image/png", picture(colour="blue")),
        ("model", None, text, b"gpt-image-1"),
        ("n", None, text, b"2"),
        ("prompt", None, text, b"a sea otter"),
    ]
    variation = endpoint("image_variation").call([request_of(endpoint("image_variation"))])
    assert variation.form is not None and variation.form[0] == ("image", picture(), "image.png")
