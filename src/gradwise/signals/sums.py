"""Adds up what every parameter contributes to each sample's gradient: its projection, its norm, itself.

Shapes: B samples, R x C a matrix among the parameters, k the length of the projection, P the size of the
scope.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradwise.numerics.outer_products import gathered_rows, squared_norm_with_lookup, squared_norms
from gradwise.numerics.projection import Fold, MatrixProjection, SignedSums, accumulator, seeded, side_for
from gradwise.signals.precondition import Preconditioner
from gradwise.signals.rows import SampleRows, wide
from gradwise.signals.scope import Matrix, Scope


class Projector:
    """The projections of all parameters of a scope into the same k numbers.

    Args:
        size: k.
        seed: decides signs and places, together with the parameters' names.
        side: sums that each side of a matrix is folded to. If unset, it follows from k.
    """

    def __init__(self, size: int, seed: int, side: int | None = None) -> None:
        self.size, self.seed, self.side = size, seed, side or side_for(size)
        self.matrix = cache(self._matrix)
        self.vector = cache(self._vector)
        self._rows = cache(self._row_fold)
        self._columns = cache(self._column_fold)
        self._signed_sums = cache(self._new_signed_sums)

    def _matrix(self, matrix: Matrix) -> MatrixProjection:
        row = self._rows(matrix.name, matrix.slice, matrix.rows)
        column = self._columns(self.input_group(matrix), matrix.slice, matrix.columns)
        return MatrixProjection(row, column, self._signed_sums(matrix.name, row.size * column.size))

    def description(self) -> dict[str, int]:
        """What the projection depends on beside the parameters' names."""
        return {"size": self.size, "seed": self.seed, "side": self.side}

    @staticmethod
    def input_group(matrix: Matrix) -> str:
        """What weights that multiply the same input have in common, and the fold of their columns with it:
        the parent module."""
        return matrix.name.rsplit(".", 2)[0]

    def _row_fold(self, name: str, part: int | None, dimension: int) -> Fold:
        # Experts share the places of their sums, which take much room: only both sides' signs keep the
        # gradients of experts that learn the same apart.
        expert = () if part is None else (part,)
        return Fold(dimension, self.side, seeded(self.seed, name, *expert, "rows"))

    def _column_fold(self, group: str, part: int | None, dimension: int) -> Fold:
        return Fold(dimension, self.side, seeded(self.seed, group, part, dimension, "columns"))

    def _new_signed_sums(self, name: str, count: int) -> SignedSums:
        return SignedSums(count, self.size, seeded(self.seed, name, "deal"))

    def _vector(self, name: str, dimension: int) -> SignedSums:
        return SignedSums(dimension, self.size, seeded(self.seed, name, dimension, "vector"))


@dataclass(frozen=True)
class GradientRequest:
    """What is wanted of each sample's gradient."""

    scope: Scope
    projector: Projector | None = None
    norms: bool = False
    whole: bool = False
    """The unprojected gradient."""
    preconditioner: Preconditioner | None = None


class _Product(NamedTuple):
    row_BTR: Tensor
    column_BTC: Tensor


class _Lookup(NamedTuple):
    ids_BT: Tensor
    column_BTC: Tensor


