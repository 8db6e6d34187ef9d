"""Accuracy of the rank-one form of an optimizer's scales, on trained models.

    python -m benchmarks.signals.precondition       # some minutes, after the small Llama is made

Adam scales gradients by 1 / d with d = sqrt(v) + eps, element by element (the full form). Without computing
every sample's gradient, only scales of rows times scales of columns are possible
(`gradwise.signals.precondition`). Here both are applied to computed gradients. The tables compare cosines and
inner products between all pairs of samples, and the norm of each sample; the ratio of norms is to those of
the full form.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.command_line import Script, names_among
from benchmarks.common.tables import Claim, Content, Page, of_kind, table
from benchmarks.signals.accuracy import COUNTS, Gradients
from benchmarks.signals.subjects import TITLES, Sample, subject
from gradwise.data import Collator
from gradwise.signals.precondition import Preconditioner
from gradwise.signals.scope import Matrix, Scope

EPS = 1e-8
BATCH = 8
STEPS = {"stories": 200, "small_llama": 100}
"""AdamW steps before second moments are read."""


def second_moments(
    model: Any, samples: list[Sample], steps: int, rate: float = 1e-4
) -> dict[str, torch.Tensor]:
    """Bias-corrected v of every parameter after some AdamW steps on the samples; changes the model."""
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
    totals: dict[str, NDArray] = {}
    for matrix, stored_NRC in gradients:
        divisor_RC = (moments[matrix.name].double().sqrt() + EPS).numpy()
        forms = {"none": None, "full": 1 / divisor_RC, **_rank_one(scales, matrix, divisor_RC)}
        for form, scale in forms.items():
            part = stored_NRC.astype(np.float64) if scale is None else stored_NRC * scale
            flat = part.reshape(len(part), -1)
            totals[form] = totals.get(form, 0) + flat @ flat.T
    return totals


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


def compared(by_form: dict[str, NDArray]) -> dict[str, dict[str, float]]:
    """Each form against the full division."""
    full = by_form["full"]
    above = np.triu_indices(len(full), 1)
    norms, cosines = np.sqrt(np.diag(full)), _cosines(full)[above]
    rows = {}
    for form, gram in by_form.items():
        ratio, theirs = np.sqrt(np.diag(gram)) / norms, _cosines(gram)[above]
        rows[form] = {
            "cosines_rms": float(np.sqrt(((theirs - cosines) ** 2).mean())),
            "cosines_correlation": float(np.corrcoef(theirs, cosines)[0, 1]),
            "products_correlation": float(np.corrcoef(gram[above], full[above])[0, 1]),
            "norms_correlation": float(np.corrcoef(np.sqrt(np.diag(gram)), norms)[0, 1]),
            "norms_ratio": float(ratio.mean()),
            "norms_spread": float(ratio.std() / ratio.mean()),
        }
    return rows


def _cosines(gram: NDArray) -> NDArray:
    norms = np.sqrt(np.diag(gram))
    return gram / np.outer(norms, norms)


def measure(name: str) -> dict[str, Any]:
    """All forms on one subject."""
    model, samples = subject(name, COUNTS[name])
    moments = second_moments(model, samples, STEPS[name])
    with tempfile.TemporaryDirectory(prefix="gradwise-bench-") as folder:
        by_form = grams(Gradients(model, samples, Path(folder)), moments)
    return {"steps": STEPS[name], "samples": len(samples), "ways": compared(by_form)}


FORMS = {
    "none": "no preconditioning",
    "gradwise": "rank one: means of d (gradwise)",
    "means of v (Adafactor)": "rank one: means of v (Adafactor)",
    "means of log d": "rank one: means of log d",
    "means of 1 / d": "rank one: means of 1 / d",
}
COLUMNS = {
    "cosines_rms": "cosines RMS", "cosines_correlation": "cosines r",
    "products_correlation": "inner products r", "norms_correlation": "norms r", "norms_ratio": "norms ratio",
    "norms_spread": "spread of the ratio",
}  # fmt: skip


def page(content: Content) -> Page:
    parts, values = [], []
    for name, entry in of_kind(content, "precondition").items():
        forms = entry["ways"]
        rows = [
            [title, *(f"{forms[form][column]:.4f}" for column in COLUMNS)]
            for form, title in FORMS.items()
            if form in forms
        ]
        moments = f"second moments after {entry['steps']} AdamW steps on them."
        text = f"**{TITLES[name]}**: {entry['samples']} samples, {moments}"
        parts += [text, table(["form", *COLUMNS.values()], rows)]
        value = f"{forms['gradwise']['cosines_correlation']:.4f}"
        values.append(value)
    claim = "Correlation of cosines, rank-one with full preconditioning, two small models"
    return Page(
        sections=parts,
        claims=[Claim(claim, ", ".join(values))],
    )


SCRIPT = Script(__doc__, "signals-precondition")
SCRIPT.add_argument("--subjects", type=names_among(STEPS), default=list(STEPS), help=", ".join(STEPS))


def main() -> None:
    torch.set_num_threads(1)
    options, result = SCRIPT.start()
    for name in options.subjects:
        result.once(f"precondition/{name}", partial(measure, name))


if __name__ == "__main__":
    main()
