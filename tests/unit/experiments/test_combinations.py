"""The combinations that `--over` flags describe."""

from pathlib import Path
from typing import Any

import pytest

from connectors.errors import JobError
from pipelines.experiments.combinations import parse_combinations
from pipelines.experiments.experiment_text import short_settings


def labels(*over: str, folder: Path = Path()) -> list[dict[str, Any]]:
    return [combination.labels for combination in parse_combinations(over, folder)]


def test_every_value_is_combined_with_every_other() -> None:
    assert labels("steps.a.model=small,large", "steps.a.params.temperature=0,0.5") == [
        {"steps.a.model": "small", "steps.a.params.temperature": 0},
        {"steps.a.model": "small", "steps.a.params.temperature": 0.5},
        {"steps.a.model": "large", "steps.a.params.temperature": 0},
        {"steps.a.model": "large", "steps.a.params.temperature": 0.5},
    ]


def test_combinations_are_numbered_from_1() -> None:
    assert [one.number for one in parse_combinations(("a.b=1,2,3",), Path())] == [1, 2, 3]


def test_repeated_flags_with_one_key_add_up() -> None:
    assert labels("a.b=x", "a.b=y,x") == [{"a.b": "x"}, {"a.b": "y"}]


def test_a_yaml_list_keeps_commas_in_its_values() -> None:
    assert labels('a.b=["one, two", three]') == [{"a.b": "one, two"}, {"a.b": "three"}]


def test_quoted_texts_and_mappings_are_one_value() -> None:
    assert labels("a.b='x, y'", "a.b={type: string, enum: [p, q]}") == [
        {"a.b": "x, y"},
        {"a.b": {"type": "string", "enum": ["p", "q"]}},
    ]


def test_quoted_texts_and_mappings_are_separated_by_commas() -> None:
    assert labels("""a.b="x, y", 'z'""", "a.b={c: 1}, {c: 2}") == [
        {"a.b": "x, y"},
        {"a.b": "z"},
        {"a.b": {"c": 1}},
        {"a.b": {"c": 2}},
    ]


def test_files_are_texts_that_go_by_their_names(tmp_path: Path) -> None:
    for name in ("b.md", "a.md"):
        (tmp_path / name).write_text(f"Prompt {name}, be brief.\n")
    combinations = parse_combinations(("steps.a.messages.0.system=@*.md",), tmp_path)
    assert [one.labels for one in combinations] == [
        {"steps.a.messages.0.system": "@a.md"},
        {"steps.a.messages.0.system": "@b.md"},
    ]
    assert combinations[0].settings[0].value == "Prompt a.md, be brief.\n"
    assert combinations[0].settings[0].assignment == 'steps.a.messages.0.system="Prompt a.md, be brief.\\n"'


def test_a_file_name_is_a_name_before_it_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].md").write_text("this")
    (tmp_path / "a1.md").write_text("not this")
    (one,) = parse_combinations(("a.b=@a[1].md",), tmp_path)
    assert one.settings[0].value == "this"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("a.b", "--over a.b: no key with values; write e.g. --over steps.label.model=gpt-4o,gpt-4o-mini"),
        ("a.b=", "--over a.b=: no key with values; write e.g. --over steps.label.model=gpt-4o,gpt-4o-mini"),
        ("a..b=1", "--over a..b=1: no key with values; write e.g. --over steps.label.model=gpt-4o,gpt-4o-mini"),
        ("a.b=[]", "--over a.b: found [], expected a list of values; write e.g. [0, 0.5]"),
        ("a.b=@none-*.md", "--over a.b=@none-*.md: no such file; a relative path starts in the current folder"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(flag: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        parse_combinations((flag,), tmp_path)
    assert str(caught.value) == message


def test_too_many_combinations_are_refused() -> None:
    many = ",".join(map(str, range(40)))
    with pytest.raises(JobError, match="more than 1,000 combinations"):
        parse_combinations((f"a.b={many}", f"a.c={many}"), Path())


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(JobError, match=r"picture\.png:1: not UTF-8 text; save the file as UTF-8"):
        parse_combinations(("a.b=@*.png",), tmp_path)


def test_an_absolute_pattern_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    assert labels(f"a.b=@{tmp_path}/*.md") == [{"a.b": f"@{tmp_path}/a.md"}]


def test_settings_are_shown_as_the_flag_takes_them() -> None:
    (one,) = parse_combinations(["steps.a.pack={rows: 5, verify: 0.1}", "steps.a.stream=true", "b=null"], Path())
    assert short_settings(one.labels) == {"a.pack": '{"rows":5,"verify":0.1}', "a.stream": "true", "b": "null"}
