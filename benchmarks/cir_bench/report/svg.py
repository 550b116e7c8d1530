"""Plots as inline SVG: bars with whiskers, and lines. Colours and type come from the page's style sheet."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bar", "Line", "bars", "lines", "nice_ticks"]

_WIDTH = 960


@dataclass(frozen=True)
class Bar:
    """A horizontal bar.

    Attributes:
        label: at its left.
        value: its length.
        text: at its end.
        low: start of the whisker.
        high: end of the whisker; None for none.
        kind: "ours", "other" or "reference", a colour of the style sheet.
    """

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    kind: str = "other"


@dataclass(frozen=True)
class Line:
    """A line of points.

    Attributes:
        name: in the legend.
        points: (x, y), in order of x.
        kind: "a", "b" or "c", a colour of the style sheet.
        marked: draw the points too.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "a"
    marked: bool = True


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About so many round numbers that span low to high."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def bars(items: Sequence[Bar], unit: str, logarithmic: bool = False) -> str:
    """Horizontal bars under each other, with a scale below.

    Args:
        items: from top to bottom; values must be positive on a logarithmic scale.
        unit: names the scale.
        logarithmic: for values that span orders of magnitude; bars then start at a power of ten.
    """
    labels = [textwrap.wrap(item.label, 41, max_lines=2, placeholder=" …") for item in items]
    left, right, top = 290, 100, 4
    step = 34 if any(len(label) > 1 for label in labels) else 26
    height = top + step * len(items) + 40
    longest = max(max(item.value, item.high or 0.0) for item in items) or 1.0
    if logarithmic:
        smallest = min(item.value for item in items if item.value > 0)
        start = 10.0 ** math.floor(math.log10(smallest) - 1e-9)
        ticks = _powers(start, longest)
    else:
        ticks = nice_ticks(0.0, longest)
    place = _scale(ticks[0], ticks[-1], left, _WIDTH - right, logarithmic)
    parts = [_grid_vertical(ticks, place, top, height - 34), _axis_name(unit, left, _WIDTH - right, height)]
    for number, (item, label) in enumerate(zip(items, labels, strict=True)):
        y = top + step * number + (step - 26) // 2
        end = place(item.value)
        first = y + 17 - 7 * (len(label) - 1)
        parts += [
            f"<text class='label' x='{left - 8}' y='{first + 14 * at}' text-anchor='end'>"
            f"{html.escape(line)}</text>"
            for at, line in enumerate(label)
        ]
        parts.append(
            f"<rect class='bar {item.kind}' x='{left}' y='{y + 5}' width='{max(1.0, end - left):.1f}' "
            f"height='16' rx='2'><title>{html.escape(f'{item.label}: {item.text}')}</title></rect>"
        )
        reach = end
        if item.high is not None:
            x1, x2 = place(item.low if item.low is not None else item.value), place(item.high)
            reach = max(end, x2)
            parts.append(f"<path class='whisker' d='M{x1:.1f} {y + 13}H{x2:.1f}M{x2:.1f} {y + 9}v8'/>")
        parts.append(f"<text class='value' x='{reach + 6:.1f}' y='{y + 17}'>{html.escape(item.text)}</text>")
    return _svg(_WIDTH, height, parts)


def lines(
    series: Sequence[Line], x_name: str, y_name: str, logarithmic: bool = False, width: int = 500
) -> str:
    """Lines over a common scale, with a legend above.

    Args:
        series: the lines.
        x_name: names the horizontal scale.
        y_name: names the vertical scale.
        logarithmic: the vertical scale.
        width: in pixels.
    """
    left, right, top, bottom, height = 60, 16, 34, 46, 280
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_ticks = nice_ticks(min(xs), max(xs), 6)
    if logarithmic:
        start = 10.0 ** math.floor(math.log10(min(y for y in ys if y > 0)) - 1e-9)
        y_ticks = _powers(start, max(ys))
    else:
        y_ticks = nice_ticks(0.0, max(ys))
    across = _scale(x_ticks[0], x_ticks[-1], left, width - right, False)
    down = _scale(y_ticks[0], y_ticks[-1], height - bottom, top, logarithmic)
    parts = [
        _grid_vertical(x_ticks, across, top, height - bottom + 4),
        _grid_horizontal(y_ticks, down, left, width - right),
        _axis_name(x_name, left, width - right, height),
        f"<text class='axis' transform='translate(14 {(top + height - bottom) / 2:.0f}) rotate(-90)' "
        f"text-anchor='middle'>{html.escape(y_name)}</text>",
    ]
    x = float(left)
    for line in series:
        points = [(across(px), down(py)) for px, py in line.points]
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        parts.append(f"<path class='line {line.kind}' d='{path}'/>")
        if line.marked:
            parts += [
                f"<circle class='dot {line.kind}' cx='{px:.1f}' cy='{py:.1f}' r='3.2'>"
                f"<title>{html.escape(f'{line.name}: {vx:.4g}, {vy:.4g}')}</title></circle>"
                for (px, py), (vx, vy) in zip(points, line.points, strict=True)
            ]
        parts.append(
            f"<rect class='bar {line.kind}' x='{x:.0f}' y='10' width='14' height='4' rx='2'/>"
            f"<text class='label' x='{x + 20:.0f}' y='16'>{html.escape(line.name)}</text>"
        )
        x += 36 + 7.2 * len(line.name)
    return _svg(width, height, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    # On a narrow page it scrolls before its type becomes too small to be read.
    return (
        f"<div class='wide'><svg viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"style='min-width:{3 * width // 4}px' role='img'>{''.join(parts)}</svg></div>"
    )


class _Scale:
    """A value's place in pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool) -> None:
        self._logarithmic = logarithmic
        self._low, self._high = self._map(low), self._map(high)
        self._start, self._end = start, end

    def _map(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self._logarithmic else value

    def __call__(self, value: float) -> float:
        share = (self._map(value) - self._low) / ((self._high - self._low) or 1.0)
        return self._start + min(1.0, max(0.0, share)) * (self._end - self._start)


def _scale(low: float, high: float, start: float, end: float, logarithmic: bool) -> _Scale:
    return _Scale(low, high, start, end, logarithmic)


def _powers(start: float, high: float) -> list[float]:
    """Powers of ten from `start` to beyond `high`."""
    ticks = [start]
    while ticks[-1] < high * (1 - 1e-9):
        ticks.append(ticks[-1] * 10)
    return ticks if len(ticks) > 1 else [start, start * 10]


def _grid_vertical(ticks: Sequence[float], place: _Scale, top: float, bottom: float) -> str:
    return "".join(
        f"<path class='grid' d='M{place(tick):.1f} {top}V{bottom - 4:.1f}'/>"
        f"<text class='tick' x='{place(tick):.1f}' y='{bottom + 11:.1f}' text-anchor='middle'>"
        f"{_plain(tick)}</text>"
        for tick in ticks
    )


def _grid_horizontal(ticks: Sequence[float], place: _Scale, left: float, right: float) -> str:
    return "".join(
        f"<path class='grid' d='M{left} {place(tick):.1f}H{right}'/>"
        f"<text class='tick' x='{left - 6}' y='{place(tick) + 4:.1f}' text-anchor='end'>{_plain(tick)}</text>"
        for tick in ticks
    )


def _axis_name(name: str, left: float, right: float, height: float) -> str:
    return (
        f"<text class='axis' x='{(left + right) / 2:.0f}' y='{height - 6}' text-anchor='middle'>"
        f"{html.escape(name)}</text>"
    )


def _plain(value: float) -> str:
    return f"{value:,.10g}"
