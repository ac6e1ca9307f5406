"""Base URLs of providers: syntax, loopback hosts and encryption."""

import pytest

from connectors.errors import FieldError
from pipelines.config.providers.base_urls import checked_base_url, is_loopback, is_unencrypted


def test_a_slash_at_the_end_is_removed() -> None:
    assert checked_base_url("https://api.example.org/v1/") == "https://api.example.org/v1"
    assert checked_base_url("http://10.0.0.1:8000") == "http://10.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("api.example.org", 'found "api.example.org", not an http or https address'),
        ("https://a:99999", 'found "https://a:99999", not an address (Port out of range 0-65535)'),
        ("https:///v1", 'found "https:///v1", an address without a host'),
        ("https://a b.org", 'found "https://a b.org", an address without a host'),
        ("https://a.org/v1?x=1", "ends with a ? part, and paths are added behind it"),
        ("https://a.org/v1#x", "ends with a # part, and paths are added behind it"),
        ("https://me:pw@a.org", "holds a user or password"),
        ("ftp://me:pw@a.org", 'found "ftp://...@a.org", not an http or https address'),
        ("x" * 100, f'found "{"x" * 57}...", not an http or https address'),
    ],
)
def test_an_invalid_base_url_is_rejected_without_quoting_credentials(url: str, found: str) -> None:
    with pytest.raises(FieldError) as caught:
        checked_base_url(url)
    assert caught.value.found == found
    assert caught.value.remedy


def test_the_query_of_a_base_url_is_referred_to_its_own_key_without_its_values() -> None:
    with pytest.raises(FieldError) as caught:
        checked_base_url("https://a.org/openai/deployments/d?api-version=2024-06-01&code=secret")
    assert caught.value.remedy == "write it as a key of the provider: query: {api-version: VALUE, code: VALUE}"


@pytest.mark.parametrize("host", ["localhost", "api.localhost", "127.8.0.1", "[::1]", "0.0.0.0"])
def test_loopback_hosts_are_this_machine(host: str) -> None:
    assert is_loopback(f"http://{host}:80/v1")
    assert not is_unencrypted(f"http://{host}:80/v1")


@pytest.mark.parametrize("host", ["localhost.example.org", "127.0.0.1.example.org", "10.0.0.1"])
def test_http_to_any_other_host_is_unencrypted(host: str) -> None:
    assert not is_loopback(f"http://{host}/v1")
    assert is_unencrypted(f"http://{host}/v1")
    assert not is_unencrypted(f"https://{host}/v1")
