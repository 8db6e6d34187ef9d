"""Relevance where target samples take turns: places in rankings, against plain ranks by numpy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

import gradwise as gw
from gradwise.errors import CheckpointError, SignalError
from gradwise.methods.grace.turns import MOST_TURNS, TargetTurns
from gradwise.methods.targeting import Subtasks
from gradwise.signals import Signals


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def turns(target: Any, pool: Any, most: int, domain: Any = None) -> TargetTurns:
    return TargetTurns.of(target, Subtasks.of_domains(domain, len(target)), pool, pool.mean(axis=0), most)


@pytest.mark.parametrize("seed", range(4))
def test_importance_is_the_best_place_in_any_ranking(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool, target = rng.standard_normal((300, 12)), rng.standard_normal((9, 12))
    cosines = unit(target - pool.mean(axis=0)) @ unit(pool - pool.mean(axis=0)).T
    places = rankdata(-cosines, axis=1).min(axis=0)
    found = -turns(target, pool, 30).importance(pool)
    assert found[places == 1] == pytest.approx(0, abs=1e-9)
    # Remembered places are exact, those between them lie between their neighbours.
    exact = np.isin(places, [1, 2, 3, 4, 6, 8, 16, 32, 64])
    assert exact.sum() > 20
    assert found[exact] == pytest.approx(np.log2(places[exact]), abs=1e-9)
    assert np.abs(found - np.log2(places)).max() <= 0.5


@pytest.mark.parametrize("seed", range(4))
def test_a_rare_kind_of_target_sample_has_its_nearest_among_the_picks(seed: int) -> None:
    """Whereas the mean direction is nearly that of the common kind."""
    rng = np.random.default_rng(seed)
    kinds = np.eye(10)
    of = np.repeat([0, 1, 2], [80, 80, 240])
    far = np.repeat([3, 4], [120, 120])
    pool = rng.standard_normal((400, 10)) / 8 + np.concatenate([kinds[of[:160]], kinds[far]])
    target = rng.standard_normal((20, 10)) / 8 + kinds[np.repeat([0, 1], [18, 2])]
    importance = turns(target, pool, 40).importance(pool)
    best = of[np.argsort(-importance)[:40]]
    assert (best == 1).sum() >= 4
    assert (best < 2).all()


def test_groups_take_turns_where_target_samples_are_many() -> None:
    rng = np.random.default_rng(0)
    kinds = np.eye(8)[np.repeat([0, 1, 2], [30, 20, 10])]
    target, pool = kinds + rng.standard_normal((60, 8)) / 20, rng.standard_normal((50, 8))
    found = turns(target, pool, 3)
    middle = pool.mean(axis=0)
    means = unit(np.stack([unit(target - middle)[kinds[:, kind] == 1].mean(axis=0) for kind in range(3)]))
    assert found.units.shape == (3, 8)
    nearest = (found.units @ means.T).max(axis=0)
    assert nearest == pytest.approx(1, abs=1e-3)
    alone = turns(target, pool, 1).units
    assert alone[0] == pytest.approx(unit(unit(target - middle).mean(axis=0, keepdims=True))[0])


def test_many_target_samples_are_thinned_and_each_subtask_is_left_some() -> None:
    rng = np.random.default_rng(1)
    target, pool = rng.standard_normal((5000, 4)), rng.standard_normal((30, 4))
    domain = np.where(np.arange(5000) % 500 == 0, "rare", "common")
    found = turns(target, pool, 4000, domain)
    assert found.names == ("common", "rare")
    assert len(found.units) <= MOST_TURNS + 1
    assert np.bincount(found.subtask).min() >= 1
    assert found.by_subtask(pool).shape == (2, 30)


def test_target_samples_that_are_not_finite_or_all_in_the_middle_say_nothing() -> None:
    rng = np.random.default_rng(2)
    pool, target = rng.standard_normal((30, 4)), rng.standard_normal((6, 4))
    broken = np.concatenate([target, np.full((1, 4), np.nan)])
    assert np.array_equal(turns(broken, pool, 10).importance(pool), turns(target, pool, 10).importance(pool))
    with pytest.raises(SignalError, match="None of 3 target samples"):
        turns(np.tile(pool.mean(axis=0), (3, 1)), pool, 10)


def test_a_target_sample_that_all_candidates_are_equally_far_from_says_nothing() -> None:
    """As one that is orthogonal to all. Each would otherwise be its nearest."""
    rng = np.random.default_rng(3)
    half, target = rng.integers(-50, 50, (40, 6)).astype(float), rng.standard_normal((5, 6))
    half[:, 5] = target[:, 5] = 0
    pool = np.concatenate([half, -half])  # whose middle is 0 to the last bit
    alone = turns(target, pool, 40).importance(pool)
    assert len(np.unique(alone)) > 20
    more = np.concatenate([target, np.eye(6)[5:]])
    assert np.array_equal(turns(more, pool, 40).importance(pool), alone)


def test_a_subtask_that_is_lost_at_a_refresh_is_said() -> None:
    rng = np.random.default_rng(4)
    pool, target = (
        Signals(
            count,
            embedding=rng.standard_normal((count, 6)).astype("f4"),
            grad=rng.standard_normal((count, 6)).astype("f4"),
            num_tokens=np.full(count, 5),
        )
        for count in (40, 20)
    )
    target = replace(target, domain=np.repeat(["a", "b"], 10))
    grace = gw.Grace(count=10, target="target", candidates="all", importance="alignment")
    state, anchors = grace.begin(pool, pool=40, target=target), np.arange(9)
    grads = np.array(target.grad)
    grads[10:] = np.nan
    with pytest.raises(SignalError, match=r"2 subtasks of the target had finite gradients .* 1 have now"):
        grace.refresh(state, anchors, pool.take(anchors), 5, target=replace(target, grad=grads))


def pool_and_target(seed: int) -> tuple[Signals, Signals]:
    rng = np.random.default_rng(seed)
    pool, target = (
        Signals(count, embedding=rng.standard_normal((count, 6)).astype("f4"), num_tokens=np.full(count, 5))
        for count in (80, 12)
    )
    return pool, target


@pytest.mark.parametrize("seed", range(3))
def test_a_refresh_knows_places_where_all_cosines_have_changed(seed: int) -> None:
    """As by a shift of all embeddings, which changes no ranking: a node keeps its place."""
    pool, target = pool_and_target(seed)
    grace = gw.Grace(count=10, target="target", candidates="all", random_anchors=1.0)
    state = grace.begin(pool, pool=80, target=target)
    anchors = np.arange(0, 80, 4)
    moved, aims = (
        replace(each, embedding=np.asarray(each.embedding) + np.float32(3)) for each in (pool, target)
    )
    after = grace.refresh(state, anchors, moved.take(anchors), 5, target=aims).state
    assert after.importance == pytest.approx(state.importance, abs=1e-3)
    assert len(np.unique(after.importance[anchors].round(3))) > 5


def test_a_refresh_of_all_nodes_is_a_first_scoring_run() -> None:
    (pool, target), (later, aims) = pool_and_target(0), pool_and_target(1)
    grace = gw.Grace(count=10, target="target", candidates="all", anchors=1)
    refreshed = grace.refresh(
        grace.begin(pool, pool=80, target=target), np.arange(80), later, 5, target=aims
    ).state
    first = grace.begin(later, pool=80, target=aims)
    assert np.array_equal(refreshed.importance, first.importance)
    assert np.array_equal(grace.pick(refreshed, later).indices, grace.pick(first, later).indices)


def test_a_state_of_earlier_versions_is_refused() -> None:
    """Its relevance was a difference of cosines, and changes of both would be added up."""
    pool, target = pool_and_target(0)
    grace = gw.Grace(count=10, target="target", candidates="all")
    old = grace.begin(pool, pool=80, target=target).changed(bounds=np.zeros(1))
    with pytest.raises(CheckpointError, match="earlier version"):
        grace.refresh(old, np.arange(9), pool.take(np.arange(9)), 5, target=target)
