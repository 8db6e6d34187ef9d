"""Results of a probe: plain numbers, without the model that they were computed with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LookaheadLosses:
    """Losses before and after trial steps."""

    before: NDArray[np.float64]
    """(m,) mean losses of the samples at the present weights, nats per label token."""

    after: NDArray[np.float64]
    """(units, m) the same after one step of the optimizer on each unit; NaN where not asked for."""


@dataclass(frozen=True)
class Orders:
    """Losses of m samples after n nodes' steps, alone and one node's after another's."""

    before: NDArray[np.float64]
    """(m,) mean losses of the samples at the present weights, nats per label token."""

    alone: NDArray[np.float64]
    """(n, m) after a node's own steps."""

    both: NDArray[np.float64]
    """(n, n, m) after the steps of i and then those of j; NaN for i = j."""


@dataclass(frozen=True)
class GradientProducts:
    """Products of gradients and Hessians that say how steps on n sets of samples interfere."""

    along: NDArray[np.float64] | None
    """(n, n) <H_i P g_E, P g_j>: what a step on i gains, of the target's loss, by coming before one on j."""

    gains: NDArray[np.float64]
    """(n, n) <g_i, P g_j>: what a step on j takes off i's loss, to first order."""

    towards: NDArray[np.float64]
    """(n,) <g_E, P g_j>: what a step on j takes off the target's loss, to first order."""

    losses: NDArray[np.float64]
    """(n,) token-mean losses."""

    target_loss: float
