"""What a person needs to judge a selection: the spectrum, where the energy lies, the mix of domains."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.methods.direct.problem import Problem
from gradwise.numerics.rows import Rows
from gradwise.numerics.sampling import evenly

MAX_EIGENVALUES = 256
"""Largest number of eigenvalues that are recorded; validation samples have at most as many."""

SAMPLED = 8192
"""Rows whose energy is measured, evenly spread, where there are more."""

WELL_KNOWN = 0.5
"""Share of the flat energy that the validation samples should span for `flat` to mean little curvature,
rather than nothing known."""


def spectrum_details(problem: Problem, places: NDArray[np.int64]) -> dict[str, Any]:
    """Plain values on the spectrum, and on what share of the energy lies where."""
    spectrum, gradients = problem.spectrum, problem.gradients
    everyone = _energy(problem, np.arange(len(gradients)))
    picks = _energy(problem, np.sort(places))
    flat = 1 - everyone[: problem.stiff].sum()
    # Energy outside of all eigenvectors lies where the validation samples have no gradient: not flat, but
    # unknown.
    known_share = float(everyone[problem.stiff :].sum() / flat) if flat > 0 else 1.0
    return {
        "stiff_directions": problem.stiff,
        "effective_rank": round(spectrum.effective_rank, 3),
        "rank": len(spectrum),
        "flat_known": round(known_share, 4),
        "spectrum": {
            "values": [float(f"{value:.6g}") for value in spectrum.values[:MAX_EIGENVALUES]],
            "trace": float(f"{spectrum.trace:.6g}"),
            "pool_energy": np.round(everyone[:MAX_EIGENVALUES], 6).tolist(),
            "picks_energy": np.round(picks[:MAX_EIGENVALUES], 6).tolist(),
        },
    }


def warn_of_unknown_curvature(details: dict[str, Any]) -> None:
    """Warn if the flat directions are mostly directions in which the validation samples have no gradient."""
    if details["flat_known"] < WELL_KNOWN:
        warnings.warn(
            f"{1 - details['flat_known']:.0%} of the pool's movement outside of the stiff directions lies "
            f"where the {details['validation_samples']} validation samples (effective rank "
            f"{details['effective_rank']:.1f}) have no gradient; objective: paper takes that for "
            "flat. Measure more validation samples, or use objective: curvature.",
            stacklevel=4,
        )


def _energy(problem: Problem, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """(r,) share of the rows' squared length that lies along each eigenvector."""
    places = places[evenly(len(places), SAMPLED)]
    gradients = problem.gradients
    some = Rows(gradients.x, gradients.chosen[places], gradients.scale[places])
    along = np.zeros(len(problem.spectrum))
    directions = problem.spectrum.vectors.astype(np.float32)
    for part, rows in some.parts():
        scaled = rows * some.scale[part, None].astype(np.float32)
        along += ((scaled @ directions).astype(np.float64) ** 2).sum(axis=0)
    total = some.squares().sum()
    return along / total if total > 0 else along
