"""What a share of the training time affords."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwise as gw
from gradwise.methods.grace.costs import (
    FEWEST_SCORED,
    FEWEST_STEPS,
    MOST_REFRESHES,
    RunSize,
    Speeds,
    forecast,
)
from gradwise.numerics.sampling import stratified_sample
from gradwise.signals import Signals

sizes = st.builds(RunSize, pool=st.integers(2, 50_000), steps=st.integers(1, 3000), batch=st.integers(1, 64))
speeds = st.builds(
    Speeds,
    train=st.floats(1e-3, 1),
    score=st.floats(1e-4, 1),
    startup=st.floats(0, 2),
    compare=st.floats(0, 1e-6),
)
overheads = st.sampled_from([0.05, 0.15, 0.5, 2.0])


class TestForecast:
    @given(sizes, speeds, overheads)
    def test_what_follows_from_the_dial_keeps_to_it(self, size: RunSize, speed: Speeds, overhead: float):
        found = forecast(size, speed, overhead)
        least = speed.startup + 2 * speed.score + 4 * speed.compare
        assert found.share is not None
        assert found.share <= overhead + 1e-9 or found.first == pytest.approx(least)
        assert 2 <= found.candidates <= size.pool
        if found.every:
            refreshes = -(-size.steps // found.every) - 1
            assert 1 <= refreshes <= MOST_REFRESHES
            assert found.every >= FEWEST_STEPS
            assert found.allowance == refreshes * max(1, int(found.anchors * found.candidates + 1e-9))
            assert found.least_anchors == pytest.approx(0.8 * found.anchors)
            # A refresh that measures hardly anything costs a pass and tells nothing.
            assert found.anchors * found.candidates >= min(FEWEST_SCORED, found.candidates / 2) - 1e-6

    @given(sizes, speeds, overheads)
    def test_more_affords_no_less(self, size: RunSize, speed: Speeds, overhead: float):
        less, more = forecast(size, speed, overhead), forecast(size, speed, 2 * overhead)
        assert more.candidates >= less.candidates

    @given(sizes, speeds, overheads)
    def test_one_more_candidate_would_be_too_many(self, size: RunSize, speed: Speeds, overhead: float):
        found = forecast(size, speed, overhead, every=0)
        if 2 < found.candidates < size.pool:
            more = forecast(size, speed, overhead, every=0, candidates=found.candidates + 1)
            assert more.share is not None and more.share > overhead

    @given(sizes, speeds, overheads, st.integers(0, 100), st.floats(0.01, 1))
    def test_what_is_settled_is_done(
        self, size: RunSize, speed: Speeds, overhead: float, every: int, anchors: float
    ):
        found = forecast(size, speed, overhead, candidates=size.pool, every=every, anchors=anchors)
        assert (found.candidates, found.every, found.anchors) == (size.pool, every, anchors)
        count = -(-size.steps // every) - 1 if every else 0
        measured = max(1, int(anchors * size.pool + 1e-9))
        assert found.allowance == count * measured
        assert found.refreshes == pytest.approx(count * (speed.startup + measured * speed.score))

    def test_says_what_it_comes_to(self):
        found = forecast(RunSize(pool=1000, steps=100, batch=10), Speeds(0.3, 0.1), 0.5)
        assert str(found) == (
            "grace scores 1,000 samples and selects again every 17 steps; that is expected to take "
            "150.0 s, 50% of 300.0 s of training"
        )


class TestFewCandidates:
    def pool(self) -> Signals:
        rng = np.random.default_rng(0)
        return Signals(
            200,
            embedding=rng.standard_normal((200, 6)).astype(np.float32),
            loss=rng.random(200).astype(np.float32),
            num_tokens=rng.integers(5, 30, 200).astype(np.int32),
        )

    @pytest.mark.parametrize("candidates", [10, 40, 60, 150, 200])
    def test_the_rest_of_the_budget_is_filled_at_random(self, candidates: int):
        picked = gw.Grace(importance="loss", count=40, candidates=candidates).select(self.pool(), seed=1)
        assert len(set(picked.indices.tolist())) == 40
        scored = set(stratified_sample(200, candidates, None, 1).tolist())
        at_random = [why.startswith("not scored") for why in picked.why]
        assert [index not in scored for index in picked.indices] == at_random
        assert sum(at_random) == max(0, 40 - max(1, int(candidates / 1.5)))
        assert len(picked.columns["rank"]) == 40

    @pytest.mark.parametrize("size", [{"count": 180}, {"fraction": 0.8}, {"tokens": 3000}])
    def test_what_the_others_cannot_fill_is_picked(self, size: dict[str, Any]):
        pool = self.pool()
        picked = gw.Grace(importance="loss", candidates=150, **size).select(pool, seed=1)
        if "tokens" in size:
            assert pool.num_tokens is not None
            assert 2900 < pool.num_tokens[picked.indices].sum() <= 3000
        else:
            assert len(set(picked.indices.tolist())) == size.get("count", 160)

    def test_so_is_a_budget_of_tokens(self):
        pool = self.pool()
        assert pool.num_tokens is not None
        picked = gw.Grace(importance="loss", tokens=1000, candidates=20).select(pool, seed=1)
        assert 900 < pool.num_tokens[picked.indices].sum() <= 1000
        assert picked.details["at_random"] > 0

    def test_another_seed_fills_with_others(self):
        grace, pool = gw.Grace(importance="loss", count=40, candidates=10), self.pool()
        assert grace.select(pool, seed=1).indices.tolist() == grace.select(pool, seed=1).indices.tolist()
        assert grace.select(pool, seed=1).indices.tolist() != grace.select(pool, seed=2).indices.tolist()
