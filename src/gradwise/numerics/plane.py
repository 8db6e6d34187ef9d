"""Vectors in two dimensions, for people to see: the plane of their two largest principal components."""

import numpy as np
from numpy.typing import NDArray

SMALL = 512
"""Dimensions up to which components are exact; of longer vectors a subspace iteration finds them."""

ITERATIONS, EXTRA = 30, 6
"""Number of subspace iterations, and of directions followed beyond the two that are kept."""


def principal_plane(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Coordinates of the rows of x (N, d) around their mean.

    Returns:
        (N, 2) coordinates, and the share of the variance in them.
    """
    centred = x - x.mean(axis=0)
    total = float(np.square(centred).sum())
    plane = np.zeros((len(x), 2))
    if total > 0:
        basis = centred if min(x.shape) <= SMALL else _subspace(centred)
        _, _, axes = np.linalg.svd(basis, full_matrices=False)
        plane[:, : len(axes[:2])] = centred @ axes[:2].T
    return plane, float(np.square(plane).sum()) / total if total > 0 else 1.0


def _subspace(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, d) rows whose right singular vectors are about the first ones of `centred`."""
    axes = np.random.default_rng(0).standard_normal((centred.shape[1], 2 + EXTRA))
    for _ in range(ITERATIONS):
        axes, _ = np.linalg.qr(centred.T @ (centred @ axes))
    _, values, turn = np.linalg.svd(centred @ axes, full_matrices=False)
    return values[:, None] * (turn @ axes.T)
