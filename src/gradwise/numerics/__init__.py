"""Pure functions on arrays, without models, files or trainers. The tests check each against a slow oracle."""

from gradwise.numerics.budgeted import budgeted_top, least_cost
from gradwise.numerics.coresets import herd, herd_towards, k_center
from gradwise.numerics.facility import facility_location
from gradwise.numerics.knn import KnnGraph, knn_graph, repair
from gradwise.numerics.movement import longest_sum
from gradwise.numerics.ordering import Acyclic, break_cycles, linear_order, order_bound, order_value
from gradwise.numerics.outer_products import squared_norms
from gradwise.numerics.projection import Fold, MatrixProjection, fold_with_signs
from gradwise.numerics.propagation import propagate, propagate_change
from gradwise.numerics.rows import Rows, alike
from gradwise.numerics.sampling import interleaved, multiplicities, successive_draw
from gradwise.numerics.spectrum import Spectrum
from gradwise.numerics.streams import stream, stream_seed

__all__ = [
    "Acyclic",
    "Fold",
    "KnnGraph",
    "MatrixProjection",
    "Rows",
    "Spectrum",
    "alike",
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
    "order_bound",
    "order_value",
    "propagate",
    "propagate_change",
    "repair",
    "squared_norms",
    "stream",
    "stream_seed",
    "successive_draw",
]
