"""Reading of media files from paths, URLs and bytes, and what rows may not read."""

import asyncio
import base64
import io
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from connectors.contracts import MediaColumn
from connectors.media.audio_splitter import duration_seconds
from connectors.media.media_reader import MAX_IN_MEMORY_BYTES, MediaError, MediaReader
from connectors.media.url_fetcher import FetchError
from connectors.records import Media
from tests.unit.media.conftest import AUDIO, IMAGE, Reader, Serve, png, problem, sound

DATA = Path(__file__).parents[3] / "jobs" / "data"


@pytest.mark.parametrize(
    ("name", "kind", "suffix", "size"),
    [
        ("images/coffee.png", "image/png", "png", (256, 171)),
        ("images/astronaut.jpg", "image/jpeg", "jpg", (384, 384)),
        ("images/cat.webp", "image/webp", "webp", (384, 255)),
    ],
)
async def test_image_types_are_detected_by_content_not_by_name(
    reader: Reader, tmp_path: Path, name: str, kind: str, suffix: str, size: tuple[int, int]
) -> None:
    (tmp_path / "work" / "x.txt").write_bytes((DATA / name).read_bytes())
    found = await reader().read("x.txt", IMAGE)
    assert isinstance(found, Media)
    assert (found.kind, found.suffix, found.pixels, found.size) == (kind, suffix, size, (DATA / name).stat().st_size)
    assert found.read() == (DATA / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "kind", "suffix", "seconds"),
    [
        ("austen_0870.wav", "audio/wav", "wav", 7.1),
        ("austen_0880.mp3", "audio/mpeg", "mp3", 2.99),
        ("austen_0930.webm", "audio/webm", "webm", 3.3),
        ("jfk.flac", "audio/flac", "flac", 11.0),
    ],
)
async def test_audio_types_are_detected_by_content(
    reader: Reader, name: str, kind: str, suffix: str, seconds: float
) -> None:
    found = await reader().read((DATA / "audio" / name).read_bytes(), AUDIO)
    assert isinstance(found, Media)
    assert (found.kind, found.suffix) == (kind, suffix)
    assert found.seconds == pytest.approx(seconds, abs=0.02)


async def test_null_stays_null_and_a_list_becomes_a_list(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "work" / "a.png").write_bytes(png())
    it = reader()
    assert await it.read(None, IMAGE) is None
    found = await it.read(["a.png", None, png(2, 3)], IMAGE)
    assert isinstance(found, list)
    assert [each.pixels for each in found if isinstance(each, Media)] == [(1, 1), (2, 3)]
    assert await problem(it, ["a.png", "b.png"]) == "photo: b.png cannot be read (No such file or directory)"
    assert await problem(it, 5) == "photo: found int, expected a path, a URL or bytes"


async def test_structs_of_bytes_and_path_as_in_hugging_face_datasets_are_read(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "work" / "a.png").write_bytes(png())
    it = reader()
    for value in ({"bytes": png(), "path": "other.png"}, {"bytes": None, "path": "a.png"}):
        found = await it.read(value, IMAGE)
        assert isinstance(found, Media) and found.read() == png()


async def test_small_contents_stay_in_memory_and_large_ones_in_files(reader: Reader, tmp_path: Path) -> None:
    large = png() + bytes(MAX_IN_MEMORY_BYTES)
    it = reader()
    small, spooled, again = [await it.read(content, IMAGE) for content in (png(), large, large)]
    assert isinstance(small, Media) and isinstance(spooled, Media) and isinstance(again, Media)
    assert small.data == png() and small.path is None
    assert spooled.data is None and spooled.path is not None and spooled.read() == large
    it.release(again)
    assert spooled.read() == large
    it.release(spooled)
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_data_urls_are_decoded(reader: Reader) -> None:
    it = reader()
    whole = base64.b64encode(png()).decode()
    found = await it.read(f"data:image/jpeg;base64,{whole}", IMAGE)
    assert isinstance(found, Media) and found.suffix == "png" and found.read() == png()
    assert (await problem(it, "data:image/png;base64,???")).startswith("photo: the data URL's base64 is broken")
    assert await problem(it, "data:image/png") == "photo: the data URL has no content"
    assert "the limit is" in await problem(it, "data:;base64," + "A" * 4000, MediaColumn("image", 1000))


