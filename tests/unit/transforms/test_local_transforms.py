"""Select, each and fold as functions of tables."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import JobError
from pipelines.config.steps.local_steps import EachStep, FoldStep, SelectStep
from pipelines.transforms.child_keys import child_key_starts
from pipelines.transforms.each import Each
from pipelines.transforms.fold import SOURCE, Fold
from pipelines.transforms.select import Select

ROWS = pa.schema([("id", pa.int64()), ("words", pa.list_(pa.string())), ("text", pa.string())])


def each(**options: Any) -> Each:
    return Each(EachStep(name="word", each=options), ROWS, ("steps", "word"))


def fold(**outputs: str) -> Fold:
    columns = pa.schema([*ROWS, *each(list="words").fields])
    return Fold(FoldStep(name="all", fold=outputs), columns, ("steps", "all"))


def test_select_evaluates_each_row_and_finds_those_whose_values_break_it() -> None:
    model = SelectStep(name="s", select={"n": "cast(text as integer)", "one": "1"}, when="id < 4")
    rows = pa.table([[1, 2, 3, 4], [None] * 4, ["5", "x", None, "y"]], schema=ROWS)
    made, errors = Select(model, ROWS, ("steps", "s")).apply(rows)
    assert made.to_pylist() == [
        {"n": 5, "one": 1},
        {"n": None, "one": None},
        {"n": None, "one": 1},
        {"n": None, "one": None},
    ]
    assert {row: error.error_class for row, error in errors.items()} == {1: "input"}


LISTS = st.lists(st.none() | st.lists(st.none() | st.text(max_size=5), max_size=5), max_size=8)


@settings(max_examples=15, deadline=None)
@given(LISTS)
def test_folding_the_elements_of_lists_gives_the_lists_back(lists: list[list[str | None] | None]) -> None:
    rows = pa.table([list(range(len(lists))), lists, [None] * len(lists)], schema=ROWS)
    step = each(list="words")
    expansion = step.expand(rows)
    places, children = step.children(expansion, 0, expansion.total)
    assert list(expansion.counts) == [len(words or ()) for words in lists]
    folded = fold(words="list(word)", count="count(*)", last="max(word_index)")
    made, errors = folded.apply(children.append_column(SOURCE, pa.array(places, pa.int64())), range(len(lists)))
    assert errors == {}
    assert made.to_pylist() == [
        {"words": words or None, "count": len(words or ()), "last": len(words) - 1 if words else None}
        for words in lists
    ]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=6), st.integers(1, 5))
def test_any_range_of_children_is_the_same_as_of_all_children(counts: list[int], size: int) -> None:
    words = [[f"{row}-{index}" for index in range(count)] for row, count in enumerate(counts)]
    step = each(list="words")
    expansion = step.expand(pa.table([list(range(len(counts))), words, [None] * len(counts)], schema=ROWS))
    _, whole = step.children(expansion, 0, expansion.total)
    parts = [
        step.children(expansion, first, min(first + size, expansion.total)) for first in range(0, expansion.total, size)
    ]
    assert [row for _, part in parts for row in part.to_pylist()] == whole.to_pylist()
    assert [place for places, _ in parts for place in places] == [
        row for row, count in enumerate(counts) for _ in range(count)
    ]


def test_pieces_have_offsets_in_code_points_and_cover_their_text() -> None:
    text = "Grüße 👩‍👩‍👧! " * 40
    step = each(split="text", tokens=20)
    expansion = step.expand(pa.table([[1, 2, 3], [None] * 3, [text, "", None]], schema=ROWS))
    places, pieces = step.children(expansion, 0, expansion.total)
    assert (list(expansion.counts), set(places)) == ([len(places), 0, 0], {0})
    rows = pieces.to_pylist()
    assert "".join(row["word"] for row in rows) == text
    assert all(row["word"] == text[row["word_start"] : row["word_end"]] for row in rows)


def test_a_source_row_whose_children_break_an_aggregate_fails_alone() -> None:
    children = pa.table({SOURCE: [1, 1, 2, 4], "word": ["1", "2", "x", "4"], "word_index": [0, 1, 0, 0]})
    made, errors = fold(total="sum(cast(word as integer))").apply(children, [1, 2, 3, 4])
    assert [None if row["total"] is None else int(row["total"]) for row in made.to_pylist()] == [3, None, None, 4]
    assert {row: error.error_class for row, error in errors.items()} == {1: "input"}


@pytest.mark.parametrize(
    ("names", "starts"),
    [(["n"], ["[1,", "[2,"]), (["s"], ['["a\\"b",', '["ü",']), (["n", "s"], ['[1,"a\\"b",', '[2,"ü",'])],
    ids=["number", "text", "both"],
)
def test_the_key_of_a_child_begins_as_the_json_array_of_its_source_key(names: list[str], starts: list[str]) -> None:
    keys = pa.table({"n": [1, 2], "s": ['a"b', "ü"]})
    assert child_key_starts(keys.select(names)) == starts


@pytest.mark.parametrize(
    "sql",
    [
        "word",
        "random()",
        "sum(random())",
        "sum(nothing)",
        "row_number() over ()",
        "reservoir_quantile(1, 0.5)",
        "list_aggregate(list(1), 'reservoir_quantile', 0.5)",
    ],
)
def test_a_fold_takes_only_aggregates_that_are_the_same_each_time(sql: str) -> None:
    with pytest.raises(JobError, match=r"steps\.all\.fold\.x: "):
        fold(x=sql)
