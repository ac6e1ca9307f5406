"""The keys of a provider: what is accepted, and what is refused with a remedy."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.config.providers.provider_entry import ProviderEntry, VariableValue

URL = "https://a.org/v1"


def test_every_key_of_a_provider_is_read() -> None:
    entry = ProviderEntry.model_validate(
        {
            "base_url": "https://acme.openai.azure.com/openai/deployments/labels",
            "query": {"api-version": "2025-04-01-preview", "code": {"env": "CODE"}},
            "headers": {"OpenAI-Project": "proj_1", "X-Team": {"env": "TEAM"}},
            "api_key_command": "gcloud auth print-access-token",
            "api_key_ttl": "1h",
            "api_key_header": "api-key",
            "models": {"gpt-4o-mini": "google/gemini-2.5-flash"},
            "ca_file": "certs/corporate.pem",
            "proxy": {"env": "CORPORATE_PROXY"},
        }
    )
    assert entry.headers == {"OpenAI-Project": "proj_1", "X-Team": VariableValue(env="TEAM")}
    assert entry.query["code"] == VariableValue(env="CODE")
    assert entry.variables == ("TEAM", "CODE", "CORPORATE_PROXY")
    assert (entry.has_key, entry.ttl_seconds) == (True, 3600)
    assert ProviderEntry(base_url=URL, api_key_env="K").variables == ("K",)
    assert ProviderEntry(base_url=URL, api_key_command="x").ttl_seconds == 45 * 60
    assert ProviderEntry.model_validate({"base_url": URL, "api_key_header": "X", "headers": {"Authorization": "a"}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"api_key_env": "K", "api_key_command": "x"}, "cannot be combined with api_key_env; keep one of them"),
        ({"api_key_ttl": "45m"}, "has no effect without api_key_command; leave it out"),
        ({"api_key_command": "x", "api_key_ttl": "45"}, 'found "45", not a time; write e.g. 45m, with s, m, h or d'),
        ({"api_key_header": "a b"}, "not the name of a header; write e.g. api_key_header: api-key"),
        ({"api_key_header": "Host"}, "is set for each request and cannot be changed"),
        ({"headers": {"host": "x"}}, "is set for each request and cannot be changed; leave it out"),
        ({"headers": {"Content-Length": "1"}}, "is set for each request and cannot be changed"),
        ({"headers": {"content-TYPE": "x"}}, "is set for each request and cannot be changed"),
        ({"headers": {"authorization": "x"}}, "is the header of the key; name its variable: api_key_env"),
        ({"api_key_header": "X-Key", "headers": {"x-key": "x"}}, "is the header of the key"),
        ({"headers": {"a:b": "x"}}, "not the name of a header; write letters, digits and - only"),
        ({"headers": {"A": "x", "a": "y"}}, "occurs twice, since capitals do not count; keep one of them"),
        ({"headers": {"A": "x\r\nB: y"}}, "holds characters that no header can have; write it in one line"),
        ({"headers": {"A": {"env": "not a name"}}}, "not the name of a variable"),
        ({"query": {"": "x"}}, "at least 1 character"),
        ({"proxy": "http://u:pw@p:1"}, "holds a user or password"),
        ({"proxy": "socks5://p:1"}, "names a socks5 proxy, and only http and https proxies are supported"),
        ({"members": ["b"], "ca_file": "x"}, "cannot be combined with members"),
    ],
)
def test_a_key_that_does_not_fit_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ProviderEntry.model_validate({"base_url": URL, **keys})
    assert message in str(caught.value)
    assert "pw@" not in message
