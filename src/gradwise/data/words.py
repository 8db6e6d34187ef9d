"""Label tokens of samples as rows of numbers, from the data alone, without a model."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.data.pool import CHUNK, label_mask, ragged

WIDTH = 256
"""Numbers of a row: inner products err by about a sixteenth."""


def label_words(dataset: object) -> NDArray[np.float32]:
    """(N, WIDTH) a sketch of how often each token is to be predicted, of length one for every sample.

    To a model that expects nothing yet, a sample's gradient with respect to the output head is as good as
    these counts. Tokens are hashed to a place and a sign (Charikar et al. 2002), so that inner products of
    rows are those of the counts' cosines in expectation. A sample without a label token has zeros; in a
    dataset without labels, all tokens count.

    >>> rows = label_words([{"labels": [1, 5, 5]}, {"labels": [2, 5, -100]}, {"labels": [1, -100]}])
    >>> rows.shape, float(rows[0] @ rows[1]), float(abs(rows[2]).sum())
    ((3, 256), 1.0, 0.0)
    """
    chunks = [np.zeros((0, WIDTH), dtype=np.float32)]
    for offsets, labels in _labels(dataset):
        samples = len(offsets) - 1
        owner = np.repeat(np.arange(samples), np.diff(offsets))
        counts = label_mask(labels, offsets)
        place, sign = _hashed(labels[counts])
        sums = np.bincount(owner[counts] * WIDTH + place, weights=sign, minlength=samples * WIDTH)
        rows = sums.astype(np.float64).reshape(samples, WIDTH)  # of nothing, bincount makes whole numbers
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        chunks.append(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0).astype(np.float32))
    return np.concatenate(chunks)


def _labels(dataset: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields, chunk by chunk, (rows + 1,) offsets and the flat labels that they delimit."""
    if hasattr(dataset, "select_columns"):
        yield from ragged(dataset, "labels" if "labels" in dataset.column_names else "input_ids")
        return
    for start in range(0, len(dataset), CHUNK):
        samples = [dataset[i] for i in range(start, min(start + CHUNK, len(dataset)))]
        rows = [np.asarray(s["labels" if "labels" in s else "input_ids"], dtype=np.int64) for s in samples]
        yield np.cumsum([0, *map(len, rows)]), np.concatenate(rows)


def _hashed(tokens: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Place and sign of each token: products with odd numbers leave the upper bits well mixed."""
    mixed = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    place = ((mixed >> np.uint64(32)) % np.uint64(WIDTH)).astype(np.int64)
    return place, 1.0 - 2.0 * ((mixed >> np.uint64(20)) & np.uint64(1)).astype(np.float64)
