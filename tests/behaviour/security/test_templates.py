"""Templates in a run: a row that cannot be rendered within bounds is an error row, and all others continue."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from connectors.templating.template import MAX_RENDERED_CHARACTERS, RenderError, Template

UNBOUNDED = [
    "{{ 'x' * size }}",
    "{% for a in range(size) %}{{ loop.index }}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(size) %}x{% endfor %}{% endfor %}",
    "{{ text|indent(size) }}",
    "{{ text|replace('', 'y' * size) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(size) }}",
]


REPEATED = [
    "{{ [1] * size }}",
    "{{ size * ['x'] }}",
    "{{ (text|list) * size }}",
    "{{ size * (text|list + ['* in a text']) }}",
    "{% set parts = [text] %}{{ parts * size }}",
    "{{ (parts * size)|join(',') }}",
    "{% for part in size * parts %}{{ part }}{% endfor %}",
    "{{ row['parts'] * size * size }}",
]


@pytest.mark.parametrize("template", REPEATED)
def test_no_list_is_repeated(template: str) -> None:
    """minijinja counts no fuel for it: nine digits take ten seconds and 300 MB."""
    compiled = Template(template, ("w",))
    with pytest.raises(RenderError, match="repeats no list"):
        compiled.render({"text": "ab", "size": 100_000_000, "parts": ["a", "b"]})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ size * 2 }} {{ 2*size*size }} {{ size * -2 }} {{ 2 * size ** 2 }}", "6 18 -6 18"),
        ("{{ '-' * size }} {{ size * '*' }} {{ size * true }}", "--- *** 3"),
        ("{{ 2 * parts|length }} {{ parts|length * 2 }} {{ parts[0]|upper * 2 }} {{ 2 * parts[0] }}", "4 4 AA aa"),
        ("{{ 2 * (size + 1 * (size - 1)) / 5 if size * 1 > 2 else 0 }}", "2.0"),
        ("{% raw %}{{ a * b }}{% endraw %}{# {{ 2 * [1] }} #} don't * {{ '}} * {{' }}", "{{ a * b }} don't * }} * {{"),
        ("{{ range(*[1, size]) }} {{ dict(a=size * 2).a }} {{ {'a': 2 * 3}['a'] }}", "[1,2] 6 6"),
    ],
)
def test_numbers_are_multiplied_and_texts_repeated(template: str, text: str) -> None:
    assert Template(template, ("w",)).render({"size": 3, "parts": ["a", "b"]}) == text


@pytest.mark.parametrize("more", ["", "{{ '' ~ '' }}", "{% if n %}{% endif %}"])
def test_a_number_has_the_same_text_in_every_template(more: str) -> None:
    for value, text in (
        (2.0, "2.0"),
        (2.5, "2.5"),
        (-0.0, "-0.0"),
        (2, "2"),
        (True, "true"),
        (10**30, "1" + "0" * 30),
    ):
        assert Template("{{ n }}" + more, ("w",)).render({"n": value}) == text
    assert Template("{{ n }}" + more, ("w",)).render({"n": [2.0, 1]}) == "[2.0,1]"


def step(template: str) -> str:
    message = json.dumps([{"user": template}])
    return f"[{{name: answer, endpoint: chat, provider: test, model: m, messages: {message}}}]"


@pytest.mark.parametrize("template", UNBOUNDED)
def test_a_value_that_makes_a_template_endless_is_an_input_error(
    workspace: Any, provider: Any, cli: Any, read: Callable[..., list[dict[str, Any]]], template: str
) -> None:
    workspace.write("rows.csv", "id,text,size\n1,a,1\n2,b,1000000000\n3,c,2\n")
    report = cli.run(workspace.job(steps=step("{{ text }}" + template)))
    assert (report["exit_code"], report["rows_ok"], report["rows_failed"]) == (1, 2, 1)
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["error_class"]) == (2, "input")
    assert "the template cannot be rendered" in error["message"]
    assert len(provider.seen) == 2


@pytest.mark.parametrize(
    "template", ["{{ text|truncate(text) }}", "{{ text|wordcount(text) }}", "{{ text.nothing() }}"]
)
def test_a_filter_with_a_wrong_argument_is_an_input_error(
    workspace: Any, provider: Any, cli: Any, read: Callable[..., list[dict[str, Any]]], template: str
) -> None:
    workspace.csv(2)
    assert cli("run", workspace.job(steps=step(template))) == 1
    assert {error["error_class"] for error in read(workspace.folder / "out", "errors")} == {"input"}
    assert "Traceback" not in cli.err
    assert provider.seen == []


def test_a_text_above_the_maximum_is_an_error() -> None:
    row = {"text": "x" * (MAX_RENDERED_CHARACTERS // 2)}
    assert len(Template("{{ text }}{{ text|upper }}", ("w",)).render(row)) == MAX_RENDERED_CHARACTERS
    for source in ("{{ text|upper }}{{ text }}!", "{{ text }}{{ text }}!"):
        with pytest.raises(RenderError, match="more than"):
            Template(source, ("w",)).render(row)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% include 'rows.csv' %}", "rows.csv"),
        ("{% extends 'rows.csv' %}", "rows.csv"),
        ("{% import 'rows.csv' as rows %}{{ rows }}", "rows.csv"),
        ("{% from 'rows.csv' import id %}{{ id }}", "rows.csv"),
    ],
)
def test_a_template_reads_no_file_of_the_workspace_either(
    workspace: Any, provider: Any, cli: Any, template: str, name: str
) -> None:
    workspace.csv(2)
    assert cli("run", workspace.job(steps=step(template))) in (1, 2)
    assert provider.seen == []
    assert "id,text" not in cli.out + cli.err
