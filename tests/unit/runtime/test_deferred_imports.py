"""Libraries import and read at their first use what they would import or read at every start."""

import asyncio
import gc
import ssl
import subprocess
import sys
from pathlib import Path

from pipelines.runtime.deferred_imports import import_phase
from tests.support.certificates import CertificateAuthority

PANDAS = """
import sys
from pipelines.runtime.deferred_imports import defer_imports
defer_imports()
import pyarrow as pa
table = pa.table({"n": [1, 2]})
print("pandas" in sys.modules)
frame = table.to_pandas()
print("pandas" in sys.modules, frame.n.sum(), pa.Table.from_pandas(frame).num_rows)
"""

COMPUTE = """
import sys
from pipelines.runtime.deferred_imports import defer_imports
defer_imports()
import pyarrow as pa
import pyarrow.compute as pc
print("pyarrow._compute" in sys.modules)
print(pc.sum(pa.array([1, 2])), pa.table({"n": [1, 2]}).filter(pc.field("n") > 1).num_rows)
"""

PRICES = """
import sys
from pipelines.runtime.deferred_imports import defer_imports
defer_imports()
import genai_prices
print("httpx2._client" in sys.modules)
print(genai_prices.UpdatePrices().request_timeout.connect, "httpx2._client" in sys.modules)
"""

CERTIFICATES = """
import asyncio, ssl, sys
from pipelines.runtime.deferred_imports import defer_imports
defer_imports()
import aiohttp

async def main() -> None:
    async with aiohttp.ClientSession() as session:
        for attempt in range(2):
            try:
                async with session.get(sys.argv[1], headers={"Connection": "close"}) as reply:
                    print(reply.status)
            except aiohttp.ClientConnectorCertificateError as exc:
                print(type(exc).__name__)

print(ssl.create_default_context().cert_store_stats()["x509"])
asyncio.run(main())
"""


def output_of(script: str, *arguments: str, trusted: Path | None = None) -> list[str]:
    variables = {} if trusted is None else {"SSL_CERT_FILE": str(trusted), "SSL_CERT_DIR": str(trusted)}
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), **variables},
    )
    return found.stdout.splitlines()


def test_pandas_is_imported_by_a_conversion_and_not_by_the_first_array() -> None:
    assert output_of(PANDAS) == ["False", "True 3 2"]


def test_arrows_functions_are_imported_when_one_is_called() -> None:
    assert output_of(COMPUTE) == ["False", "3 1"]


def test_the_http_client_of_the_price_list_is_imported_when_it_is_used() -> None:
    assert output_of(PRICES) == ["False", "5 True"]


async def test_connections_trust_the_systems_certificates_and_no_others(tmp_path: Path) -> None:
    authority, other = CertificateAuthority(tmp_path), tmp_path / "other"
    other.mkdir()
    stranger = CertificateAuthority(other)
    context: ssl.SSLContext = authority.server_context("127.0.0.1")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", ssl=context) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        trusting = asyncio.to_thread(output_of, CERTIFICATES, url, trusted=authority.file)
        distrusting = asyncio.to_thread(output_of, CERTIFICATES, url, trusted=stranger.file)
        assert await asyncio.gather(trusting, distrusting) == [
            ["1", "200", "200"],
            ["1", *["ClientConnectorCertificateError"] * 2],
        ]


def test_the_garbage_collector_rests_while_modules_are_imported() -> None:
    try:
        with import_phase():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
