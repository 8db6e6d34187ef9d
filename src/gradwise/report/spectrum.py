"""The spectrum that DiReCT chose by, and the energy of pool and picks along it. From files alone."""

from pathlib import Path
from typing import Any

import numpy as np

from gradwise.errors import RecipeError
from gradwise.folders import add_file
from gradwise.report.figures import BLUE, GREY, ORANGE, png
from gradwise.stored import damaged, read_json


def draw_spectra(run: Path) -> list[Path]:
    """Draw `spectrum-<step>.png` in a run directory for each choice of direct and return their paths;
    RecipeError if it chose nothing."""
    # By number: as text, spectrum-100 would come before spectrum-20.
    files = sorted((run / "plan").glob("spectrum-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
    if not files:
        raise RecipeError(f"{run} has no spectrum to draw; only `anneal: direct` uses one.")
    return [draw_spectrum(path, run / f"{path.stem}.png") for path in files]


def draw_spectrum(details: Path, path: Path) -> Path:
    """Draw the spectrum of a selection from its JSON file; returns the picture's path."""
    stats = read_json(details, RecipeError)
    with damaged(details, RecipeError):
        content = spectrum_picture(stats)
    add_file(path, content)
    return path


def spectrum_picture(details: dict[str, Any]) -> bytes:
    """The figure as PNG, from what `gradwise.Direct` records of a selection."""
    from matplotlib.figure import Figure

    spectrum, stiff = details["spectrum"], details["stiff_directions"]
    values = np.array(spectrum["values"])
    number = np.arange(1, len(values) + 1)
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.semilogy(number, values / spectrum["trace"], color=BLUE, marker="o", markersize=3)
    above.set_ylabel("share of the trace")
    above.set_title(
        f"{details['validation_samples']:,} validation samples, effective rank "
        f"{details['effective_rank']:.1f}; {stiff} stiff directions",
        fontsize=10,
    )
    # Floored, since a logarithmic axis has no place for zero.
    for name, label, colour in ("pool_energy", "pool", GREY), ("picks_energy", "picks", ORANGE):
        below.semilogy(
            number, np.maximum(spectrum[name], 1e-7), color=colour, marker="o", markersize=3, label=label
        )
    below.set_ylabel("share of the gradients'\nsquared length")
    below.set_xlabel("eigenvector, stiffest first")
    below.legend(fontsize=8, frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        if stiff <= len(values):
            axes.axvline(stiff + 0.5, color="black", linewidth=0.5)
    return png(figure)
