"""Proxies of the environment: which variable counts for which address."""

import pytest

from connectors.errors import FieldError
from pipelines.config.providers.proxies import checked_proxy, environment_proxy

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, "https://a.org/v1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://a.org/v1", ("HTTPS_PROXY", "http://p:1")),
        ({"HTTPS_PROXY": "http://p:1"}, "http://a.org/v1", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://a.org/v1", ("HTTP_PROXY", "http://p:1")),
        ({"ALL_PROXY": "http://p:1"}, "https://a.org/v1", ("ALL_PROXY", "http://p:1")),
        (
            {"https_proxy": "http://small:1", "HTTPS_PROXY": "http://large:1"},
            "https://a.org",
            ("https_proxy", "http://small:1"),
        ),
        ({"https_proxy": "", "HTTPS_PROXY": "http://p:1"}, "https://a.org", None),
        ({"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://q:1"}, "https://a.org", ("HTTPS_PROXY", "http://p:1")),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://a.org", None),
    ],
)
def test_the_variable_of_the_scheme_names_the_proxy(
    variables: dict[str, str], url: str, expected: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy(url) == expected


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]:80", "http://0.0.0.0:9"])
def test_this_machine_is_never_reached_through_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://p:1")
    assert environment_proxy(url) is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("*", "https://a.org", True),
        ("a.org", "https://a.org", True),
        ("a.org", "https://api.a.org", True),
        ("a.org", "https://ba.org", False),
        (".a.org", "https://api.a.org", True),
        ("*.a.org", "https://api.a.org", True),
        ("A.Org", "https://API.a.org", True),
        ("a.org.", "https://a.org", True),
        ("a.org:443", "https://a.org", True),
        ("a.org:8443", "https://a.org", False),
        ("a.org:8443", "https://a.org:8443", True),
        ("b.org, a.org", "https://a.org", True),
        ("b.org a.org", "https://a.org", True),
        (" ,", "https://a.org", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3:8080", True),
        ("10.1.2.3:80", "https://10.1.2.3:8080", False),
        ("2001:db8::/32", "https://[2001:db8::1]/v1", True),
        ("[2001:db8::1]:443", "https://[2001:db8::1]/v1", True),
        ("2001:db8::1", "https://[2001:db8::2]/v1", False),
        ("10.0.0.0/8", "https://a.org", False),
    ],
)
def test_no_proxy_names_hosts_domains_addresses_and_networks(
    no_proxy: str, url: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (environment_proxy(url) is None) is is_direct


def test_an_address_without_a_scheme_is_http() -> None:
    assert checked_proxy("proxy.internal:3128", in_file=True) == "http://proxy.internal:3128"
    assert checked_proxy("http://u:p@proxy:1", in_file=False) == "http://u:p@proxy:1"


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("socks5://p:1080", "names a socks5 proxy, and only http and https proxies are supported"),
        ("http://", "not the address of a proxy: it has no host"),
        ("http://p:99999", "not the address of a proxy (Port out of range 0-65535)"),
        ("http://user:secret@p:1", "holds a user or password"),
    ],
)
def test_an_unusable_proxy_is_refused_without_quoting_its_password(address: str, found: str) -> None:
    with pytest.raises(FieldError) as caught:
        checked_proxy(address, in_file=True)
    assert caught.value.found == found
    assert "secret@" not in str(caught.value)
