"""GRACE over a run: how much its coreset covers, what it is worth, how good propagation was. From the events
of the run directory alone."""

from pathlib import Path
from typing import Any

from gradwise.errors import RecipeError
from gradwise.folders import add_file
from gradwise.methods.grace.pick import random_picks
from gradwise.report.figures import BLUE, GREY, ORANGE, png
from gradwise.stored import damaged, read_lines


def draw_coreset(run: Path) -> Path:
    """Draw `coreset.png` in a run directory; returns its path.

    Raises:
        RecipeError: when no coreset was chosen in that run.
    """
    events = read_lines(run / "events.jsonl")
    chosen = [event for event in events if "coverage" in event]
    if not chosen:
        raise RecipeError(f"{run} chose no coreset; there is nothing to draw of a run without select: grace.")
    path = run / "coreset.png"
    with damaged(run / "events.jsonl"):
        content = coreset_picture(chosen)
    add_file(path, content)
    return path


def coreset_picture(chosen: list[dict[str, Any]]) -> bytes:
    """The figure as PNG.

    Args:
        chosen: events of the first selection and of the refreshes, in the order of their steps.
    """
    from matplotlib.figure import Figure

    # A run that was resumed may have repeated a refresh; the later one counts.
    last = {event["step"]: event for event in chosen}
    steps = sorted(last)
    figure = Figure(figsize=(7, 7.5), dpi=120, layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True)
    first = last[steps[0]]
    if note := random_picks(first, first.get("selected", 0)):
        above.set_title(note, fontsize=9)
    _line(above, steps, last, "coverage", "coreset", BLUE)
    above.set_ylabel("coverage, share of\nthe candidates")
    _line(middle, steps, last, "importance", "coreset", BLUE)
    _line(middle, steps, last, "pool_importance", "all candidates", GREY)
    middle.set_ylabel("estimated importance,\nmean")
    _line(below, steps, last, "agreement", "importance, rank correlation", BLUE)
    _line(below, steps, last, "embedding_agreement", "embeddings, cosine", ORANGE)
    _line(below, steps, last, "next_share", "share to be measured next", GREY)
    below.set_ylabel("agreement of propagated\nand exact values")
    below.axhline(0, color="black", linewidth=0.5)
    below.set_xlabel("optimizer steps")
    for axes in (above, middle, below):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return png(figure)


def _line(axes: Any, steps: list[int], events: dict[int, Any], name: str, label: str, colour: str) -> None:
    points = [(step, events[step][name]) for step in steps if events[step].get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
