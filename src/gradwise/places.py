"""Places of samples in a data set: whole numbers from 0."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import PlanError
from gradwise.text import shown


def places(values: object, what: str, size: int | None = None) -> NDArray[np.int64]:
    """(n,) values as places of a data set.

    Args:
        values: a sequence of whole numbers.
        what: they are, as the subject of a sentence.
        size: samples of the data set, if that is known.

    Raises:
        PlanError: they are something else, or lie outside the data set.

    >>> places([2, 0], "A plan").tolist()
    [2, 0]
    """
    try:
        indices = np.asarray(values)
    except (TypeError, ValueError):  # rows of different lengths, among others
        indices = np.zeros((), dtype=object)
    if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise PlanError(f"{what} must be a row of whole numbers; found {shown(values)}.")
    if indices.size and indices.min() < 0:
        raise PlanError(f"{what} holds the negative index {indices.min()}.")
    if indices.size and indices.max() >= (2**63 if size is None else size):
        raise PlanError(f"{what} names sample {indices.max()}, but there are only {size}.")
    return indices.astype(np.int64)


def check_rows(values: Any, count: int, what: str, *, least: float | None = None) -> None:
    """Raise PlanError unless there is a value for each of `count` places, none below `least` if that is "
    "given."""
    if len(values) != count:
        raise PlanError(f"{what} must have a value for each of {count} samples; found {len(values)}.")
    if least is not None and count and not np.all(np.isfinite(values) & (np.asarray(values) >= least)):
        raise PlanError(f"{what} must hold finite numbers >= {least:g}; found {shown(values)}.")
