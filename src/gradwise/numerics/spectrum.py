"""The spectrum of a curvature estimate: its stiff directions, and how many directions it covers."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from dataclasses import dataclass
from typing import cast

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Positive eigenpairs of a positive semidefinite (k, k) matrix H, largest first.

    >>> spectrum = Spectrum.of_rows(np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> spectrum.values.round(3).tolist(), spectrum.stiff(0.75), round(spectrum.effective_rank, 2)
    ([2.0, 0.5], 1, 1.65)
    """

    values: NDArray[np.float64]
    """(r,) lam_j > 0, descending."""
    vectors: Matrix
    """(k, r) v_j, orthonormal."""

    @staticmethod
    def of_rows(z: ArrayLike) -> "Spectrum":
        """The spectrum of (1/M) sum_i z_i z_i^T for (M, k) rows z."""
        z = np.asarray(z, dtype=np.float64)
        if len(z) > z.shape[1]:
            return Spectrum.of_matrix(z.T @ z / len(z))
        # With fewer rows than numbers, singular values need no (k, k) matrix and keep twice the digits.
        decomposition = scipy.linalg.svd(z / np.sqrt(len(z)), full_matrices=False)
        _, singular, right = cast(tuple[Matrix, NDArray[np.float64], Matrix], decomposition)
        keep = singular > np.finfo(np.float64).eps * max(z.shape) * singular.max(initial=0.0)
        return Spectrum(singular[keep] ** 2, right[keep].T)

    @staticmethod
    def of_matrix(matrix: ArrayLike) -> "Spectrum":
        """The spectrum of a symmetric matrix, without eigenvalues that are zero or negative."""
        decomposition = scipy.linalg.eigh(np.asarray(matrix, dtype=np.float64))
        values, vectors = cast(tuple[NDArray[np.float64], Matrix], decomposition)
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
        """k*, the number of largest eigenvalues that hold `share` of the trace."""
        if not len(self):
            return 0
        cumulative = np.cumsum(self.values) / self.trace
        # The last cumulative sum may round below 1, and a share of 1 means all of them.
        return min(len(self), int(np.searchsorted(cumulative, share * (1 - 1e-12))) + 1)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised eigenvalues (Roy and Vetterli 2007): r for r equal ones."""
        if not len(self):
            return 0.0
        p = self.values / self.trace
        return float(np.exp(-(p * np.log(p)).sum()))

    def solve(self, b: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        """(k,) (H + ridge I)^-1 b, exact also outside the span of the eigenvectors."""
        along = self.vectors.T @ b
        return (self.vectors @ (along / (self.values + ridge) - along / ridge)) + b / ridge
