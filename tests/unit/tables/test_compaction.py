"""Compaction: which parts are merged, and how large they become."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.storage.part_store import Part
from connectors.tables import compaction
from connectors.tables.compaction import merge_groups, parts_of_like_size

MB = 1_000_000


def named(*sizes: int) -> dict[str, int]:
    return {f"{place}": size for place, size in enumerate(sizes)}


@pytest.mark.parametrize(
    ("sizes", "merged"),
    [
        ([], []),
        ([5], []),
        ([1, 1, 1], [0, 1, 2]),
        ([7, 1, 2, 3, 40], [1, 2, 3]),
        ([6, 1, 2, 3, 40], [0, 1, 2, 3]),
        ([1, 2, 4, 8, 16], []),
    ],
)
def test_a_part_is_merged_with_smaller_ones_that_are_as_large_together(sizes: list[int], merged: list[int]) -> None:
    assert sorted(parts_of_like_size(named(*sizes))) == [f"{place}" for place in merged]


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], list[int]]:
    """Sizes of parts in MB -> sizes of the parts that they are merged into."""
    monkeypatch.setattr(compaction, "read_footer", lambda part: (0 if part.name == "0" else 1, None, {}))

    def group(sizes: list[int]) -> list[int]:
        parts = [(Part(f"{place}", Path(f"{size}")), size) for place, size in enumerate(sizes)]
        return [sum(int(f"{part.source}") for part in one) for one in merge_groups(parts, 128, 256)]

    return group


def test_groups_are_between_the_smallest_and_the_largest_part_and_leave_out_empty_parts(
    grouped: Callable[[list[int]], list[int]],
) -> None:
    assert grouped([0, 0]) == []
    assert grouped([0, 1, 2, 3]) == [6]
    assert grouped([100] * 5) == [200, 300]
    assert grouped([32] * 20) == [256, 256, 128]
    assert grouped([32] * 19) == [256, 352]
    assert grouped([127, 2, 127, 127, 1]) == [256, 128]
    for size in range(1, 128):
        for count in range(1, 60):
            sizes = grouped([size] * count)
            assert sum(sizes) == size * count
            assert len(sizes) == 1 or all(128 <= one < 384 for one in sizes)


def test_a_table_that_grows_each_night_has_few_parts_and_is_merged_a_logarithmic_number_of_times() -> None:
    sizes, merges, written = dict[str, int](), Counter[str](), 0
    for night in range(1000):
        sizes[f"{night}"] = MB
        if len(sizes) > 20 and (chosen := parts_of_like_size(sizes)):
            merged = f"merged {night}"
            merges[merged] = 1 + max(merges[name] for name in chosen)
            sizes[merged] = sum(sizes.pop(name) for name in chosen)
            written += sizes[merged]
        assert len(sizes) <= 21
    assert sum(sizes.values()) == 1000 * MB
    assert max(merges.values()) <= 8
    assert written < 5 * 1000 * MB
