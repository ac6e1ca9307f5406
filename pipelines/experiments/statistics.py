"""Statistics of experiments: intervals of a share, proportional strata, and what no other combination beats."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TypeVar

NORMAL_95 = 1.959963984540054
"""Quantile 0.975 of the normal distribution."""

Stratum = TypeVar("Stratum")


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `right` in `rows` (Wilson's score interval), from 0 to 1."""
    if not rows:
        return 0.0, 1.0
    share, square = right / rows, NORMAL_95**2
    middle = share + square / (2 * rows)
    spread = NORMAL_95 * sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    scale = 1 + square / rows
    # Rounding leaves 1e-17 at the ends, where the interval is exact.
    low = 0.0 if right == 0 else max(0.0, (middle - spread) / scale)
    high = 1.0 if right == rows else min(1.0, (middle + spread) / scale)
    return low, high


def proportional_sizes(counts: Mapping[Stratum, int], size: int) -> dict[Stratum, int]:
    """Return how many rows of each stratum a sample of `size` has: by largest remainder, in all min(size, rows)."""
    rows = sum(counts.values())
    size = min(size, rows)
    if not size:
        return dict.fromkeys(counts, 0)
    sizes = {stratum: count * size // rows for stratum, count in counts.items()}
    # Exact, since the products are whole numbers; equal remainders go by the order of the strata.
    by_remainder = sorted(counts, key=lambda stratum: -(counts[stratum] * size % rows))
    for stratum in by_remainder[: size - sum(sizes.values())]:
        sizes[stratum] += 1
    return sizes


def unbeaten(qualities: Sequence[float | None], costs: Sequence[float | None]) -> list[bool]:
    """Return for each combination whether no other is at least as good and as cheap, and better in one of the two.

    None: unknown. An unknown quality or cost is beaten by every known one.
    """
    points = [
        (float("-inf") if quality is None else quality, float("inf") if cost is None else cost)
        for quality, cost in zip(qualities, costs, strict=True)
    ]
    return [
        not any(other != point and other[0] >= point[0] and other[1] <= point[1] for other in points)
        for point in points
    ]
