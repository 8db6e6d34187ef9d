"""The kinds of charts on the page. Each is a function of values and a width, and returns SVG.

Most charts are drawn twice, for a wide and a narrow page (`both`): scaled text would be unreadable on a
phone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from gradwise.report.page.drawing import Canvas, Scale, fit, tick_text, x_axis, y_axis

WIDE, NARROW = 760, 340
"""Pixels of a figure on a page, and on a phone."""

COLOURS = 8
"""Colours of the style sheet, `c0` to `c7`."""

MOST_DOTS = 40
"""Points of a line up to which each has a visible dot."""

MOST_POINTS = 400
"""Points of a line; of a longer one, means of stretches are drawn."""


def both(draw: Callable[[int], Canvas]) -> Markup:
    """A figure for wide and for narrow pages."""
    return draw(WIDE).svg("wide") + draw(NARROW).svg("narrow")


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    thin: bool = False
    """For what is noisy: drawn faint, without marks."""
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """Lower and upper ends of a band around it."""


@dataclass(frozen=True)
class Axes:
    """Axes of a chart, and marks along x."""

    x: str
    """Label with the unit."""
    y: str
    height: int = 260
    log: bool = False
    """Whether y is logarithmic."""
    shade: tuple[float, float, str] | None = None
    """A stretch of x, and what happens there."""
    events: tuple[tuple[float, str], ...] = ()
    """Places on x that are marked, and what happens there."""
    zero: bool = False
    """Whether y begins at 0."""


def line_chart(lines: Sequence[Line], axes: Axes, width: int) -> Canvas:
    """Lines over a common x, each named at its right end."""
    labelled = [line for line in lines if line.name]
    # Names stand at the right ends of the lines; a character is about 7.4 pixels wide.
    room = (
        min(width * 0.3, max((len(line.name) for line in labelled), default=0) * 7.4 + 12) if labelled else 12
    )
    left, right, top, bottom = 52.0, width - room, 30.0, axes.height - 44.0
    canvas = Canvas(
        width, axes.height, f"{axes.y} against {axes.x}: {', '.join(line.name for line in labelled)}"
    )
    x = Scale.over([each for line in lines for each in line.x], left, right, margin=0.0)
    values = [value for line in lines for part in (line.y, *(line.band or ())) for value in part]
    y = Scale.over([*values, *([0.0] if axes.zero else [])], bottom, top, log=axes.log)
    if axes.zero:
        # Without the margin of `Scale.over`, so that zero is the lower edge.
        y = Scale(0.0, y.high, bottom, top)
    if axes.shade is not None:
        start, stop, name = axes.shade
        canvas.add(
            "rect", x=x(start), y=top, width=max(1.0, x(stop) - x(start)), height=bottom - top, class_="shade"
        )
        canvas.text(x(stop) - 4, top + 13, fit(name, x(stop) - left), "note", "end")
    y_axis(canvas, y, left, right, axes.y)
    x_axis(canvas, x, bottom, axes.x)
    for place, what in axes.events:
        if x.low <= place <= x.high:
            canvas.line(x(place), top, x(place), bottom, "event")
            canvas.add("path", d=f"M{x(place) - 5:.1f} {top}h10l-5 8z", class_="fill quiet", tip=what)
    for line in lines:
        _draw_line(canvas, line, x, y)
    _name_lines(canvas, labelled, x, y)
    return canvas


def _draw_line(canvas: Canvas, line: Line, x: Scale, y: Scale) -> None:
    colour = f"c{line.colour % COLOURS}"
    if line.band is not None:
        lower, upper = line.band
        around = [*zip(line.x, upper, strict=True), *reversed([*zip(line.x, lower, strict=True)])]
        canvas.path([(x(a), y(b)) for a, b in around], f"band {colour}", closed=True)
    points = [(x(a), y(b)) for a, b in zip(line.x, line.y, strict=True)]
    # Many dots would hide the line; invisible ones still show their values on hover.
    look = "ghost" if line.thin or len(points) > MOST_DOTS else "dot"
    canvas.path(points, f"line {colour}{' thin' * line.thin}")
    for (a, b), (px, py) in zip(zip(line.x, line.y, strict=True), points, strict=True):
        if math.isfinite(py):
            tip = f"{line.name}: {b:.4g} at {tick_text(a)}"
            canvas.add("circle", cx=px, cy=py, r=2.5, class_=f"{look} {colour}", tip=tip)


def _name_lines(canvas: Canvas, lines: Sequence[Line], x: Scale, y: Scale) -> None:
    """Names beside the ends of the lines, moved apart where those meet."""
    last_points = []
    for line in lines:
        places = [(x(a), y(b)) for a, b in zip(line.x, line.y, strict=True)]
        last_points += [next(((*at, line) for at in reversed(places) if math.isfinite(at[1])), None)]
    ends = sorted((end for end in last_points if end is not None), key=lambda end: end[1])
    below, places = -math.inf, []
    for _, place, _ in ends:
        # A line of text is 15 pixels high.
        below = max(place, below + 15)
        places.append(below)
    # If the lowest name was pushed below the chart, all names move up by as much.
    over = max(0.0, places[-1] - max(y.start, y.stop)) if places else 0.0
    for place, (left, _, line) in zip(places, ends, strict=True):
        name = fit(line.name, canvas.width - left)
        canvas.text(left + 6, place - over + 4, name, f"name c{line.colour % COLOURS}")


def stretches(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float], int]:
    """A long line as means of equal stretches, at most `MOST_POINTS`; and how many values are in each.

    >>> stretches([1, 2, 3], [4, 5, 6])
    ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 1)
    """
    size = -(-len(x) // MOST_POINTS)
    starts = np.arange(0, len(x), max(1, size))
    if not len(x):
        return [], [], 1
    counts = np.diff(starts, append=len(x))
    along = (np.add.reduceat(np.asarray(values, dtype=np.float64), starts) / counts for values in (x, y))
    return *(values.tolist() for values in along), size  # type: ignore[return-value]


def stacked_chart(
    edges: Sequence[float], shares: NDArray[np.float64], names: Sequence[str], x: str, width: int
) -> Canvas:
    """Shares of a whole over stretches of x. `edges` (n + 1,) are the ends of the stretches; rows of `shares`
    (n, k) sum to 1, or are NaN where nothing is known."""
    height, left, right, top = 220, 52.0, width - 12.0, 30.0
    bottom = height - 44.0
    canvas = Canvas(width, height, f"share of {', '.join(names)} against {x}")
    across, up = Scale(edges[0], edges[-1], left, right), Scale(0, 1, bottom, top)
    for number, row in enumerate(shares):
        start, stop, done = across(edges[number]), across(edges[number + 1]), 0.0
        for part, share in enumerate(row):
            if share > 0:
                canvas.add(
                    "rect",
                    x=start,
                    y=up(done + share),
                    width=max(0.5, stop - start - 0.5),
                    height=up(done) - up(done + share),
                    class_=f"fill c{part % COLOURS}",
                    tip=f"{names[part]}: {share:.0%}, {x} {edges[number]:,.0f} to {edges[number + 1]:,.0f}",
                )
                done += share
    for value in (0.0, 0.5, 1.0):
        canvas.text(left - 6, up(value) + 4, f"{value:.0%}", "tick", "end")
    canvas.text(0, top - 10, "share of the samples", "label")
    x_axis(canvas, across, bottom, x)
    return canvas


@dataclass(frozen=True)
class Cloud:
    """Points of a scatter plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    tips: Sequence[str]
    marked: Sequence[bool] = field(default_factory=list)
    """Which points stand out."""


