"""Every error class is explained: its cause in reports, its meaning on the page of errors."""

from pathlib import Path
from typing import get_args

import pytest

from connectors.error_classes import ErrorClass
from pipelines.reporting.error_causes import CAUSES

PAGE = Path("jobs/docs/errors-and-faults.md").read_text()


@pytest.mark.parametrize("name", get_args(ErrorClass))
def test_an_error_class_has_a_cause_and_a_row_on_the_page(name: str) -> None:
    assert name in CAUSES
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line]
    assert rows
