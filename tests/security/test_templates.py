"""Templates in a run: what cannot be rendered within bounds is an error of its row, and the other rows go on."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from connectors.template import LARGEST, Template, TemplateProblem

UNBOUNDED = [
    "{{ 'x' * size }}",
    "{% for a in range(size) %}{{ loop.index }}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(size) %}x{% endfor %}{% endfor %}",
    "{{ text|indent(size) }}",
    "{{ text|replace('', 'y' * size) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(size) }}",
]


def step(template: str) -> str:
    message = json.dumps([{"user": template}])
    return f"[{{name: answer, endpoint: chat, provider: test, model: m, messages: {message}}}]"


@pytest.mark.parametrize("template", UNBOUNDED)
def test_a_row_whose_value_makes_a_template_endless_is_an_input_error(
    workspace: Any, provider: Any, cli: Any, read: Callable[..., list[dict[str, Any]]], template: str
) -> None:
    workspace.write("rows.csv", "id,text,size\n1,a,1\n2,b,1000000000\n3,c,2\n")
    told = cli.run(workspace.job(steps=step("{{ text }}" + template)))
    assert (told["exit_code"], told["rows_ok"], told["rows_failed"]) == (1, 2, 1)
    (error,) = read(workspace.folder / "out", "errors")
    assert (error["id"], error["error_class"]) == (2, "input")
    assert "the template cannot be rendered" in error["message"]
    assert len(provider.seen) == 2


@pytest.mark.parametrize(
    "template", ["{{ text|truncate(text) }}", "{{ text|wordcount(text) }}", "{{ text.nothing() }}"]
)
def test_a_filter_given_what_it_does_not_take_is_told(
    workspace: Any, provider: Any, cli: Any, read: Callable[..., list[dict[str, Any]]], template: str
) -> None:
    workspace.csv(2)
    assert cli("run", workspace.job(steps=step(template))) == 1
    assert {error["error_class"] for error in read(workspace.folder / "out", "errors")} == {"input"}
    assert "Traceback" not in cli.err
    assert provider.seen == []


def test_a_text_of_more_than_the_bound_is_no_request() -> None:
    row = {"text": "x" * (LARGEST // 2)}
    assert len(Template("{{ text }}{{ text|upper }}", "w").render(row)) == LARGEST
    for source in ("{{ text|upper }}{{ text }}!", "{{ text }}{{ text }}!"):
        with pytest.raises(TemplateProblem, match="more than"):
            Template(source, "w").render(row)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% include 'rows.csv' %}", "rows.csv"),
        ("{% extends 'rows.csv' %}", "rows.csv"),
        ("{% import 'rows.csv' as rows %}{{ rows }}", "rows.csv"),
        ("{% from 'rows.csv' import id %}{{ id }}", "rows.csv"),
    ],
)
def test_a_template_reads_no_file_of_the_workspace_either(
    workspace: Any, provider: Any, cli: Any, template: str, said: str
) -> None:
    workspace.csv(2)
    assert cli("run", workspace.job(steps=step(template))) in (1, 2)
    assert provider.seen == []
    assert "id,text" not in cli.out + cli.err
