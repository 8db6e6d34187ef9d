"""Random projections by count sketches: of tensors, and of matrices known only as sums of outer products.

Shapes: B samples, T rows (tokens) of each, R x C a weight's gradient, k the length of its projection.

A sample's gradient G_i = sum_t r_it c_it^T is never formed. A count sketch folds each side to `side_for(k)`
sums with random signs, which reads every number once. The product of the two small matrices is then added
to k signed sums. Inner products are kept in expectation. Their error exceeds that of a dense Gaussian
projection, which would need R C k random numbers, by a few percent (docs/log.md: by 0 to 12 % at k = 1024).
Squared lengths and near-duplicates do worse on shallow, wide models: up to 1.5 times the error.

Seeds depend on names, not on positions: a matrix gets the same signs on any device and rank, in any part.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gradwise.numerics.streams import stream, stream_seed


def side_for(size: int) -> int:
    """Sums that each side of a matrix is folded to, for a projection of length k = `size`.

    About 4 sqrt(k), a multiple of 64: the folds' own error falls with the side, the projection's with
    sqrt(k). With sides of 128 at k = 8,192 the error was 1.55 times a dense Gaussian's, with 384 it is 1.01
    times.

    >>> side_for(256), side_for(1024), side_for(8192)
    (128, 128, 384)
    """
    return max(128, 64 * round(4 * size**0.5 / 64))


def seeded(*names: object) -> np.random.Generator:
    """A random generator for a combination of names, the same on every machine."""
    text = "/".join(str(name) for name in names)
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of sums: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fold_with_signs(
    values: Tensor, size: int, seed: int, offset: int = 0, *, part: tuple[int, int] | None = None
) -> Tensor:
    """A linear sketch whose squared length estimates that of a tensor (AMS sketch with `size` buckets).

    Each value gets a random sign and is added to one of `size` sums. The sketches of parts, such as
    micro-batches or ranks, add up to the sketch of their sum. E ||sketch||^2 = ||values||^2 over the signs.
    For values spread over many entries its relative standard deviation is at most sqrt(2 / size), 2.2 % at
    4,096.

    Args:
        values: any shape, any floating type.
        size: length of the sketch.
        seed: of the signs; the same for all parts that are added.
        offset: sum that the first value goes to. Tensors that share a sketch should continue where the last
            one ended. When small tensors all began at the first sum, they crowded there, and norms were 9 %
            off.
        part: (start, total) where `values` are a contiguous part of a tensor with `total` values, as its
            shard is; the sketches of all parts add up to that of the tensor.

    Returns:
        (size,) float32 on the device of `values`.

    >>> x = torch.ones(3, 5)
    >>> torch.allclose(fold_with_signs(x, 8, 0) + fold_with_signs(x, 8, 0), fold_with_signs(2 * x, 8, 0))
    True
    """
    generator = torch.Generator(device=values.device).manual_seed(stream_seed(seed, "signs of a sketch"))
    start, total = part or (0, values.numel())
    signs = torch.empty(total, dtype=torch.int8, device=values.device)
    # Signs of the whole tensor are drawn also for a shard, so that a shard's signs are those of its place.
    signs.random_(0, 2, generator=generator).mul_(2).sub_(1)
    signed = values.reshape(-1).float() * signs[start : start + values.numel()]
    # Rows of `size` values add up without a gather; the rest of the last row is added to the first sums.
    whole = signed.numel() // size * size
    sketch = signed[:whole].view(-1, size).sum(dim=0)
    sketch[: signed.numel() - whole] += signed[whole:]
    # Turning the sums is the same as having begun at another one, and keeps the values in whole rows.
    return sketch.roll(offset + start)


def _signs(rng: np.random.Generator, count: int) -> Tensor:
    return torch.as_tensor(rng.integers(0, 2, count, dtype=np.int8).astype(np.float32) * 2 - 1)


class Fold:
    """A count sketch: coordinate j gets a random sign and is added to sum j mod `size`.

    E <fold(x), fold(y)> = <x, y> over the signs, for any x and y. If there are no more coordinates than sums,
    each keeps a sum for itself. Folding 384 to 1,280 columns to 128 takes 0.5 to 2 ms, a product with a
    Gaussian of 64 rows 3 to 10 ms (4,096 rows, one core).

    Args:
        dimension: d, the number of coordinates.
        size: sums, at most.
        rng: source of the signs.
        scale: (d,) factors of the coordinates.

    >>> fold = Fold(5, 2, stream(0, "example"))
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
        """(d,) signs times scale, on the device of `like` and in the type of its sums."""
        place = (like.device, accumulator(like.dtype))
        if place not in self._placed:
            self._placed[place] = self._factors.to(*place)
        return self._placed[place]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., size) in the type of the sums."""
        factors, size = self.factors(x), self.size
        # Each coordinate has a sum of its own: the fold is then exact and only changes signs.
        if size == self.dimension:
            return x * factors
        if x.device.type != "cpu":
            return self._in_one(x, factors)
        # Without a product as large as x in between this is four times as fast on a CPU.
        folded = x[..., :size] * factors[:size]
        for start in range(size, self.dimension, size):
            part, signs = x[..., start : start + size], factors[start : start + size]
            folded[..., : len(signs)].addcmul_(part.to(folded.dtype), signs)
        return folded

    def _in_one(self, x: Tensor, factors: Tensor) -> Tensor:
        """The same as one product and one sum: on an accelerator the number of kernels counts."""
        whole = self.dimension // self.size * self.size
        signed = x * factors
        folded = signed[..., :whole].reshape(*x.shape[:-1], whole // self.size, self.size).sum(dim=-2)
        if whole < self.dimension:
            folded[..., : self.dimension - whole] += signed[..., whole:]
        return folded

    def one_hot(self, ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Place and value of the only entry of each folded unit vector e_id, both in the shape of `ids`."""
        return ids % self.size, self.factors(like)[ids]


