"""The models of `rowmill.yaml`."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.config.providers.provider_entry import ProviderEntry, ProviderLimits
from pipelines.config.workspace_file import WorkspaceFile


def test_an_empty_file_has_the_defaults() -> None:
    file = WorkspaceFile()
    assert (file.providers, file.state, file.roots, file.hosts, file.budget) == ({}, ".rowmill", (), (), None)
    assert (file.time_zone, file.keep_answers, file.prices) == ("UTC", "pruned", {})


def test_a_provider_has_a_base_url_without_a_slash_at_the_end_and_no_limits() -> None:
    entry = ProviderEntry(base_url="http://localhost:8000/v1/")
    assert (entry.base_url, entry.limits, entry.members) == ("http://localhost:8000/v1", ProviderLimits(), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"providers": {"a": {}}}, "missing; write e.g. base_url: https://api.openai.com/v1"),
        ({"providers": {"a": {"base_url": "x"}}}, "not an http or https address"),
        ({"providers": {"a": {"base_url": "http://x", "members": ["local"]}}}, "cannot be combined with members"),
        ({"providers": {"a": {"members": ["b"]}}}, "no such provider; known here: local, openai"),
        ({"providers": {"local": {"base_url": "http://x"}}}, "is built in and takes no keys"),
        ({"providers": {"a b": {"base_url": "http://x"}}}, "not a name; write letters, digits, _ . and - only"),
        ({"time_zone": "Berlin"}, 'found "Berlin", not a time zone'),
        ({"budget": {"usd_per_day": "5"}}, "Input should be a valid number"),
        ({"states": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_an_invalid_value_is_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WorkspaceFile.model_validate(values)
    assert message in str(caught.value)


def test_a_pool_of_a_pool_is_rejected() -> None:
    pools = {"a": {"members": ["local"]}, "b": {"members": ["a"]}}
    with pytest.raises(ValidationError, match="no such provider"):
        WorkspaceFile.model_validate({"providers": pools})
