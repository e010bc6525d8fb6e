"""Plots as SVG text: bars with their spread, and a scatter of two measures. No library and no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, LABELS, RIGHT = 760, 190, 70  # px; LABELS: column of the names
BAR, GAP, TOP, BOTTOM = 18, 8, 8, 36
TICKS = 5
COLOUR, FLOOR_COLOUR, INK, FAINT = "#3b6ea8", "#b0562f", "#1c1c1e", "#d8d8dc"


@dataclass(frozen=True)
class Bar:
    """`spread` is drawn to both sides; None: none is known."""

    name: str
    value: float
    spread: float | None


@dataclass(frozen=True)
class Point:
    name: str
    x: float
    y: float


def bars(title: str, values: Sequence[Bar], line: tuple[str, float] | None = None) -> str:
    """Horizontal bars from 0, and a line across all of them with its name."""
    most = max([bar.value + (bar.spread or 0) for bar in values] + ([line[1]] if line else []) + [1e-9])
    least = min([bar.value - (bar.spread or 0) for bar in values] + [0.0])
    axis = _Axis(least, most, LABELS, WIDTH - RIGHT)
    height = TOP + len(values) * (BAR + GAP) + BOTTOM
    parts = _grid(axis, height)
    for i, bar in enumerate(values):
        parts += _bar(axis, bar, TOP + i * (BAR + GAP))
    if line is not None:
        name, value = line
        x, bottom = axis(value), height - BOTTOM
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}" stroke="{FLOOR_COLOUR}" stroke-dasharray="4 3"/>'
        )
        parts.append(_text(x, height - 5, f"{name} {value:.3g}", anchor="middle", colour=FLOOR_COLOUR))
    return _svg(title, WIDTH, height, parts)


def _bar(axis: _Axis, bar: Bar, top: float) -> list[str]:
    left, right = sorted((axis(0), axis(bar.value)))
    middle = top + BAR / 2
    parts = [
        f'<rect x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{BAR}" fill="{COLOUR}"/>',
        _text(LABELS - 8, middle + 4, bar.name, anchor="end"),
    ]
    end = right
    if bar.spread is not None:
        low, high = axis(bar.value - bar.spread), axis(bar.value + bar.spread)
        parts.append(
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
            f'stroke="{INK}" fill="none"/>'
        )
        end = max(end, high)
    return [*parts, _text(end + 5, middle + 4, f"{bar.value:.3g}")]


def scatter(title: str, points: Sequence[Point], x_name: str, y_name: str) -> str:
    """Names stand next to their points. The axes do not begin at 0."""
    height, left, bottom = 420, 60, 44
    across = _Axis(*_widened([point.x for point in points]), left, WIDTH - RIGHT - 60)
    up = _Axis(*_widened([point.y for point in points]), height - bottom, 16)
    parts: list[str] = []
    for value in across.ticks:
        x = across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{height - bottom}" stroke="{FAINT}"/>')
        parts.append(_text(x, height - bottom + 16, f"{value:g}", anchor="middle"))
    for value in up.ticks:
        y = up(value)
        parts.append(f'<line x1="{left}" x2="{WIDTH - RIGHT - 60}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(_text(left - 6, y + 4, f"{value:g}", anchor="end"))
    for point in points:
        x, y = across(point.x), up(point.y)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOUR}"/>')
        parts.append(_text(x + 7, y + 4, point.name))
    parts.append(_text((left + WIDTH - RIGHT - 60) / 2, height - 8, x_name, anchor="middle"))
    parts.append(_text(left, 10, y_name))
    return _svg(title, WIDTH, height, parts)


class _Axis:
    """Numbers to pixels; a call is one number."""

    def __init__(self, least: float, most: float, begin: float, end: float) -> None:
        self._least, self._scale, self._begin = least, (end - begin) / (most - least), begin
        step = _round_step((most - least) / TICKS)
        first = floor(least / step)
        self.ticks = [round(i * step, 10) for i in range(first, first + 4 * TICKS) if least <= i * step <= most]

    def __call__(self, value: float) -> float:
        return self._begin + (value - self._least) * self._scale


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    power = 10 ** floor(log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _widened(values: Sequence[float]) -> tuple[float, float]:
    least, most = min(values), max(values)
    margin = 0.08 * (most - least) or 0.5 * abs(most) or 1.0
    return least - margin, most + margin


def _grid(axis: _Axis, height: float) -> list[str]:
    parts: list[str] = []
    for value in axis.ticks:
        x = axis(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - BOTTOM}" stroke="{FAINT}"/>')
        parts.append(_text(x, height - BOTTOM + 14, f"{value:g}", anchor="middle"))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    name = escape(title)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{name}" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{name}</title>{"".join(parts)}</svg>'
    )
