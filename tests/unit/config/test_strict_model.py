"""Strict sections of a configuration file."""

import pytest
from pydantic import ValidationError

from pipelines.config.strict_model import StrictModel


class Section(StrictModel):
    number: float
    names: tuple[str, ...] = ()


def test_numbers_in_quotes_and_unknown_keys_are_rejected() -> None:
    assert Section.model_validate({"number": 5}).number == 5
    for values in ({"number": "5"}, {"number": 5, "other": 1}):
        with pytest.raises(ValidationError):
            Section.model_validate(values)


def test_a_section_is_immutable() -> None:
    section = Section(number=5)
    with pytest.raises(ValidationError, match="frozen"):
        section.number = 6
