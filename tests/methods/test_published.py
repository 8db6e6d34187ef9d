"""The presets that do what the papers state, against the papers' formulas taken literally."""

import itertools
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.errors import RecipeError
from gradwise.numerics.budgeted import rounded_at_random

# ---- DiReCT ------------------------------------------------------------------------------------------------


def gradients(n: int, seed: int, k: int = 12) -> gw.Signals:
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal((n, k)) * np.exp(-np.arange(k) / 3)
    return gw.Signals(n, grad=grad.astype(np.float32), loss=rng.random(n, dtype=np.float32))


class Literal:
    """Section 4 of the paper, one sample and one eigen-direction at a time."""

    def __init__(self, pool: gw.Signals, validation: gw.Signals) -> None:
        z_pool, z_valid = (np.asarray(each.grad, dtype=np.float64) for each in (pool, validation))
        k = z_pool.shape[1]
        h = np.zeros((k, k))
        for z in z_valid:
            h += np.outer(z, z) / len(z_valid)
        values, vectors = np.linalg.eigh(h)
        pairs = sorted(zip(values, vectors.T, strict=True), key=lambda pair: -pair[0])
        held, stiff = 0.0, 0
        while held < 0.945 * sum(values):
            held, stiff = held + pairs[stiff][0], stiff + 1
        self.costs = np.zeros(len(z_pool))
        self.flat = np.zeros((len(z_pool), k - stiff))
        for i, z in enumerate(z_pool):
            for j, (value, vector) in enumerate(pairs):
                g = np.sqrt(k) * (z @ vector)
                if j < stiff:
                    self.costs[i] += value * g**2
                else:
                    self.flat[i, j - stiff] = g / np.sqrt(k)

    def value(self, weights: Any) -> float:
        total = sum(w * g for w, g in zip(weights, self.flat, strict=True))
        return float(np.sum(np.square(total)))

    def best_subset(self, count: int, tau: float) -> float:
        values = []
        for some in itertools.combinations(range(len(self.costs)), count):
            weights = np.isin(np.arange(len(self.costs)), some).astype(float)
            if weights @ self.costs <= tau:
                values.append(self.value(weights))
        return max(values)

    def best_weights(self, total: float, tau: float) -> float:
        """A convex function is largest at a corner: all on one sample, or on two that spend the budget."""
        values, n = [], len(self.costs)
        for i, j in itertools.product(range(n), repeat=2):
            low, high = self.costs[i], self.costs[j]
            if total * low > tau:
                continue
            share = (
                1.0 if low == high else min(1.0, (tau / total - low) / (high - low)) if high > low else 0.0
            )
            weights = np.zeros(n)
            weights[i] += total * (1 - share)
            weights[j] += total * share
            values.append(self.value(weights))
        return max(values)


CASES = [(seed, slack) for seed in range(8) for slack in (0.1, 0.6)]


def _case(seed: int, slack: float, count: int = 4) -> tuple[gw.Signals, gw.Signals, Literal, float]:
    pool, validation = gradients(10, seed), gradients(30, 100 + seed)
    literal = Literal(pool, validation)
    least, most = (np.sort(literal.costs)[part].sum() for part in (slice(count), slice(-count, None)))
    return pool, validation, literal, least + slack * (most - least)


@pytest.mark.filterwarnings("ignore:.*movement outside of the stiff")
@pytest.mark.parametrize(("seed", "slack"), CASES)
def test_direct_keeps_the_papers_bound_and_finds_its_best_subset(seed: int, slack: float) -> None:
    pool, validation, literal, tau = _case(seed, slack)
    found = gw.Direct.published(count=4, tau=tau).select(pool, validation=validation)
    assert literal.costs[found.indices].sum() <= tau * (1 + 1e-5)
    chosen = np.isin(np.arange(10), found.indices).astype(float)
    assert found.objective == pytest.approx(literal.value(chosen), rel=1e-4)
    best = literal.best_subset(4, tau)
    assert found.objective is not None
    assert 0.8 * best <= found.objective and best <= found.details["bound"] * (1 + 1e-6)
    assert found.details["tau"] == tau


