"""Pure functions on arrays, without models, files or trainers. The tests check each against a slow oracle."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradwise.numerics.budgeted import budgeted_top, least_cost
from gradwise.numerics.coresets import herd, herd_towards, k_center
from gradwise.numerics.facility import facility_location
from gradwise.numerics.knn import KnnGraph, knn_graph, repair
from gradwise.numerics.movement import longest_sum
from gradwise.numerics.ordering import Acyclic, break_cycles, linear_order, order_bound, order_value
from gradwise.numerics.propagation import propagate
from gradwise.numerics.rows import Rows, near_copy_leaders
from gradwise.numerics.sampling import interleaved, multiplicities, successive_draw
from gradwise.numerics.spectrum import Spectrum
from gradwise.numerics.streams import stream, stream_seed

if TYPE_CHECKING:
    from gradwise.numerics.outer_products import squared_norms
    from gradwise.numerics.projection import Fold, MatrixProjection, fold_with_signs

# Looked up on first use: they are made of torch, which takes seconds to import and which a recipe that is
# only read does not need.
_HOMES = {
    "squared_norms": "gradwise.numerics.outer_products",
    **dict.fromkeys(["Fold", "MatrixProjection", "fold_with_signs"], "gradwise.numerics.projection"),
}

__all__ = [
    "Acyclic",
    "Fold",
    "KnnGraph",
    "MatrixProjection",
    "Rows",
    "Spectrum",
    "break_cycles",
    "budgeted_top",
    "facility_location",
    "fold_with_signs",
    "herd",
    "herd_towards",
    "interleaved",
    "k_center",
    "knn_graph",
    "least_cost",
    "linear_order",
    "longest_sum",
    "multiplicities",
    "near_copy_leaders",
    "order_bound",
    "order_value",
    "propagate",
    "repair",
    "squared_norms",
    "stream",
    "stream_seed",
    "successive_draw",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradwise.numerics' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
