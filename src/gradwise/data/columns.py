"""Columns of samples besides ids and labels that say how a model is to read them."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from gradwise.data.pool import ragged
from gradwise.errors import DataError

USUAL = {
    "attention_mask": lambda places: np.ones_like(places),
    "token_type_ids": lambda places: np.zeros_like(places),
    "position_ids": lambda places: places,
}
"""Values that a model assumes where a sample lacks the column, as functions of the tokens' places."""

OTHER_INPUTS = ("inputs_embeds", "pixel_values", "input_features")
"""Inputs that hold more than `input_ids` can say."""


def is_indexable(dataset: object) -> bool:
    """Whether samples can be read by position, as a plan needs."""
    # torch's streams inherit a `__getitem__` that only raises.
    reads = all(hasattr(dataset, method) for method in ("__getitem__", "__len__"))
    return reads and not isinstance(dataset, IterableDataset)


def check_dropped(dataset: Any, accepted: Container[str], model: str) -> None:
    """Raise DataError if a column outside `accepted` says something that the model would miss. `model` is its
    name for the message; datasets that cannot be indexed are not checked."""
    if isinstance(dataset, dict) or not is_indexable(dataset) or not len(dataset):
        return
    names = getattr(dataset, "column_names", None) or dataset[0]
    if not isinstance(names, list | Mapping):
        return
    for name in (*USUAL, *OTHER_INPUTS):
        if name not in names or name in accepted:
            continue
        if name in OTHER_INPUTS or not all(
            np.array_equal(values, USUAL[name](places)) for values, places in _values(dataset, name)
        ):
            raise DataError(
                f"The samples have a column {name!r}, which {model} does not take, and it says more than the "
                "model assumes; leave the column out, or take another model."
            )


def _values(dataset: Any, name: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """A column's values, and the places of their tokens in their samples; for some samples at a time."""
    if hasattr(dataset, "select_columns"):
        for offsets, values in ragged(dataset, name):
            yield values, np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets))
        return
    for place in range(len(dataset)):
        if (values := dataset[place].get(name)) is not None:
            yield np.asarray(values), np.arange(len(values))
