"""Files of rows: recognised by content, read from nowhere else than allowed, long sound cut at silences."""

import asyncio
import base64
import io
import os
import struct
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from connectors.contracts import MediaColumn
from connectors.emulator.audio.codec import decode
from connectors.emulator.audio.synthesis import RATE as SAMPLES_A_SECOND
from connectors.media.audio_splitter import SoundProblem, cut, seconds_of
from connectors.media.file_types import detect_type, pixels
from connectors.media.media_reader import IN_MEMORY, MediaReader
from connectors.media.url_fetcher import FetchError, is_private, shown
from connectors.records import Media, RowError

DATA = Path(__file__).parents[3] / "jobs" / "data"
IMAGE = MediaColumn("image", 20 << 20)
AUDIO = MediaColumn("audio", 25 << 20)

Reader = Callable[..., MediaReader]


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    """Makes readers whose workspace is tmp_path/work."""
    made: list[MediaReader] = []
    (tmp_path / "work").mkdir()

    def make(**settings: Any) -> MediaReader:
        given = {"roots": [], "hosts": [], "provider_hosts": frozenset(), "waits": (), **settings}
        made.append(MediaReader(workspace=tmp_path / "work", scratch=tmp_path / "scratch", **given))
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]], Any]]:
    """Starts a server with these GET routes; gives its address."""
    runners: list[web.AppRunner] = []

    async def start(routes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]) -> str:
        app = web.Application()
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def png(width: int = 1, height: int = 1) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "png")
    return file.getvalue()


def sound(seconds: float, silences: tuple[float, ...] = (), rate: int = 16_000, channels: int = 1) -> bytes:
    """Noise as wav, silent for 0.8 s from each of `silences` on."""
    noise = np.random.default_rng(7).normal(0, 6000, round(seconds * rate)).clip(-32000, 32000).astype("<i2")
    for start in silences:
        noise[round(start * rate) : round((start + 0.8) * rate)] = 0
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.repeat(noise, channels).tobytes())
    return file.getvalue()


async def problem(reader: MediaReader, value: Any, use: MediaColumn = IMAGE) -> str:
    found = await reader.read(value, use, "photo")
    assert isinstance(found, RowError), found
    assert found.error_class == "input"
    return found.message


@pytest.mark.parametrize(
    ("name", "kind", "suffix", "size"),
    [
        ("images/coffee.png", "image/png", "png", (256, 171)),
        ("images/astronaut.jpg", "image/jpeg", "jpg", (384, 384)),
        ("images/cat.webp", "image/webp", "webp", (384, 255)),
    ],
)
async def test_pictures_are_known_by_content(
    reader: Reader, tmp_path: Path, name: str, kind: str, suffix: str, size: tuple[int, int]
) -> None:
    # Whatever the name says.
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
async def test_sounds_are_known_by_content(reader: Reader, name: str, kind: str, suffix: str, seconds: float) -> None:
    found = await reader().read((DATA / "audio" / name).read_bytes(), AUDIO)
    assert isinstance(found, Media)
    assert (found.kind, found.suffix) == (kind, suffix)
    assert found.seconds == pytest.approx(seconds, abs=0.02)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (16383, 2)])
def test_the_pixels_of_a_header_are_those_that_pillow_finds(form: str, size: tuple[int, int]) -> None:
    from PIL import Image

    for extra in ({}, {"lossless": True}) if form == "WEBP" else ({}, {"comment": b"x" * 60_000}):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, form, **extra)
        kind = detect_type(file.getvalue())
        assert kind is not None
        assert pixels(file, kind) == size


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
def test_what_is_no_media_is_not_taken_for_it(head: bytes) -> None:
    assert detect_type(head) is None


def test_containers_are_told_apart_by_their_brand() -> None:
    def suffix(head: bytes) -> str | None:
        kind = detect_type(head)
        return kind and kind.suffix

    assert [suffix(b"\0\0\0\x20ftyp" + brand) for brand in (b"M4A ", b"isom", b"heic", b"avif")] == [
        "m4a",
        "mp4",
        "heic",
        "avif",
    ]
    assert suffix(b"\xff\xf1\x50\x80") == "aac"
    assert suffix(b"\xff\xfb\x90\x64") == "mp3"
    assert suffix(b"\xff\xfd\x90\x64") == "mpga"


