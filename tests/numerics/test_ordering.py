"""Linear orders against every permutation, the search against the exact recursion, and broken cycles."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import break_cycles, linear_order, order_bound, order_value
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
    """Acyclic precedences: a share of the pairs of a hidden order."""
    rng = np.random.default_rng([seed, n, 1])
    place = rng.permutation(n)
    return (place[:, None] < place[None, :]) & (rng.random((n, n)) < share)


def obeys(order: np.ndarray, before: np.ndarray) -> bool:
    place = np.argsort(order)
    return bool(np.all((place[:, None] < place[None, :])[before]))


def best_value(w: np.ndarray, before: np.ndarray | None = None) -> float:
    """The largest value of all permutations."""
    orders = np.array(list(permutations(range(len(w)))))
    values = np.zeros(len(orders))
    for a in range(len(w)):
        for b in range(a + 1, len(w)):
            values += w[orders[:, a], orders[:, b]]
            if before is not None:
                values[before[orders[:, b], orders[:, a]]] = -np.inf
    return float(values.max())


class TestExact:
    @given(
        st.sampled_from(KINDS),
        st.integers(1, 7),
        st.sampled_from([0, 0.1, 0.3, 0.6, 1.0]),
        st.integers(0, 999),
    )
    @settings(max_examples=80)
    def test_value_is_the_best_of_all_permutations(self, kind: str, n: int, share: float, seed: int):
        w, before = matrix(kind, n, seed), relation(n, share, seed)
        order = linear_order(w, precedences=before if share else None)
        assert obeys(order, before)
        assert order_value(w, order) == pytest.approx(best_value(w, before), rel=1e-12, abs=1e-12)

    def test_order_of_components_is_exact_at_any_size(self):
        """Cycles of three in a hidden order; no search would find it."""
        rng, items = np.random.default_rng(0), np.arange(150)
        groups, hidden = items // 3, rng.permutation(150)
        w = np.where(groups[:, None] < groups[None, :], rng.random((150, 150)), 0)
        w += (groups[:, None] == groups[None, :]) & ((items[None, :] - items[:, None]) % 3 == 1)
        order = linear_order(w[np.ix_(hidden, hidden)], max_moves=0)
        assert order_value(w, hidden[order]) == pytest.approx(order_bound(w) - 50, rel=1e-12)


class TestSearch:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("share", [0, 0.1])
    def test_finds_the_optimum_of_few_items(self, kind: str, share: float, monkeypatch):
        for n in range(2, 12):
            for seed in range(3):
                w, before = matrix(kind, n, seed), relation(n, share, seed)
                monkeypatch.setattr(module, "EXACT", 16)
                best = order_value(w, linear_order(w, precedences=before))
                monkeypatch.setattr(module, "EXACT", 1)
                order = linear_order(w, seed, precedences=before)
                assert obeys(order, before)
                assert order_value(w, order) == pytest.approx(best, rel=1e-12, abs=1e-12)

    @given(
        st.sampled_from(KINDS),
        st.integers(17, 60),
        st.floats(0, 1),
        st.integers(0, 999),
        st.integers(0, 3000),
    )
    @settings(max_examples=50)
    def test_never_violates_a_precedence(self, kind: str, n: int, share: float, seed: int, moves: int):
        w, before = matrix(kind, n, seed), relation(n, share**2, seed)
        order = linear_order(w, seed, moves, before)
        assert sorted(order) == list(range(n))
        assert obeys(order, before)

    def test_precedences_of_all_pairs_leave_one_order(self):
        """And the search ends at once: the bound is reached."""
        w, before = matrix("random", 40, 0), relation(40, 1, 0)
        order = linear_order(w, max_moves=10**30, precedences=before)
        assert order.tolist() == np.argsort(-before.sum(axis=1)).tolist()

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
        values = [order_value(w, linear_order(w, 0, moves)) for moves in (0, 80, 800, 8_000, 80_000, 400_000)]
        assert values == sorted(values)
        assert values[0] < values[2] < values[-1]

    @pytest.mark.parametrize("kind", ["random", "heavy tails"])
    def test_a_tenth_of_the_moves_comes_near_the_best(self, kind: str):
        """The benchmark d3-solver compares with best known values."""
        w = matrix(kind, 100, 0)
        fewer, default = (linear_order(w, 1, moves) for moves in (default_moves(100) // 10, None))
        assert order_value(w, fewer) >= 0.998 * order_value(w, default)

    def test_a_planted_order_is_found(self):
        rng = np.random.default_rng(0)
        hidden, w = rng.permutation(150), rng.random((150, 150))
        w[np.ix_(hidden, hidden)] += 0.5 * np.triu(np.ones((150, 150)), 1)
        assert order_value(w, linear_order(w, max_moves=50_000)) >= order_value(w, hidden)

    def test_a_climb_makes_no_more_moves_than_allowed(self):
        gains = np.random.default_rng(0).standard_normal((50, 50))
        gains -= gains.T
        for moves in (1, 49, 200):
            assert climb(gains, np.arange(50), moves, 1e-12) == moves


class TestInvariance:
    @pytest.mark.parametrize("n", [9, 40])
    @pytest.mark.parametrize("kind", KINDS)
    def test_units(self, kind: str, n: int):
        w = matrix(kind, n, 3)
        expected = linear_order(w, 5, 5_000).tolist()
        factors = [2.0**-900, 2.0**20, 2.0**900]
        if kind != "ties":  # rounding may decide between orders of equal value
            factors += [1e-200, 0.1, 3.0, 1e300]
        for factor in factors:
            assert linear_order(w * factor, 5, 5_000).tolist() == expected

    @pytest.mark.parametrize("n", [9, 40])
    def test_a_weight_added_to_both_directions_of_a_pair(self, n: int):
        w = np.random.default_rng(0).integers(-50, 50, (n, n)).astype(float)
        both = np.random.default_rng(1).integers(-50, 50, (n, n))
        shifted = w + both + both.T
        assert linear_order(shifted, 5, 5_000).tolist() == linear_order(w, 5, 5_000).tolist()

    def test_the_diagonal(self):
        w = matrix("random", 8, 0)
        expected = linear_order(w).tolist()
        np.fill_diagonal(w, np.nan)
        assert linear_order(w).tolist() == expected

    def test_arguments_are_not_changed(self):
        w, before = matrix("random", 20, 0), relation(20, 0.2, 0)
        copies = w.copy(), before.copy()
        linear_order(w, precedences=before, max_moves=1000)
        assert np.array_equal(w, copies[0]) and np.array_equal(before, copies[1])


def test_the_seed_decides_the_search() -> None:
    w, state = matrix("random", 100, 0), np.random.get_state()[1].tolist()  # type: ignore[index]
    orders = [tuple(linear_order(w, seed, 3_000)) for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1] and len(set(orders)) > 1
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


class TestEdges:
    def test_few_items(self):
        assert linear_order(np.zeros((0, 0))).tolist() == []
        assert linear_order([[3.0]]).tolist() == [0]
        assert linear_order([[3.0]]).dtype == np.int64

    def test_items_of_equal_value_keep_their_order(self):
        assert linear_order(np.ones((40, 40))).tolist() == list(range(40))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_not_finite_are_refused(self, bad: float):
        w = np.zeros((3, 3))
        w[1, 2] = bad
        with pytest.raises(ValueError, match=r"must be finite; the one from 1 to 2 is"):
            linear_order(w)

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2)])
    def test_weights_that_are_not_square_are_refused(self, shape: tuple[int, ...]):
        with pytest.raises(ValueError, match="a square matrix of weights"):
            linear_order(np.zeros(shape))

    def test_contradicting_precedences_are_refused(self):
        before = np.zeros((5, 5), dtype=bool)
        before[1, 3] = before[3, 4] = before[4, 1] = before[0, 1] = True
        with pytest.raises(ValueError, match=r"each of 1, 3, 4 must come before itself"):
            linear_order(np.zeros((5, 5)), precedences=before)
        with pytest.raises(ValueError, match=r"each of 2 must come before itself"):
            linear_order(np.zeros((5, 5)), precedences=np.diag(np.arange(5) == 2))
        with pytest.raises(ValueError, match=r"0, 1, 2, 3, 4, 5, 6, 7, \.\.\. must"):
            linear_order(np.zeros((9, 9)), precedences=np.ones((9, 9), dtype=bool))

    def test_other_bad_arguments_are_refused(self):
        for before in (np.zeros((2, 2), dtype=bool), np.zeros((3, 3))):
            with pytest.raises(ValueError, match="precedences of bool in shape"):
                linear_order(np.zeros((3, 3)), precedences=before)
        with pytest.raises(ValueError, match="must not be negative; found -1"):
            linear_order(np.zeros((3, 3)), max_moves=-1)


def test_value_and_bound_are_sums_over_pairs():
    w, order = matrix("signed", 9, 0), np.random.default_rng(0).permutation(9)
    slow = sum(w[order[a], order[b]] for a in range(9) for b in range(a + 1, 9))
    assert order_value(w, order) == pytest.approx(slow)
    assert order_bound(w) == pytest.approx(sum(max(w[i, j], w[j, i]) for i in range(9) for j in range(i)))
    assert best_value(w[:7, :7]) <= order_bound(w[:7, :7])
    with pytest.raises(ValueError, match="a permutation of 9 items"):
        order_value(w, [0] * 9)


@st.composite
def graphs(draw, most: int):
    """Weights of few or many arcs, similar or very different."""
    n = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    w = draw(
        st.sampled_from(
            [rng.random((n, n)), np.exp(3 * rng.standard_normal((n, n))), rng.integers(1, 4, (n, n)) * 1.0]
        )
    )
    return w * (rng.random((n, n)) < draw(st.sampled_from([0.05, 0.2, 0.5, 1.0])))


def reached(w: np.ndarray) -> np.ndarray:
    """(n, n) whether arcs lead from i to j, by Warshall's algorithm."""
    reach = w > 0
    np.fill_diagonal(reach, False)
    for k in range(len(w)):
        reach |= reach[:, k, None] & reach[None, k, :]
    return reach


