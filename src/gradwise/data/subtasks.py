"""The parts of a target, each of which gets its share of a selection."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SUBTASK = 8
"""Target samples of a subtask; smaller ones are put together, since few samples are no direction."""

COLUMN = "target_subtask"
"""Column of a target that was divided: the subtask of each sample before."""


def subtask_names(domain: NDArray[np.str_]) -> NDArray[np.str_]:
    """(m,) the subtask of each target sample: its domain, or `others` for domains of fewer than
    `MIN_SUBTASK`.

    >>> subtask_names(np.array(["a"] * 8 + ["b"])).tolist()[-2:]
    ['a', 'others']
    """
    _, codes, sizes = np.unique(domain, return_inverse=True, return_counts=True)
    return np.where(sizes[codes] >= MIN_SUBTASK, domain, "others")


def with_subtasks(dataset: Any) -> Any:
    """A target before it is divided, with its subtasks; part of it may hold too few samples of a domain."""
    if not hasattr(dataset, "add_column") or "domain" not in dataset.column_names:
        return dataset
    return dataset.add_column(COLUMN, subtask_names(np.array(dataset["domain"]).astype(str)).tolist())
