"""The sample of an experiment: when an answer equals its label."""

from decimal import Decimal
from typing import Any

import pytest

from pipelines.experiments.sample import is_right


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (3, "3.0"),
        (0.1, Decimal("0.1")),
        (True, 1),
        (False, "FALSE"),
        (["a", "b"], '["a","b"]'),
        ({"x": 1}, '{"x": 1}'),
        (["a"], ["a"]),
        ("007", "007"),
    ],
    ids=str,
)
def test_an_answer_equals_its_label_in_other_words(answer: Any, label: Any) -> None:
    assert is_right(answer, label)


@pytest.mark.parametrize(
    ("answer", "label"),
    [(True, 0), (None, "None"), ("a", "A"), (["a"], "[a"), (["a", "b"], '["b", "a"]'), ("1.5", 1.50001), (3, "three")],
    ids=str,
)
def test_another_answer_is_wrong(answer: Any, label: Any) -> None:
    assert not is_right(answer, label)
