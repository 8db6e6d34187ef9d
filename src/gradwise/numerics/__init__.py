"""Pure functions on arrays: no model, no file, no trainer in sight. Each has a slow, obvious oracle in the
tests."""

from gradwise.numerics.sampling import interleaved, multiplicities, successive_draw
from gradwise.numerics.sketch import fold_with_signs

__all__ = ["fold_with_signs", "interleaved", "multiplicities", "successive_draw"]
