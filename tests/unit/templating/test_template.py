"""Templates: which columns they read, what they render, and what is an error before a row is seen."""

import datetime
import decimal
from typing import Any

import pytest

from connectors.errors import JobError
from connectors.templating.template import Template

WHERE = ("steps", "a", "input")


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("no braces", set()),
        ("{{ a }} and {{ b }}", {"a", "b"}),
        ("{{ a|upper }}", {"a"}),
        ("{{ text[:limit] }} {{ text[start:2] }}", {"text", "limit", "start"}),
        ("{{ a[b[c]:d] }} {{ e[f[g:h]:i] }}", set("abcdefghi")),
        ("{{ row['any name'] }} {{ row.other }} {{ row[ \"third\" ][:2] }}", {"any name", "other", "third"}),
        ("{{ row['row'] }} {{ row.range }}", {"row", "range"}),
        ("{{ 'row' }} {{ a.row }} {# {{ row }} #} {% raw %}{{ row }}{% endraw %}", {"a"}),
        ("{% for x in items %}{{ loop.index }} {{ x }} {{ y }}{% endfor %}", {"items", "y"}),
        ("{% set z = a %}{{ z }}{% if b %}{{ namespace(c=1).c }}{% endif %}", {"a", "b"}),
        ("{% raw %}{{ a|nothing }}{% endraw %}{# {{ b|nothing }} #}{{ 'c|nothing' }}", set()),
    ],
)
def test_the_columns_of_a_template_are_found(source: str, columns: set[str]) -> None:
    assert Template(source, WHERE).columns == columns


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (2.0, "2.0"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), "2024-02-29T12:30:00+00:00"),
        (b"\x00\xff", "AP8="),
        ([1, "ü", None], '[1,"ü",null]'),
        ({"a": {"b": 1}}, '{"a":{"b":1}}'),
        ([("a", 1), ("b", 2)], '{"a":1,"b":2}'),
    ],
)
@pytest.mark.parametrize("source", ["{{ value }}", "{{ row['value'] }}"], ids=["joined", "rendered"])
def test_a_value_has_one_text_in_every_template(value: Any, text: str, source: str) -> None:
    assert Template(source, WHERE).render({"value": value}) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ row }}", "row is used alone; name the columns"),
        ("{{ row|length }}", "row is used alone; name the columns"),
        ("{{ row['a' ~ b] }}", "row is used alone; name the columns"),
        ("{{ a|shout }}", "no filter shout; write one of Jinja's"),
        ("{% raw %}{% endraw %}{{ a|shout }}", "no filter shout; write one of Jinja's"),
        ("{{ a", "the template cannot be read"),
        ("{% for x in a %}{{ x }}", "the template cannot be read"),
    ],
)
def test_an_invalid_template_is_an_error_with_its_key_path(source: str, message: str) -> None:
    with pytest.raises(JobError) as raised:
        Template(source, WHERE)
    assert str(raised.value).startswith(f"steps.a.input: {message}")


def test_line_ends_are_kept() -> None:
    assert Template("{{ a|upper }}\r\n{{ b * 2 }}\r\n", WHERE).render({"a": "x", "b": 2}) == "X\r\n4\r\n"
