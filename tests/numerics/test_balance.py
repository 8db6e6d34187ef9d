"""Balance of prefixes against sums written out."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics.balance import Balance, imbalance


def slow_imbalance(x: np.ndarray, order: np.ndarray) -> float:
    mean = np.mean(x, axis=0)
    scale = np.sqrt(sum(float(np.sum((row - mean) ** 2)) for row in x)) / 2
    if not scale:
        return 0.0
    lengths = [np.linalg.norm(sum(x[i] - mean for i in order[: t + 1])) for t in range(len(order))]
    return float(max(lengths) / scale)


def one_hot_units(seed: int, n: int) -> np.ndarray:
    return np.eye(4)[np.random.default_rng(seed).integers(0, 4, n)]


def relation(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """A share of the pairs of a hidden order."""
    place = rng.permutation(n)
    return (place[:, None] < place[None, :]) & (rng.random((n, n)) < share)


@given(st.integers(0, 1000), st.integers(1, 30))
@settings(max_examples=40)
def test_imbalance_is_the_longest_prefix_sum(seed: int, n: int):
    rng = np.random.default_rng(seed)
    x, order = rng.standard_normal((n, 3)), rng.permutation(n)
    assert abs(imbalance(x, order) - slow_imbalance(x, order)) < 1e-9


def test_random_orders_have_an_imbalance_of_about_one():
    x, rng = np.random.default_rng(0).standard_normal((400, 5)), np.random.default_rng(1)
    values = [imbalance(x, rng.permutation(400)) for _ in range(50)]
    assert 0.9 < np.mean(values) < 1.6
    assert imbalance(np.eye(2)[[0] * 200 + [1] * 200], np.arange(400)) > 5 * np.mean(values)


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0, 2))
@settings(max_examples=50)
def test_each_place_goes_to_the_first_unit_within_the_limit_or_the_nearest(seed: int, n: int, limit: float):
    x, preferred = one_hot_units(seed, n), np.random.default_rng(seed + 1).permutation(n).tolist()
    order = Balance(x, limit).place(preferred, n)
    assert sorted(order) == list(range(n))
    centred = x - x.mean(axis=0)
    scale = np.sqrt((centred**2).sum()) / 2
    total, left = np.zeros(4), list(preferred)
    for unit in order:
        lengths = {other: np.linalg.norm(total + centred[other]) for other in left}
        within = [other for other in left if lengths[other] <= limit * scale * (1 + 1e-9)]
        if within:
            assert unit == within[0]
        else:
            assert lengths[unit] <= min(lengths.values()) + 1e-12
        total += centred[unit]
        left.remove(unit)


@given(st.integers(0, 1000), st.integers(1, 25), st.floats(0, 1), st.none() | st.floats(0, 2))
@settings(max_examples=50)
def test_each_place_goes_to_a_unit_whose_predecessors_are_placed(
    seed: int, n: int, share: float, limit: float | None
) -> None:
    """Against a search through all units that are left, for each place."""
    rng = np.random.default_rng(seed)
    x, preferred, before = one_hot_units(seed, n), rng.permutation(n), relation(rng, n, share)
    placed = Balance(x, limit).place(preferred.tolist(), n, before[np.ix_(preferred, preferred)])
    balance, left = Balance(x, limit), preferred.tolist()
    for unit in placed:
        free = [other for other in left if not before[left, other].any()]
        assert unit == balance.place(free, 1)[0]
        left.remove(unit)


def test_precedences_of_a_large_window_take_time_in_its_square() -> None:
    """It took 10 s in its cube."""
    n = 1500
    before = relation(np.random.default_rng(0), n, 0.01)
    start = time.process_time()
    Balance(one_hot_units(0, n), None).place(range(n), n, before)
    assert time.process_time() - start < 2


@given(st.integers(0, 1000), st.integers(2, 20), st.floats(0, 1))
@settings(max_examples=50)
def test_precedences_always_hold(seed: int, n: int, share: float):
    rng = np.random.default_rng(seed)
    before, preferred = relation(rng, n, share), rng.permutation(n)
    order = Balance(one_hot_units(seed, n), 0.3).place(
        preferred.tolist(), n, before[np.ix_(preferred, preferred)]
    )
    place = np.argsort(order)
    assert np.all((place[:, None] < place[None, :])[before])


def test_the_preferred_order_stays_if_the_limit_allows():
    preferred = np.random.default_rng(0).permutation(30).tolist()
    for limit in (100.0, None):
        balance = Balance(one_hot_units(0, 30), limit)
        assert balance.place(preferred[:12], 5) + balance.place(preferred[5:], 25) == preferred