class SignedSums:
    """Adds n numbers to k sums with random signs, at random places, as evenly as possible.

    Args:
        count: n.
        size: k.
        rng: source of places and signs.
    """

    def __init__(self, count: int, size: int, rng: np.random.Generator) -> None:
        self.count, self.size = count, size
        # A permutation, not independent draws: every sum gets the same number of terms to within one.
        order = rng.permutation(max(count, size))[:count]
        self._order, self._signs = torch.as_tensor(order.astype(np.int64)), _signs(rng, count)

    def __call__(self, values: Tensor) -> Tensor:
        """(B, n) -> (B, k), of the same type."""
        if self._order.device != values.device:
            self._order, self._signs = self._order.to(values.device), self._signs.to(values.device)
        signs = self._signs.to(values.dtype)
        if self.count < self.size:
            sums = values.new_zeros(len(values), self.size)
            sums[:, self._order] = values * signs
            return sums
        terms = values.index_select(1, self._order) * signs
        missing = -self.count % self.size
        return functional.pad(terms, (0, missing)).view(len(values), -1, self.size).sum(dim=1)


class MatrixProjection:
    """The projection of one R x C matrix to k numbers: a fold of each side, then signed sums.

    Args:
        row, column: folds of R and C coordinates.
        sums: of as many numbers as the two folds leave.

    Raises:
        ValueError: the sums take another number.

    >>> project = MatrixProjection.named(0, "w", rows=6, columns=4, size=3)
    >>> r, c = torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    >>> z = project(torch.bmm(r.mT, c))
    >>> bool(torch.allclose(project.close(project.row(r), project.column(c)), z, atol=1e-5)), z.shape
    (True, torch.Size([2, 3]))
    """

    def __init__(self, row: Fold, column: Fold, sums: SignedSums) -> None:
        if sums.count != row.size * column.size:
            raise ValueError(
                f"The folds leave {row.size} x {column.size} numbers, but the sums take {sums.count}."
            )
        self.row, self.column, self.sums = row, column, sums

    @classmethod
    def named(
        cls, seed: int, name: str, *, rows: int, columns: int, size: int, side: int | None = None
    ) -> "MatrixProjection":
        """The projection that belongs to a seed and a matrix's name; the same arguments always give the same.

        Args:
            seed, name: what the signs and places depend on.
            rows, columns: R and C.
            size: k.
            side: sums of each fold; the default is `side_for(size)`.
        """
        side = side or side_for(size)
        row = Fold(rows, side, stream(seed, f"row signs of {name}"))
        column = Fold(columns, side, stream(seed, f"column signs of {name}"))
        return cls(row, column, SignedSums(row.size * column.size, size, stream(seed, f"deal of {name}")))

    def close(self, row_BTp: Tensor, column_BTq: Tensor) -> Tensor:
        """(B, k) projections of sum_t r_t c_t^T, from folded rows (B, T, p) and folded columns (B, T, q)."""
        return self.sums(torch.bmm(row_BTp.mT, column_BTq).flatten(1))

    def __call__(self, matrices_BRC: Tensor) -> Tensor:
        """(B, k) projections of the matrices themselves; equal to `close` of their factors."""
        return self.sums(self.row(self.column(matrices_BRC).mT).mT.flatten(1))
