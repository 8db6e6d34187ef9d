"""Validation gradients that a selection uses, and whether they distinguish samples at all."""

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import SignalError
from gradwise.methods.decision import check_signals
from gradwise.numerics.rows import Rows
from gradwise.signals import Signals

MOST_ZERO = 0.95
"""Share of validation samples without a gradient from which on the others are no measure."""

LEAST_COSINE = 1e-6
"""Cosine with the target that rounding explains: a pool without a larger one is orthogonal to it."""


def validation_rows(validation: Signals | None, by: str) -> NDArray[np.int64]:
    """Places of the validation samples with a finite gradient.

    Args:
        validation: their signals.
        by: the method that uses them, for messages.

    Raises:
        SignalError: no signals are given, or nearly all gradients are zero.
    """
    if validation is None:
        raise SignalError(
            f"{by} needs the gradients of validation samples: give data.validation, or `validation=` "
            "signals collected with the same grad_dim, parameters and seed."
        )
    check_signals(validation, by, "validation signals")
    squares = Rows(validation.require("grad", f"{by}, of the validation samples,")).squares()
    fine = np.isfinite(squares) if validation.ok is None else np.isfinite(squares) & validation.ok
    # With nearly all gradients zero the pool's order would decide: rows 0..K-1 would be picked without a
    # word.
    without = len(squares) - int((fine & (squares > 0)).sum())
    if without >= MOST_ZERO * len(squares):
        raise SignalError(
            f"{by}: {without} of {len(squares)} validation samples have no gradient that is finite and not "
            "zero, so that no direction is known to be better than another; give other validation data, or "
            "collect over parameters that they depend on."
        )
    return np.flatnonzero(fine)


def check_aligned(cosines: NDArray[np.floating], by: str, what: str = "gradients") -> None:
    """Raise SignalError where no sample of a pool points towards the target or away from it; one alone is no
    choice.

    Args:
        cosines: (..., n) of the samples with the target; what is not finite does not count.
        by: the method, for the message.
        what: is compared.
    """
    absolute = np.abs(cosines[np.isfinite(cosines)])
    # Where all are alike the pool's order would decide: rows 0..K-1 would be picked without a word.
    if cosines.shape[-1] > 1 and absolute.size and absolute.max() <= LEAST_COSINE:
        raise SignalError(
            f"{by}: the {what} of all {cosines.shape[-1]} samples are orthogonal to the target, so that none "
            "is better than another; collect pool and validation with the same parameters, grad_dim and seed."
        )