async def test_null_stays_null_and_a_list_becomes_a_list(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "work" / "a.png").write_bytes(png())
    it = reader()
    assert await it.read(None, IMAGE) is None
    found = await it.read(["a.png", None, png(2, 3)], IMAGE)
    assert isinstance(found, list)
    assert [each.pixels for each in found if isinstance(each, Media)] == [(1, 1), (2, 3)]
    assert await problem(it, ["a.png", "b.png"]) == "photo: b.png cannot be read (No such file or directory)"
    assert await problem(it, 5) == "photo: found int, expected a path, a URL or bytes"


async def test_structs_of_bytes_and_path_are_read_as_hugging_face_writes_them(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "work" / "a.png").write_bytes(png())
    it = reader()
    for value in ({"bytes": png(), "path": "other.png"}, {"bytes": None, "path": "a.png"}):
        found = await it.read(value, IMAGE)
        assert isinstance(found, Media) and found.read() == png()


async def test_small_contents_stay_in_memory_and_large_ones_lie_in_files(reader: Reader, tmp_path: Path) -> None:
    large = png() + bytes(IN_MEMORY)
    it = reader()
    kept, spooled, again = [await it.read(content, IMAGE) for content in (png(), large, large)]
    assert isinstance(kept, Media) and isinstance(spooled, Media) and isinstance(again, Media)
    assert kept.data == png() and kept.path is None
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
    assert "MB are not taken" in await problem(it, "data:;base64," + "A" * 4000, MediaColumn("image", 1000))


async def test_too_large_empty_and_foreign_contents_are_refused(reader: Reader, tmp_path: Path) -> None:
    it = reader()
    (tmp_path / "work" / "notes.txt").write_text("nothing but text")
    (tmp_path / "work" / "empty.png").touch()
    small = MediaColumn("audio", 2 << 20)
    assert (
        await problem(it, bytes(3_000_000), small)
        == "photo: 3,000,000 bytes, more than 2 MB are not taken; `split: true` at the step cuts it"
    )
    assert await problem(it, bytes(21_000_000)) == "photo: 21,000,000 bytes, more than 20 MB are not taken"
    assert (
        await problem(it, "notes.txt", AUDIO)
        == "photo: notes.txt is no sound (mp3, mp4, mpeg, mpga, m4a, wav, webm, flac, ogg)"
    )
    assert await problem(it, "empty.png") == "photo: it is empty"
    assert await problem(it, png(), AUDIO) == (
        "photo: the content is no sound (mp3, mp4, mpeg, mpga, m4a, wav, webm, flac, ogg)"
    )
    assert await problem(it, b"II*\0" + bytes(60)) == (
        "photo: the content is tif, taken are png, jpeg, webp, gif; convert it"
    )
    assert await problem(it, png()[:14]) == "photo: the content cannot be read: its png header is broken"
    assert (await problem(it, b"RIFF\0\0\0\0WAVE", AUDIO)).startswith("photo: the content: it cannot be read as wav")


async def test_a_huge_picture_is_measured_and_not_decoded(reader: Reader) -> None:
    bomb = png()[:16] + struct.pack(">II", 60_000, 60_000) + png()[24:]
    found = await reader().read(bomb, IMAGE)
    assert isinstance(found, Media) and found.pixels == (60_000, 60_000)


async def test_no_path_leads_out_of_the_workspace(reader: Reader, tmp_path: Path) -> None:
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
        assert "lies outside of the workspace" in await problem(it, value)
    assert "is Rowmill's own" in await problem(it, ".rowmill/a.png")
    assert await problem(it, "pipe.png") == "photo: pipe.png is no file"
    assert await problem(it, "inner") == "photo: inner is no file"
    assert await problem(it, ".") == "photo: . is no file"
    assert await problem(it, "") == "photo: the path is empty"
    assert await problem(it, "a\0.png") == "photo: the path holds a NUL character"
    assert "cannot be read" in await problem(it, "x" * 5000)
    assert "is not fetched" in await problem(it, f"file://{work}/inner/a.png")
    for value in ("inner/a.png", "fine.png", str(work / "inner" / "a.png"), "inner/../fine.png"):
        assert isinstance(await it.read(value, IMAGE), Media)


