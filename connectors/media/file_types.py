"""Image and audio types recognised by their first bytes, and image sizes read from headers."""

import struct
from collections.abc import Mapping
from typing import BinaryIO, Literal

from msgspec import Struct

HEAD_BYTES = 4096
"""How many first bytes `detect_type` needs."""

MediaGroup = Literal["image", "audio", "document"]


class FileType(Struct, frozen=True):
    """Type of a content."""

    group: MediaGroup
    type: str
    """Media type, such as `image/png`."""
    suffix: str


PNG = FileType("image", "image/png", "png")
JPEG = FileType("image", "image/jpeg", "jpg")
WEBP = FileType("image", "image/webp", "webp")
GIF = FileType("image", "image/gif", "gif")
BMP = FileType("image", "image/bmp", "bmp")
TIFF = FileType("image", "image/tiff", "tif")
HEIC = FileType("image", "image/heic", "heic")
AVIF = FileType("image", "image/avif", "avif")
WAV = FileType("audio", "audio/wav", "wav")
MP3 = FileType("audio", "audio/mpeg", "mp3")
MPGA = FileType("audio", "audio/mpeg", "mpga")
MPEG = FileType("audio", "video/mpeg", "mpeg")
AAC = FileType("audio", "audio/aac", "aac")
FLAC = FileType("audio", "audio/flac", "flac")
OGG = FileType("audio", "audio/ogg", "ogg")
WEBM = FileType("audio", "audio/webm", "webm")
MP4 = FileType("audio", "audio/mp4", "mp4")
M4A = FileType("audio", "audio/mp4", "m4a")

ACCEPTED_TYPES: Mapping[MediaGroup, frozenset[FileType]] = {
    "image": frozenset({PNG, JPEG, WEBP, GIF}),
    "audio": frozenset({WAV, MP3, MPGA, MPEG, FLAC, OGG, WEBM, MP4, M4A}),
}
"""Types that the API accepts: the reference, sections 5.4 and 13.4.2; flac and ogg from the OpenAPI description."""

ACCEPTED_NAMES: Mapping[MediaGroup, str] = {
    "image": "png, jpeg, webp, gif",
    "audio": "mp3, mp4, mpeg, mpga, m4a, wav, webm, flac, ogg",
}

MEDIA_TYPES: Mapping[str, str] = {kind.suffix: kind.type for kinds in ACCEPTED_TYPES.values() for kind in kinds}
"""Suffix of a file's name -> media type, for uploads."""

_STARTS: tuple[tuple[bytes, FileType], ...] = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"BM", BMP),
    (b"fLaC", FLAC),
    (b"OggS", OGG),
    (b"ID3", MP3),
    (b"\x1a\x45\xdf\xa3", WEBM),
    (b"\0\0\x01\xba", MPEG),
    (b"\0\0\x01\xb3", MPEG),
)

_BRANDS: Mapping[bytes, FileType] = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    **dict.fromkeys((b"M4A ", b"M4B ", b"M4P "), M4A),
}
"""The brand in the first box of an ISO media file; all others are mp4."""


def detect_type(head: bytes) -> FileType | None:
    """Return the type of a content by its first HEAD_BYTES bytes; None if it is neither image nor audio."""
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"WAVE": WAV}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], MP4)
    for start, kind in _STARTS:
        # A text may begin with BM: check the length of a bitmap's second header as well.
        if head.startswith(start) and (kind is not BMP or head[15:18] == b"\0\0\0"):
            return kind
    return _mpeg_audio(head)


def _mpeg_audio(head: bytes) -> FileType | None:
    """Return the type of audio that begins with a frame: its header contains no reserved value."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        # ADTS; 13 to 15 are not sampling rates.
        return AAC if head[2] >> 2 & 0xF < 13 else None
    layer = head[1] >> 1 & 3
    # Layer I (3) is excluded: it is unused, and UTF-16 text begins with the same bytes.
    if head[1] >> 3 & 3 == 1 or layer not in (1, 2) or head[2] >> 4 == 0xF or head[2] >> 2 & 3 == 3:
        return None
    return MP3 if layer == 1 else MPGA


def image_size(file: BinaryIO, kind: FileType) -> tuple[int, int] | None:
    """Return width and height from the header, without decoding; None if the header is broken.

    Pillow would decode the whole of a WebP, and it refuses very large images.
    """
    file.seek(0)
    size: tuple[int, int] | None = None
    try:
        if kind is JPEG:
            size = _jpeg_size(file)
        else:
            head = file.read(30)
            if kind is PNG and head[12:16] == b"IHDR":
                size = struct.unpack(">II", head[16:24])
            elif kind is GIF:
                size = struct.unpack("<HH", head[6:10])
            elif kind is WEBP:
                size = _webp_size(head)
    except (struct.error, IndexError):
        return None
    return size if size is not None and min(size) > 0 else None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Read the first frame header; previews and colour profiles before it may be megabytes long."""
    file.seek(2)
    while (marker := file.read(1)) == b"\xff":
        while marker == b"\xff":
            marker = file.read(1)
        code = marker[0]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">xxxHH", file.read(7))
            return width, height
        if code in (0xD9, 0xDA):
            return None
        if code != 0x01 and not 0xD0 <= code <= 0xD8:
            (length,) = struct.unpack(">H", file.read(2))
            file.seek(length - 2, 1)
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    chunk = head[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if chunk == b"VP8L":
        (sides,) = struct.unpack("<I", head[21:25])
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None
