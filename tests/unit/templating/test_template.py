"""Templates: which columns they read, what they render, and what is an error before a row is seen."""

import datetime
import decimal
from typing import Any

import pytest

from connectors.errors import JobError
from connectors.templating.template import FUNCTIONS, GRAMMAR_NAMES, Template

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


@pytest.mark.parametrize("name", ["price", "row['price']"])
def test_a_decimal_is_a_number_in_expressions_and_printed_with_all_its_digits(name: str) -> None:
    template = Template(f"{{{{ {name} }}}} {{% if {name} > 50 %}}much{{% endif %}} {{{{ {name} * 2 }}}}", WHERE)
    assert template.render({"price": decimal.Decimal("9.50")}) == "9.50  19.0"
    assert template.render({"price": decimal.Decimal("100.250")}) == "100.250 much 200.5"
    assert template.render({"price": decimal.Decimal(10**20)}) == f"{10**20} much {2 * 10**20}"


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


NAMES = (
    *sorted(FUNCTIONS | GRAMMAR_NAMES),
    *("loop", "self", "name", "source", "template_name", "values", "undefined", "lipsum", "varargs", "range_", "row"),
    *("if", "in", "is", "and", "or", "for", "else", "set", "block", "filter", "macro", "call", "with", "raw", "import"),
    *("upper", "length", "defined", "default", "_x", "größe", "ключ", "class", "lambda", "__class__"),
)
ODD_NAMES = (
    *NAMES,
    "a name",
    "dotted.name",
    "it's",
    'say "hi"',
    "{{x}}",
    "%}",
    "back\\slash",
    "😀",
    "1st",
    "a" * 999,
    " ",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<{{ @ }}>", "<v>"),
        ("{{@}}", "v"),
        ("{{- @ -}}", "v"),
        ("{{ @ | upper }}", "V"),
        ("{{ @|upper }} {{ text }}", "V t"),
        ("{{ @ ~ '!' }}", "v!"),
    ],
)
def test_a_column_goes_before_a_name_of_the_template_engine(name: str, source: str, text: str) -> None:
    template = Template(source.replace("@", name), WHERE, {name, "text", "other"})
    assert template.render({name: "v", "text": "t", "other": "o"}) == text
    assert template.columns == ({name, "text"} if "text" in source else {name})


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GRAMMAR_NAMES])
def test_a_column_is_read_by_statements_as_well(name: str) -> None:
    source = f"{{% if {name} == 'v' %}}{{% for x in [{name}] %}}{{{{ x }}}}{{% endfor %}}{{% endif %}}{{{{ text }}}}"
    if name != "loop":
        source += f"{{% for x in [1] %}}{{{{ {name} }}}}{{% endfor %}}"
    expected = "vt" if name == "loop" else "vtv"
    assert Template(source, WHERE, {name, "text"}).render({name: "v", "text": "t"}) == expected


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_column_of_any_name_is_read_in_brackets(name: str, quote: str) -> None:
    quoted = quote + name.replace("\\", "\\\\").replace(quote, f"\\{quote}") + quote
    template = Template(f"{{{{ row[{quoted}] | upper }}}} {{{{ text }}}}", WHERE, {name, "text"})
    assert (template.columns, template.render({name: "v", "text": "t"})) == ({name, "text"}, "V t")


@pytest.mark.parametrize("name", NAMES)
def test_a_column_is_read_as_an_attribute_of_the_row(name: str) -> None:
    template = Template(f"{{{{ row.{name} | upper }}}}", WHERE, {name})
    assert (template.columns, template.render({name: "v"})) == ({name}, "V")


def test_functions_can_be_called_next_to_columns_with_their_names() -> None:
    source = "{% for n in range(3) %}{{ n }}{% endfor %}{{ row.range }}{{ dict(range=1).range }}"
    template = Template(source, WHERE, {"range", "dict"})
    assert (template.columns, template.render({"range": "v", "dict": "d"})) == ({"range"}, "012v1")


def test_constants_in_an_expression_are_no_columns() -> None:
    template = Template("{{ 1 if not (x is none) and y == true }}{{ [none, true] }}", WHERE, {"x", "y", "none", "true"})
    assert (template.columns, template.render({"x": 1, "y": True})) == ({"x", "y"}, "1[null,true]")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ range | lower }}", "no column range here; did you mean orange?"),
        ("{{ loop.index }}", "no column loop here"),
        ("{{ self }}{{ a|upper }}", "no column self here"),
        ("{{ debug }}", "no column debug here"),
        ("{{ dict | upper }}{{ dict(a=1) }}", 'dict is used as a column and as a function; write {{ row["dict"] }}'),
        ("{{ row.a }}{{ row }}", "row is used alone; name the columns"),
    ],
)
def test_a_function_without_a_call_is_an_error_before_a_row_is_seen(source: str, message: str) -> None:
    with pytest.raises(JobError) as raised:
        Template(source, WHERE, {"a", "orange"})
    assert str(raised.value).startswith(f"steps.a.input: {message}")


def test_a_column_called_row_is_printed_unless_row_is_the_whole_row() -> None:
    assert Template("{{ row }}{{ row | upper }}", WHERE, {"row"}).render({"row": "v"}) == "vV"
    with pytest.raises(JobError, match=r'row is used alone; write \{\{ row\["row"\] \}\}$'):
        Template("{{ row.a }}{{ row }}", WHERE, {"row", "a"})