def scatter(clouds: Sequence[Cloud], x_label: str, y_label: str, width: int) -> Canvas:
    """Points in two dimensions; those that are marked on top, in full colour."""
    height, left, top = round(width * (0.62 if width > NARROW else 1.0)), 52.0, 30.0
    canvas = Canvas(width, height, f"{y_label} against {x_label}")
    x = Scale.over([v for cloud in clouds for v in cloud.x], left, width - 10.0, margin=0.03)
    y = Scale.over([v for cloud in clouds for v in cloud.y], height - 44.0, top, margin=0.03)
    y_axis(canvas, y, left, width - 10.0, y_label)
    x_axis(canvas, x, height - 44.0, x_label)
    # Marked points come last, or the others would cover them.
    for stands_out in (False, True):
        for cloud in clouds:
            for a, b, tip, marked in zip(cloud.x, cloud.y, cloud.tips, cloud.marked, strict=True):
                if marked == stands_out:
                    look = f"{'picked' if marked else 'faint'} c{cloud.colour % COLOURS}"
                    canvas.add("circle", cx=x(a), cy=y(b), r=4.0 if marked else 2.6, class_=look, tip=tip)
    return canvas


@dataclass(frozen=True)
class Spot:
    """One field of a heat map."""

    value: float
    """From -1 to 1: how strong its colour is, and which; NaN for unknown."""
    tip: str
    marked: bool = False


