"""The pool in two dimensions with the picks marked, from the store and `picks.parquet` alone."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from gradwise.errors import SignalError
from gradwise.folders import add_file
from gradwise.numerics.plane import principal_plane
from gradwise.report.figures import ORANGE, png
from gradwise.signals import Signals
from gradwise.stored import damaged

MAX_POINTS = 20_000
"""Samples that are drawn; of more, evenly spaced ones."""

POOL_COLOUR = "#BBBBBB"


def draw_pool(store: Path, picks: Path) -> Path:
    """Draw `pool.png` beside `picks` and return its path. The plane is that of the two largest principal
    components of the embeddings around their mean. Raises SignalError if the store holds none."""
    signals = Signals.open(store) if (store / "manifest.json").exists() else None
    if signals is None or signals.any_embedding is None:
        raise SignalError(f"{store} holds no embeddings to draw; this selection does not need them.")
    with damaged(picks, SignalError):
        picked = pyarrow.parquet.read_table(picks, columns=["index"]).column("index").to_numpy()
    scored_rows = store / "looked.npy"
    if scored_rows.exists():
        # Only some samples of the pool were measured; of the picks those are drawn that were.
        with damaged(scored_rows, SignalError):
            picked = np.flatnonzero(np.isin(np.load(scored_rows), picked))
    path = picks.parent / "pool.png"
    add_file(path, pool_picture(signals, picked))
    return path


def pool_picture(signals: Signals, picks: NDArray[np.int64]) -> bytes:
    """The figure as PNG."""
    from matplotlib.figure import Figure

    assert signals.any_embedding is not None
    usable = np.arange(len(signals)) if signals.ok is None else np.flatnonzero(signals.ok)
    shown = usable[:: max(1, len(usable) // MAX_POINTS)]
    plane, share = principal_plane(np.asarray(signals.any_embedding[shown], dtype=np.float64))
    marked = np.isin(shown, picks)
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    # Smaller dots the more there are, or they would merge.
    size = max(2.0, min(14.0, 12_000 / len(shown)))
    axes.scatter(*plane[~marked].T, s=size, c=POOL_COLOUR, linewidths=0, label=f"pool ({len(usable):,})")
    axes.scatter(*plane[marked].T, s=1.6 * size, c=ORANGE, linewidths=0, label=f"picked ({len(picks):,})")
    axes.set_xlabel("first principal component of the embeddings")
    axes.set_ylabel("second")
    axes.set_title(f"{share:.0%} of the embeddings' variance lies in this plane", fontsize=10)
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)