async def test_contents_that_are_too_large_empty_or_of_another_type_are_refused(reader: Reader, tmp_path: Path) -> None:
    it = reader()
    (tmp_path / "work" / "notes.txt").write_text("nothing but text")
    (tmp_path / "work" / "empty.png").touch()
    small = MediaColumn("audio", 2 << 20)
    assert (
        await problem(it, bytes(3_000_000), small)
        == "photo: 3,000,000 bytes, the limit is 2 MB; `split: true` in the step splits it"
    )
    assert await problem(it, bytes(21_000_000)) == "photo: 21,000,000 bytes, the limit is 20 MB"
    assert (
        await problem(it, "notes.txt", AUDIO)
        == "photo: notes.txt is not a sound (mp3, mp4, mpeg, mpga, m4a, wav, webm, flac, ogg)"
    )
    assert await problem(it, "empty.png") == "photo: it is empty"
    assert await problem(it, png(), AUDIO) == (
        "photo: the content is not a sound (mp3, mp4, mpeg, mpga, m4a, wav, webm, flac, ogg)"
    )
    assert await problem(it, b"II*\0" + bytes(60)) == (
        "photo: the content is tif, accepted are png, jpeg, webp, gif; convert it"
    )
    assert await problem(it, png()[:14]) == "photo: the content cannot be read: its png header is broken"
    assert (await problem(it, b"RIFF\0\0\0\0WAVE", AUDIO)).startswith("photo: the content: it cannot be read as wav")


async def test_a_huge_image_is_measured_without_decoding(reader: Reader) -> None:
    bomb = png()[:16] + struct.pack(">II", 60_000, 60_000) + png()[24:]
    found = await reader().read(bomb, IMAGE)
    assert isinstance(found, Media) and found.pixels == (60_000, 60_000)


async def test_no_path_leads_outside_the_workspace(reader: Reader, tmp_path: Path) -> None:
    work, outside = tmp_path / "work", tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(png())
    (work / "link.png").symlink_to(outside / "a.png")
    (work / "folder").symlink_to(outside)
    (work / "inner").mkdir()
    (work / "inner" / "a.png").write_bytes(png())
    (work / "fine.png").symlink_to("inner/a.png")
    (work / ".rowmill").mkdir()
    (work / ".rowmill" / "a.png").write_bytes(png())
    os.mkfifo(work / "pipe.png")
    (work / "null.png").symlink_to("/dev/zero")
    it = reader()
    for value in ("link.png", "folder/a.png", "../outside/a.png", str(outside / "a.png"), "/etc/passwd", "null.png"):
        assert "is outside the workspace" in await problem(it, value)
    assert "belongs to Rowmill" in await problem(it, ".rowmill/a.png")
    assert await problem(it, "pipe.png") == "photo: pipe.png is not a file"
    assert await problem(it, "inner") == "photo: inner is not a file"
    assert await problem(it, ".") == "photo: . is not a file"
    assert await problem(it, "") == "photo: the path is empty"
    assert await problem(it, "a\0.png") == "photo: the path contains a NUL character"
    assert "cannot be read" in await problem(it, "x" * 5000)
    assert "is not fetched" in await problem(it, f"file://{work}/inner/a.png")
    for value in ("inner/a.png", "fine.png", str(work / "inner" / "a.png"), "inner/../fine.png"):
        assert isinstance(await it.read(value, IMAGE), Media)


async def test_a_root_is_readable_but_links_that_leave_it_are_not(reader: Reader, tmp_path: Path) -> None:
    root = tmp_path / "media"
    root.mkdir()
    (root / "a.png").write_bytes(png())
    (root / "b.png").symlink_to("/etc/passwd")
    it = reader(roots=[root])
    assert isinstance(await it.read(str(root / "a.png"), IMAGE), Media)
    assert "is outside" in await problem(it, str(root / "b.png"))