async def test_a_root_is_open_and_what_links_out_of_it_is_not(reader: Reader, tmp_path: Path) -> None:
    root = tmp_path / "media"
    root.mkdir()
    (root / "a.png").write_bytes(png())
    (root / "b.png").symlink_to("/etc/passwd")
    it = reader(roots=[root])
    assert isinstance(await it.read(str(root / "a.png"), IMAGE), Media)
    assert "lies outside" in await problem(it, str(root / "b.png"))


async def test_files_that_an_earlier_step_made_are_found_beside_the_sink(reader: Reader, tmp_path: Path) -> None:
    folder = tmp_path / "sink" / "files"
    folder.mkdir(parents=True)
    name = "0123456789abcdef" * 2 + ".png"
    (folder / name).write_bytes(png())
    (folder / "secret.png").write_bytes(png())
    it = reader(made=("files/", folder))
    assert isinstance(await it.read(f"files/{name}", IMAGE), Media)
    assert "cannot be read" in await problem(it, "files/secret.png")
    assert "cannot be read" in await problem(it, f"files/{'f' * 32}.png")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "::127.0.0.1"),
        *("fec0::1", "2001:db8::1", "no address"),
    ],
)
def test_private_addresses_are_known(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_known(address: str) -> None:
    assert not is_private(address)


async def _picture(request: web.Request) -> web.Response:
    return web.Response(body=png(3, 4), content_type="text/plain")


async def test_a_url_of_this_machine_is_refused_however_it_is_written(reader: Reader, serve: Any) -> None:
    address = await serve({"/a.png": _picture})
    port = address.partition(":")[2]
    it = reader()
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
        assert "private address" in await problem(it, f"http://{host}:{port}/a.png"), host
    for host in ("2130706433", "0x7f.1", "127.1", "0177.0.0.1"):
        told = await problem(it, f"http://{host}:{port}/a.png")
        assert "private address" in told or "is no URL" in told, host
    with pytest.raises(FetchError, match="private address"):
        await it.fetch(f"http://{address}/a.png", 1000)


async def test_a_host_that_is_allowed_is_fetched_from(reader: Reader, serve: Any, tmp_path: Path) -> None:
    address = await serve({"/a.png": _picture})
    name, port = address.split(":")
    for settings in (
        {"hosts": ["LOCALHOST."]},
        {"hosts": [f"localhost:{port}"]},
        {"provider_hosts": frozenset({"localhost"})},
    ):
        it = reader(**settings)
        found = await it.read(f"http://localhost:{port}/a.png?x=%2F", IMAGE)
        assert isinstance(found, Media) and (found.pixels, found.suffix) == ((3, 4), "png")
        assert await it.fetch(f"http://localhost:{port}/a.png", 1000) == png(3, 4)
        assert "private address" in await problem(it, f"http://127.0.0.1:{port}/a.png")
    assert "private address" in await problem(reader(hosts=["127.0.0.1:1"]), f"http://{name}:{port}/a.png")
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_url_is_passed_on_where_the_provider_fetches_it(reader: Reader) -> None:
    use = MediaColumn("image", 1000, passes_urls=True)
    assert await reader().read("https://example.com/a.png", use) == "https://example.com/a.png"


async def test_redirects_are_followed_and_checked_each(reader: Reader, serve: Any) -> None:
    inside = await serve({"/secret.png": _picture})

    async def to_inside(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://{inside}/secret.png"})

    async def to_file(request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": "file:///etc/passwd"})

    async def on(request: web.Request) -> web.Response:
        left = int(request.match_info["left"])
        return web.Response(status=307, headers={"Location": f"{left - 1}" if left else "../a.png"})

    address = await serve({"/inside": to_inside, "/file": to_file, "/on/{left}": on, "/a.png": _picture})
    port = address.partition(":")[2]
    it = reader(hosts=[f"localhost:{port}"])
    assert "127.0.0.1 is a private address" in await problem(it, f"http://localhost:{port}/inside")
    assert "no http or https URL" in await problem(it, f"http://localhost:{port}/file")
    assert isinstance(await it.read(f"http://localhost:{port}/on/4", IMAGE), Media)
    assert "redirected more than 5 times" in await problem(it, f"http://localhost:{port}/on/5")


async def test_what_is_too_large_is_not_read_to_its_end(reader: Reader, serve: Any, tmp_path: Path) -> None:
    sent = 0

    async def told(request: web.Request) -> web.Response:
        return web.Response(body=bytes(5000))

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65536))
                sent += 65536
        except ConnectionError:
            return response

    address = await serve({"/told": told, "/endless": endless})
    it = reader(hosts=["127.0.0.1"])
    for path in ("told", "endless"):
        assert "is larger than" in await problem(it, f"http://{address}/{path}?key=secret", MediaColumn("image", 4000))
    assert sent < 64 << 20
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_failure_that_passes_is_tried_again_and_is_no_fault_of_the_row(reader: Reader, serve: Any) -> None:
    asked: list[str] = []

    async def flaky(request: web.Request) -> web.Response:
        asked.append("flaky")
        return web.Response(status=503) if len(asked) < 3 else web.Response(body=png())

    async def down(request: web.Request) -> web.Response:
        return web.Response(status=500)

    async def gone(request: web.Request) -> web.Response:
        asked.append("gone")
        return web.Response(status=404)

    address = await serve({"/flaky": flaky, "/down": down, "/gone": gone})
    it = reader(hosts=["127.0.0.1"], waits=(0.001, 0.001))
    assert isinstance(await it.read(f"http://{address}/flaky", IMAGE), Media)
    asked.clear()
    assert await problem(it, f"http://{address}/gone?k=1") == f"photo: http://{address}/gone gave status 404"
    assert asked == ["gone"]
    found = await it.read(f"http://{address}/down", IMAGE)
    assert isinstance(found, RowError) and found.error_class == "server"
    found = await it.read("http://127.0.0.1:9/", IMAGE)
    assert isinstance(found, RowError) and found.error_class == "connection"


def test_no_secret_of_a_url_is_shown() -> None:
    assert shown("https://user:pass@host/a.png?sig=secret#x") == "https://host/a.png"


async def test_long_sound_is_cut_at_its_silences(reader: Reader, tmp_path: Path) -> None:
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
        assert seconds_of(io.BytesIO(piece.read()), "flac") == pytest.approx(piece.seconds or 0)
    again = await it.read(content, use)
    assert isinstance(again, Media)
    assert [piece.digest for _, piece in again.pieces] == [piece.digest for _, piece in whole.pieces]
    it.release(whole)
    it.release(again)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


async def test_sound_that_fits_is_sent_as_it_is_even_where_it_could_be_cut(reader: Reader) -> None:
    found = await reader().read(sound(2), MediaColumn("audio", 1_000_000, split=True))
    assert isinstance(found, Media) and found.pieces == ()


def test_the_samples_of_the_pieces_are_those_of_the_whole(tmp_path: Path) -> None:
    import av

    content = sound(9, silences=(2.0,))
    heard = b""
    for _, _, path in cut(io.BytesIO(content), "wav", 120_000, tmp_path):
        with av.open(str(path)) as piece:
            heard += b"".join(bytes(frame.planes[0])[: 2 * frame.samples] for frame in piece.decode(audio=0))
    assert heard == content[44:]


def test_a_file_that_is_no_sound_of_its_kind_is_told() -> None:
    with pytest.raises(SoundProblem, match="cannot be read as mp3"):
        seconds_of(io.BytesIO(b"#EXTM3U\nfile:///etc/passwd\n" * 100), "mp3")


def test_reading_blocks_no_loop_and_needs_none_to_be_made(tmp_path: Path) -> None:
    it = MediaReader(tmp_path, [], [], tmp_path / "scratch", frozenset())

    async def read() -> Any:
        try:
            return await it.read(png(), IMAGE)
        finally:
            await it.close()

    assert isinstance(asyncio.run(read()), Media)


def test_a_title_that_is_no_utf_8_does_not_keep_a_sound_from_being_read() -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16_000))
    title = b"INFO" + b"INAM" + struct.pack("<I", 6) + "café".encode("latin-1") + b"\xff\0"
    sound.seek(0, io.SEEK_END)
    sound.write(b"LIST" + struct.pack("<I", len(title)) + title)
    sound.seek(4)
    sound.write(struct.pack("<I", len(sound.getvalue()) - 8))
    assert seconds_of(sound, "wav") == 1.0
    assert len(decode(sound.getvalue())) == SAMPLES_A_SECOND
