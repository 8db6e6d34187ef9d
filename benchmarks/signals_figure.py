"""Draws errors of inner products against the length of the projection.

python benchmarks/signals_figure.py        # docs/figures/signals-accuracy.png from the result file
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from frame import RESULTS, ROOT
from tables import of_kind

matplotlib.use("Agg")
from matplotlib import pyplot

FIGURE = ROOT / "docs" / "figures" / "signals-accuracy.png"

STYLES: dict[str, dict[str, Any]] = {
    "gradwise": {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "gradwise"},
    "dense": {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "dense Gaussian"},
}
"""Blue and vermilion of Okabe and Ito's palette, told apart by shape and line as well."""

TITLES = {
    "stories": "stories260K, TinyStories",
    "small_llama": "Llama 8.9 M, GSM8K + Dolly",
    "smollm2": "SmolLM2-135M, GSM8K",
}


def curves(content: dict[str, Any], subject: str) -> dict[str, dict[int, list[float]]]:
    """By projection and length: the error between pairs, one for each seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for entry in of_kind(content, f"size/{subject}").values():
        for way, by_size in entry["errors"].items():
            for size, (pairs, _, _) in by_size.items():
                found.setdefault(way, {}).setdefault(int(size), []).append(pairs)
    return found


def together(values: list[float]) -> float:
    """The root mean square of several seeds'."""
    return math.sqrt(statistics.fmean(value**2 for value in values))


def draw(content: dict[str, Any], path: Path) -> None:
    """One panel per subject, both axes logarithmic; a band from the lowest seed to the highest."""
    subjects = [name for name in TITLES if of_kind(content, f"size/{name}")]
    figure, axes = pyplot.subplots(
        1, len(subjects), figsize=(3.4 * len(subjects), 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, subject in zip(axes[0], subjects, strict=True):
        for way, by_size in curves(content, subject).items():
            sizes = sorted(by_size)
            axis.plot(sizes, [together(by_size[size]) for size in sizes], markersize=4, **STYLES[way])
            low, high = ([pick(by_size[size]) for size in sizes] for pick in (min, max))
            axis.fill_between(sizes, low, high, color=STYLES[way]["color"], alpha=0.15, linewidth=0)
        _dress(axis, TITLES[subject], sizes=sorted(by_size))
    axes[0][0].set_ylabel("RMS error / (|g| |g'|)")
    axes[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _dress(axis: Any, title: str, sizes: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axis.set_yticks([0.01, 0.02, 0.04, 0.08], ["0.01", "0.02", "0.04", "0.08"])
    axis.minorticks_off()
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("numbers per sample, k")
    axis.grid(alpha=0.3, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    draw(json.loads((RESULTS / "signals-accuracy.json").read_text()), FIGURE)
