"""Draws how often edges know which of two steps comes first, by learning rate.

python benchmarks/d3_figure.py        # docs/figures/d3-commutator.png from the result file
"""

import json
from pathlib import Path
from typing import Any

import d3_commutator
from frame import RESULTS, ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FIGURE = ROOT / "docs" / "figures" / "d3-commutator.png"
PANELS = {
    "sgd": "SGD, momentum 0.9",
    "adamw_still": "AdamW, second moments held",
    "adamw": "AdamW after 30 steps",
}
STYLES: dict[str, dict[str, Any]] = {
    "curvature": {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "curvature"},
    "curvature_moments": {
        "color": "#009E73", "marker": "D", "linestyle": "-.", "label": "curvature + second moments",
    },
    "lookahead": {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "lookahead"},
    "first_order": {"color": "#777777", "marker": "^", "linestyle": ":", "label": "first order"},
}  # fmt: skip


def draw(content: dict[str, Any], path: Path = FIGURE) -> None:
    """One panel per optimizer: all samples of the units, all pairs."""
    together = d3_commutator.together(content)
    figure = Figure(figsize=(3.4 * len(PANELS), 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    for axis, (kind, title) in zip(axes, PANELS.items(), strict=True):
        entries = together[kind]
        rates = list(entries[0]["rates"])
        for edges, style in STYLES.items():
            if (edges == "lookahead" and kind not in d3_commutator.LOOKING) or (
                edges == "curvature_moments" and kind != "adamw"
            ):
                continue
            shares = [d3_commutator.accuracy(entries, rate, "flushed", edges, "all")["all"] for rate in rates]
            axis.plot([float(rate) for rate in rates], shares, markersize=4, **style)
        axis.axhline(0.5, color="black", linewidth=0.5)
        axis.set_xscale("log")
        axis.set_ylim(0, 1.03)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("learning rate")
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("pairs whose sign is right")
    axes[-1].legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(json.loads((RESULTS / "d3-commutator.json").read_text()))
