"""Lengths of tokenised samples without reading the tokens."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def token_lengths(dataset: Any) -> NDArray[np.int64]:
    """(N,) tokens of each sample."""
    if hasattr(dataset, "with_format"):
        import pyarrow.compute

        column = dataset.with_format("arrow")["input_ids"]
        return np.asarray(pyarrow.compute.call_function("list_value_length", [column[:]])).astype(np.int64)
    return np.array([len(dataset[i]["input_ids"]) for i in range(len(dataset))], dtype=np.int64)
