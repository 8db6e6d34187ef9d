"""One style for all figures: panels side by side, saved without the name of the software."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
"""Okabe and Ito's palette, distinguishable with any kind of colour vision."""


def panels(count: int, *, width: float = 3.4, share_y: bool = True) -> tuple[Figure, list[Any]]:
    """A figure and its axes."""
    figure = Figure(figsize=(width * count, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, sharey=share_y, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save(figure: Figure, path: Path) -> None:
    """As PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
