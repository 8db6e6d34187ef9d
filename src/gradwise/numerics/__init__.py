"""Pure functions on arrays: no model, no file, no trainer in sight. Each has a slow, obvious oracle in the
tests."""

from gradwise.numerics.outer_products import squared_norms
from gradwise.numerics.projection import Fold, MatrixProjection
from gradwise.numerics.sampling import interleaved, multiplicities, successive_draw
from gradwise.numerics.sketch import fold_with_signs

__all__ = [
    "Fold",
    "MatrixProjection",
    "fold_with_signs",
    "interleaved",
    "multiplicities",
    "squared_norms",
    "successive_draw",
]
