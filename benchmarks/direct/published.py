"""DiReCT by the published steps, slow and literal, for comparison with gradwise's solver.

The sketch is a dense Gaussian matrix. Every linearised step is solved by projected gradients, each projection
onto box, count and budget by Dykstra's alternating projections; then the K largest weights are kept, whatever
they cost. Written from the paper's description (arXiv 2605.31175, section 4 and appendix), not from its code.
"""

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-6


@dataclass
class Published:
    """Result of the published steps."""

    picks: np.ndarray
    """(K,) the largest weights."""
    weights: np.ndarray
    """(N,) before rounding."""
    violation: float
    """Excess of the weights over the budget, as a share of it; 0 if there is none."""
    picks_violation: float
    """The same for the picks."""
    objective: float
    """||sum of the picks' flat gradients||^2."""


def gaussian_sketch(gradients: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """(N, k) of (N, d) by a dense matrix with entries of variance 1 / k."""
    draw = np.random.default_rng(seed).standard_normal((gradients.shape[1], k)) / np.sqrt(k)
    return gradients @ draw


def published(
    flat: np.ndarray, a: np.ndarray, count: int, budget: float, *, outer: int = 20, inner: int = 200
) -> Published:
    """Successive linearisation of ||flat^T w||^2 from equal weights."""
    w = project(np.full(len(a), count / len(a)), a, count, budget)
    for _ in range(outer):
        before = w
        c = flat @ (flat.T @ w)
        step = 1.0 / (np.abs(c).max() or 1.0)
        for _ in range(inner):
            after = project(w + step * c, a, count, budget)
            moved, w = np.abs(after - w).max(), after
            if moved < TOLERANCE:
                break
        if np.abs(w - before).max() < TOLERANCE:
            break
    picks = np.argsort(-w, kind="stable")[:count]
    return Published(
        picks=np.sort(picks),
        weights=w,
        violation=max(0.0, float(a @ w) / budget - 1),
        picks_violation=max(0.0, float(a[picks].sum()) / budget - 1),
        objective=float((flat[picks].sum(axis=0) ** 2).sum()),
    )


def project(w: np.ndarray, a: np.ndarray, count: int, budget: float, *, rounds: int = 100) -> np.ndarray:
    """The nearest weights in the box, on the plane of the count and below the budget, by Dykstra's
    algorithm."""
    corrections = [np.zeros_like(w) for _ in range(3)]
    for _ in range(rounds):
        start = w
        for place, onto in enumerate((_box, _count, _budget)):
            corrected = w + corrections[place]
            w = onto(corrected, a, count, budget)
            corrections[place] = corrected - w
        if np.abs(w - start).max() < TOLERANCE:
            break
    return w


def _box(w: np.ndarray, *_: object) -> np.ndarray:
    return np.clip(w, 0, 1)


def _count(w: np.ndarray, _: np.ndarray, count: int, __: float) -> np.ndarray:
    return w + (count - w.sum()) / len(w)


def _budget(w: np.ndarray, a: np.ndarray, _: int, budget: float) -> np.ndarray:
    over = a @ w - budget
    return w if over <= 0 else w - over / (a @ a) * a
