"""Orders against sorting by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise import SignalError, Signals
from gradwise.methods.baselines import EasyFirst, GivenOrder, Interleave, Shuffle

ORDERS = [Shuffle(), GivenOrder(), EasyFirst(), Interleave()]
SHUFFLING = [order for order in ORDERS if not isinstance(order, GivenOrder)]
LOSS = np.array([2.0, np.nan, 5.0, 1.0, np.inf, 5.0, 3.0, 1.0, 1.0, 1.0], dtype=np.float32)
DOMAIN = np.array(["a", "b", "a", "a", "b", "a", "a", "a", "a", "a"])
POOL = Signals(10, loss=LOSS, domain=DOMAIN)
ALL = np.arange(10)

entries = st.lists(st.integers(0, 9), min_size=1, max_size=40).map(
    lambda some: np.array(some, dtype=np.int64)
)


def by_name(order: Any) -> str:
    return order.method


@pytest.mark.parametrize("order", ORDERS, ids=by_name)
class TestEveryOrder:
    @given(some=entries, epoch=st.integers(0, 100), seed=st.integers(0, 2**31))
    def test_holds_each_entry_as_often_as_given(self, order: Any, some: np.ndarray, epoch: int, seed: int):
        before = some.copy()
        ordered = order.order(POOL, some, epoch=epoch, seed=seed).indices
        assert sorted(ordered.tolist()) == sorted(before.tolist())
        assert np.array_equal(some, before)

    def test_the_same_epoch_and_seed_order_the_same(self, order: Any):
        once, again = (order.order(POOL, ALL, epoch=2, seed=5).indices.tolist() for _ in range(2))
        assert once == again

    def test_needs_name_every_signal_that_is_used(self, order: Any):
        available = {"loss": LOSS, "domain": DOMAIN}
        order.order(Signals(10, **{name: available[name] for name in order.needs}), ALL)


@pytest.mark.parametrize("order", SHUFFLING, ids=by_name)
def test_a_new_shuffle_for_each_epoch_and_seed(order: Any):
    pool = Signals(40, loss=np.ones(40, dtype=np.float32), domain=np.repeat(["a", "b"], 20))
    epochs = {tuple(order.order(pool, np.arange(40), epoch=epoch, seed=0).indices) for epoch in range(20)}
    seeds = {tuple(order.order(pool, np.arange(40), epoch=0, seed=seed).indices) for seed in range(20)}
    assert len(epochs) == len(seeds) == 20
    assert len(epochs & seeds) == 1


def test_shuffle_puts_every_entry_everywhere():
    first = np.zeros(5)
    for epoch in range(3000):
        first[Shuffle().order(Signals(5), epoch=epoch).indices[0]] += 1
    assert np.abs(first / 3000 - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / 3000)


@given(entries)
def test_given_order_stays(some: np.ndarray):
    assert GivenOrder().order(POOL, some, epoch=3, seed=4).indices.tolist() == some.tolist()


class TestEasyFirst:
    @given(entries, st.integers(0, 50))
    def test_ascending_by_loss_what_is_not_finite_last(self, some: np.ndarray, epoch: int):
        ordered = EasyFirst().order(POOL, some, epoch=epoch).indices
        loss = LOSS[ordered]
        finite = loss[np.isfinite(loss)]
        assert np.all(np.diff(finite) >= 0)
        assert np.all(np.isfinite(loss[: len(finite)]))

    def test_ties_are_shuffled(self):
        starts = {tuple(EasyFirst().order(POOL, ALL, epoch=epoch).indices[:4]) for epoch in range(20)}
        assert {frozenset(start) for start in starts} == {frozenset({3, 7, 8, 9})}
        assert len(starts) > 5

    def test_says_when_losses_were_not_collected(self):
        with pytest.raises(SignalError, match="easy_first needs the signal 'loss'"):
            EasyFirst().order(Signals(10))


class TestInterleave:
    @given(entries, st.integers(0, 50))
    def test_every_prefix_holds_each_domain_in_proportion(self, some: np.ndarray, epoch: int):
        domain = DOMAIN[Interleave().order(POOL, some, epoch=epoch).indices]
        for name in np.unique(domain):
            share = np.arange(1, len(some) + 1) * np.mean(domain == name)
            assert np.abs(np.cumsum(domain == name) - share).max() < 1

    def test_says_when_domains_are_not_known(self):
        with pytest.raises(SignalError, match="interleave needs the signal 'domain'"):
            Interleave().order(Signals(10))
