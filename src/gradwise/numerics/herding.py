"""Herding: rows picked one by one so that their mean stays near a target (Welling 2009)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def herd_towards(x: Any, target: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Rows in the order picked, each once: the mean of the first n nears the target as fast as 1/n where the
    target lies among them.

    Args:
        x: (N, k).
        target: (k,).
        count: at most N.

    Raises:
        ValueError: when there are fewer rows.

    >>> herd_towards(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0.5, 0.5]), 2).tolist()
    [0, 2]
    """
    if not 0 <= count <= len(x):
        raise ValueError(f"Of {len(x)} rows, {count} cannot be picked.")
    x = np.asarray(x, dtype=np.float32)
    owed, free = np.zeros(x.shape[1]), np.ones(len(x), dtype=bool)
    picks = np.empty(count, dtype=np.int64)
    for number in range(count):
        owed += target
        scores = np.where(free, x @ owed.astype(np.float32), -np.inf)
        picks[number] = np.argmax(scores)
        free[picks[number]] = False
        owed -= x[picks[number]]
    return picks