def check_broken(w: np.ndarray, moves: int | None = None) -> float:
    """Check what every result must fulfil; the weight removed."""
    kept, removed = break_cycles(w, max_moves=moves)
    gone = np.zeros(w.shape, dtype=bool)
    gone[tuple(removed.T)] = True
    assert removed.shape == (gone.sum(), 2) and removed.tolist() == sorted(removed.tolist())
    assert np.array_equal(kept, np.where(gone | np.eye(len(w), dtype=bool), 0, w)) and np.all(w[gone] > 0)
    after, before = reached(kept), reached(w)
    assert not np.diag(after).any(), "a cycle is left"
    for i, j in removed:
        assert after[j, i], "an arc was removed that closes no cycle"
        assert before[j, i], "an arc was removed that lies on no cycle"
    return float(w[gone].sum())


class TestBreakCycles:
    @given(graphs(most=7))
    @settings(max_examples=40)
    def test_the_least_weight_is_removed(self, w: np.ndarray):
        np.fill_diagonal(w, 0)
        assert check_broken(w) == pytest.approx(w.sum() - best_value(w), rel=1e-9, abs=1e-9 * w.sum())

    @given(graphs(most=30), st.sampled_from([0, 50, 2_000]))
    @settings(max_examples=40)
    def test_the_rest_is_acyclic_and_cannot_be_extended(self, w: np.ndarray, moves: int):
        check_broken(w, moves)

    def test_harmless_arcs_are_put_back(self, monkeypatch: pytest.MonkeyPatch):
        """In this order, which a short search may stop at, harmless arcs lead backwards."""
        w = np.zeros((4, 4))
        w[0, 1] = w[1, 2] = w[2, 3] = 1.0
        w[3, 0] = 0.5
        monkeypatch.setattr(module, "linear_order", lambda *_: np.array([3, 2, 1, 0]))
        kept, removed = break_cycles(w)
        assert kept.sum() == 2.5 and len(removed) == 1

    def test_an_acyclic_graph_stays_as_it_is(self):
        w = np.triu(np.random.default_rng(0).random((100, 100)), 1)
        hidden = np.random.default_rng(1).permutation(100)
        kept, removed = break_cycles(w[np.ix_(hidden, hidden)])
        assert removed.shape == (0, 2)
        assert np.array_equal(kept, w[np.ix_(hidden, hidden)])

    def test_small_graphs(self):
        kept, removed = break_cycles([[9, 2], [1, 9]])
        assert kept.tolist() == [[0, 2], [0, 0]] and removed.tolist() == [[1, 0]]
        kept, removed = break_cycles(np.zeros((0, 0)))
        assert kept.shape == (0, 0) and removed.shape == (0, 2)

    def test_negative_weights_are_refused(self):
        with pytest.raises(ValueError, match="must not be negative; the one from 0 to 1 is -1"):
            break_cycles([[0, -1], [0, 0]])
        with pytest.raises(ValueError, match="must be finite"):
            break_cycles([[0, np.nan], [0, 0]])
