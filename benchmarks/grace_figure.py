"""The figure of `grace.py --parts propagation`: agreement of guesses with exact values over a run."""

from pathlib import Path
from typing import Any

from frame import ROOT

FIGURE = ROOT / "docs" / "figures" / "grace-propagation.png"
SHARE = 0.1
WAYS = {("none", 0.0): ("stale values", "#777777"), ("value", 0.5): ("values spread", "#E69F00"),
        ("change", 0.5): ("changes spread", "#0072B2")}  # fmt: skip


def draw(content: dict[str, Any], path: Path = FIGURE) -> None:
    """Rank correlation of importance by kind, and cosine of embeddings, by refresh, with 10 % anchors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = [
        entry
        for key, entry in content["entries"].items()
        if key.startswith("followed/") and entry["share"] == SHARE and entry["drawn"] is None
    ]
    kinds = list(dict.fromkeys(entry["kind"] for entry in entries))
    figure = Figure(figsize=(3 * (len(kinds) + 1), 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds) + 1, sharex=True)
    for axes, kind in zip(panels, [*kinds, None], strict=True):
        what, name = ("spearman", kind) if kind else ("cosine", "embeddings")
        for entry in entries:
            way = (entry["propagate"], entry["beta"])
            if entry["kind"] == (kind or kinds[0]) and way in WAYS:
                label, colour = WAYS[way]
                _lines(axes, entry["refreshes"], what, label, colour, seen=bool(kind) and way[0] == "change")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("optimizer steps")
        axes.axhline(0, color="black", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("rank correlation with exact values")
    panels[-1].set_ylabel("cosine with exact embeddings")
    panels[0].legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _lines(
    axes: Any, refreshes: list[dict[str, Any]], what: str, label: str, colour: str, *, seen: bool
) -> None:
    steps = [refresh["step"] for refresh in refreshes]
    axes.plot(steps, [refresh[what] for refresh in refreshes], color=colour, marker="o", ms=3, label=label)
    if seen:
        told = [refresh["seen"] for refresh in refreshes]
        axes.plot(steps, told, color=colour, linestyle=":", label="as the run itself sees it")
