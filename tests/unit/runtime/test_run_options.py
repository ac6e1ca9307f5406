"""The options of an invocation."""

import pytest
from msgspec.structs import asdict

from pipelines.runtime.run_options import RunOptions


def test_by_default_an_open_run_is_continued_and_nothing_is_retried_or_changed() -> None:
    assert asdict(RunOptions()) == {
        "is_new_run": False,
        "retried_classes": None,
        "schema_change": None,
        "is_on_ray": False,
        "log": "plain",
        "is_quiet": False,
        "fail_on": "any",
        "row_keys": None,
        "on_request": None,
        "grace_seconds": 30.0,
        "is_trial": False,
    }


def test_options_are_immutable() -> None:
    with pytest.raises(AttributeError):
        RunOptions().log = "json"  # type: ignore[misc]
