"""Baselines of the annealing phase, each against its definition."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise import Signals
from gradwise.methods.baselines import (
    CosineTop,
    FullAnneal,
    GradNormAnneal,
    Herding,
    InfoBatch,
    LossAnneal,
    PerplexityAnneal,
    RandomAnneal,
)
from gradwise.methods.baselines.targeted import Less, Nearest, Tsds
from gradwise.numerics import herd_towards

RNG = np.random.default_rng(0)
POOL = gw.Signals(
    60,
    grad=RNG.standard_normal((60, 8)).astype(np.float32),
    loss=RNG.random(60, dtype=np.float32),
    grad_norm=np.linspace(1, 2, 60, dtype=np.float32),
    num_tokens=RNG.integers(1, 20, 60).astype(np.int32),
    domain=np.array(["a", "b"])[RNG.integers(0, 2, 60)],
    weight=RNG.random(60),
)
HELD_OUT = gw.Signals(20, grad=RNG.standard_normal((20, 8)).astype(np.float32) + 0.5)
METHODS = (CosineTop, GradNormAnneal, Herding, LossAnneal, PerplexityAnneal, RandomAnneal)


def units(signals: gw.Signals) -> np.ndarray:
    grad = np.asarray(signals.grad)
    return grad / np.linalg.norm(grad, axis=1, keepdims=True)


def test_cosine_is_with_the_mean_gradient() -> None:
    mean = np.asarray(HELD_OUT.grad).mean(axis=0)
    cosines = units(POOL) @ (mean / np.linalg.norm(mean))
    found = CosineTop(count=7).select(POOL, validation=HELD_OUT)
    assert found.indices.tolist() == np.argsort(-cosines)[:7].tolist()
    np.testing.assert_allclose(found.scores, np.sort(cosines)[::-1][:7], rtol=1e-5)  # type: ignore[arg-type]


def test_herding_is_towards_the_mean_of_unit_gradients() -> None:
    found = Herding(count=9).select(POOL, validation=HELD_OUT)
    expected = herd_towards(units(POOL), units(HELD_OUT).mean(axis=0), 9)
    assert found.indices.tolist() == expected.tolist()


def test_loss_is_highest_first() -> None:
    assert POOL.loss is not None
    assert LossAnneal(count=5).select(POOL).indices.tolist() == np.argsort(-POOL.loss)[:5].tolist()


def test_random_depends_on_the_seed_alone() -> None:
    one, same, other = (RandomAnneal(count=20).select(POOL, seed=seed).indices for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    assert len(set(one.tolist())) == 20


def test_full_is_everything() -> None:
    found = FullAnneal().select(POOL, room=3)
    assert found.indices.tolist() == list(range(60))
    assert found.weights is not None and found.weights.tolist() == POOL.weight.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
class TestAll:
    def test_tell_the_mix_of_domains_and_keep_weights(self, method: Any) -> None:
        found = method(count=10).select(POOL, validation=HELD_OUT)
        assert sum(picked for picked, _ in found.details["domains"].values()) == 10
        assert found.weights.tolist() == POOL.weight[found.indices].tolist()  # type: ignore[index]
        assert found.details["label_tokens"] == POOL.num_tokens[found.indices].sum()  # type: ignore[index]

    def test_size_by_share_by_room_and_by_tokens(self, method: Any) -> None:
        assert len(method(fraction=0.25).select(POOL, validation=HELD_OUT).indices) == 15
        assert len(method().select(POOL, validation=HELD_OUT, room=12).indices) == 12
        assert len(method().select(POOL, validation=HELD_OUT, room=1000).indices) == 60
        ranked = method(fraction=1.0).select(POOL, validation=HELD_OUT).indices
        within = method(tokens=100).select(POOL, validation=HELD_OUT).indices
        assert within.tolist() == ranked[: len(within)].tolist()
        tokens = np.cumsum(POOL.num_tokens[ranked])  # type: ignore[index]
        assert tokens[len(within) - 1] <= 100 < tokens[len(within)]

    def test_never_pick_what_is_not_finite(self, method: Any) -> None:
        if method is RandomAnneal:
            pytest.skip("uses no signal; the planner leaves such samples out")
        grad, loss = np.asarray(POOL.grad).copy(), np.asarray(POOL.loss).copy()
        norm = np.linalg.norm(grad, axis=1)
        grad[:30], loss[:30], norm[:30] = np.nan, np.nan, np.nan
        pool = replace(POOL, grad=grad, loss=loss, grad_norm=norm)
        found = method(count=30).select(pool, validation=HELD_OUT)
        assert sorted(found.indices.tolist()) == list(range(30, 60))
        marked = replace(pool, ok=np.arange(60) >= 30)
        assert min(method(count=30).select(marked, validation=HELD_OUT).indices) >= 30
        assert len(method().select(marked, validation=HELD_OUT, room=50).indices) == 30
        with pytest.raises(gw.RecipeError, match="30 samples can be chosen from, which does not make 31"):
            method(count=31).select(pool, validation=HELD_OUT)

    def test_need_a_size(self, method: Any) -> None:
        with pytest.raises(gw.RecipeError, match="give fraction, count or tokens"):
            method().select(POOL, validation=HELD_OUT)

    def test_need_validation_gradients_where_they_use_them(self, method: Any) -> None:
        if not method.validation_needs:
            pytest.skip("does not use them")
        for nothing in (None, replace(HELD_OUT, grad=np.zeros((20, 8), np.float32))):
            with pytest.raises(gw.SignalError, match="gradient"):
                method(count=3).select(POOL, validation=nothing)


def test_all_of_the_data_can_compete_with_a_part_of_them() -> None:
    """A size is that of the other contenders."""
    sizes: list[dict[str, Any]] = [{"fraction": 0.2}, {"count": 3}, {"tokens": 90}]
    for size in sizes:
        tried = gw.Trial(contenders=("random", "full"), **size).contender_methods
        assert {name: getattr(tried["random"], name) for name in size} == size
        assert len(tried["full"].select(Signals(5), room=3).indices) == 5


def scaled(signals: gw.Signals, factor: float) -> gw.Signals:
    """What backward gives for a loss in another unit, and embeddings in another unit."""
    names = ("grad", "grad_norm", "embedding")
    present = {name: getattr(signals, name) for name in names if getattr(signals, name) is not None}
    return replace(signals, **{name: np.asarray(x) * np.float32(factor) for name, x in present.items()})


@pytest.mark.parametrize("factor", [1e25, 1e-30])
@pytest.mark.parametrize("method", [*METHODS, InfoBatch, FullAnneal], ids=lambda method: method.__name__)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_unit_of_gradients_changes_no_pick(method: Any, factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = replace(POOL, grad=rng.standard_normal((60, 8)).astype(np.float32))
    size: dict[str, Any] = {} if method in (FullAnneal, InfoBatch) else {"count": 20}
    picks = [
        method(**size).select(scaled(pool, by), validation=scaled(HELD_OUT, by), seed=seed).indices
        for by in (1.0, factor)
    ]
    assert len(picks[0]) == size.get("count", len(picks[0]))
    assert picks[0].tolist() == picks[1].tolist()


@pytest.mark.parametrize("factor", [1e25, 1e-30])
@pytest.mark.parametrize(
    "method",
    [Less(checkpoints=1, count=20), Less(checkpoints=2, count=20), Nearest(count=20), Tsds(count=20)],
    ids=["less", "less of two checkpoints", "nearest", "tsds"],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_unit_changes_no_pick_towards_a_target(method: Any, factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool, target = (
        gw.Signals(
            n,
            grad=rng.standard_normal((n, 8)).astype(np.float32),
            embedding=rng.standard_normal((n, 8)).astype(np.float32),
        )
        for n in (60, 9)
    )
    plain, other = (
        method.select(scaled(pool, by), target=scaled(target, by), seed=seed).indices for by in (1.0, factor)
    )
    assert plain.tolist() == other.tolist()