@dataclass(frozen=True)
class Grid:
    """A heat map."""

    cells: Sequence[Sequence[Spot]]
    rows: Sequence[str]
    columns: Sequence[str]
    label: str
    """What it shows."""
    side: Sequence[float] | None = None
    """A value per row, drawn as a bar on the right."""
    side_label: str = ""
    bottom: str = ""
    """Label of the columns."""
    names_above: bool = False
    """Whether names of columns stand above, upright where they are long; otherwise below, some of them."""


def heat_map(grid: Grid, width: int) -> Canvas:
    """A grid of coloured fields, with dots in those that are marked."""
    narrow, rows, columns = width <= NARROW, len(grid.rows), len(grid.columns)
    longest = max((len(name) for name in grid.rows), default=0) * 6.6 + 10
    left = min(longest, width * (0.26 if narrow else 0.3))
    beside = 0.0 if grid.side is None else width * 0.22
    step_x = (width - left - beside - 4) / max(1, columns)
    # Rows become lower the more there are, so that the map fits a screen.
    step_y = min(26.0, max(9.0, 420 / max(1, rows)))
    longest = max((len(name) for name in grid.columns), default=0) * 6.6
    upright = grid.names_above and longest > step_x - 8
    head = (min(longest, 120.0) + 8 if upright else 22.0) if grid.names_above else 6.0
    foot = 36.0
    if grid.side is not None:
        head = max(head, 24.0)
    canvas = Canvas(width, head + rows * step_y + foot, grid.label)
    for number, name in enumerate(grid.rows):
        canvas.text(left - 6, head + (number + 0.5) * step_y + 4, fit(name, left - 6), "tick", "end")
    _column_names(canvas, grid, (left, step_x, head, head + rows * step_y), upright)
    for number, row in enumerate(grid.cells):
        for place, cell in enumerate(row):
            x, y = left + place * step_x, head + number * step_y
            is_finite = math.isfinite(cell.value)
            look = "unknown" if not is_finite else f"fill {'c0' if cell.value >= 0 else 'c1'}"
            strength = f"{abs(cell.value):.2f}" if is_finite else "1"
            canvas.add(
                "rect",
                x=x,
                y=y,
                width=max(0.6, step_x - 1),
                height=step_y - 1,
                class_=look,
                fill_opacity=strength,
                tip=cell.tip,
            )
            if cell.marked:
                radius = max(1.0, min(3.0, step_x / 3, step_y / 3))
                canvas.add(
                    "circle", cx=x + step_x / 2 - 0.5, cy=y + step_y / 2 - 0.5, r=radius, class_="spot"
                )
    if grid.side is not None:
        _side_bars(canvas, grid, width - beside + 10, width - 4.0, head, step_y)
    return canvas


def _column_names(canvas: Canvas, grid: Grid, at: tuple[float, float, float, float], upright: bool) -> None:
    """Names of the columns, as many as there is room for. `at` is the left edge, the width of a column, and
    the upper and lower edge of the map."""
    left, step, above, below = at
    # Pixels that a name takes: its height if upright, else the width of a number of steps.
    every = max(1, math.ceil((11 if upright else 1 if grid.names_above else 46) / step))
    for number in range(0, len(grid.columns), every):
        x, name = left + (number + 0.5) * step, grid.columns[number]
        if upright:
            turn = f"rotate(-90 {x + 4:.1f} {above - 6:.1f})"
            canvas.add("text", text=fit(name, 120), x=x + 4, y=above - 6, class_="tick", transform=turn)
        else:
            canvas.text(x, above - 7 if grid.names_above else below + 14, name, "tick", "middle")
    middle = left + step * len(grid.columns) / 2
    canvas.text(middle, below + (16 if grid.names_above else 31), grid.bottom, "label", "middle")


