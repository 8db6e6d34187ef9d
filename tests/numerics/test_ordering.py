"""Linear orders against every permutation, the search against the exact recursion, and precedences."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import linear_order, order_bound, order_value
from gradwise.numerics import ordering as module
from gradwise.numerics.insertion import climb
from gradwise.numerics.ordering import default_moves

KINDS = ("random", "planted", "sparse", "ties", "signed", "heavy tails")


def matrix(kind: str, n: int, seed: int) -> np.ndarray:
    """Weights of a kind."""
    rng = np.random.default_rng([seed, n])
    w = rng.random((n, n))
    if kind == "planted":
        place = rng.permutation(n)
        w += 0.6 * (place[:, None] < place[None, :])
    if kind == "sparse":
        w[rng.random((n, n)) < 0.8] = 0
    if kind == "ties":
        w = rng.integers(0, 3, (n, n)).astype(float)
    if kind == "signed":
        w = rng.standard_normal((n, n)) - 5
    if kind == "heavy tails":
        w = np.exp(3 * rng.standard_normal((n, n)))
    return w


def relation(n: int, share: float, seed: int) -> np.ndarray:
    """Precedences without a cycle: a share of the pairs of a hidden order."""
    rng = np.random.default_rng([seed, n, 1])
    place = rng.permutation(n)
    return (place[:, None] < place[None, :]) & (rng.random((n, n)) < share)


def kept(order: np.ndarray, before: np.ndarray) -> bool:
    place = np.argsort(order)
    return bool(np.all((place[:, None] < place[None, :])[before]))


def most(w: np.ndarray, before: np.ndarray | None = None) -> float:
    """The best of all permutations."""
    orders = np.array(list(permutations(range(len(w)))))
    values = np.zeros(len(orders))
    for a in range(len(w)):
        for b in range(a + 1, len(w)):
            values += w[orders[:, a], orders[:, b]]
            if before is not None:
                values[before[orders[:, b], orders[:, a]]] = -np.inf
    return float(values.max())


class TestExact:
    @given(st.sampled_from(KINDS), st.integers(1, 7), st.integers(0, 999))
    @settings(max_examples=60)
    def test_is_the_best_of_all_permutations(self, kind: str, n: int, seed: int):
        w = matrix(kind, n, seed)
        assert order_value(w, linear_order(w)) == pytest.approx(most(w), rel=1e-12, abs=1e-12)

    @given(
        st.sampled_from(KINDS), st.integers(2, 7), st.sampled_from([0.1, 0.3, 0.6, 1.0]), st.integers(0, 999)
    )
    @settings(max_examples=60)
    def test_also_with_precedences(self, kind: str, n: int, share: float, seed: int):
        w, before = matrix(kind, n, seed), relation(n, share, seed)
        order = linear_order(w, precedences=before)
        assert kept(order, before)
        assert order_value(w, order) == pytest.approx(most(w, before), rel=1e-12, abs=1e-12)

    def test_what_no_cycle_joins_is_exact_at_any_size(self):
        """Cycles of three, in a hidden order; no search could be sure of that many."""
        rng, items = np.random.default_rng(0), np.arange(150)
        groups, hidden = items // 3, rng.permutation(150)
        w = np.where(groups[:, None] < groups[None, :], rng.random((150, 150)), 0)
        w += (groups[:, None] == groups[None, :]) & ((items[None, :] - items[:, None]) % 3 == 1)
        order = linear_order(w[np.ix_(hidden, hidden)], max_moves=0)
        assert order_value(w, hidden[order]) == pytest.approx(order_bound(w) - 50, rel=1e-12)


class TestSearch:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("constrained", [False, True])
    def test_finds_the_optimum_of_few_items(self, kind: str, constrained: bool, monkeypatch):
        for n in range(2, 12):
            for seed in range(6):
                w, before = matrix(kind, n, seed), relation(n, 0.1 if constrained else 0, seed)
                monkeypatch.setattr(module, "EXACT", 16)
                best = order_value(w, linear_order(w, precedences=before))
                monkeypatch.setattr(module, "EXACT", 1)
                found = linear_order(w, seed, precedences=before)
                assert kept(found, before)
                assert order_value(w, found) == pytest.approx(best, rel=1e-12, abs=1e-12)

    @given(
        st.sampled_from(KINDS),
        st.integers(17, 60),
        st.floats(0, 1),
        st.integers(0, 999),
        st.integers(0, 3000),
    )
    @settings(max_examples=60)
    def test_never_violates_a_precedence(self, kind: str, n: int, share: float, seed: int, moves: int):
        w, before = matrix(kind, n, seed), relation(n, share**2, seed)
        order = linear_order(w, seed, moves, before)
        assert sorted(order) == list(range(n))
        assert kept(order, before)

    def test_one_order_is_left_where_all_pairs_are_given(self):
        before = relation(40, 1, 0)
        assert linear_order(matrix("random", 40, 0), precedences=before).tolist() == (
            np.argsort(-before.sum(axis=1)).tolist()
        )

    @pytest.mark.parametrize("kind", ["random", "planted", "heavy tails"])
    def test_no_row_gains_by_another_place(self, kind: str):
        w = matrix(kind, 30, 0)
        order = linear_order(w, max_moves=20_000)
        value = order_value(w, order)
        for row in order:
            rest = order[order != row]
            for place in range(30):
                assert order_value(w, np.insert(rest, place, row)) <= value * (1 + 1e-12)

    def test_more_moves_are_never_worse(self):
        w = matrix("random", 80, 0)
        values = [order_value(w, linear_order(w, 0, moves)) for moves in (0, 80, 800, 8_000, 80_000, 800_000)]
        assert values == sorted(values)
        assert values[0] < values[2] < values[-1]

    @pytest.mark.parametrize("kind", ["random", "heavy tails"])
    def test_a_tenth_of_the_moves_nears_the_best(self, kind: str):
        """The whole bar is the benchmark's."""
        w = matrix(kind, 120, 0)
        tenth, whole = (linear_order(w, 1, moves) for moves in (default_moves(120) // 10, None))
        assert order_value(w, tenth) >= 0.999 * order_value(w, whole)

    def test_a_planted_order_is_found(self):
        rng = np.random.default_rng(0)
        hidden, w = rng.permutation(150), rng.random((150, 150))
        w[np.ix_(hidden, hidden)] += 0.5 * np.triu(np.ones((150, 150)), 1)
        found = linear_order(w, max_moves=50_000)
        assert order_value(w, found) >= order_value(w, hidden)

    def test_climbing_keeps_to_its_moves(self):
        gains = np.random.default_rng(0).standard_normal((50, 50))
        gains -= gains.T
        for moves in (1, 49, 200):
            assert climb(gains, np.arange(50), moves, 1e-12) == moves


class TestWhatDoesNotMatter:
    @pytest.mark.parametrize("n", [9, 40])
    @pytest.mark.parametrize("kind", KINDS)
    def test_units(self, kind: str, n: int):
        w = matrix(kind, n, 3)
        expected = linear_order(w, 5, 20_000).tolist()
        for factor in (2.0**-900, 2.0**20, 2.0**900):
            assert linear_order(w * factor, 5, 20_000).tolist() == expected
        if kind != "ties":  # rounding may decide between orders of one value
            for factor in (1e-200, 0.1, 3.0, 1e300):
                assert linear_order(w * factor, 5, 20_000).tolist() == expected

    @pytest.mark.parametrize("n", [9, 40])
    def test_what_both_senses_of_a_pair_share(self, n: int):
        w = np.random.default_rng(0).integers(-50, 50, (n, n)).astype(float)
        both = np.random.default_rng(1).integers(-50, 50, (n, n))
        shifted = w + both + both.T
        assert linear_order(shifted, 5, 20_000).tolist() == linear_order(w, 5, 20_000).tolist()

    def test_the_diagonal(self):
        w = matrix("random", 8, 0)
        expected = linear_order(w).tolist()
        np.fill_diagonal(w, np.nan)
        assert linear_order(w).tolist() == expected

    def test_what_is_given_is_not_changed(self):
        w, before = matrix("random", 20, 0), relation(20, 0.2, 0)
        copies = w.copy(), before.copy()
        linear_order(w, precedences=before, max_moves=1000)
        assert np.array_equal(w, copies[0]) and np.array_equal(before, copies[1])


class TestSeed:
    @pytest.mark.parametrize("n", [10, 60])
    def test_the_same_gives_the_same(self, n: int):
        w = matrix("ties", n, 0)
        first = linear_order(w, 7, 5_000)
        np.random.default_rng().random()
        assert linear_order(w, 7, 5_000).tolist() == first.tolist()

    def test_another_searches_elsewhere(self):
        w = matrix("random", 100, 0)
        assert len({tuple(linear_order(w, seed, 3_000)) for seed in range(4)}) > 1

    def test_numpys_own_random_numbers_are_left_alone(self):
        state = np.random.get_state()[1].tolist()  # type: ignore[index]
        linear_order(matrix("random", 30, 0), max_moves=5_000)
        assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


class TestEdges:
    def test_few_items(self):
        assert linear_order(np.zeros((0, 0))).tolist() == []
        assert linear_order([[3.0]]).tolist() == [0]
        assert linear_order([[3.0]]).dtype == np.int64

    def test_items_of_equal_worth_stay_as_they_were(self):
        assert linear_order(np.ones((40, 40))).tolist() == list(range(40))

    def test_a_search_ends_at_what_no_order_exceeds(self):
        """It would take weeks otherwise."""
        w, before = matrix("random", 40, 0), relation(40, 1, 0)
        assert kept(linear_order(w, max_moves=10**30, precedences=before), before)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_not_finite_are_refused(self, bad: float):
        w = np.zeros((3, 3))
        w[1, 2] = bad
        with pytest.raises(ValueError, match=r"must be finite; the one from 1 to 2 is"):
            linear_order(w)

    def test_weights_that_are_not_square_are_refused(self):
        for shape in ((3,), (2, 3), (2, 2, 2)):
            with pytest.raises(ValueError, match="as many rows as columns"):
                linear_order(np.zeros(shape))

    def test_precedences_that_contradict_each_other_are_refused(self):
        before = np.zeros((5, 5), dtype=bool)
        before[1, 3] = before[3, 4] = before[4, 1] = before[0, 1] = True
        with pytest.raises(ValueError, match=r"each of 1, 3, 4 has to come before itself"):
            linear_order(np.zeros((5, 5)), precedences=before)
        with pytest.raises(ValueError, match=r"each of 2 has to come before itself"):
            linear_order(np.zeros((5, 5)), precedences=np.diag(np.arange(5) == 2))
        with pytest.raises(ValueError, match=r"0, 1, 2, 3, 4, 5, 6, 7, \.\.\. has"):
            linear_order(np.zeros((9, 9)), precedences=np.ones((9, 9), dtype=bool))

    def test_precedences_of_another_kind_are_refused(self):
        for before in (np.zeros((2, 2), dtype=bool), np.zeros((3, 3))):
            with pytest.raises(ValueError, match="precedences of bool in shape"):
                linear_order(np.zeros((3, 3)), precedences=before)

    def test_moves_below_zero_are_refused(self):
        with pytest.raises(ValueError, match="must not be negative; found -1"):
            linear_order(np.zeros((3, 3)), max_moves=-1)


def test_value_and_bound_are_sums_over_pairs():
    w, order = matrix("signed", 9, 0), np.random.default_rng(0).permutation(9)
    slow = sum(w[order[a], order[b]] for a in range(9) for b in range(a + 1, 9))
    assert order_value(w, order) == pytest.approx(slow)
    assert order_bound(w) == pytest.approx(sum(max(w[i, j], w[j, i]) for i in range(9) for j in range(i)))
    assert most(w[:7, :7]) <= order_bound(w[:7, :7])
    with pytest.raises(ValueError, match="an order of 9 items, each of them once"):
        order_value(w, [0] * 9)
