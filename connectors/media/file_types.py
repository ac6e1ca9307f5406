"""Pictures and sounds recognised by their first bytes, and a picture's size read from its header."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Literal

HEAD = 4096
"""Bytes that `kind_of` wants to see."""

Group = Literal["image", "audio"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a content is."""

    group: Group
    type: str
    """Media type, such as `image/png`."""
    suffix: str


PNG = Kind("image", "image/png", "png")
JPEG = Kind("image", "image/jpeg", "jpg")
WEBP = Kind("image", "image/webp", "webp")
GIF = Kind("image", "image/gif", "gif")
BMP = Kind("image", "image/bmp", "bmp")
TIFF = Kind("image", "image/tiff", "tif")
HEIC = Kind("image", "image/heic", "heic")
AVIF = Kind("image", "image/avif", "avif")
WAV = Kind("audio", "audio/wav", "wav")
MP3 = Kind("audio", "audio/mpeg", "mp3")
MPGA = Kind("audio", "audio/mpeg", "mpga")
MPEG = Kind("audio", "video/mpeg", "mpeg")
AAC = Kind("audio", "audio/aac", "aac")
FLAC = Kind("audio", "audio/flac", "flac")
OGG = Kind("audio", "audio/ogg", "ogg")
WEBM = Kind("audio", "audio/webm", "webm")
MP4 = Kind("audio", "audio/mp4", "mp4")
M4A = Kind("audio", "audio/mp4", "m4a")

TAKEN: Mapping[Group, frozenset[Kind]] = {
    "image": frozenset({PNG, JPEG, WEBP, GIF}),
    "audio": frozenset({WAV, MP3, MPGA, MPEG, FLAC, OGG, WEBM, MP4, M4A}),
}
"""The kinds that the API takes: the reference, sections 5.4 and 13.4.2; flac and ogg after the OpenAPI description."""

TAKEN_WORDS: Mapping[Group, str] = {
    "image": "png, jpeg, webp, gif",
    "audio": "mp3, mp4, mpeg, mpga, m4a, wav, webm, flac, ogg",
}

TYPES: Mapping[str, str] = {kind.suffix: kind.type for kinds in TAKEN.values() for kind in kinds}
"""Suffix of a file's name -> media type, as uploads tell it."""

_STARTS: tuple[tuple[bytes, Kind], ...] = (
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

_BRANDS: Mapping[bytes, Kind] = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), AVIF),
    **dict.fromkeys((b"M4A ", b"M4B ", b"M4P "), M4A),
}
"""The brand in the first box of an ISO media file; every other is mp4."""


def kind_of(head: bytes) -> Kind | None:
    """What a content is by its first HEAD bytes; None where they are neither picture nor sound."""
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"WAVE": WAV}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], MP4)
    for start, kind in _STARTS:
        # A text may begin with BM: a bitmap tells the length of its second header as well.
        if head.startswith(start) and (kind is not BMP or head[15:18] == b"\0\0\0"):
            return kind
    return _mpeg_audio(head)


def _mpeg_audio(head: bytes) -> Kind | None:
    """Of sound that begins with a frame: its header has no reserved value in it."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        # ADTS; 13 to 15 are no sampling rates.
        return AAC if head[2] >> 2 & 0xF < 13 else None
    layer = head[1] >> 1 & 3
    # Layer I (3) is left out: nobody writes it, and UTF-16 text begins with the same bytes.
    if head[1] >> 3 & 3 == 1 or layer not in (1, 2) or head[2] >> 4 == 0xF or head[2] >> 2 & 3 == 3:
        return None
    return MP3 if layer == 1 else MPGA


def pixels(file: BinaryIO, kind: Kind) -> tuple[int, int] | None:
    """Width and height as the header says, nothing decoded; None where there is no such header.

    Read here and not by Pillow, which decodes the whole of a WebP and refuses to look at very large pictures.
    """
    file.seek(0)
    size: tuple[int, int] | None = None
    try:
        if kind is JPEG:
            size = _jpeg_pixels(file)
        else:
            head = file.read(30)
            if kind is PNG and head[12:16] == b"IHDR":
                size = struct.unpack(">II", head[16:24])
            elif kind is GIF:
                size = struct.unpack("<HH", head[6:10])
            elif kind is WEBP:
                size = _webp_pixels(head)
    except (struct.error, IndexError):
        return None
    return size if size is not None and min(size) > 0 else None


def _jpeg_pixels(file: BinaryIO) -> tuple[int, int] | None:
    """From the first frame header; what stands before it (previews, colour profiles) may be megabytes long."""
    file.seek(2)
    while (mark := file.read(1)) == b"\xff":
        while mark == b"\xff":
            mark = file.read(1)
        code = mark[0]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">xxxHH", file.read(7))
            return width, height
        if code in (0xD9, 0xDA):
            return None
        if code != 0x01 and not 0xD0 <= code <= 0xD8:
            (length,) = struct.unpack(">H", file.read(2))
            file.seek(length - 2, 1)
    return None


def _webp_pixels(head: bytes) -> tuple[int, int] | None:
    form = head[12:16]
    if form == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if form == b"VP8L":
        (sides,) = struct.unpack("<I", head[21:25])
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if form == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None