class GradientSums:
    """The gradients of one batch, added up use by use.

    Args:
        request: what is measured of each gradient.
        samples: B.
        device, dtype: of the model.
    """

    def __init__(
        self, request: GradientRequest, samples: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.request = request
        self.samples = samples
        like = {"device": device, "dtype": accumulator(dtype)}
        projector = request.projector
        self.projected = None if projector is None else torch.zeros(samples, projector.size, **like)
        self.squares = torch.zeros(samples, **like) if request.norms else None
        self.whole = torch.zeros(samples, request.scope.size, **like) if request.whole else None
        self.by_name: dict[str, Tensor] | None = None
        self.lost: set[str] = set()
        """Parameters with a use that could not be assigned to samples."""
        self._offsets = dict(request.scope.offsets())
        self._uses: Counter[Matrix] = Counter()
        self._waiting: dict[Matrix, list[_Product | _Lookup]] = {}
        self._vectors: dict[str, Tensor] = {}
        self._last_input: tuple[Any, Tensor, Tensor] | None = None

    def watch_parameters(self) -> None:
        """Also keep the squared norms of each parameter apart, in `by_name`."""
        self.by_name = {}

    def finish(self) -> None:
        """Add the norms that waited for further uses; none comes after the backward pass."""
        self._last_input = None
        for matrix, uses in self._waiting.items():
            self._square(matrix.name, self._norms_of_sum(matrix, uses))
        for name, gradient_Bd in self._vectors.items():
            self._square(name, gradient_Bd.square().sum(dim=1))
        self._waiting, self._vectors = {}, {}

    def product(
        self, matrix: Matrix, x: Tensor, rows: SampleRows, *, input_is_row: bool
    ) -> Callable[[Tensor], None]:
        """A matrix multiplies `x`; returns what takes the gradient of the product when it arrives."""
        # Counted in the forward pass, so that the backward pass knows which use of a matrix is the last one.
        self._uses[matrix] += 1
        folded = self._folded_input(matrix, x, input_is_row)
        # A projection needs only the folded input. Exact norms need the activations themselves, which is the
        # memory that they cost.
        activations = x if self.squares is not None or self.whole is not None else None

        def arrived(gradient: Tensor) -> None:
            nonlocal activations, folded
            if self.projected is not None and folded is not None:
                self._project(matrix, folded, gradient, rows, input_is_row)
            if activations is not None:
                first, second = (activations, gradient) if input_is_row else (gradient, activations)
                product = _Product(rows.grouped(wide(first)), rows.grouped(wide(second)))
                self._add(matrix, self._preconditioned(matrix, product))
            # Released as soon as they are used: closures live as long as the backward graph, and a batch's
            # activations would add up.
            activations = folded = None

        return arrived

    def _folded_input(self, matrix: Matrix, x: Tensor, input_is_row: bool) -> Tensor | None:
        projector = self.request.projector
        if projector is None:
            return None
        projection = projector.matrix(matrix)
        fold = projection.row if input_is_row else projection.column
        # Queries, keys and values multiply the same input; so do gate and up. It is folded once. With a
        # preconditioner each has scales of its own.
        scale = self._scale(matrix, 0 if input_is_row else 1)
        if scale is not None:
            return fold(x * scale)
        # An input that was changed in place keeps its address and shape; its version tells it apart.
        key = (x.data_ptr(), x.shape, x.stride(), x._version, fold)
        if self._last_input is None or self._last_input[0] != key:
            # x is held so that its address stays its own.
            self._last_input = (key, x, fold(x))
        return self._last_input[2]

    def _project(
        self, matrix: Matrix, folded: Tensor, gradient: Tensor, rows: SampleRows, input_is_row: bool
    ) -> None:
        assert self.request.projector is not None and self.projected is not None
        projection = self.request.projector.matrix(matrix)
        scale = self._scale(matrix, 1 if input_is_row else 0)
        scaled = gradient if scale is None else gradient * scale
        other = (projection.column if input_is_row else projection.row)(scaled)
        row, column = (folded, other) if input_is_row else (other, folded)
        self.projected += projection.close(rows.grouped(row), rows.grouped(column))

    def lookup(self, matrix: Matrix, ids: Tensor, padding: int | None) -> Callable[[Tensor], None]:
        """Rows of a matrix are looked up, `ids` (B, T); returns what takes the gradient of the result."""
        self._uses[matrix] += 1

        def arrived(gradient: Tensor) -> None:
            column = wide(gradient)
            # torch gives the row of the padding index no gradient, and nothing here may count one.
            if padding is not None:
                column = column.masked_fill((ids == padding)[..., None], 0.0)
            self._project_lookup(matrix, ids, column)
            if self.squares is not None or self.whole is not None:
                self._add(matrix, _Lookup(ids, column), scaled=False)

        return arrived

    def _project_lookup(self, matrix: Matrix, ids: Tensor, column: Tensor) -> None:
        projector = self.request.projector
        if projector is None or self.projected is None:
            return
        projection = projector.matrix(matrix)
        row_scale, column_scale = self._scale(matrix, 0), self._scale(matrix, 1)
        folded = projection.column(column if column_scale is None else column * column_scale)
        bucket, entry = projection.row.one_hot(ids, like=folded)
        if row_scale is not None:
            entry = entry * row_scale[ids]
        # A unit vector folds to one signed entry, so a lookup adds its rows to a small table instead of
        # forming a vocabulary-sized matrix.
        size = projection.row.size
        places = bucket + torch.arange(len(ids), device=ids.device)[:, None] * size
        table = folded.new_zeros(len(ids) * size, folded.shape[-1])
        table.index_add_(0, places.flatten(), (folded * entry[..., None]).flatten(0, 1))
        self.projected += projection.sums(table.view(len(ids), -1))

    def vector(self, name: str, gradient_Bd: Tensor) -> None:
        """The gradient of a vector, (B, d), once for each of its uses."""
        scale = self.request.preconditioner and self.request.preconditioner.vector(name, gradient_Bd)
        gradient_Bd = gradient_Bd if scale is None else gradient_Bd * scale
        if self.projected is not None and self.request.projector is not None:
            self.projected += self.request.projector.vector(name, gradient_Bd.shape[1])(gradient_Bd)
        if self.squares is not None:
            # Uses of a vector add up before they are squared, for the same reason.
            self._vectors[name] = self._vectors.get(name, 0) + gradient_Bd
        if self.whole is not None:
            start = self._offsets[name]
            self.whole[:, start : start + gradient_Bd.shape[1]] += gradient_Bd

    def parameter(self, name: str, gradient: Tensor) -> None:
        """A parameter's whole gradient for a batch of one sample."""
        gradient = wide(gradient)
        if gradient.ndim < 2:
            self.vector(name, gradient.reshape(1, -1))
            return
        parts = gradient if gradient.ndim == 3 else gradient.flatten(1)[None]
        for number, part in enumerate(parts):
            matrix = Matrix(name, number if gradient.ndim == 3 else None, *part.shape)
            row_scale, column_scale = self._scale(matrix, 0), self._scale(matrix, 1)
            if row_scale is not None and column_scale is not None:
                part = part * row_scale[:, None] * column_scale
            if self.projected is not None and self.request.projector is not None:
                self.projected += self.request.projector.matrix(matrix)(part[None])
            if self.squares is not None:
                self._square(name, part.square().sum().reshape(1))
            self._add_whole(matrix, part[None])

    # ---- norms and whole gradients -----------------------------------------------------------------------

    def _preconditioned(self, matrix: Matrix, product: _Product) -> _Product:
        row_scale, column_scale = self._scale(matrix, 0), self._scale(matrix, 1)
        if row_scale is None or column_scale is None:
            return product
        return _Product(product.row_BTR * row_scale, product.column_BTC * column_scale)

    def _add(self, matrix: Matrix, use: _Product | _Lookup, *, scaled: bool = True) -> None:
        if not scaled and (column_scale := self._scale(matrix, 1)) is not None:
            use = use._replace(column_BTC=use.column_BTC * column_scale)
        self._add_whole_use(matrix, use)
        if self.squares is None:
            return
        uses = self._waiting.setdefault(matrix, [])
        uses.append(use)
        # A matrix that is used twice, as a tied one is, has a gradient of one sum. Its norm has to wait for
        # the last use.
        if len(uses) == self._uses[matrix]:
            del self._waiting[matrix]
            self._square(matrix.name, self._norms_of_sum(matrix, uses))

    def _norms_of_sum(self, matrix: Matrix, uses: list[_Product | _Lookup]) -> Tensor:
        """||G_i||^2, (B,), of the sum of several uses of one matrix, cross terms included."""
        products = [use for use in uses if isinstance(use, _Product)]
        lookups = [use for use in uses if isinstance(use, _Lookup)]
        # Uses joined along T make up one gradient, sum over t of row_t column_t^T, whose squared norm has the
        # cross terms 2 <G_a, G_b> of any two uses.
        rows = _joined([use.row_BTR for use in products]) if products else None
        columns = _joined([use.column_BTC for use in products]) if products else None
        if not lookups:
            assert rows is not None and columns is not None
            return squared_norms(rows, columns)
        ids = _joined([use.ids_BT for use in lookups])
        looked_up = _joined([use.column_BTC for use in lookups])
        scale = self._scale(matrix, 0)
        norms = []
        for i in range(self.samples):
            scaled = looked_up[i] if scale is None else looked_up[i] * scale[ids[i], None]
            if rows is None or columns is None:
                norms.append(gathered_rows(ids[i], scaled)[1].square().sum())
            else:
                norms.append(squared_norm_with_lookup(rows[i], columns[i], ids[i], scaled))
        return torch.stack(norms)

    def _square(self, name: str, squares_B: Tensor) -> None:
        assert self.squares is not None
        self.squares += squares_B
        if self.by_name is not None:
            self.by_name[name] = self.by_name.get(name, 0) + squares_B

    def _add_whole_use(self, matrix: Matrix, use: _Product | _Lookup) -> None:
        if self.whole is None:
            return
        if isinstance(use, _Product):
            self._add_whole(matrix, torch.bmm(use.row_BTR.mT, use.column_BTC))
            return
        dense = use.column_BTC.new_zeros(self.samples, matrix.rows, matrix.columns)
        scale = self._scale(matrix, 0)
        for i in range(self.samples):
            ids = use.ids_BT[i]
            dense[i].index_add_(
                0, ids, use.column_BTC[i] if scale is None else use.column_BTC[i] * scale[ids, None]
            )
        self._add_whole(matrix, dense)

    def _add_whole(self, matrix: Matrix, gradient_BRC: Tensor) -> None:
        if self.whole is None:
            return
        size = matrix.rows * matrix.columns
        start = self._offsets[matrix.name] + (matrix.slice or 0) * size
        self.whole[:, start : start + size] += gradient_BRC.flatten(1)

    def _scale(self, matrix: Matrix, side: int) -> Tensor | None:
        preconditioner = self.request.preconditioner
        return None if preconditioner is None else preconditioner.matrix(matrix)[side]


def _joined(parts: list[Tensor]) -> Tensor:
    """One behind the other along the rows; without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
