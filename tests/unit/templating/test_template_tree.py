"""Nested values of a job file with templates in them."""

import datetime

import pytest

from connectors.errors import JobError
from connectors.templating.template_tree import compile_template, plain_json

WHERE = ("steps", "a", "messages")


def test_every_text_at_any_depth_is_a_template() -> None:
    tree = compile_template({"a": ["{{ x }}", 1, {"b": "{{ y }}!"}], "c": "fixed"}, ["x", "y"], WHERE)
    assert (tree.columns, tree.varies_by_row) == ({"x", "y"}, True)
    assert tree.render({"x": "one", "y": 2}) == {"a": ["one", 1, {"b": "2!"}], "c": "fixed"}


def test_a_value_without_templates_is_the_same_for_every_row() -> None:
    tree = compile_template({"a": ["text", 1, None], "b": {}}, [], WHERE)
    assert (tree.columns, tree.varies_by_row) == (frozenset(), False)
    assert tree.render({}) == {"a": ["text", 1, None], "b": {}}


def test_an_unknown_column_is_an_error_with_its_key_path() -> None:
    with pytest.raises(JobError) as raised:
        compile_template({"a": ["{{ txt }}"]}, ["text"], WHERE)
    assert str(raised.value) == "steps.a.messages.a.0: no column txt here; did you mean text?"


def test_a_value_has_its_form_in_json() -> None:
    assert plain_json({1: datetime.date(2024, 2, 29), "a": (1, 2)}, WHERE) == {"1": "2024-02-29", "a": [1, 2]}
    with pytest.raises(JobError, match=r"^steps\.a\.messages: cannot be written as JSON"):
        plain_json({"a": object()}, WHERE)
