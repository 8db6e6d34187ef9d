"""Balanced orders: every stretch of an epoch has nearly the features of the whole."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import SignalError
from gradwise.numerics import herd
from gradwise.signals import Signals

BLOCK = 4096
"""Entries that are balanced at a time: the time is proportional to the pool's size times this."""


def features_of(signals: Signals) -> NDArray[Any]:
    """(N, d) features whose sums over a stretch are kept in proportion: sketched label tokens, or else the
    directions of projected gradients, or else domains.

    Raises:
        SignalError: none of them is known.
    """
    # Label tokens first: an order herded by them ended 0.030 nats below a shuffle and needs no model, one
    # herded by gradients 0.037 after a scoring run (docs/results/compare-orders_tune.md).
    if signals.words is not None:
        return signals.words
    if signals.grad is not None:
        return directions(signals.grad)
    if signals.domain is None:
        raise SignalError(
            "A balanced order needs label tokens, gradients or domains, and the signals have none of them."
        )
    return np.eye(len(np.unique(signals.domain)))[np.unique(signals.domain, return_inverse=True)[1]]


def balanced(
    entries: NDArray[np.int64], features: NDArray[Any], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(n,) entries in a random order in which every stretch has nearly the features (n, d) of the whole."""
    mixed = rng.permutation(len(entries))
    order = mixed[herd(features[mixed], BLOCK)]
    # Rotated and perhaps reversed: its prefixes stray at most twice as far, and no two epochs are alike.
    order = np.roll(order[:: rng.choice([-1, 1])], rng.integers(max(1, len(order))))
    return entries[order]


def directions(grad: NDArray[Any]) -> NDArray[np.float32]:
    """(N, k) gradients without their lengths; zeros where one is zero or not finite."""
    rows = np.nan_to_num(np.asarray(grad, dtype=np.float32))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
