"""Lines over steps as inline SVG: small, without a script, readable in print and in the dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

WIDTH, HEIGHT = 460, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 24
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
MOST_POINTS = 400
"""Longer lines are averaged down to this many points, to keep the page small."""


@dataclass(frozen=True)
class Series:
    """One named line; points are (step, value)."""

    name: str
    points: Sequence[tuple[float, float]]


def render_chart(
    title: str,
    lines: Sequence[Series],
    *,
    percent: bool = False,
    low: float | None = None,
    high: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """One chart as a `<figure>`; empty text where there is nothing to draw.

    Args:
        title: stands above.
        lines: drawn in this order; each has its colour in the legend.
        percent: values are shares of 1.
        low: the axis goes at least down to this.
        high: the axis goes at least up to this.
        marks: (step, what happened there), drawn as dashed lines.
    """
    lines = [Series(line.name, _thinned(line.points)) for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    bottom = min([*ys, *([] if low is None else [low])])
    top = max([*ys, *([] if high is None else [high])])
    if top - bottom < 1e-9:
        bottom, top = bottom - 0.5, top + 0.5
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        up = (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    drawn = []
    for value in _ticks(bottom, top):
        _, at = place(first, value)
        drawn.append(
            f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">'
            f"{_figure(value, percent)}</text>"
        )
    for value in _ticks(first, last):
        at, _ = place(value, bottom)
        drawn.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{value:g}</text>'
        )
    for step, what in marks:
        at, _ = place(step, bottom)
        drawn.append(
            f'<line class="mark" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escape(what)}</title></line>"
        )
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        if len(line.points) == 1:
            x, y = place(*line.points[0])
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        else:
            drawn.append(f'<polyline points="{points}" stroke="{colour}"/>')
    legend = "".join(
        f'<span><i style="background:{COLOURS[number % len(COLOURS)]}"></i>{escape(line.name)} '
        f"<b>{_figure(line.points[-1][1], percent)}</b></span>"
        for number, line in enumerate(lines)
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // MOST_POINTS)
    if size == 1:
        return list(points)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(group[-1][0], fmean(y for _, y in group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Round values inside the range, four or so.

    >>> _ticks(0, 60), _ticks(0.2, 0.9)
    ([0, 20, 40, 60], [0.2, 0.4, 0.6, 0.8])
    """
    import math

    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough - 1e-12)
    start = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - start + 1
    return [round((start + number) * step, 10) for number in range(count)]


def _figure(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.0%}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
