"""Names of values on the cards of answers, and of the bars of charts."""

from pipelines.reporting.distribution_cards import short_names
from pipelines.reporting.page.bar_chart import Series, bar_chart


def test_a_bar_of_one_row_says_so() -> None:
    series = [Series("rows", [1.0, 2.0]), Series("rows, beyond this range", [0.0, 1.0], "absent")]
    chart = bar_chart(series, ["a", "b"], (), "value", "rows", "")
    assert [bar.title for bar in chart.bars] == ["a: 1 row", "b: 2 rows", "b: 1 row, beyond this range"]


def test_long_values_with_the_same_beginning_have_different_names() -> None:
    begin, end = "a long description of a category of the ", " that nobody wanted to shorten, however much we asked"
    labels = [
        "short",
        f"{begin}first{end}",
        f"{begin}second{end}",
        "a text of its own, which is too long for the place",
    ]
    assert short_names(labels) == [
        "short",
        "a long des…ry of the first that nobody wanted to sh…",
        "a long des…ry of the second that nobody wanted to s…",
        "a text of its own, which is too long for…",
    ]
