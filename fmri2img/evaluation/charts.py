"""The report's charts: small inline SVG whose colours come from the page, so that they follow light and dark.

Every text that is not ours passes through `escape`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

COLOURS = 6
MAX_POINTS = 400


@dataclass(frozen=True)
class Dot:
    """One line of an interval chart: a value with its interval and how it is written."""

    name: str
    value: float
    low: float
    high: float
    text: str
    colour: int


def interval_chart(label: str, dots: Sequence[Dot], *, chance: float | None, percent: bool) -> Markup:
    """A dot and an interval bar per method on one axis; chance is a dashed line."""
    width, row, left, right = 340, 40, 7, 333
    bottom = row * len(dots) + 6
    known = [0.0] if chance is None else [chance]
    low = min(known + [dot.low for dot in dots])
    high = max(known + [dot.high for dot in dots])
    ticks = nice_ticks(low, high, 4)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{bottom}"/>')
        anchor = "start" if x(tick) < left + 12 else "end" if x(tick) > right - 12 else "middle"
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="{anchor}">'
            f"{tick_text(tick * 100 if percent else tick, '%' if percent else '')}</text>"
        )
    if chance is not None:
        parts.append(f'<line class="chance" x1="{x(chance):.1f}" x2="{x(chance):.1f}" y1="4" y2="{bottom}"/>')
    for i, dot in enumerate(dots):
        y = row * i + 30
        parts.append(f'<text class="name" x="{left}" y="{y - 13}">{escape(dot.name)}</text>')
        parts.append(
            f'<text class="value" x="{right}" y="{y - 13}" text-anchor="end">{escape(dot.text)}</text>'
        )
        ends = f'x1="{x(dot.low):.1f}" x2="{x(dot.high):.1f}" y1="{y}" y2="{y}"'
        parts.append(f'<line class="interval s{dot.colour}" {ends}/>')
        parts.append(f'<circle class="dot s{dot.colour}" cx="{x(dot.value):.1f}" cy="{y}" r="5"/>')
    words = "; ".join(f"{dot.name} {dot.text}" for dot in dots)
    return _svg(width, bottom + 22, f"{label}: {words}", parts)


def line_chart(
    label: str, series: Sequence[tuple[int, np.ndarray, np.ndarray]], *, x_label: str, y_label: str
) -> Markup:
    """Curves as (colour, x (k,), y (k,)); points that are not finite break a line."""
    width, height, left, right, top, bottom = 360, 230, 44, 350, 22, 190
    finite = [(x[np.isfinite(x + y)], y[np.isfinite(x + y)]) for _, x, y in series]
    if not any(len(x) for x, _ in finite):
        empty = f'<text class="tick" x="{width / 2}" y="{height / 2}" text-anchor="middle">no points</text>'
        return _svg(width, height, f"{label}: no points", [empty])
    xs, ys = (np.concatenate([pair[axis] for pair in finite]) for axis in (0, 1))
    x_ticks, y_ticks = nice_ticks(xs.min(), xs.max(), 5), nice_ticks(ys.min(), ys.max(), 5)
    x_low, x_high = float(xs.min()), float(max(xs.max(), xs.min() + 1e-9))
    y_low, y_high = min(y_ticks[0], float(ys.min())), max(y_ticks[-1], float(ys.max()))

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (
            left + (right - left) * (x - x_low) / (x_high - x_low),
            bottom - (bottom - top) * (y - y_low) / (y_high - y_low),
        )

    parts = []
    for tick in y_ticks:
        y = float(place(np.array(x_low), np.array(tick))[1])
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick_text(tick)}</text>'
        )
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x = float(place(np.array(tick), np.array(y_low))[0])
            anchor = "end" if x > right - 10 else "middle"
            at = f'x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}"'
            parts.append(f'<text class="tick" {at}>{tick_text(tick)}</text>')
    parts.append(f'<text class="axis" x="{left}" y="11">{escape(y_label)}</text>')
    parts.append(
        f'<text class="axis" x="{right}" y="{bottom + 33}" text-anchor="end">{escape(x_label)}</text>'
    )
    for colour, x_all, y_all in series:
        for x_run, y_run in finite_runs(x_all, y_all):
            parts.append(_line(colour, *place(*thin(x_run, y_run))))
    return _svg(width, height, f"{label}: {y_label} by {x_label}", parts)


def _line(colour: int, x: np.ndarray, y: np.ndarray) -> str:
    if len(x) == 1:
        return f'<circle class="dot s{colour}" cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3"/>'
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="line s{colour}" points="{points}"/>'


def finite_runs(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stretches of consecutive finite points."""
    good = np.isfinite(x + y)
    cuts = np.flatnonzero(np.diff(good)) + 1
    pieces = zip(np.split(x, cuts), np.split(y, cuts), np.split(good, cuts), strict=True)
    return [(a, b) for a, b, ok in pieces if len(ok) and ok[0]]


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """About `MAX_POINTS` points at most; each cell of a long curve keeps its extremes, so spikes stay."""
    if len(x) <= MAX_POINTS:
        return x, y
    keep = {0, len(x) - 1}
    for cell in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        keep |= {int(cell[y[cell].argmin()]), int(cell[y[cell].argmax()])}
    index = np.array(sorted(keep))
    return x[index], y[index]


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) from at or below `low` to at or past `high`."""
    low, high = float(low), float(high)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(high) * 0.1 or 0.1
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def tick_text(value: float, unit: str = "") -> str:
    """A tick in few characters: 0.25, 30%, 12k."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M{unit}"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k{unit}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}{unit}".replace("-", "\N{MINUS SIGN}", 1)


def number(value: float, *, percent: bool, signed: bool = False) -> str:
    """Shares as the field prints them, in percent; correlations with three decimals; a true minus sign."""
    text = f"{value * 100:{'+' if signed else ''}.1f}" if percent else f"{value:{'+' if signed else ''}.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> Markup:
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(opening + "".join(parts) + "</svg>")
