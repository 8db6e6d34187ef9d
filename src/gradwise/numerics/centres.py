"""k-center: rows such that the farthest of all others is near one of them."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.nearest import cosine, unit


def k_center(x: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Rows in the order picked: first the one nearest the mean, then always the row that lies farthest from
    all picked so far, by cosine; the lower one where several do.

    The farthest distance is at most twice the best possible (Gonzalez 1985), for the angle between rows.

    Args:
        x: (N, h), lengths do not matter.
        count: at most N.

    Raises:
        ValueError: when a value is not finite, or there are fewer rows.

    >>> k_center(np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]), 2).tolist()
    [0, 2]
    """
    if not 0 <= count <= len(x):
        raise ValueError(f"Of {len(x)} rows, {count} cannot be picked.")
    rows = unit(x)
    middle = unit(rows.mean(axis=0, dtype=np.float64)[None])[0]
    return _farthest_first(rows, middle, count)


@numba.njit(nogil=True, cache=True)
def _farthest_first(rows: Any, middle: Any, count: int) -> Any:
    picks = np.empty(count, dtype=np.int64)
    nearness = np.empty(len(rows), dtype=np.float32)
    for i in range(len(rows)):
        # Negated, so that the first pick is the nearest to the middle by the same rule as the others.
        nearness[i] = -cosine(rows[i], middle)
    for number in range(count):
        pick = np.argmin(nearness)
        picks[number] = pick
        for i in range(len(rows)):
            near = cosine(rows[i], rows[pick])
            if number == 0 or near > nearness[i]:
                nearness[i] = near
        # Nearer to a pick than anything can be: it is one.
        nearness[pick] = np.float32(2)
    return picks
