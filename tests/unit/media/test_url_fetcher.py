"""Tests of fetching URLs: private addresses, redirects, sizes and retries."""

from pathlib import Path

import pytest
from aiohttp import web

from connectors.contracts import MediaColumn
from connectors.media.url_fetcher import FetchError, is_private, redact_url
from connectors.records import Media, RowError
from tests.unit.media.conftest import IMAGE, Reader, Serve, png, problem


async def _picture(request: web.Request) -> web.Response:
    return web.Response(body=png(3, 4), content_type="text/plain")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "::127.0.0.1"),
        *("fec0::1", "2001:db8::1", "no address"),
    ],
)
def test_private_addresses_are_recognised(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_recognised(address: str) -> None:
    assert not is_private(address)


async def test_urls_of_this_machine_are_refused_in_every_notation(reader: Reader, serve: Serve) -> None:
    address = await serve({"/a.png": _picture})
    port = address.partition(":")[2]
    it = reader()
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
        assert "private address" in await problem(it, f"http://{host}:{port}/a.png"), host
    for host in ("2130706433", "0x7f.1", "127.1", "0177.0.0.1"):
        message = await problem(it, f"http://{host}:{port}/a.png")
        assert "private address" in message or "is not a URL" in message, host
    with pytest.raises(FetchError, match="private address"):
        await it.fetch(f"http://{address}/a.png", 1000)


async def test_allowed_hosts_may_have_private_addresses(reader: Reader, serve: Serve, tmp_path: Path) -> None:
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


async def test_every_redirect_is_checked(reader: Reader, serve: Serve) -> None:
    inside = await serve({"/secret.png": _picture})

    async def to_inside(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://{inside}/secret.png"})

    async def to_file(request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": "file:///etc/passwd"})

    async def redirect(request: web.Request) -> web.Response:
        remaining = int(request.match_info["remaining"])
        return web.Response(status=307, headers={"Location": f"{remaining - 1}" if remaining else "../a.png"})

    address = await serve(
        {"/inside": to_inside, "/file": to_file, "/redirect/{remaining}": redirect, "/a.png": _picture}
    )
    port = address.partition(":")[2]
    it = reader(hosts=[f"localhost:{port}"])
    assert "127.0.0.1 is a private address" in await problem(it, f"http://localhost:{port}/inside")
    assert "not an http or https URL" in await problem(it, f"http://localhost:{port}/file")
    assert isinstance(await it.read(f"http://localhost:{port}/redirect/4", IMAGE), Media)
    assert "redirected more than 5 times" in await problem(it, f"http://localhost:{port}/redirect/5")


async def test_too_large_contents_are_not_read_to_the_end(reader: Reader, serve: Serve, tmp_path: Path) -> None:
    sent = 0

    async def with_length(request: web.Request) -> web.Response:
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

    address = await serve({"/with-length": with_length, "/endless": endless})
    it = reader(hosts=["127.0.0.1"])
    for path in ("with-length", "endless"):
        assert "is larger than" in await problem(it, f"http://{address}/{path}?key=secret", MediaColumn("image", 4000))
    assert sent < 64 << 20
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_temporary_failure_is_retried_and_is_not_an_input_error(reader: Reader, serve: Serve) -> None:
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
    it = reader(hosts=["127.0.0.1"], retry_waits=(0.001, 0.001))
    assert isinstance(await it.read(f"http://{address}/flaky", IMAGE), Media)
    asked.clear()
    assert await problem(it, f"http://{address}/gone?k=1") == f"photo: http://{address}/gone returned status 404"
    assert asked == ["gone"]
    found = await it.read(f"http://{address}/down", IMAGE)
    assert isinstance(found, RowError) and found.error_class == "server"
    found = await it.read("http://127.0.0.1:9/", IMAGE)
    assert isinstance(found, RowError) and found.error_class == "connection"


def test_secrets_in_urls_are_redacted() -> None:
    assert redact_url("https://user:pass@host/a.png?sig=secret#x") == "https://host/a.png"
