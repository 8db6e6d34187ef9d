"""Which estimate of the curvature finds the Hessian's stiff directions, and what it costs.

    python -m benchmarks.direct.curvature       # some minutes

stories260K on held-out speeches of 64 tokens, the weights of its blocks. The reference: the 20 largest
eigenpairs of the Hessian of the mean loss, by Lanczos on Hessian-vector products. Compared are the top 20 and
the top 5 eigenvectors of four estimates. The overlap of two subspaces of dimension k is ||A^T B||_F^2 / k: 1
for the same subspace, k / d for two random ones.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.clocks import Clock
from benchmarks.common.command_line import Script
from benchmarks.common.smollm2 import STORIES
from benchmarks.common.tables import Claim, Content, Page, number, table
from gradwise.demo import ASSETS
from gradwise.numerics import Spectrum

SAMPLES, LENGTH, TOP = 48, 64, 20
TOKENS = 800
"""Single tokens whose gradients are computed, evenly spread over all."""


class Subject:
    """The model, its held-out speeches, and gradients of their losses as flat vectors."""

    def __init__(self) -> None:
        # Eager attention can be differentiated twice.
        self.model = AutoModelForCausalLM.from_pretrained(STORIES, attn_implementation="eager").eval()
        parameters = self.model.named_parameters()
        self.weights = [p for name, p in parameters if ".layers." in name and p.ndim == 2]
        self.size = sum(p.numel() for p in self.weights)
        tokenizer = AutoTokenizer.from_pretrained(STORIES)
        lines = (ASSETS / "plays_held_out.jsonl").read_text().splitlines()
        rows = [tokenizer(json.loads(line)["text"])["input_ids"][:LENGTH] for line in lines]
        self.samples = [torch.tensor([row]) for row in rows if len(row) == LENGTH][:SAMPLES]

    def losses(self, sample: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(T - 1,) cross entropy of each token."""
        logits = self.model(sample).logits[0, :-1]
        target = sample[0, 1:] if labels is None else labels
        return torch.nn.functional.cross_entropy(logits, target, reduction="none")

    def gradient(self, loss: torch.Tensor, *, keep: bool = False) -> np.ndarray:
        """(d,) of a loss."""
        parts = torch.autograd.grad(loss, self.weights, retain_graph=keep)
        return torch.cat([g.flatten() for g in parts]).numpy()

    def sampled_labels(self, sample: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """(T - 1,) labels drawn from the model's own predictions."""
        with torch.no_grad():
            predicted = self.model(sample).logits[0, :-1].softmax(dim=-1)
        return torch.multinomial(predicted, 1, generator=rng)[:, 0]

    def hessian_product(self, v: np.ndarray) -> np.ndarray:
        """(d,) the Hessian of the mean loss times a vector."""
        sizes = [p.numel() for p in self.weights]
        pieces = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)).split(sizes)
        total = np.zeros(self.size)
        for sample in self.samples:
            first = torch.autograd.grad(self.losses(sample).mean(), self.weights, create_graph=True)
            product = torch.stack(
                [(g.flatten() * piece).sum() for g, piece in zip(first, pieces, strict=True)]
            )
            total += self.gradient(product.sum())
        return total / len(self.samples)


def by_sample(subject: Subject) -> np.ndarray:
    """Gradients of the samples' mean losses, which DiReCT collects anyway."""
    return np.array([subject.gradient(subject.losses(s).mean()) for s in subject.samples])


def by_token(subject: Subject) -> np.ndarray:
    """Gradients of single tokens' losses."""
    return _tokens(subject, lambda _: None)


def by_drawn_token(subject: Subject) -> np.ndarray:
    """The same with labels drawn from the model: the true Fisher matrix."""
    rng = torch.Generator().manual_seed(0)
    return _tokens(subject, lambda sample: subject.sampled_labels(sample, rng))


def by_drawn_sample(subject: Subject) -> np.ndarray:
    """Gradients of the samples' mean losses with labels drawn from the model, eight times each."""
    rng = torch.Generator().manual_seed(0)
    losses = (
        subject.losses(s, subject.sampled_labels(s, rng)).mean() for s in subject.samples for _ in range(8)
    )
    return np.array([subject.gradient(loss) for loss in losses])


def _tokens(subject: Subject, labels: Callable[[torch.Tensor], Any]) -> np.ndarray:
    each, rows = TOKENS // len(subject.samples), []
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


def measure() -> dict[str, Any]:
    """Overlaps and costs of all sources."""
    subject, clock, products = Subject(), Clock(), 0
    by_sample(subject)
    once = clock.lap()

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return subject.hessian_product(v.ravel())

    operator = LinearOperator((subject.size, subject.size), matvec=product, dtype=np.float64)  # type: ignore
    values, vectors = eigsh(operator, k=TOP, which="LA", tol=1e-3, v0=np.ones(subject.size))  # type: ignore
    largest = [float(f"{value:.4g}") for value in values[::-1][:5]]
    entry: dict[str, Any] = {
        "parameters": subject.size, "samples": len(subject.samples), "one_pass_seconds": round(once, 2),
        "hessian": {"seconds": round(clock.lap(), 1), "products": products, "largest": largest},
        "sources": {},
    }  # fmt: skip
    for name, source in SOURCES.items():
        start = time.perf_counter()
        spectrum = Spectrum.of_rows(source(subject))
        seconds = time.perf_counter() - start
        top = spectrum.vectors[:, :TOP]
        entry["sources"][name] = {
            "overlap": round(float(np.linalg.norm(top.T @ vectors) ** 2) / TOP, 4),
            "overlap_5": round(float(np.linalg.norm(top[:, :5].T @ vectors[:, -5:]) ** 2) / 5, 4),
            "seconds": round(seconds, 2),
            "effective_rank": round(spectrum.effective_rank, 1),
        }
    return entry


def page(content: Content) -> Page:
    entry = content["entries"]["curvature/stories"]
    hessian, sources = entry["hessian"], entry["sources"]
    text = (
        f"{entry['samples']} speeches, {entry['parameters']:,} weights. The Hessian's eigenpairs took "
        f"{hessian['products']} Hessian-vector products and {hessian['seconds']:.0f} s; the gradients of all "
        f"samples take {entry['one_pass_seconds']:.1f} s."
    )
    rows = [
        [
            name, number(one["overlap"], 3), number(one["overlap_5"], 3), number(one["effective_rank"], 1),
            number(one["seconds"], 1),
        ]
        for name, one in sources.items()
    ]  # fmt: skip
    overlaps = [sources[name]["overlap"] for name in ("per sample", "per token, labels drawn")]
    claim = (
        "Overlap of the top 20 directions with the Hessian's: samples' gradients; tokens' with drawn labels"
    )
    return Page(
        sections=[text, table(["gradients", "overlap, 20", "overlap, 5", "effective rank", "seconds"], rows)],
        claims=[Claim(claim, "; ".join(number(overlap, 2) for overlap in overlaps))],
    )


SCRIPT = Script(__doc__, "direct-curvature")


def main() -> None:
    SCRIPT.start()[1].once("curvature/stories", measure)


if __name__ == "__main__":
    main()
