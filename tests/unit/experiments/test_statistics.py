"""Statistics of experiments: Wilson's interval, proportional strata, unbeaten combinations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.experiments.statistics import proportional_sizes, unbeaten, wilson_interval


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [
        # 81 of 263: Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (0, 10, 0.0, 0.2775327998628892),
        (10, 10, 0.7224672001371107, 1.0),
        (5, 10, 0.236593090512564, 0.763406909487436),
        (81, 263, 0.255288, 0.366210),
    ],
)
def test_the_interval_equals_known_values(right: int, rows: int, low: float, high: float) -> None:
    assert wilson_interval(right, rows) == pytest.approx((low, high), abs=1e-6)


def test_no_row_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_the_interval_contains_the_share(given_counts: tuple[int, int]) -> None:
    right, rows = given_counts
    low, high = wilson_interval(right, rows)
    assert 0 <= low <= right / rows <= high <= 1


def test_strata_are_proportional() -> None:
    assert proportional_sizes({"a": 700, "b": 200, "c": 100}, 10) == {"a": 7, "b": 2, "c": 1}


def test_remainders_go_to_the_largest() -> None:
    assert proportional_sizes({"a": 5, "b": 3, "c": 2}, 4) == {"a": 2, "b": 1, "c": 1}


def test_a_sample_larger_than_the_source_takes_every_row() -> None:
    assert proportional_sizes({"a": 2, "b": 1}, 100) == {"a": 2, "b": 1}


@given(st.dictionaries(st.integers(0, 50), st.integers(0, 1_000)), st.integers(0, 2_000))
def test_the_sample_has_its_size_and_each_stratum_its_share(counts: dict[int, int], size: int) -> None:
    sizes, rows = proportional_sizes(counts, size), sum(counts.values())
    assert sum(sizes.values()) == min(size, rows)
    for stratum, count in counts.items():
        assert 0 <= sizes[stratum] <= count
        if rows:
            assert abs(sizes[stratum] - count * min(size, rows) / rows) < 1


def test_a_combination_is_beaten_by_one_that_is_as_good_and_cheaper() -> None:
    assert unbeaten([0.9, 0.9, 0.8, 0.95], [2.0, 1.0, 0.5, 9.0]) == [False, True, True, True]


def test_equal_combinations_do_not_beat_each_other() -> None:
    assert unbeaten([0.9, 0.9], [1.0, 1.0]) == [True, True]


def test_an_unknown_cost_is_beaten_by_a_known_one() -> None:
    assert unbeaten([0.9, 0.9], [None, 5.0]) == [False, True]


def test_without_a_quality_the_cheapest_is_unbeaten() -> None:
    assert unbeaten([None, None], [2.0, 1.0]) == [False, True]
