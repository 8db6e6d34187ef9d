"""Breaking cycles against the best of all orders, and what may be removed at all."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import break_cycles


@st.composite
def graphs(draw, most: int):
    """Weights of arcs: few or many, alike or far apart."""
    n = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    w = draw(
        st.sampled_from(
            [rng.random((n, n)), np.exp(3 * rng.standard_normal((n, n))), rng.integers(1, 4, (n, n)) * 1.0]
        )
    )
    return w * (rng.random((n, n)) < draw(st.sampled_from([0.05, 0.2, 0.5, 1.0])))


def paths(w: np.ndarray) -> np.ndarray:
    """(n, n) whether arcs lead from i to j, by Warshall."""
    reach = w > 0
    np.fill_diagonal(reach, False)
    for k in range(len(w)):
        reach |= reach[:, k, None] & reach[None, k, :]
    return reach


def least(w: np.ndarray) -> float:
    """Weight that every set of arcs has at least whose removal leaves no cycle."""
    orders = np.array(list(permutations(range(len(w)))))
    backwards = np.zeros(len(orders))
    for a in range(len(w)):
        for b in range(a):
            backwards += w[orders[:, a], orders[:, b]]
    return float(backwards.min())


def check(w: np.ndarray, moves: int | None = None) -> float:
    """What every answer owes; the weight removed."""
    left, removed = break_cycles(w, max_moves=moves)
    gone = np.zeros(w.shape, dtype=bool)
    gone[tuple(removed.T)] = True
    off = ~np.eye(len(w), dtype=bool)
    assert removed.shape == (gone.sum(), 2) and removed.tolist() == sorted(removed.tolist())
    assert np.array_equal(left, np.where(gone | ~off, 0, w)) and np.all(w[gone] > 0)
    after, before = paths(left), paths(w)
    assert not np.diag(after).any(), "a cycle is left"
    for i, j in removed:
        assert after[j, i], "an arc was removed in vain"
        assert before[j, i], "an arc was removed that lies on no cycle"
    return float(w[gone].sum())


@given(graphs(most=8))
@settings(max_examples=40)
def test_the_least_weight_is_removed(w: np.ndarray):
    np.fill_diagonal(w, 0)
    assert check(w) == pytest.approx(least(w), rel=1e-12, abs=1e-12)


@given(graphs(most=40), st.sampled_from([0, 50, 5_000]))
@settings(max_examples=80)
def test_what_is_left_is_acyclic_and_as_large_as_can_be(w: np.ndarray, moves: int):
    check(w, moves)


def test_arcs_are_put_back_where_the_search_was_cut_short(monkeypatch: pytest.MonkeyPatch):
    """The order that the search is stopped at has arcs lead backwards that close no cycle."""
    w = np.zeros((4, 4))
    w[0, 1] = w[1, 2] = w[2, 3] = 1.0
    w[3, 0] = 0.5
    monkeypatch.setattr("gradwise.numerics.cycles.linear_order", lambda *_: np.array([3, 2, 1, 0]))
    left, removed = break_cycles(w)
    assert left.sum() == 2.5 and len(removed) == 1


def test_a_graph_without_cycles_is_left_alone():
    w = np.triu(np.random.default_rng(0).random((300, 300)), 1)
    hidden = np.random.default_rng(1).permutation(300)
    left, removed = break_cycles(w[np.ix_(hidden, hidden)])
    assert not len(removed) and removed.shape == (0, 2)
    assert np.array_equal(left, w[np.ix_(hidden, hidden)])


def test_of_two_arcs_between_two_nodes_the_lighter_one_goes():
    left, removed = break_cycles([[9, 2], [1, 9]])
    assert left.tolist() == [[0, 2], [0, 0]] and removed.tolist() == [[1, 0]]


def test_no_nodes():
    left, removed = break_cycles(np.zeros((0, 0)))
    assert left.shape == (0, 0) and removed.shape == (0, 2)


def test_what_is_no_weight_is_refused():
    with pytest.raises(ValueError, match="must not be negative; the one from 0 to 1 is -1"):
        break_cycles([[0, -1], [0, 0]])
    with pytest.raises(ValueError, match="must be finite"):
        break_cycles([[0, np.nan], [0, 0]])
