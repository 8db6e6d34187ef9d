"""Balance of prefixes against sums written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradwise.numerics.balance import balanced, imbalance


def by_hand(x: np.ndarray, order: np.ndarray) -> float:
    mean = np.mean(x, axis=0)
    spread = np.sqrt(sum(float(np.sum((row - mean) ** 2)) for row in x)) / 2
    if not spread:
        return 0.0
    lengths = [np.linalg.norm(sum(x[i] - mean for i in order[: t + 1])) for t in range(len(order))]
    return float(max(lengths) / spread)


def pieces(seed: int, n: int) -> np.ndarray:
    return np.eye(4)[np.random.default_rng(seed).integers(0, 4, n)]


def acyclic(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Some pairs of a hidden order."""
    hidden, before = rng.permutation(n), np.zeros((n, n), dtype=bool)
    for first in range(n):
        for later in range(first + 1, n):
            before[hidden[first], hidden[later]] = rng.random() < share
    return before


@given(st.integers(0, 1000), st.integers(1, 30))
def test_imbalance_is_the_longest_prefix_sum(seed: int, n: int):
    rng = np.random.default_rng(seed)
    x, order = rng.standard_normal((n, 3)), rng.permutation(n)
    assert abs(imbalance(x, order) - by_hand(x, order)) < 1e-9


def test_random_orders_have_about_one():
    x, rng = np.random.default_rng(0).standard_normal((400, 5)), np.random.default_rng(1)
    found = [imbalance(x, rng.permutation(400)) for _ in range(50)]
    assert 0.9 < np.mean(found) < 1.6
    assert imbalance(np.eye(2)[[0] * 200 + [1] * 200], np.arange(400)) > 10 * np.mean(found) / 2


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0, 2))
def test_a_limit_is_kept_to_or_the_nearest_is_taken(seed: int, n: int, limit: float):
    x, wish = pieces(seed, n), np.random.default_rng(seed + 1).permutation(n)
    order = balanced(x, wish, limit)
    assert sorted(order.tolist()) == list(range(n))
    centred = x - x.mean(axis=0)
    scale = np.sqrt((centred**2).sum()) / 2
    total, left = np.zeros(4), wish.tolist()
    for unit in order:
        lengths = {other: np.linalg.norm(total + centred[other]) for other in left}
        within = [other for other in left if lengths[other] <= limit * scale * (1 + 1e-9)]
        if within:
            assert unit == within[0]
        else:
            assert lengths[unit] <= min(lengths.values()) + 1e-12
        total += centred[unit]
        left.remove(int(unit))


@given(st.integers(0, 1000), st.integers(2, 20), st.floats(0, 1))
def test_precedences_hold_whatever_the_balance(seed: int, n: int, share: float):
    rng = np.random.default_rng(seed)
    before = acyclic(rng, n, share)
    order = balanced(pieces(seed, n), rng.permutation(n), 0.3, before)
    place = np.argsort(order)
    assert all(place[i] < place[j] for i, j in zip(*np.nonzero(before), strict=True))


def test_no_wish_is_changed_without_need():
    wish = np.random.default_rng(0).permutation(30)
    assert balanced(pieces(0, 30), wish, 100.0).tolist() == wish.tolist()
