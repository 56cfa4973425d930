"""The curve of delay over streams, as SVG and as text. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 110, 74, 58
_COLOURS = ("#0b6e4f", "#b36b00", "#a4243b")
"""Of p50, p95, p99: told apart in grey and by the colour-blind too."""
_DASHES = ("", "7 3", "")
_CAP = 3.0
"""Delays above so many targets are drawn at the upper edge."""
_BAR = 40


@dataclass(frozen=True, slots=True)
class Point:
    """One run."""

    streams: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    is_served: bool
    note: str = ""
    """Why not, or that it is a confirmation."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn."""

    title: str
    subtitle: str
    points: Sequence[Point]
    target_ms: float
    knee: int


def svg(curve: Curve) -> str:
    """Draw the delay of finals over the number of streams, with the target and the knee."""
    points = _by_streams(curve.points)
    most_x = max((p.streams for p in points), default=1)
    known = [v for p in points for v in _values(p) if not math.isnan(v)]
    top = max([*known, curve.target_ms * 1.2])
    top = min(top, _CAP * curve.target_ms)
    low = min([0.0, *known])
    step_y = nice_step(top - low)
    low, top = math.floor(low / step_y) * step_y, math.ceil(top / step_y) * step_y

    def x(streams: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * streams / most_x

    def y(ms: float) -> float:
        part = (min(max(ms, low), top) - low) / (top - low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * part

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 26, curve.title, size=17, weight="bold"),
        _text(_LEFT, 46, curve.subtitle, fill="#555555", size=12),
    ]
    for number in range(round((top - low) / step_y) + 1):
        ms = low + number * step_y
        out.append(_line(_LEFT, y(ms), WIDTH - _RIGHT, y(ms), "#e2e2e2"))
        out.append(_text(_LEFT - 8, y(ms) + 4, f"{ms:.0f}", anchor="end", fill="#555555"))
    step_x = max(1, round(nice_step(most_x, most=10)))
    for streams in range(0, most_x + 1, step_x):
        place = x(streams)
        out.append(_line(place, y(low), place, y(low) + 5, "#555555"))
        out.append(_text(place, y(low) + 20, str(streams), anchor="middle", fill="#555555"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(_text(middle, HEIGHT - 14, "live streams", anchor="middle"))
    out.append(_text(_LEFT - 56, _TOP - 12, "ms beyond the hang-over"))
    out.append(_line(_LEFT, y(low), WIDTH - _RIGHT, y(low), "#555555"))

    target = y(curve.target_ms)
    out.append(_line(_LEFT, target, WIDTH - _RIGHT, target, "#333333", dash="3 4", width=1.5))
    out.append(_text(_LEFT + 6, target - 6, f"target {curve.target_ms:.0f} ms", fill="#333333"))
    if curve.knee:
        out.append(_line(x(curve.knee), _TOP, x(curve.knee), y(low), "#0b3c8c", dash="2 3"))
        label = f"{curve.knee} streams"
        is_right = x(curve.knee) > middle
        place = x(curve.knee) + (-6 if is_right else 6)
        anchor = "end" if is_right else "start"
        out.append(_text(place, _TOP + 12, label, fill="#0b3c8c", weight="bold", anchor=anchor))

    labels: list[tuple[float, str, str]] = []
    for name, colour, dash, index in zip(
        ("p50", "p95", "p99"), _COLOURS, _DASHES, range(3), strict=True
    ):
        drawn = [(x(p.streams), y(v)) for p in points if not math.isnan(v := _values(p)[index])]
        if not drawn:
            continue
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in drawn)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        out.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'
        )
        labels.append((drawn[-1][1], name, colour))
    out += [_label(place, name, colour) for place, name, colour in spaced(labels)]
    for point in points:
        for index, value in enumerate(_values(point)):
            if math.isnan(value):
                continue
            fill = _COLOURS[index] if point.is_served else "#ffffff"
            out.append(
                f'<circle cx="{x(point.streams):.1f}" cy="{y(value):.1f}" r="4" fill="{fill}" '
                f'stroke="{_COLOURS[index]}" stroke-width="1.5">'
                f"<title>{point.streams} streams, {('p50', 'p95', 'p99')[index]} "
                f"{value:.0f} ms{escape(f', {point.note}' if point.note else '')}</title></circle>"
            )
    out.append(
        _text(WIDTH - _RIGHT, HEIGHT - 14, "hollow: not served", anchor="end", fill="#555555")
    )
    return "\n".join([*out, "</svg>", ""])


def bars(curve: Curve) -> list[str]:
    """Draw p99 as bars of text, one line for each run, the target as a mark."""
    points = _by_streams(curve.points)
    known = [p.p99_ms for p in points if not math.isnan(p.p99_ms)]
    top = max(min(max([*known, curve.target_ms]), _CAP * curve.target_ms), 1.0)
    mark = min(round(curve.target_ms / top * _BAR), _BAR - 1)
    lines = [f"{'streams':>7}  p99 of finals beyond the hang-over, target {curve.target_ms:.0f} ms"]
    for point in points:
        value = 0.0 if math.isnan(point.p99_ms) else min(max(point.p99_ms, 0.0), top)
        cells = list(_bar(value / top * _BAR))
        cells[mark] = "│" if cells[mark] == " " else "┃"
        shown = "-" if math.isnan(point.p99_ms) else f"{point.p99_ms:.0f} ms"
        knee = "  ← knee" if point.streams == curve.knee and point.is_served else ""
        why = "" if point.is_served else "  over"
        note = f" ({point.note})" if point.note and not point.note.startswith("p99") else ""
        lines.append(f"{point.streams:>7}  {''.join(cells)} {shown:>8}{why}{note}{knee}")
    return lines


def nice_step(span: float, *, most: int = 6) -> float:
    """Return 1, 2 or 5 times a power of ten that divides `span` into at most `most` steps."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(k * power for k in (1, 2, 5, 10, 20) if span / (k * power) <= most)


def spaced(
    labels: Sequence[tuple[float, str, str]], *, least: float = 15.0
) -> list[tuple[float, str, str]]:
    """Move labels down until none covers another; the order from top to bottom stays."""
    placed: list[tuple[float, str, str]] = []
    for place, name, colour in sorted(labels):
        if placed:
            place = max(place, placed[-1][0] + least)
        placed.append((place, name, colour))
    return placed


def _by_streams(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda p: p.streams)


def _values(point: Point) -> tuple[float, float, float]:
    return point.p50_ms, point.p95_ms, point.p99_ms


def _bar(cells: float) -> str:
    whole = int(cells)
    part = "▏▎▍▌▋▊▉"[int((cells - whole) * 8) - 1] if int((cells - whole) * 8) else ""
    return ("█" * whole + part).ljust(_BAR)[:_BAR]


def _label(place: float, name: str, colour: str) -> str:
    return _text(WIDTH - _RIGHT + 8, place + 4, name, fill=colour, weight="bold")


def _line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, *, dash: str = "", width: float = 1
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" '
        f'stroke-width="{width:g}"{dashed}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = "#111111",
    size: int = 13,
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
