"""Plots as inline SVG: bars with whiskers, and lines. Colours and type come from the page's style sheet."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Bar", "Line", "bars", "lines", "nice_ticks"]

_NARROW = 320
"""Pixels of a plot on a phone."""


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
    return _plot(
        _bars(items, unit, logarithmic, _Form(960, 290, 100, 41, 2, beside=True)),
        _bars(items, unit, logarithmic, _Form(_NARROW, 14, 12 + 7 * max(len(i.text) for i in items), 46, 3)),
    )


class _Form(NamedTuple):
    """How bars are laid out.

    Attributes:
        width: of the plot, in pixels.
        left: of the bars.
        right: what is left beyond the longest one, for its text.
        letters: of a line of a label.
        most: lines of a label.
        beside: labels stand at the left of the bars, and else above them.
    """

    width: int
    left: int
    right: int
    letters: int
    most: int
    beside: bool = False


def _bars(items: Sequence[Bar], unit: str, logarithmic: bool, form: _Form) -> str:
    labels = [
        textwrap.wrap(item.label, form.letters, max_lines=form.most, placeholder=" …") or [""]
        for item in items
    ]
    left, right, top = form.left, form.width - form.right, 4
    together = max(map(len, labels))
    if form.beside:
        steps = [34 if together > 1 else 26] * len(items)
    else:
        steps = [32 + 14 * len(label) for label in labels]
    height = top + sum(steps) + 40
    longest = max(max(item.value, item.high or 0.0) for item in items) or 1.0
    if logarithmic:
        smallest = min(item.value for item in items if item.value > 0)
        start = 10.0 ** math.floor(math.log10(smallest) - 1e-9)
        ticks = _powers(start, longest)
    else:
        ticks = nice_ticks(0.0, longest, 5 if form.beside else 3)
    place = _scale(ticks[0], ticks[-1], left, right, logarithmic)
    parts = [
        _grid_vertical(ticks, place, top, height - 34),
        _axis_name(unit, left, right, form.width, height),
    ]
    y = top
    for item, label, step in zip(items, labels, steps, strict=True):
        # The bar is 16 high, from 5 below `at`.
        at = y + ((step - 26) // 2 if form.beside else 14 * len(label))
        first = at + 17 - 7 * (len(label) - 1) if form.beside else y + 13
        where = f"x='{left - 8}' text-anchor='end'" if form.beside else f"x='{left}'"
        parts += [
            f"<text class='label' {where} y='{first + 14 * number}'>{html.escape(line)}</text>"
            for number, line in enumerate(label)
        ]
        end = place(item.value)
        parts.append(
            f"<rect class='bar {item.kind}' x='{left}' y='{at + 5}' width='{max(1.0, end - left):.1f}' "
            f"height='16' rx='2'><title>{html.escape(f'{item.label}: {item.text}')}</title></rect>"
        )
        reach = end
        if item.high is not None:
            x1, x2 = place(item.low if item.low is not None else item.value), place(item.high)
            reach = max(end, x2)
            parts.append(f"<path class='whisker' d='M{x1:.1f} {at + 13}H{x2:.1f}M{x2:.1f} {at + 9}v8'/>")
        parts.append(f"<text class='value' x='{reach + 6:.1f}' y='{at + 17}'>{html.escape(item.text)}</text>")
        y += step
    return _svg(form.width, height, parts)


def lines(series: Sequence[Line], x_name: str, y_name: str, logarithmic: bool = False) -> str:
    """Lines over a common scale, with a legend above.

    Args:
        series: the lines.
        x_name: names the horizontal scale.
        y_name: names the vertical scale.
        logarithmic: the vertical scale.
    """
    return _plot(*(_lines(series, x_name, y_name, logarithmic, width) for width in (500, _NARROW)))


def _lines(series: Sequence[Line], x_name: str, y_name: str, logarithmic: bool, width: int) -> str:
    left, right, bottom = 60, 16, 46
    places = _legend([line.name for line in series], left, width - right)
    top = 34 + places[-1][1]
    height = 280 + places[-1][1]
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_ticks = nice_ticks(min(xs), max(xs), width // 80)
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
        _axis_name(x_name, left, width - right, width, height),
        f"<text class='axis' transform='translate(14 {(top + height - bottom) / 2:.0f}) rotate(-90)' "
        f"text-anchor='middle'>{html.escape(y_name)}</text>",
    ]
    for line, (x, y) in zip(series, places, strict=True):
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
            f"<rect class='bar {line.kind}' x='{x:.0f}' y='{10 + y}' width='14' height='4' rx='2'/>"
            f"<text class='label' x='{x + 20:.0f}' y='{16 + y}'>{html.escape(line.name)}</text>"
        )
    return _svg(width, height, parts)


def _legend(names: Sequence[str], left: float, right: float) -> list[tuple[float, int]]:
    """Where each name's sign stands; a name that would reach beyond the plot begins a line of its own."""
    found = []
    x, y = left, 0
    for name in names:
        wide = 36 + 7.2 * len(name)
        if x > left and x + wide > right + 16:
            x, y = left, y + 18
        found.append((x, y))
        x += wide
    return found


def _plot(broad: str, narrow: str) -> str:
    """The same twice, of which the style sheet shows what the page has room for."""
    return f"<div><div class='broad'>{broad}</div><div class='narrow'>{narrow}</div></div>"


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    size = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
    return f"<svg {size} role='img'>{''.join(parts)}</svg>"


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
    # As many as have room for their numbers.
    wide = 12 + 7 * max(len(_plain(tick)) for tick in ticks)
    between = abs(place(ticks[-1]) - place(ticks[0])) / max(len(ticks) - 1, 1)
    ticks = ticks[:: max(1, math.ceil(wide / max(between, 1.0)))]
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


def _axis_name(name: str, left: float, right: float, width: float, height: float) -> str:
    """Below the middle of the axis; one that is too long for that, below the middle of the plot."""
    middle = (left + right) / 2
    if middle + 3.4 * len(name) > width or middle < 3.4 * len(name):
        middle = width / 2
    where = f"x='{middle:.0f}' y='{height - 6}' text-anchor='middle'"
    return f"<text class='axis' {where}>{html.escape(name)}</text>"


def _plain(value: float) -> str:
    return f"{value:,.10g}"
