"""The spectrum of a curvature estimate: which directions are stiff, and how many there are to speak of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenpairs of a positive semidefinite (k, k) matrix, largest first; those that are zero are left out.

    >>> found = Spectrum.of_rows(np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> found.values.round(3).tolist(), found.stiff(0.75), round(found.effective_rank, 2)
    ([2.0, 0.5], 1, 1.65)
    """

    values: NDArray[np.float64]
    """(r,) lam_j > 0, descending."""
    vectors: NDArray[np.float64]
    """(k, r) v_j, orthonormal."""

    @staticmethod
    def of_rows(z: Any) -> "Spectrum":
        """Of (1/M) sum_i z_i z_i^T for (M, k) rows."""
        z = np.asarray(z, dtype=np.float64)
        if len(z) > z.shape[1]:
            return Spectrum.of_matrix(z.T @ z / len(z))
        _, singular, right = scipy.linalg.svd(z / np.sqrt(len(z)), full_matrices=False)
        keep = singular > np.finfo(np.float64).eps * max(z.shape) * singular.max(initial=0.0)
        return Spectrum(singular[keep] ** 2, right[keep].T)

    @staticmethod
    def of_matrix(matrix: Any) -> "Spectrum":
        """Of a symmetric matrix; eigenvalues that are not positive are left out."""
        values, vectors = scipy.linalg.eigh(np.asarray(matrix, dtype=np.float64))
        values, vectors = values[::-1], vectors[:, ::-1]
        keep = values > np.finfo(np.float64).eps * len(values) * max(values.max(initial=0.0), 0.0)
        return Spectrum(values[keep], vectors[:, keep])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.values.sum())

    def stiff(self, share: float) -> int:
        """k*, how many of the largest eigenvalues hold `share` of the trace."""
        if not len(self):
            return 0
        held = np.cumsum(self.values) / self.trace
        # A share of 1 is all of them, whatever the last sum rounds to.
        return min(len(self), int(np.searchsorted(held, share * (1 - 1e-12))) + 1)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the eigenvalues over their sum (Roy and Vetterli 2007): r for r alike."""
        if not len(self):
            return 0.0
        p = self.values / self.trace
        return float(np.exp(-(p * np.log(p)).sum()))

    def first(self, count: int) -> "Spectrum":
        """The largest so many."""
        return Spectrum(self.values[:count], self.vectors[:, :count])

    def solve(self, b: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        """(k,) (H + ridge I)^-1 b."""
        along = self.vectors.T @ b
        return (self.vectors @ (along / (self.values + ridge) - along / ridge)) + b / ridge
