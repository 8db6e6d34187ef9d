"""Random projection of matrices that are known only as sums of outer products.

Shapes: B samples, T rows (tokens) per sample, R x C the matrix, k the length of the projection. A sample's
matrix G_i = sum_t r_it c_it^T is never formed. Each side goes through a count sketch (random signs, then
folded to `side_for(k)` sums), which reads every number once; the small matrices that are left are multiplied
out and dealt into k signed sums. Two gradients' inner product is kept in expectation, and its error stays
within a few percent of a dense Gaussian projection's (`benchmarks/signals.py`), which would need R C k random
numbers.
Squared lengths, and samples that are nearly the same, fare worse on shallow wide models: at k = 1024 up to
1.5 times a dense projection's error was seen.

Seeds go by name, not by position: the same matrix meets the same signs on any device, rank or chunk.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def side_for(size: int) -> int:
    """Sums that each side of a matrix is folded to, for a projection of length k.

    About 4 sqrt(k), in whole cache lines: the folds' own error falls with the side as the projection's falls
    with the root of k. More bring the error nearer to a dense Gaussian's and multiply out in more time
    (`benchmarks/signals.py`).

    >>> side_for(256), side_for(1024), side_for(8192)
    (128, 128, 384)
    """
    return max(128, 64 * round(4 * size**0.5 / 64))


def seeded(*names: object) -> np.random.Generator:
    """A random stream of its own for every combination of names, the same on every machine."""
    text = "/".join(str(name) for name in names)
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type sums are held in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _signs(rng: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(rng.integers(0, 2, count, dtype=np.int8).astype(np.float32) * 2 - 1)


class Fold:
    """A count sketch: coordinate j is given a random sign and added to sum j mod `size`.

    For any x, y: E <fold(x), fold(y)> = <x, y>, the expectation being over the signs. With no more
    coordinates than sums nothing is folded.

    Args:
        dimension: d, number of coordinates.
        size: most sums to fold to.
        rng: source of the signs.
        scale: (d,) factors that the coordinates are multiplied by first.

    >>> fold = Fold(5, 2, seeded("example"))
    >>> x = torch.ones(3, 5)
    >>> bool(torch.equal(fold(x) + fold(2 * x), fold(3 * x))), fold(x).shape
    (True, torch.Size([3, 2]))
    """

    def __init__(
        self, dimension: int, size: int, rng: np.random.Generator, scale: Tensor | None = None
    ) -> None:
        self.dimension = dimension
        self.size = min(size, dimension)
        signs = _signs(rng, dimension)
        self._factors = signs if scale is None else signs * scale.to("cpu", torch.float32)
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def factors(self, like: Tensor) -> Tensor:
        """(d,) signs times scale, where and as the accumulator of `like` is."""
        place = (like.device, accumulator(like.dtype))
        if place not in self._placed:
            self._placed[place] = self._factors.to(*place)
        return self._placed[place]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., size) in the accumulator's type."""
        factors, size = self.factors(x), self.size
        if size == self.dimension:
            return x * factors
        if x.device.type != "cpu":
            return self._in_one(x, factors)
        # One pass over x without a product of its size in between: four times faster than that on a CPU.
        folded = x[..., :size] * factors[:size]
        for start in range(size, self.dimension, size):
            part, signs = x[..., start : start + size], factors[start : start + size]
            folded[..., : len(signs)].addcmul_(part.to(folded.dtype), signs)
        return folded

    def _in_one(self, x: Tensor, factors: Tensor) -> Tensor:
        """The same in one product and one sum: few kernels rather than few bytes."""
        whole = self.dimension // self.size * self.size
        signed = x * factors
        folded = signed[..., :whole].unflatten(-1, (-1, self.size)).sum(dim=-2)
        if whole < self.dimension:
            folded[..., : self.dimension - whole] += signed[..., whole:]
        return folded

    def one_hot(self, ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Where the folded unit vectors e_id have their only entry, and that entry: both of the shape of
        `ids`."""
        return ids % self.size, self.factors(like)[ids]


class Deal:
    """Deals n numbers into k signed sums at random, as evenly as possible.

    Args:
        count: n.
        size: k.
        rng: source of places and signs.
    """

    def __init__(self, count: int, size: int, rng: np.random.Generator) -> None:
        self.count, self.size = count, size
        order = rng.permutation(max(count, size) if count < size else count)[:count]
        self._order, self._signs = torch.from_numpy(order.astype(np.int64)), _signs(rng, count)

    def __call__(self, values: Tensor) -> Tensor:
        """(B, n) -> (B, k), of the same type."""
        if self._order.device != values.device:
            self._order, self._signs = self._order.to(values.device), self._signs.to(values.device)
        signs = self._signs.to(values.dtype)
        if self.count < self.size:
            dealt = values.new_zeros(len(values), self.size)
            dealt[:, self._order] = values * signs
            return dealt
        dealt = values.index_select(1, self._order) * signs
        missing = -self.count % self.size
        return functional.pad(dealt, (0, missing)).view(len(values), -1, self.size).sum(dim=1)


class MatrixProjection:
    """The projection of one R x C matrix to k numbers: a fold of its rows, a fold of its columns, a deal.

    Args:
        row, column: folds of R and C coordinates.
        deal: of as many numbers as both folds leave.

    >>> project = MatrixProjection.named("w", rows=6, columns=4, size=3)
    >>> r, c = torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    >>> z = project(torch.bmm(r.mT, c))
    >>> bool(torch.allclose(project.close(project.row(r), project.column(c)), z, atol=1e-5)), z.shape
    (True, torch.Size([2, 3]))
    """

    def __init__(self, row: Fold, column: Fold, deal: Deal) -> None:
        if deal.count != row.size * column.size:
            raise ValueError(
                f"folds leave {row.size} x {column.size} numbers, but the deal takes {deal.count}"
            )
        self.row, self.column, self.deal = row, column, deal

    @classmethod
    def named(
        cls, *names: object, rows: int, columns: int, size: int, side: int | None = None
    ) -> "MatrixProjection":
        """The projection that belongs to names such as a seed and a weight's: always the same one."""
        side = side or side_for(size)
        row, column = Fold(rows, side, seeded(*names, "rows")), Fold(columns, side, seeded(*names, "columns"))
        return cls(row, column, Deal(row.size * column.size, size, seeded(*names, "deal")))

    def close(self, row_BTp: Tensor, column_BTq: Tensor) -> Tensor:
        """(B, k) projections of sum_t r_t c_t^T, from folded rows (B, T, p) and folded columns (B, T, q)."""
        return self.deal(torch.bmm(row_BTp.mT, column_BTq).flatten(1))

    def __call__(self, matrices_BRC: Tensor) -> Tensor:
        """(B, k) projections of matrices that exist; the same as `close` of what they are sums of."""
        return self.deal(self.row(self.column(matrices_BRC).mT).mT.flatten(1))