async def test_files_of_earlier_steps_are_found_next_to_the_sink(reader: Reader, tmp_path: Path) -> None:
    folder = tmp_path / "sink" / "files"
    folder.mkdir(parents=True)
    name = "0123456789abcdef" * 2 + ".png"
    (folder / name).write_bytes(png())
    (folder / "secret.png").write_bytes(png())
    it = reader(output_files=("files/", folder))
    assert isinstance(await it.read(f"files/{name}", IMAGE), Media)
    assert "cannot be read" in await problem(it, "files/secret.png")
    assert "cannot be read" in await problem(it, f"files/{'f' * 32}.png")


async def test_a_url_is_passed_on_if_the_provider_fetches_it(reader: Reader) -> None:
    use = MediaColumn("image", 1000, passes_urls=True)
    assert await reader().read("https://example.com/a.png", use) == "https://example.com/a.png"


async def test_long_audio_is_split_at_silences(reader: Reader, tmp_path: Path) -> None:
    content = sound(75, silences=(24.0, 47.5, 66.0), rate=22_050, channels=2)
    it = reader()
    use = MediaColumn("audio", 1_000_000, split=True)
    whole = await it.read(content, use)
    assert isinstance(whole, Media)
    assert whole.size == len(content) and whole.seconds == pytest.approx(75)
    starts = [start for start, _ in whole.pieces]
    assert (
        starts
        == [
            0.0,
            pytest.approx(24.4, abs=0.4),
            pytest.approx(47.9, abs=0.4),
            pytest.approx(66.4, abs=0.4) if len(starts) == 4 else starts[-1],
        ][: len(starts)]
    )
    assert sum(piece.seconds or 0 for _, piece in whole.pieces) == pytest.approx(75, abs=0.01)
    for start, piece in whole.pieces[1:]:
        before = whole.pieces[starts.index(start) - 1]
        assert start == pytest.approx(before[0] + (before[1].seconds or 0))
        assert piece.kind == "audio/flac" and piece.size < use.max_bytes
        assert duration_seconds(io.BytesIO(piece.read()), "flac") == pytest.approx(piece.seconds or 0)
    again = await it.read(content, use)
    assert isinstance(again, Media)
    assert [piece.digest for _, piece in again.pieces] == [piece.digest for _, piece in whole.pieces]
    it.release(whole)
    it.release(again)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


async def test_audio_within_the_limit_is_not_split(reader: Reader) -> None:
    found = await reader().read(sound(2), MediaColumn("audio", 1_000_000, split=True))
    assert isinstance(found, Media) and found.pieces == ()


def test_a_reader_can_be_created_outside_of_an_event_loop(tmp_path: Path) -> None:
    it = MediaReader(tmp_path, [], [], tmp_path / "scratch", frozenset())

    async def read() -> Any:
        try:
            return await it.read(png(), IMAGE)
        finally:
            await it.close()

    assert isinstance(asyncio.run(read()), Media)


async def test_a_file_of_any_type_is_opened_by_the_same_rules(reader: Reader, serve: Serve, tmp_path: Path) -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=b"fetched")

    address = await serve({"/a": respond})
    (tmp_path / "work" / "a.bin").write_bytes(b"path")
    (tmp_path / "work" / "link").symlink_to("/etc/passwd")
    it = reader(hosts=[address])

    async def content(value: Any) -> bytes:
        async with it.open(value, 10) as file:
            assert os.pread(file.fileno(), 10, 0)
            return file.read()

    values = ("a.bin", b"bytes", "data:,url", f"http://{address}/a", {"bytes": None, "path": "a.bin"})
    assert [await content(value) for value in values] == [b"path", b"bytes", b"url", b"fetched", b"path"]
    refused = {
        b"12345678901": "11 bytes, the limit is",
        "link": "link is outside the workspace",
        "../secret": "outside the workspace",
        "ftp://host/a": "ftp:// is not fetched",
        "http://127.0.0.1:1/a": "127.0.0.1 is a private address",
        b"": "it is empty",
        5: "found int, expected a path, a URL or bytes",
    }
    for value, message in refused.items():
        with pytest.raises((MediaError, FetchError), match=message):
            await content(value)
    assert list((tmp_path / "scratch").iterdir()) == []
