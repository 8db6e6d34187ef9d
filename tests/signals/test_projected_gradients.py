"""The engine's projection of a scope: what it is, that it is unbiased, and how near to a dense Gaussian."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradwise.signals import collect
from gradwise.signals.scope import Matrix, Scope, resolve
from gradwise.signals.sums import Projector
from tests.signals.oracle import truth
from tests.signals.zoo import left_padded, make, samples

POOL = samples()
NAMES = ("Llama", "Llama, tied", "GPT2", "Mixtral", "Gemma2", "GPTNeoX", "LoRA on Llama")


def projected(projector: Projector, gradients: dict[str, Tensor]) -> Tensor:
    """(n, k), by parameter: matrices, slices of stacks, vectors; (n, *shape) gradients that exist."""
    total = torch.zeros(len(next(iter(gradients.values()))), projector.size, dtype=torch.float64)
    for name, gradient in gradients.items():
        wide = gradient.double()
        if wide.ndim == 2:
            total += projector.vector(name, wide.shape[1])(wide)
        elif wide.ndim == 3:
            total += projector.matrix(Matrix(name, None, *wide.shape[1:]))(wide)
        else:
            for number in range(wide.shape[1]):
                total += projector.matrix(Matrix(name, number, *wide.shape[2:]))(wide[:, number])
    return total


def exact(model: Any, scope: Scope, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """(n, *shape) gradients by parameter."""
    found = [truth(model, sample, list(scope.parameters)).gradients for sample in rows]
    return {name: torch.stack([one[name] for one in found]) for name in scope.parameters}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("parameters", "grad_dim"),
    [
        ("blocks", 1024),
        ("all", 5),
        pytest.param("blocks", 5, marks=pytest.mark.exhaustive),
        pytest.param("all", 1024, marks=pytest.mark.exhaustive),
    ],
)
def test_is_the_sum_over_parameters(name: str, parameters: str, grad_dim: int):
    """Fewer and more numbers than any weight has; experts, tied weights, gains and tables included."""
    model = make(name, torch.float64)
    signals = collect(
        model, POOL, want="grad", parameters=parameters, grad_dim=grad_dim, seed=3, progress=False
    )
    model.config._experts_implementation = "eager"
    expected = projected(Projector(grad_dim, 3), exact(model, resolve(model, parameters), POOL))
    np.testing.assert_allclose(
        signals.require("grad", "test"), expected, atol=1e-6 * float(expected.abs().max())
    )


@pytest.mark.parametrize("side", [4, 7])
def test_folded_on_both_sides(side: int, monkeypatch: pytest.MonkeyPatch):
    """Models of real width: here the folds are made narrower than 16 instead."""
    monkeypatch.setattr("gradwise.signals.sums.Projector.__init__.__defaults__", (side,))
    model = make("Mixtral", torch.float64)
    signals = collect(model, POOL, want="grad", parameters="all", grad_dim=50, progress=False)
    model.config._experts_implementation = "eager"
    expected = projected(Projector(50, 0, side), exact(model, resolve(model, "all"), POOL))
    np.testing.assert_allclose(
        signals.require("grad", "test"), expected, atol=1e-6 * float(expected.abs().max())
    )


class TestSeeds:
    def _grad(self, seed: int = 0, collator: Any = None, rows: Any = POOL, **options: Any) -> Any:
        model = make("Llama")
        return collect(
            model, rows, collator, want="grad", seed=seed, grad_dim=64, progress=False, **options
        ).grad

    def test_the_same_again(self):
        assert np.array_equal(self._grad(), self._grad())

    def test_another_seed_is_another_projection(self):
        one, other = self._grad(0), self._grad(1)
        overlap = np.sum(one * other, axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert np.abs(overlap).max() < 0.6  # 1 / sqrt(64) = 0.13 is expected

    @pytest.mark.parametrize(
        "changes",
        [{"batch_tokens": 1}, {"batch_tokens": 33}, {"collator": left_padded}, {"rows": POOL[::-1]}],
    )
    def test_independent_of_batches(self, changes: Any):
        found, expected = self._grad(**changes), self._grad()
        found = found[::-1] if "rows" in changes else found
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()

    def test_names_decide_rather_than_places(self):
        """What a weight adds does not depend on which others are in scope."""
        parts = [self._grad(parameters=f"*layers.{layer}.*.weight") for layer in (0, 1)]
        norms = self._grad(parameters=["*layers.0.*.weight", "*layers.1.*.weight"])
        np.testing.assert_allclose(parts[0] + parts[1], norms, atol=1e-6)


def test_unbiased_over_the_scope():
    """Mean over 250 seeds of <z_i, z_j> within 4.5 standard errors of <G_i, G_j>, near-duplicates included:
    no two parameters of a scope share signs in a way that adds up."""
    model, rows = make("Mixtral", torch.float64), samples(3)
    model.config._experts_implementation = "eager"
    near = {name: list(ids) for name, ids in rows[0].items()}
    near["input_ids"][2] += 1
    gradients = exact(model, resolve(model, "all"), [*rows, near])
    flat = torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)
    products = []
    for seed in range(250):
        z = projected(Projector(16, seed, side=8), gradients)
        products.append(z @ z.T)
    found = torch.stack(products)
    error = found.std(dim=0) / len(found) ** 0.5
    assert ((found.mean(dim=0) - flat @ flat.T).abs() <= 4.5 * error).all()


@pytest.fixture(scope="module")
def real_gradients(stories, speeches) -> dict[str, Tensor]:
    """The story model's gradients of 16 speeches, and of four of them with one token changed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(stories)
    rows = [{name: list(speeches[i][name]) for name in ("input_ids", "labels")} for i in range(16)]
    for i in range(4):
        near = {name: list(ids) for name, ids in rows[i].items()}
        near["input_ids"][-2] = near["labels"][-2] = 100
        rows.append(near)
    return exact(model, resolve(model, "blocks"), rows)


