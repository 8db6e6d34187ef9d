"""Mass that moves from target points to the points of a pool, near and evenly (TSDS, Liu et al. 2024,
arXiv 2410.11303, section 3)."""

import numpy as np
from numpy.typing import NDArray


def spread_mass(
    distances: NDArray[np.float64], density: NDArray[np.float64], spread: float, neighbours: int
) -> NDArray[np.float64]:
    """(n,) mass of each point of a pool, which adds up to 1.

    Minimises (1 - spread) * sum_ij g_ij d_ij / D + spread * M * max_ij g_ij density_j over couplings g whose
    M rows add up to 1 / M each; D is the mean distance. For a given cap t on g_ij density_j, each row fills
    its nearest points up to t / density_j: the cost is convex and piecewise linear in t, and a search over t
    finds its minimum.

    Args:
        distances: (M, n), of target points and points of the pool.
        density: (n,) number of points that lie about each one, at least 1.
        spread: weight of evenness, 0..1; 0 moves all mass to the nearest point, 1 spreads it over all
            neighbours.
        neighbours: nearest points of each target point that can get mass.

    >>> spread_mass(np.array([[0.0, 0.1, 9.0]]), np.ones(3), 0.0, 3).round(6).tolist()
    [1.0, 0.0, 0.0]
    """
    count, points = distances.shape
    near = np.argsort(distances, axis=1, kind="stable")[:, : min(neighbours, points)]
    d = np.take_along_axis(distances, near, axis=1)
    room = 1 / density[near]
    scale = max(float(np.abs(d).mean()), 1e-12)

    def filled(cap: float) -> NDArray[np.float64]:
        before = np.cumsum(room * cap, axis=1) - room * cap
        return np.clip(1 / count - before, 0, room * cap)

    def cost(cap: float) -> float:
        return (1 - spread) * float((filled(cap) * d).sum()) / scale + spread * count * cap

    low = float(1 / count / room.sum(axis=1).min())  # below it, a row could not place its mass
    # Above it each target point's nearest neighbour takes all of its mass, and a larger cap changes nothing.
    high = float(1 / count / room[:, 0].min())
    golden = (5**0.5 - 1) / 2
    # Golden-section search of a convex function: 80 steps shrink the bracket by 1e-16, to the last bit.
    for _ in range(80):
        one, other = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, other) if cost(one) <= cost(other) else (one, high)
    mass = np.zeros(points)
    moved = filled(low if spread else high)
    np.add.at(mass, near, moved)
    return mass / mass.sum()
