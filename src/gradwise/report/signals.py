"""Distribution of each signal, from the store alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradwise.folders import add_file
from gradwise.report.figures import BLUE, png
from gradwise.signals import Signals

LABELS = {
    "loss": "loss, nats per label token",
    "num_tokens": "label tokens",
    "grad_norm": "gradient norm, nats per unit weight",
    "head_norm": "gradient norm of the head",
    "grad": "length of the projected gradient",
    "embedding": "length of the embedding",
    "middle_embedding": "length of the middle embedding",
}


def draw_signals(store: Path) -> Path:
    """Draw a histogram of every signal, of vectors their lengths, into `signals.png` in the store and return
    its path; the title counts the samples that were set aside."""
    signals = Signals.open(store)
    path = store / "signals.png"
    add_file(path, histograms(signals))
    return path


def histograms(signals: Signals) -> bytes:
    """The figure as PNG."""
    from matplotlib.figure import Figure

    shown = {name: values for name in LABELS if (values := _values(signals, name)) is not None}
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(9, 2.6 * rows + 0.5), dpi=120, layout="constrained")
    for place, (name, values) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, 2, place + 1)
        axes.hist(values, bins=_bins(values), color=BLUE, alpha=0.85)
        axes.axvline(float(np.median(values)), color="black", linewidth=1, linestyle="--")
        axes.set_xlabel(LABELS[name], fontsize=9)
        axes.set_ylabel("samples", fontsize=9)
        if values.min() > 0 and values.max() > 30 * np.median(values):
            axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    measured = len(signals) if signals.ok is None else int(signals.ok.sum())
    aside = len(signals) - measured
    figure.suptitle(f"{measured:,} samples, {aside:,} set aside; dashed: median", fontsize=10)
    return png(figure)


def _values(signals: Signals, name: str) -> NDArray[np.float64] | None:
    values = getattr(signals, name)
    if values is None:
        return None
    ok_values = values if signals.ok is None else _rows(values, np.flatnonzero(signals.ok))
    return np.asarray(ok_values, dtype=np.float64)


def _rows(values: NDArray, rows: NDArray[np.int64], most: int = 4096) -> NDArray:
    """Rows of a column; of vectors their lengths, `most` rows at a time."""
    if values.ndim == 1:
        return values[rows]
    parts = [
        np.linalg.norm(values[rows[start : start + most]].astype(np.float64), axis=1)
        for start in range(0, len(rows), most)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _bins(values: NDArray[np.float64]) -> list[float] | int:
    if len(values) and values.min() > 0 and values.max() > 30 * np.median(values):
        # Bins of equal ratios, or a few large values would leave all others in one bin.
        return np.geomspace(values.min(), values.max(), 40).tolist()
    return 40
