"""Which way is down, for a validation set whose curvature is known from few samples.

    d = (H + ridge I)^-1 b,   H = (1/M) sum_i z_i z_i^T,   b = (1/M) sum_i z_i

A large ridge gives plain alignment with the validation gradient b, a small one prefers directions in which
the validation samples curve little. b and H from the same samples agree too well with each other: H says
nothing outside of their span, and b lies within it. So the ridge is chosen by halves: the direction of one is
judged by what the other expects of the best step along it, (b.d)^2 / (2 d.H d).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.spectrum import Spectrum
from gradwise.numerics.streams import stream

RIDGES = np.concatenate([10.0 ** np.arange(-4, 3.5, 0.5), [np.inf]])
"""Ridges tried, as multiples of the largest eigenvalue; the last is plain alignment."""

SPLITS = 8
"""Ways in which the samples are halved; each half is judged by the other."""


class Descent(NamedTuple):
    """A direction of descent and how it was chosen."""

    direction: NDArray[np.float64]
    """(k,) of length 1; a sample whose gradient lies along it lowers the validation loss."""
    ridge: float
    """As a multiple of the largest eigenvalue; inf for plain alignment."""


def descent(z: Any, spectrum: Spectrum, *, seed: int = 0) -> Descent:
    """The direction for (M, k) validation gradients.

    With fewer than four samples nothing can be held out, and the direction is the mean gradient.

    Args:
        z: the gradients.
        spectrum: of their second moments, or of another estimate of the curvature.
        seed: of the halves.
    """
    z = np.asarray(z, dtype=np.float64)
    expected = _expected(z, seed) if len(z) >= 4 else np.array([0.0] * (len(RIDGES) - 1) + [1.0])
    # Plain alignment unless another ridge is expected to do better, and to do any good.
    best = float(RIDGES[int(np.argmax(expected))]) if expected.max() > max(0.0, expected[-1]) else np.inf
    direction = _direction(z.mean(axis=0), spectrum, best)
    return Descent(direction / (np.linalg.norm(direction) or 1.0), best)


def _expected(z: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(ridges,) mean over halves of the decrease expected; a step uphill counts against."""
    rng, total = stream(seed, "validation halves"), np.zeros(len(RIDGES))
    for _ in range(SPLITS):
        mixed = rng.permutation(len(z))
        halves = z[mixed[: len(z) // 2]], z[mixed[len(z) // 2 :]]
        for half, other in (halves, halves[::-1]):
            spectrum, mean = Spectrum.of_rows(half), half.mean(axis=0)
            for place, ridge in enumerate(RIDGES):
                d = _direction(mean, spectrum, float(ridge))
                along, curved = other.mean(axis=0) @ d, np.mean((other @ d) ** 2)
                # (b2.d)^2 / (2 d.H2 d), the decrease of the best step along d, by the half that did not
                # choose d.
                total[place] += np.sign(along) * along**2 / (2 * curved) if curved > 0 else 0.0
    return total / (2 * SPLITS)


def _direction(b: NDArray[np.float64], spectrum: Spectrum, ridge: float) -> NDArray[np.float64]:
    if np.isinf(ridge) or not len(spectrum):
        return b
    return spectrum.solve(b, ridge * float(spectrum.values[0]))
