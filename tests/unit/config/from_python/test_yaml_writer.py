"""YAML that is written for a job: it is read again as the same values, and it is readable."""

from io import StringIO
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.from_python.yaml_writer import write_yaml
from pipelines.config.yaml_reader import parse_yaml

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)
ODD = st.sampled_from(
    ["", "~", "yes", "on", "true", "1", "007", "1e5", ".5e5", "0x1F", ".inf", "12:30", "- a", "a: b", "a #b", "'", '"',
     "*x", "&x", "!x", "%x", "@x", "`x", "{{ x }}", "[a", "a,b", "---", "...", "<<", "=", "a:", "\n", "a\n", "a\n\n",
     " a\nb", "a \nb", "\ta\nb", "a\r\nb", "\u2028", "\x85", "\ufeff", "\x7f", "a\n  b\nc", "|", ">", "?", "? a"]
)  # fmt: skip
KEYS = (TEXT | ODD).filter(lambda key: key != "<<")
"""The reader merges the value of a key `<<`."""
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXT | ODD
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def written(values: dict[str, Any]) -> str:
    out = StringIO()
    write_yaml(values, out)
    return out.getvalue()


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_values_are_read_again_as_they_are(values: dict[str, Any]) -> None:
    assert parse_yaml(written(values), "x").values == values


def test_short_values_are_on_one_line_and_long_texts_are_blocks() -> None:
    values = {
        "name": "a",
        "steps": [{"name": "s", "messages": [{"user": "Label:\n\n{{ text }}\n"}], "output": {"x": {"type": "string"}}}],
        "limits": {"concurrency": 5, "failed_share": 0.5},
        "code": "007",
    }
    assert written(values) == (
        "name: a\n"
        "steps:\n"
        "  - name: s\n"
        "    messages:\n"
        "      - user: |\n"
        "          Label:\n"
        "\n"
        "          {{ text }}\n"
        "    output: {x: {type: string}}\n"
        "limits: {concurrency: 5, failed_share: 0.5}\n"
        'code: "007"\n'
    )
