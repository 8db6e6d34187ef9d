"""How many samples GRACE's refreshes score over a run, and shares of subtasks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.methods.costs import RunSize, Speeds
from gradwise.methods.grace.costs import forecast
from gradwise.methods.grace.refresh import next_share
from gradwise.signals import Signals


def signals(n: int = 200, seed: int = 0) -> Signals:
    rng = np.random.default_rng(seed)
    return Signals(
        n,
        embedding=rng.standard_normal((n, 6)).astype(np.float32),
        loss=rng.random(n).astype(np.float32),
        num_tokens=rng.integers(5, 30, n).astype(np.int32),
    )


def refreshes(grace: gw.Grace, agreeing: bool) -> tuple[list[int], Any, Any]:
    """Anchors of every refresh of a run over 200 samples, its forecast, and the state it began with."""
    pool = signals()
    expected = forecast(
        RunSize(pool=200, steps=400, batch=8), Speeds(0.01, 0.01), 0.3, candidates=200, anchors=grace.anchors
    )
    begun = state = grace.begin(pool, forecast=expected)
    counts = []
    for step in range(expected.every, expected.steps, expected.every):
        anchors = grace.anchors_at(state, step)
        counts.append(len(anchors))
        later = pool if agreeing else signals(seed=step)
        state = grace.refresh(state, anchors, later.take(anchors), step).state
    return counts, expected, begun


@pytest.mark.parametrize("anchors", [None, 0.05])
def test_no_refresh_is_left_without_anchors(anchors: float | None) -> None:
    """However badly propagation agrees: the first ones leave the later ones their least share."""
    grace = gw.Grace(count=20, importance="loss", by_length=False, anchors=anchors)
    counts, expected, begun = refreshes(grace, agreeing=False)
    assert len(counts) == begun.planned > 3
    assert min(counts) >= round(0.8 * expected.anchors * 200)
    assert sum(counts) <= expected.allowance
    assert counts[1] > counts[0], "a refresh that shows no agreement is followed by a larger one"


def test_agreement_costs_no_refresh_its_anchors() -> None:
    grace = gw.Grace(count=20, importance="loss", by_length=False, anchors=0.05)
    counts, expected, _ = refreshes(grace, agreeing=True)
    assert min(counts) >= round(0.8 * expected.anchors * 200)


def test_shares_of_more_than_a_half_grow_and_shrink_as_others_do() -> None:
    assert next_share(0.8, agreement=0.1, least_agreement=0.8) == pytest.approx(0.8)
    assert next_share(0.8, agreement=0.9, least_agreement=0.8) == pytest.approx(0.64)
    grace = gw.Grace(count=20, importance="loss", by_length=False, anchors=0.9)
    _, _, begun = refreshes(grace, agreeing=False)
    assert (begun.share, begun.least_share) == pytest.approx((0.9, 0.72))


def test_a_fraction_gives_subtasks_the_shares_of_a_count() -> None:
    """Without texts too: the subtask with the lower cosines would otherwise have hardly a pick."""
    rng = np.random.default_rng(0)
    ways = rng.standard_normal((2, 8))

    def near(way: np.ndarray, count: int, noise: float) -> np.ndarray:
        return way + noise * rng.standard_normal((count, 8))

    embedding = np.concatenate(
        [near(ways[0], 60, 0.2), near(ways[1], 60, 1.5), 3 * rng.standard_normal((120, 8))]
    )
    pool = Signals(240, embedding=embedding.astype(np.float32), num_tokens=np.full(240, 9, dtype=np.int32))
    aims = np.concatenate([near(ways[0], 20, 0.1), near(ways[1], 20, 0.1)]).astype(np.float32)
    target = Signals(40, embedding=aims, domain=np.array(["a"] * 20 + ["b"] * 20))
    by_count = gw.Grace(count=24, target="target").select(pool, target=target)
    by_fraction = gw.Grace(fraction=0.1, target="target").select(pool, target=target)
    assert by_fraction.indices.tolist() == by_count.indices.tolist()
    by_tokens = gw.Grace(tokens=24 * 9, target="target").select(pool, target=target)
    # A budget in tokens has no minimum for each subtask, so a pick may differ.
    assert len(set(by_tokens.indices.tolist()) - set(by_count.indices.tolist())) <= 1
    few = replace(pool, num_tokens=np.where(np.arange(240) % 2, 9, 0).astype(np.int32))
    assert gw.Grace(tokens=90, target="target").select(few, target=target).details["label_tokens"] <= 90
