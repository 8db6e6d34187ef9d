"""Held-out loss against steps, tokens and charged seconds: a line per arm, a band over its seeds.

Through matplotlib's objects rather than pyplot, whose state is shared with whoever else draws in the process;
imported only when something is drawn.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gradwise.report.figures import png
from gradwise.report.reading import Point, Results

Axis = Literal["steps", "tokens", "seconds"]
AXES: tuple[Axis, ...] = get_args(Axis)

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C6D1F")
"""Okabe and Ito's, distinguishable with any kind of colour vision; yellow, too pale for a line, replaced."""

STYLES = ("-", "--", ":", "-.")

LABELS = {
    "steps": "optimizer steps",
    "tokens": "input tokens",
    "seconds": "seconds charged, deciding included",
}


def mean_curve(
    curves: list[tuple[Point, ...]], axis: Axis
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean places, mean losses and standard deviations of the losses over an arm's runs, each (n,).

    Runs are averaged at equal shares of their steps, so that neither a slow run nor a step more or less cuts
    an end off the curve. Each curve has at least two evaluations; for a single run the deviation is 0.
    """
    progress = [np.array([point.step / curve[-1].step for point in curve]) for curve in curves]
    # The run with most evaluations gives the grid; the others are interpolated.
    common = max(progress, key=len)
    along = [[_place(point, axis) for point in curve] for curve in curves]
    losses = [[point.loss for point in curve] for curve in curves]
    x, y = (
        np.stack([np.interp(common, done, row) for done, row in zip(progress, rows, strict=True)])
        for rows in (along, losses)
    )
    spread = y.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(common))
    return x.mean(axis=0), y.mean(axis=0), spread


def loss_curves(results: Results, axis: Axis) -> bytes:
    """The figure as PNG: mean held-out loss per arm, a band of one standard deviation over its seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for number, arm in enumerate(results.arms):
        # Unfinished runs would shift the mean, and a single evaluation makes no line.
        curves = [run.curve for run in results.of_arm(arm) if run.finished and len(run.curve) > 1]
        if not curves:
            continue
        x, mean, spread = mean_curve(curves, axis)
        colour = COLOURS[number % len(COLOURS)]
        style = STYLES[number // len(COLOURS) % len(STYLES)]
        axes.plot(x, mean, style, color=colour, linewidth=1.8, label=f"{arm} ({mean[-1]:.4f})")
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(LABELS[axis])
    axes.set_ylabel("held-out loss, nats per token")
    axes.set_title(f"{results.name}: mean over seeds, band of one standard deviation", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    _sort_legend(axes)
    return png(figure)


def _sort_legend(axes: object) -> None:
    """Put the legend beside the plot, in the order in which the lines end: each name stands by its line."""
    handles, labels = axes.get_legend_handles_labels()  # type: ignore[attr-defined]
    order = sorted(range(len(handles)), key=lambda i: -handles[i].get_ydata()[-1])
    axes.legend(  # type: ignore[attr-defined]
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        title="arm (last value)",
        fontsize=9,
    )


def _place(point: Point, axis: Axis) -> float:
    return {"steps": point.step, "tokens": point.tokens, "seconds": point.seconds}[axis]