def _side_bars(canvas: Canvas, grid: Grid, left: float, right: float, head: float, step: float) -> None:
    values = [0.0 if not math.isfinite(value) else value for value in grid.side or ()]
    scale = Scale.over([*values, 0.0], left, right, margin=0.0)
    for number, value in enumerate(values):
        start, stop = sorted((scale(0.0), scale(value)))
        canvas.add(
            "rect",
            x=start,
            y=head + number * step + step * 0.2,
            width=max(1.0, stop - start),
            height=step * 0.6 - 1,
            class_=f"fill {'c0' if value >= 0 else 'c1'}",
            tip=f"{grid.rows[number]}: {value:.3g} ({grid.side_label})",
        )
    canvas.line(scale(0.0), head, scale(0.0), head + step * len(values), "axis")
    canvas.text(right, head - 8, fit(grid.side_label, right - left + 30), "note", "end")


@dataclass(frozen=True)
class Bar:
    """A bar with its value; `expected` is marked where something was forecast."""

    name: str
    value: float
    colour: int
    text: str
    expected: float | None = None


def bar_chart(bars: Sequence[Bar], label: str, width: int) -> Canvas:
    """Horizontal bars from zero."""
    narrow, step = width <= NARROW, 40 if width <= NARROW else 28
    left = 0.0 if narrow else min(max(len(bar.name) for bar in bars) * 6.6 + 12, width * 0.4)
    right = width - 14.0 - max(len(bar.text) for bar in bars) * 6.4
    canvas = Canvas(
        width, step * len(bars) + 46, f"{label}: " + "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    )
    values = [each for bar in bars for each in (bar.value, bar.expected) if each is not None]
    # Never of length 0, by which the scale would divide.
    scale = Scale(0.0, max([*values, 1e-9]), left, right)
    for number, bar in enumerate(bars):
        y = 4.0 + number * step
        if narrow:
            canvas.text(0, y + 12, fit(bar.name, width), "tick")
        else:
            canvas.text(left - 8, y + 15, fit(bar.name, left - 8), "tick", "end")
        top = y + (17 if narrow else 2)
        canvas.add(
            "rect",
            x=left,
            y=top,
            width=max(1.0, scale(bar.value) - left),
            height=18,
            class_=f"fill c{bar.colour % COLOURS}",
            tip=f"{bar.name}: {bar.text}",
        )
        end = scale(max(bar.value, bar.expected or 0.0))
        canvas.text(end + 6, top + 14, bar.text, "tick")
        if bar.expected is not None:
            canvas.add(
                "rect",
                x=scale(bar.expected) - 1.5,
                y=top - 3,
                width=3,
                height=24,
                class_="forecast",
                tip=f"{bar.name}: forecast {bar.expected:,.1f}",
            )
    x_axis(canvas, scale, 8.0 + step * len(bars), label)
    return canvas


@dataclass(frozen=True)
class Interval:
    """One row of a forest plot."""

    name: str
    value: float
    low: float | None
    high: float | None
    colour: str
    """`good`, `bad` or `quiet`."""
    text: str


def forest(rows: Sequence[Interval], label: str, width: int) -> Canvas:
    """Differences with their intervals around zero."""
    narrow = width <= NARROW
    step = 44 if narrow else 30
    left = 8.0 if narrow else min(max(len(row.name) for row in rows) * 6.6 + 14, width * 0.32)
    right = width - 8.0 if narrow else width - 215.0
    canvas = Canvas(
        width, step * len(rows) + 50, f"{label}: " + "; ".join(f"{row.name} {row.text}" for row in rows)
    )
    ends = [end for row in rows for end in (row.value, row.low, row.high, 0.0) if end is not None]
    scale = Scale.over(ends, left, right)
    bottom = 6.0 + step * len(rows)
    canvas.line(scale(0.0), 0, scale(0.0), bottom, "event")
    for number, row in enumerate(rows):
        y = 4.0 + number * step
        if narrow:
            canvas.text(0, y + 11, fit(f"{row.name}: {row.text}", width), "tick")
        else:
            canvas.text(left - 10, y + 17, fit(row.name, left - 10), "tick", "end")
            canvas.text(right + 12, y + 17, fit(row.text, 210), f"tick name {row.colour}")
        middle = y + (26 if narrow else 13)
        if row.low is not None and row.high is not None:
            canvas.line(scale(row.low), middle, scale(row.high), middle, f"interval {row.colour}")
            for end in (row.low, row.high):
                canvas.line(scale(end), middle - 5, scale(end), middle + 5, f"interval {row.colour}")
        canvas.add(
            "circle",
            cx=scale(row.value),
            cy=middle,
            r=5.0,
            class_=f"dot {row.colour}",
            tip=f"{row.name}: {row.text}",
        )
    x_axis(canvas, scale, bottom, label)
    return canvas