@pytest.mark.parametrize(("seed", "slack"), CASES)
def test_direct_reweights_as_the_paper_states_it(seed: int, slack: float) -> None:
    pool, validation, literal, tau = _case(seed, slack)
    found = gw.Direct.published(count=4, tau=tau, variant="weights").select(pool, validation=validation)
    weights = np.zeros(10)
    assert found.weights is not None and len(found.indices) <= 2
    weights[found.indices] = found.weights
    assert weights.sum() == pytest.approx(4)
    assert weights @ literal.costs <= tau * (1 + 1e-5)
    assert found.objective == pytest.approx(literal.value(weights), rel=1e-4)
    best = literal.best_weights(4, tau)
    assert found.objective is not None
    assert 0.9 * best <= found.objective and best <= found.details["bound"] * (1 + 1e-6)


def test_a_largest_weight_spreads_them() -> None:
    pool, validation = gradients(60, 1), gradients(30, 2)
    settings: Any = {"count": 20, "tau": 1.0, "tau_relative": True, "variant": "weights"}
    for objective in ("paper", "curvature"):
        method = gw.Direct(objective=objective, largest_weight=2.5, normalise="none", **settings)
        found = method.select(pool, validation=validation)
        assert found.weights is not None and found.weights.max() <= 2.5 * (1 + 1e-9)
        assert found.weights.sum() == pytest.approx(20) and 8 <= len(found.indices) <= 9
        assert found.details["budget_used"] <= 1 + 1e-9
    in_loss = found.weighing("loss").weights
    assert in_loss is not None and in_loss.mean() == pytest.approx(1)


def test_rounding_at_random_keeps_the_count_and_the_probabilities() -> None:
    weights = np.array([1.0, 0.3, 0.0, 0.7, 1.0])
    rng = np.random.default_rng(0)
    drawn = np.zeros(5)
    for _ in range(4000):
        picks = rounded_at_random(weights, rng)
        assert len(picks) == 3
        drawn[picks] += 1
    assert drawn[[0, 2, 4]].tolist() == [4000, 0, 4000]
    assert abs(drawn[1] - 1200) < 5 * np.sqrt(4000 * 0.21)


@pytest.mark.filterwarnings("ignore:.*movement outside of the stiff")
def test_direct_rounded_at_random_differs_by_seed_in_one_sample_at_most() -> None:
    pool, validation, _, tau = _case(3, 0.3)
    method = gw.Direct.published(count=4, tau=tau, rounding="random", starts=1)
    picks = {tuple(sorted(method.select(pool, validation=validation, seed=s).indices)) for s in range(12)}
    assert len(picks) == 2
    assert len(set.union(*map(set, picks))) == 5


def test_what_contradicts_itself_is_refused() -> None:
    for settings in ({"largest_weight": 2.0}, {"variant": "weights", "rounding": "random"}):
        with pytest.raises(RecipeError, match="variant: weights"):
            gw.Direct(count=4, **settings)  # type: ignore[arg-type]


def test_the_preset_keeps_four_fifths() -> None:
    with pytest.warns(UserWarning):
        found = gw.Direct.published().select(gradients(50, 1), validation=gradients(3, 2))
    assert len(found.indices) == 40


# ---- its baselines -----------------------------------------------------------------------------------------


def test_infobatch_prunes_below_the_mean_and_weighs_up_the_rest() -> None:
    loss = np.arange(10, dtype=np.float32)
    pool = gw.Signals(10, loss=loss)
    found = gw.baselines.InfoBatch(count=8).select(pool, seed=4)
    assert found.weights is not None
    order = np.argsort(found.indices)
    assert found.indices[order][3:].tolist() == [5, 6, 7, 8, 9]
    assert found.weights[order].tolist() == [1.25] * 3 + [1.0] * 5
    even = gw.baselines.InfoBatch(count=8, rescale=None).select(pool, seed=4)
    assert even.weights is not None and even.weights.sum() == pytest.approx(10)
    assert not np.array_equal(found.indices, gw.baselines.InfoBatch(count=8).select(pool, seed=5).indices)
    with pytest.raises(RecipeError, match="keep at least as many"):
        gw.baselines.InfoBatch(count=4).select(pool)


def test_perplexity_ranks_as_loss_does_and_gradient_norms_by_themselves() -> None:
    rng = np.random.default_rng(0)
    pool = gw.Signals(20, loss=rng.random(20, dtype=np.float32), grad_norm=rng.random(20, dtype=np.float32))
    by_perplexity = gw.baselines.PerplexityAnneal(count=6).select(pool)
    assert by_perplexity.indices.tolist() == gw.baselines.LossAnneal(count=6).select(pool).indices.tolist()
    by_norm = gw.baselines.GradNormAnneal(count=6).select(pool)
    assert by_norm.indices.tolist() == np.argsort(-np.asarray(pool.grad_norm))[:6].tolist()
