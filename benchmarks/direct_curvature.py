"""Which estimate of the curvature finds the Hessian's stiff directions, and what it costs.

stories260K on held-out speeches, the weights of its blocks: the 20 largest eigenpairs of the Hessian of
their mean loss by Lanczos on Hessian-vector products, against the top 20 of four estimates. The overlap is
||A^T B||_F^2 / 20, 1 for the same subspace and 20 / d for two drawn at random.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradwise.demo import ASSETS
from gradwise.numerics import Spectrum

SAMPLES, LENGTH, TOP = 48, 64, 20
TOKENS = 800
"""Single tokens whose gradients are measured, evenly spread over all."""


class Subject:
    """The model, its held-out speeches, and gradients of their losses as flat vectors."""

    def __init__(self) -> None:
        # Eager attention can be differentiated twice.
        self.model = AutoModelForCausalLM.from_pretrained(ASSETS / "stories260K", attn_implementation="eager")
        self.model.eval()
        named = self.model.named_parameters()
        self.weights = [p for name, p in named if ".layers." in name and p.ndim == 2]
        self.size = sum(p.numel() for p in self.weights)
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / "stories260K")
        lines = (ASSETS / "plays_held_out.jsonl").read_text().splitlines()
        rows = [tokenizer(json.loads(line)["text"])["input_ids"][:LENGTH] for line in lines]
        self.samples = [torch.tensor([row]) for row in rows if len(row) == LENGTH][:SAMPLES]
        self.passes = 0

    def losses(self, sample: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(T - 1,) cross entropy of each token."""
        self.passes += 1
        logits = self.model(sample).logits[0, :-1]
        target = sample[0, 1:] if labels is None else labels
        return torch.nn.functional.cross_entropy(logits, target, reduction="none")

    def gradient(self, loss: torch.Tensor, *, keep: bool = False) -> np.ndarray:
        """(d,) of a loss."""
        found = torch.autograd.grad(loss, self.weights, retain_graph=keep)
        return torch.cat([g.flatten() for g in found]).numpy()

    def drawn(self, sample: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """(T - 1,) labels drawn from what the model expects."""
        with torch.no_grad():
            expected = self.model(sample).logits[0, :-1].softmax(dim=-1)
        return torch.multinomial(expected, 1, generator=rng)[:, 0]

    def hessian_product(self, v: np.ndarray) -> np.ndarray:
        """(d,) the Hessian of the mean loss times a vector."""
        pieces = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)).split(
            [p.numel() for p in self.weights]
        )
        total = np.zeros(self.size)
        for sample in self.samples:
            first = torch.autograd.grad(self.losses(sample).mean(), self.weights, create_graph=True)
            along = sum((g.flatten() * piece).sum() for g, piece in zip(first, pieces, strict=True))
            total += self.gradient(along)  # type: ignore[arg-type]
        return total / len(self.samples)


def by_sample(subject: Subject) -> np.ndarray:
    """Gradients of the samples' mean losses: what DiReCT has anyway."""
    return np.array([subject.gradient(subject.losses(s).mean()) for s in subject.samples])


def by_token(subject: Subject) -> np.ndarray:
    """Gradients of single tokens' losses."""
    return _tokens(subject, lambda _: None)


def by_drawn_token(subject: Subject) -> np.ndarray:
    """The same with labels that the model itself draws: the Fisher matrix proper."""
    rng = torch.Generator().manual_seed(0)
    return _tokens(subject, lambda sample: subject.drawn(sample, rng))


def by_drawn_sample(subject: Subject) -> np.ndarray:
    """Gradients of the samples' mean losses with labels that the model draws, eight times each."""
    rng = torch.Generator().manual_seed(0)
    return np.array(
        [
            subject.gradient(subject.losses(s, subject.drawn(s, rng)).mean())
            for s in subject.samples
            for _ in range(8)
        ]
    )


def _tokens(subject: Subject, labels: Callable[[torch.Tensor], Any]) -> np.ndarray:
    each = TOKENS // len(subject.samples)
    rows = []
    for sample in subject.samples:
        losses = subject.losses(sample, labels(sample))
        for place in np.linspace(0, len(losses) - 1, each).astype(int):
            rows.append(subject.gradient(losses[place], keep=True))
    return np.array(rows)


SOURCES: dict[str, Callable[[Subject], np.ndarray]] = {
    "per sample": by_sample,
    "per token": by_token,
    "per token, labels drawn": by_drawn_token,
    "per sample, labels drawn": by_drawn_sample,
}


def compared() -> dict[str, Any]:
    """Overlaps and costs of all sources."""
    subject = Subject()
    start = time.perf_counter()
    by_sample(subject)
    once = time.perf_counter() - start
    start, products = time.perf_counter(), [0]

    def product(v: np.ndarray) -> np.ndarray:
        products[0] += 1
        return subject.hessian_product(v.ravel())

    operator = LinearOperator((subject.size, subject.size), matvec=product, dtype=np.float64)  # type: ignore
    values, vectors = eigsh(operator, k=TOP, which="LA", tol=1e-3, v0=np.ones(subject.size))  # type: ignore
    found: dict[str, Any] = {
        "parameters": subject.size,
        "samples": len(subject.samples),
        "hessian": {
            "seconds": round(time.perf_counter() - start, 1),
            "products": products[0],
            "largest": [float(f"{value:.4g}") for value in values[::-1][:5]],
        },
        "one_pass_seconds": round(once, 2),
        "sources": {},
    }
    for name, source in SOURCES.items():
        start = time.perf_counter()
        spectrum = Spectrum.of_rows(source(subject))
        seconds = time.perf_counter() - start
        own = spectrum.vectors[:, :TOP]
        found["sources"][name] = {
            "overlap": round(float(np.linalg.norm(own.T @ vectors) ** 2) / TOP, 4),
            "overlap_5": round(float(np.linalg.norm(own[:, :5].T @ vectors[:, -5:]) ** 2) / 5, 4),
            "seconds": round(seconds, 2),
            "effective_rank": round(spectrum.effective_rank, 1),
        }
    return found
