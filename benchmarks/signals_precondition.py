"""How near the rank-one form of an optimizer's scales comes to the full one, on trained models.

Adam divides a gradient by sqrt(v) + eps, number by number. Without forming every sample's gradient that can
only be done with scales of rows times scales of columns (`gradwise.signals.precondition`). Here both are done
to gradients that were formed, and what the methods read from them is compared: inner products and norms.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from signals_accuracy import Gradients
from signals_subjects import Sample

from gradwise.data import Collator
from gradwise.signals.precondition import Preconditioner
from gradwise.signals.scope import Matrix, Scope

EPS = 1e-8
BATCH = 8


def second_moments(
    model: Any, samples: list[Sample], steps: int, rate: float = 1e-4
) -> dict[str, torch.Tensor]:
    """v of every parameter after so many AdamW steps on the samples, bias corrected; changes the model."""
    collate, rng = Collator(0), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.999), eps=EPS, weight_decay=0.0)
    for _ in range(steps):
        rows = rng.choice(len(samples), BATCH, replace=False)
        optimizer.zero_grad()
        model(**collate([samples[row] for row in rows])).loss.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    scope = Scope(dict(model.named_parameters()))
    return {
        name: optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**steps) for name, p in scope.parameters.items()
    }


def grams(gradients: Gradients, moments: dict[str, torch.Tensor]) -> dict[str, NDArray]:
    """(N, N) inner products: of gradients as they are, fully divided, and in several rank-one forms."""
    scales = Preconditioner(moments, EPS)
    found: dict[str, NDArray] = {}
    for matrix, held_NRC in gradients:
        divisor_RC = (moments[matrix.name].double().sqrt() + EPS).numpy()
        ways = {"none": None, "full": 1 / divisor_RC, **_rank_one(scales, matrix, divisor_RC)}
        for way, scale in ways.items():
            part = held_NRC.astype(np.float64) if scale is None else held_NRC * scale
            flat = part.reshape(len(part), -1)
            found[way] = found.get(way, 0) + flat @ flat.T
    return found


def _rank_one(scales: Preconditioner, matrix: Matrix, divisor_RC: NDArray) -> dict[str, NDArray]:
    row, column = scales.matrix(matrix)
    root_v = np.sqrt(_means(divisor_RC**2))
    logs = np.log(divisor_RC)
    geometric = np.exp(logs.mean(1, keepdims=True) + logs.mean(0, keepdims=True) - logs.mean())
    return {
        "gradwise": np.outer(row.double().numpy(), column.double().numpy()),
        "means of v (Adafactor)": 1 / root_v,
        "means of log d": 1 / geometric,
        "means of 1 / d": _means(1 / divisor_RC),
    }


def _means(values_RC: NDArray) -> NDArray:
    return values_RC.mean(1, keepdims=True) * values_RC.mean(0, keepdims=True) / values_RC.mean()


def compared(found: dict[str, NDArray]) -> dict[str, dict[str, float]]:
    """Each way against the full division."""
    full = found["full"]
    above = np.triu_indices(len(full), 1)
    norms, cosines = np.sqrt(np.diag(full)), _cosines(full)[above]
    told = {}
    for way, gram in found.items():
        ratio, theirs = np.sqrt(np.diag(gram)) / norms, _cosines(gram)[above]
        told[way] = {
            "cosines_rms": float(np.sqrt(((theirs - cosines) ** 2).mean())),
            "cosines_correlation": float(np.corrcoef(theirs, cosines)[0, 1]),
            "products_correlation": float(np.corrcoef(gram[above], full[above])[0, 1]),
            "norms_correlation": float(np.corrcoef(np.sqrt(np.diag(gram)), norms)[0, 1]),
            "norms_ratio": float(ratio.mean()),
            "norms_spread": float(ratio.std() / ratio.mean()),
        }
    return told


def _cosines(gram: NDArray) -> NDArray:
    norms = np.sqrt(np.diag(gram))
    return gram / np.outer(norms, norms)
