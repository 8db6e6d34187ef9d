"""How long measuring takes, told from a few samples."""

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.planning.pool import signals_of
from gradwise.recipe import SignalSettings

FEW, MORE = 4, 20
"""Samples of the two measuring passes whose difference is what a sample takes."""


class MeasuringSpeed(NamedTuple):
    """Seconds of a measuring pass."""

    begin: float
    """Whatever its size."""
    each: float
    """Per sample, more than 0."""


def measuring_speed(
    trainer: Any, rows: NDArray[np.int64], needs: frozenset[str], settings: SignalSettings, *, seed: int
) -> MeasuringSpeed:
    """The speed at the model's present weights, from one pass over all of `rows` and one over a few of them.

    Args:
        trainer: its model measures, its data are measured.
        rows: `MORE` samples, or fewer where there are no more.
        needs: names of quantities.
        settings: the recipe's `signals`.
        seed: of the projection of gradients.
    """

    def seconds_of(chosen: NDArray[np.int64]) -> float:
        start = time.perf_counter()
        signals_of(trainer, chosen, needs, settings, seed=seed)
        return time.perf_counter() - start

    few = rows[:: max(1, len(rows) // FEW)][:FEW]
    seconds_of(few)  # allocates, compiles
    small, large = seconds_of(few), seconds_of(rows)
    # Where noise says that more samples take no longer, they take something all the same.
    each = max((large - small) / max(1, len(rows) - len(few)), 1e-3 * large / len(rows))
    return MeasuringSpeed(max(0.0, small - len(few) * each), each)
