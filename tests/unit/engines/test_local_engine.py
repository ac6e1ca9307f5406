"""`--engine ray` for jobs and machines on which it cannot run."""

from typing import Any

import pytest


def test_a_missing_ray_package_is_reported_with_the_command_to_install_it(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.engines.ray.driver.find_spec", lambda name: None)
    workspace.csv(5)
    assert cli("run", workspace.job(), "--engine", "ray", "--json") == 2
    assert cli.err == "--engine ray: Ray is not installed; add it with: pip install 'rowmill[ray]'\n"
    assert provider.seen == []


@pytest.mark.parametrize(
    ("blocks", "address", "message"),
    [
        ({"delivery": "batch"}, "", "batches do not need workers; run with --engine local"),
        ({}, "ray://somewhere:10001", "RAY_ADDRESS: is the address of a Ray Client server"),
    ],
)
def test_what_ray_cannot_do_is_refused_before_anything_is_sent(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch, blocks: Any, address: str, message: str
) -> None:
    monkeypatch.setattr("pipelines.engines.ray.driver.find_spec", lambda name: object())
    monkeypatch.setenv("RAY_ADDRESS", address)
    workspace.csv(5)
    assert cli("run", workspace.job(**blocks), "--engine", "ray", "--quiet") == 2
    assert message in cli.err
    assert provider.seen == []