def test_inner_products_of_real_gradients_are_nearly_as_good_as_a_dense_gaussians(
    real_gradients: dict[str, Tensor],
):
    """RMS errors over 12 seeds at k = 1024, in units of a dense Gaussian's standard deviation."""
    k = 1024
    flat = torch.cat([gradient.flatten(1).double() for gradient in real_gradients.values()], dim=1)
    inner = flat @ flat.T
    norms = inner.diagonal()
    gaussian = ((norms[:, None] * norms + inner.square()) / k).sqrt()
    errors = []
    for seed in range(12):
        z = projected(Projector(k, seed), real_gradients)
        errors.append((z @ z.T - inner) / gaussian)
    squares = torch.stack(errors).square().mean(dim=0)
    cosine = inner / (norms[:, None] * norms).sqrt()
    same = torch.eye(len(flat), dtype=torch.bool)
    near = (cosine > 0.9) & ~same
    assert near.any()
    for name, chosen in {
        "all": same | ~same,
        "diagonal": same,
        "near": near,
        "others": ~near & ~same,
    }.items():
        assert float(squares[chosen].mean().sqrt()) < 1.3, name


REPEATED = {
    "weights": [f"layers.{n}.{p}.weight" for n in range(2) for p in ("attn.q", "attn.k", "attn.o", "mlp.up")],
    "experts": ["layers.0.mlp.experts.up"],
}


@pytest.mark.parametrize("kind", REPEATED)
def test_weights_that_learn_the_same(kind: str):
    """Equal gradients in many weights, or in all experts of a stack: were signs or places shared on both
    sides, cross terms between weights would add up. Folded to 16 x 16; 1.05 and 1.06 measured."""
    base = torch.randn(4, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = base[:, None].expand(-1, 6, -1, -1) if kind == "experts" else base
    gradients = dict.fromkeys(REPEATED[kind], one)
    flat = torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)
    inner, norms = flat @ flat.T, flat.square().sum(dim=1)
    gaussian = ((norms[:, None] * norms + inner.square()) / 256).sqrt()
    products = [projected(Projector(256, seed, side=16), gradients) for seed in range(60)]
    errors = torch.stack([(z @ z.T - inner) / gaussian for z in products])
    assert float(errors.square().mean().sqrt()) < 1.2
    assert (errors.mean(dim=0).abs() < 4.5 * errors.std(dim=0) / 60**0.5).all()


def test_cosines_find_near_duplicates(real_gradients: dict[str, Tensor]):
    z = projected(Projector(1024, 0), real_gradients)
    unit = z / z.norm(dim=1, keepdim=True)
    similarity = unit[16:] @ unit[:16].T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3]
