"""Names of values on the cards of answers."""

from pipelines.reporting.distribution_cards import short_names


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
