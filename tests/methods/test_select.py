"""Selections against sorting by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise import RecipeError, SignalError, Signals
from gradwise.methods.baselines import (
    FullData,
    GradNormTop,
    KCenter,
    LengthTop,
    LossTop,
    RandomSubset,
)

SUBSETS = [RandomSubset, LossTop, LengthTop, GradNormTop, KCenter]
LOSS = np.array([2.0, np.nan, 5.0, 1.0, np.inf, 5.0, 3.0], dtype=np.float32)
TOKENS = np.array([10, 90, 50, 10, 70, 20, 90], dtype=np.int32)
WEIGHT = np.arange(1.0, 8.0)
NORM = LOSS[::-1].copy()
EMBEDDING = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
POOL = Signals(7, num_tokens=TOKENS, loss=LOSS, grad_norm=NORM, embedding=EMBEDDING, weight=WEIGHT)

every_subset = pytest.mark.parametrize("method", SUBSETS)


@every_subset
class TestEverySubset:
    @given(count=st.integers(1, 5))
    def test_distinct_members_of_the_pool_with_their_weights(self, method: Any, count: int):
        pick = method(count=count).select(POOL, seed=2)
        assert len(pick.indices) == len(set(pick.indices.tolist())) == count
        assert set(pick.indices.tolist()) <= set(range(7))
        assert pick.weights.tolist() == WEIGHT[pick.indices].tolist()
        assert len(pick.why) == 1
        assert pick.why[0]

    @pytest.mark.parametrize("count", [1, 3])
    def test_samples_that_could_not_be_measured_make_no_selection_smaller(self, method: Any, count: int):
        sound = np.array([0, 3, 6])
        pool = replace(POOL, ok=np.isin(np.arange(7), sound))
        picked = method(count=count).select(pool, seed=2).indices
        assert len(picked) == count and set(picked.tolist()) <= set(sound.tolist())
        with pytest.raises(RecipeError, match="only 3 samples"):
            method(count=4).select(pool)

    def test_the_same_seed_picks_the_same(self, method: Any):
        once, again = (method(count=3).select(POOL, seed=4).indices.tolist() for _ in range(2))
        assert once == again

    @given(pool=st.integers(1, 500), fraction=st.floats(0.001, 1))
    def test_a_fraction_is_rounded_and_never_nothing(self, method: Any, pool: int, fraction: float):
        if fraction * pool < 0.5:
            with pytest.raises(RecipeError, match=f"is none of {pool} samples"):
                method(fraction=fraction).size(pool)
        else:
            assert method(fraction=fraction).size(pool) == max(1, round(fraction * pool))

    def test_all_of_it_is_a_part(self, method: Any):
        flat = np.ones(4, dtype=np.float32)
        pool = Signals(4, num_tokens=TOKENS[:4], loss=flat, grad_norm=flat, embedding=EMBEDDING[:4])
        for whole in (method(count=4), method(fraction=1.0)):
            assert sorted(whole.select(pool).indices.tolist()) == [0, 1, 2, 3]

    @pytest.mark.parametrize("size", [{}, {"fraction": 0.5, "count": 3}])
    def test_fraction_and_count_exclude_each_other(self, method: Any, size: dict[str, Any]):
        with pytest.raises(
            RecipeError, match=r"select: give either fraction or count; found fraction=.*, count="
        ):
            method(**size)

    @pytest.mark.parametrize(
        "size", [{"fraction": 0.0}, {"fraction": 1.2}, {"fraction": -1}, {"count": 0}, {"count": -3}]
    )
    def test_sizes_out_of_range_are_refused(self, method: Any, size: dict[str, Any]):
        with pytest.raises(RecipeError, match=f"{method.__name__}.{next(iter(size))}: input should be"):
            method(**size)

    def test_more_than_there_are_is_refused(self, method: Any):
        with pytest.raises(RecipeError, match=r"count is 8, but only \d samples"):
            method(count=8).select(POOL)


class TestFullData:
    def test_everything_in_the_order_of_the_data(self):
        pick = FullData().select(POOL)
        assert pick.indices.tolist() == list(range(7))
        assert pick.weights is WEIGHT

    def test_needs_nothing(self):
        assert FullData().select(Signals(3)).weights is None


class TestRandomSubset:
    def test_in_the_order_of_the_data(self):
        indices = RandomSubset(count=5).select(POOL, seed=1).indices
        assert np.all(np.diff(indices) > 0)

    def test_another_one_for_each_seed(self):
        picks = {
            tuple(RandomSubset(fraction=0.5).select(Signals(20), seed=seed).indices) for seed in range(20)
        }
        assert len(picks) == 20

    def test_every_sample_has_the_same_chance(self):
        times = np.zeros(10)
        for seed in range(3000):
            times[RandomSubset(count=3).select(Signals(10), seed=seed).indices] += 1
        assert np.abs(times / 3000 - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 3000)


class TestLossTop:
    def test_highest_first_the_earlier_where_they_tie(self):
        pick = LossTop(count=3).select(POOL)
        assert pick.indices.tolist() == [2, 5, 6]
        assert pick.scores is not None
        assert pick.scores.tolist() == [5.0, 5.0, 3.0]

    @given(
        st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=30), st.data()
    )
    def test_against_sorting_by_hand(self, losses: list[float], data: st.DataObject):
        finite = [index for index, loss in enumerate(losses) if np.isfinite(loss)]
        pool = Signals(len(losses), loss=np.array(losses, dtype=np.float32))
        if not finite:
            with pytest.raises(SignalError, match="No sample has a finite loss"):
                LossTop(count=1).select(pool)
            return
        count = data.draw(st.integers(1, len(finite)))
        picked = LossTop(count=count).select(pool).indices.tolist()
        assert picked == sorted(finite, key=lambda index: (-losses[index], index))[:count]

    def test_losses_that_are_not_finite_are_never_picked(self):
        everything = LossTop(fraction=1.0).select(POOL).indices.tolist()
        assert sorted(everything) == [0, 2, 3, 5, 6]
        with pytest.raises(RecipeError, match=r"select\.count is 6, but only 5 samples"):
            LossTop(count=6).select(POOL)

    def test_says_when_losses_were_not_collected(self):
        with pytest.raises(SignalError, match="loss_top needs the signal 'loss'"):
            LossTop(count=1).select(Signals(3))


class TestLengthTop:
    def test_longest_first_the_earlier_where_they_tie(self):
        assert LengthTop(count=4).select(POOL).indices.tolist() == [1, 6, 4, 2]

    def test_says_when_lengths_were_not_collected(self):
        with pytest.raises(SignalError, match="length_top needs the signal 'num_tokens'"):
            LengthTop(count=1).select(Signals(3))


class TestGradNormTop:
    def test_largest_first_and_never_what_is_not_finite(self):
        pick = GradNormTop(count=3).select(POOL)
        assert pick.indices.tolist() == [1, 4, 0]


class TestKCenter:
    def test_copies_come_last_and_what_is_not_finite_never(self):
        rows = np.array([0, 1, 2, 0, 1, 2, 3])
        x = EMBEDDING[rows].copy()
        x[6, 0] = np.nan
        pick = KCenter(count=6).select(Signals(7, embedding=x))
        assert sorted(rows[pick.indices[:3]]) == [0, 1, 2]
        assert 6 not in pick.indices


@pytest.mark.parametrize(
    "method", [FullData(), *(subset(count=1) for subset in SUBSETS)], ids=lambda m: m.method
)
def test_needs_name_every_signal_that_is_used(method: Any):
    """With just what it says it needs, a method runs; that is how the trainer decides what to measure."""
    available = {"loss": LOSS, "num_tokens": TOKENS, "grad_norm": NORM, "embedding": EMBEDDING}
    pool = Signals(7, **{name: available[name] for name in method.needs})
    assert len(method.select(pool).indices)
