"""Proxies, certificates and the limit of open files: what works, and what stops a run at once with its remedy."""

import resource
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.runtime import open_files
from pipelines.runtime.open_files import affordable_connections
from tests.behaviour.providers.conftest import RecordingProvider
from tests.support.certificates import CertificateAuthority
from tests.support.exhaustive import every_nth
from tests.support.proxy_server import ProxyServer

Configure = Callable[..., Any]


@pytest.fixture
def secure(authority: CertificateAuthority) -> Iterator[RecordingProvider]:
    """A provider whose certificate, for 127.0.0.1 and api.corp.test, the system does not trust."""
    server = RecordingProvider(authority.server_context("127.0.0.1", "api.corp.test"))
    yield server
    server.close()


@pytest.mark.parametrize("variable", every_nth(3, {name: name for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")}))
def test_a_proxy_of_the_environment_is_used_with_its_credentials(
    recorder: RecordingProvider, configure: Configure, cli: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    proxy = ProxyServer(recorder.base_url, "user:p@ss")
    monkeypatch.setenv(variable, f"http://user:p%40ss@127.0.0.1:{proxy.port}")
    job = configure(base_url="http://api.corp.test/v1")
    assert cli("run", job, "--quiet") == 0, cli.err
    assert set(proxy.requests) == {"POST http://api.corp.test/v1/chat/completions HTTP/1.1"}
    monkeypatch.setenv("NO_PROXY", ".corp.test")
    report = cli.run(configure(3, base_url="http://api.corp.test/v1"))
    assert report["exit_code"] == 3
    assert "connection" in report["stopped"]
    proxy.close()


def test_a_tunnel_through_a_proxy_checks_the_certificate_of_the_provider(
    secure: RecordingProvider, authority: CertificateAuthority, configure: Configure, cli: Any
) -> None:
    proxy = ProxyServer(secure.base_url)
    keys = {"base_url": "https://api.corp.test/v1", "proxy": f"127.0.0.1:{proxy.port}"}
    report = cli.run(configure(**keys))
    assert report["exit_code"] == 3
    assert "the certificate of api.corp.test is refused" in report["stopped"]
    assert report["requests"] <= 2
    report = cli.run(configure(**keys, ca_file=str(authority.file)))
    assert (report["exit_code"], report["rows_ok"]) == (0, 2)
    assert set(proxy.requests) == {"CONNECT api.corp.test:443 HTTP/1.1"}
    proxy.close()


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (407, "the proxy 127.0.0.1 wants a user and a password (HTTP 407); give its address with both"),
        (403, "the proxy 127.0.0.1 refuses this provider (HTTP 403)"),
    ],
)
def test_a_proxy_that_refuses_stops_the_run_at_once(
    secure: RecordingProvider, configure: Configure, cli: Any, refusal: int, words: str
) -> None:
    proxy = ProxyServer(secure.base_url, refusal=refusal)
    report = cli.run(configure(base_url="https://api.corp.test/v1", proxy=f"http://127.0.0.1:{proxy.port}"))
    assert report["exit_code"] == 3
    assert words in report["stopped"]
    assert len(proxy.requests) <= 2
    proxy.close()


def test_plain_requests_through_a_proxy_without_its_password_stop_the_run(
    recorder: RecordingProvider, configure: Configure, cli: Any
) -> None:
    proxy = ProxyServer(recorder.base_url, "user:password-1")
    report = cli.run(configure(base_url="http://api.corp.test/v1", proxy=proxy.address))
    assert report["exit_code"] == 3
    assert report["stopped"].startswith("setup: ")
    assert "wants a user and a password (HTTP 407)" in report["stopped"]
    proxy.close()


def test_an_unknown_proxy_stops_the_run_at_once(configure: Configure, cli: Any) -> None:
    report = cli.run(configure(base_url="http://api.corp.test/v1", proxy="http://proxy.invalid:3128"))
    assert (report["exit_code"], report["requests"] <= 2) == (3, True)
    assert "the proxy proxy.invalid is unknown" in report["stopped"]


def test_an_address_of_no_proxy_is_refused_before_anything_is_sent(
    configure: Configure, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:hidden-1@proxy:1080")
    assert cli("validate", configure(base_url="https://api.corp.test/v1")) == 2
    assert cli.err == (
        "ALL_PROXY: names a socks5 proxy, and only http and https proxies are supported; "
        "write e.g. http://proxy.internal:3128\n"
    )


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_the_environment_names_are_trusted(
    secure: RecordingProvider,
    authority: CertificateAuthority,
    configure: Configure,
    cli: Any,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, str(authority.file))
    assert cli("run", configure(base_url=secure.base_url), "--quiet") == 0, cli.err
    monkeypatch.setenv(variable, "/nowhere/ca.pem")
    assert cli("validate", configure(base_url=secure.base_url)) == 2
    assert cli.err == f"{variable} names /nowhere/ca.pem, which does not exist; correct it, or unset {variable}\n"


def test_a_refused_certificate_names_its_remedy(
    authority: CertificateAuthority, configure: Configure, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    for context, words in (
        (authority.server_context("localhost"), "correct the host in base_url"),
        (authority.server_context("127.0.0.1", days=-1), "certificate has expired); have it renewed"),
    ):
        server = RecordingProvider(context)
        report = cli.run(configure(base_url=server.base_url))
        server.close()
        assert report["exit_code"] == 3
        assert report["stopped"].startswith("setup: ")
        assert words in report["stopped"]


def test_https_at_a_port_without_tls_names_its_remedy(
    recorder: RecordingProvider, configure: Configure, cli: Any
) -> None:
    report = cli.run(configure(base_url=recorder.base_url.replace("http:", "https:")))
    assert report["exit_code"] == 3
    assert f"127.0.0.1:{recorder.port} answers without TLS; write http:// in base_url" in report["stopped"]


def test_a_ca_file_that_holds_no_certificate_is_refused(
    authority: CertificateAuthority, configure: Configure, cli: Any, tmp_path: Path
) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.file.read_text())
    (tmp_path / "corporate.crt").write_bytes(der)
    assert cli("validate", configure(base_url="https://a.invalid/v1", ca_file="corporate.crt")) == 2
    assert "rowmill.yaml:1: providers.test.ca_file: " in cli.err
    assert "holds no certificate in PEM form; write it as PEM: openssl x509 -inform der -in corporate.crt" in cli.err
    assert cli("validate", configure(base_url="https://a.invalid/v1", ca_file="missing.pem")) == 2
    assert "missing.pem cannot be read (No such file or directory); name a file of certificates" in cli.err


def test_the_limit_of_open_files_caps_the_requests_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"soft": 64, "hard": 64}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits["soft"], limits["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update(soft=pair[0]))
    monkeypatch.setattr(open_files, "_open_files", lambda: 20)
    assert affordable_connections(500) == (
        20,
        "500 requests at a time need more open files than the 64 that this process may have; 20 are sent at a time; "
        "raise the limit first: ulimit -n 1024",
    )
    assert affordable_connections(20) == (20, None)
    limits.update(soft=256, hard=4096)
    assert affordable_connections(500) == (500, None)
    assert limits["soft"] == 4096
    limits.update(soft=16, hard=16)
    assert affordable_connections(500)[0] == 1
