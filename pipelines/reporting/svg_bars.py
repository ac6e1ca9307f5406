"""Charts of a report: SVG drawn here, in the page's own colours, readable without them by their labels."""

from collections.abc import Sequence
from html import escape

WIDTH = 720
HEIGHT = 180
LEFT = 62
BOTTOM = 26
TOP = 16
WIDEST = 130.0
FEW = 5
"""So many columns are all labelled."""


def bars(values: Sequence[float], labels: Sequence[str], what: str, summary: str) -> str:
    """Columns side by side; the first, middle and last are labelled. `what`: the unit; `summary`: read aloud."""
    highest = max(values, default=0) or 1
    top = _round_up(highest)
    inner, tall = WIDTH - LEFT - 8, HEIGHT - BOTTOM - TOP
    width = min(WIDEST, inner / max(1, len(values)))
    shapes = []
    for place, value in enumerate(values):
        height = tall * value / top
        x, y = LEFT + place * width, TOP + tall - height
        gap = min(2.0, width * 0.2)
        shapes.append(
            f'<rect class="bar" x="{x + gap / 2:.1f}" y="{y:.1f}" width="{width - gap:.1f}" height="{height:.1f}">'
            f"<title>{escape(labels[place])}: {value:,.4g} {escape(what)}</title></rect>"
        )
    marks = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(share * top)}</text>'
        for share in (0, 0.5, 1)
        for y in (TOP + tall * (1 - share),)
    ]
    shown = sorted({0, len(values) // 2, len(values) - 1}) if values else []
    marks += [
        f'<text x="{LEFT + (place + 0.5) * width:.1f}" y="{HEIGHT - 8}" text-anchor="'
        f'{"start" if place == 0 and len(values) > FEW else "end" if place == len(values) - 1 > FEW else "middle"}">'
        f"{escape(labels[place])}</text>"
        for place in (shown if len(values) > FEW else range(len(values)))
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary, quote=True)}">'
        f"{''.join(marks)}{''.join(shapes)}</svg>"
    )


def short(value: float) -> str:
    """A number on an axis: 0.5, 20, 1.5k."""
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15 … ."""
    size = 1.0
    while size * 10 <= value:
        size *= 10
    while size > value * 10:
        size /= 10
    return next(size * step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if size * step >= value)
