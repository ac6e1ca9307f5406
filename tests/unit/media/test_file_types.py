"""Tests of media types and image sizes."""

import io

import pytest

from connectors.media.file_types import detect_type, image_size


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (16383, 2)])
def test_image_sizes_from_headers_equal_those_of_pillow(form: str, size: tuple[int, int]) -> None:
    from PIL import Image

    for extra in ({}, {"lossless": True}) if form == "WEBP" else ({}, {"comment": b"x" * 60_000}):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, form, **extra)
        kind = detect_type(file.getvalue())
        assert kind is not None
        assert image_size(file, kind) == size


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"hello",
        "ÿ utf-16".encode("utf-16"),
        b"BMW makes cars",
        b"\xff\xfb",
        b"RIFF1234AVI ",
        b"\xff\xff\xff\xff",
        b"<svg/>",
    ],
)
def test_other_content_has_no_media_type(head: bytes) -> None:
    assert detect_type(head) is None


def test_containers_are_distinguished_by_their_brand() -> None:
    def suffix(head: bytes) -> str | None:
        kind = detect_type(head)
        return None if kind is None else kind.suffix

    assert [suffix(b"\0\0\0\x20ftyp" + brand) for brand in (b"M4A ", b"isom", b"heic", b"avif")] == [
        "m4a",
        "mp4",
        "heic",
        "avif",
    ]
    assert suffix(b"\xff\xf1\x50\x80") == "aac"
    assert suffix(b"\xff\xfb\x90\x64") == "mp3"
    assert suffix(b"\xff\xfd\x90\x64") == "mpga"
