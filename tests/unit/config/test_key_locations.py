"""Locations of key paths: file and line, or the flag that set the key."""

from typing import Any

import pytest

from connectors.errors import KeyPath
from pipelines.config.key_locations import KeyLocations

VALUES: dict[str, Any] = {"name": "a", "steps": [{"name": "label", "model": "m"}, {"model": "n"}], "limits": {"x": 1}}
LINES: dict[KeyPath, int] = {
    (): 1,
    ("name",): 1,
    ("steps",): 2,
    ("steps", 0): 3,
    ("steps", 0, "name"): 3,
    ("steps", 0, "model"): 4,
    ("steps", 1): 5,
    ("steps", 1, "model"): 5,
}


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ((), "x.yaml"),
        (("name",), "x.yaml:1: name"),
        (("steps", 0, "model"), "x.yaml:4: steps.label.model"),
        (("steps", 0, "name"), "x.yaml:3: steps.0.name"),
        (("steps", 1, "model"), "x.yaml:5: steps.1.model"),
        (("steps", 9, "model"), "x.yaml:2: steps.9.model"),
        (("steps", 0, "params", "top_p"), "x.yaml:3: steps.label.params.top_p"),
        (("budget", "usd"), "x.yaml:1: budget.usd"),
    ],
)
def test_a_key_has_its_line_or_that_of_the_nearest_key_around_it(path: KeyPath, location: str) -> None:
    assert KeyLocations("x.yaml", LINES, VALUES).locate(path) == location


def test_a_key_of_an_empty_file_has_no_line() -> None:
    locations = KeyLocations("x.yaml", {}, {})
    assert (locations.locate(("name",)), locations.line(("name",))) == ("x.yaml: name", 0)


def test_a_key_that_a_flag_set_is_located_by_the_flag() -> None:
    flags: dict[KeyPath, str] = {("steps", 0, "model"): "--set steps.label.model", ("limits",): "--set limits"}
    locations = KeyLocations("x.yaml", LINES, VALUES, flags)
    assert locations.locate(("steps", 0, "model")) == "--set steps.label.model"
    assert locations.locate(("limits", "concurrency")) == "--set limits: limits.concurrency"
    assert locations.locate(("steps", 1, "model")) == "x.yaml:5: steps.1.model"
