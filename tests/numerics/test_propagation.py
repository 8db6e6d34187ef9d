"""Propagation against its definition in plain loops, and the choice of the rows to recompute."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import KnnGraph, knn_graph, propagate
from gradwise.numerics.propagation import neighbour_mean, priority, spread, sweep_change


def alpha(graph: KnnGraph, row: int, among: set[int] | None = None) -> dict[int, float]:
    ids, sims = graph.used
    weights = {int(j): max(0.0, float(s)) for j, s in zip(ids[row], sims[row], strict=True)}
    weights = {j: w for j, w in weights.items() if among is None or j in among}
    total = sum(weights.values())
    return {j: w / total for j, w in weights.items()} if total > 0 else {}


@st.composite
def cases(draw):
    n = draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    graph = knn_graph(rng.standard_normal((n, 4)), draw(st.integers(1, 6)))
    values = rng.standard_normal((n, 3)) if draw(st.booleans()) else rng.standard_normal(n)
    anchors = rng.choice(n, draw(st.integers(0, n)), replace=False)
    return graph, values, anchors, draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])), rng


class TestPropagate:
    @given(cases())
    @settings(max_examples=40)
    def test_values_follow_the_definition(self, case):
        """With beta = 1/2 this is the authors' closed form, Eq. 21."""
        graph, values, anchors, beta, _ = case
        expected = values.copy()
        for i in set(range(len(graph))) - set(anchors.tolist()):
            if weights := alpha(graph, i):
                mean = sum(w * values[j] for j, w in weights.items())
                expected[i] = (1 - beta) * values[i] + beta * mean
        np.testing.assert_allclose(propagate(values, graph, anchors, beta), expected, atol=1e-12)

    @given(cases())
    @settings(max_examples=40)
    def test_values_minimise_the_energy(self, case):
        """E(z) = 1/2 (z - z_old)^2 + 1/2 sum_j w_j (z - z_j)^2 with sum w = beta / (1 - beta)."""
        graph, values, anchors, beta, rng = case
        if values.ndim > 1 or beta == 1:
            return
        moved = propagate(values, graph, anchors, beta)
        for i in set(range(len(graph))) - set(anchors.tolist()):
            weights = {j: w * beta / (1 - beta) for j, w in alpha(graph, i).items()}

            def energy(z: float, old=values[i], weights=weights) -> float:
                return (z - old) ** 2 + sum(w * (z - values[j]) ** 2 for j, w in weights.items())

            assert all(energy(moved[i]) <= energy(moved[i] + d) + 1e-12 for d in rng.normal(0, 0.3, 5))

    @given(cases())
    @settings(max_examples=30)
    def test_a_beta_of_zero_changes_nothing(self, case):
        graph, values, anchors, _, _ = case
        assert np.array_equal(propagate(values, graph, anchors, 0.0), values)
        assert np.array_equal(sweep_change(values, graph, anchors, values[anchors] + 1, 0.0), values)

    @given(cases())
    @settings(max_examples=30)
    def test_anchors_everywhere_are_a_full_refresh(self, case):
        graph, values, _, beta, rng = case
        measured = rng.standard_normal(values.shape)
        everyone = np.arange(len(graph))
        assert np.array_equal(propagate(measured, graph, everyone, beta), measured)


class TestSweepChange:
    @given(cases())
    @settings(max_examples=40)
    def test_values_follow_the_definition(self, case):
        graph, values, anchors, beta, rng = case
        if not len(anchors):
            return
        measured = values[anchors] + rng.standard_normal(values[anchors].shape)
        change = dict(zip(anchors.tolist(), measured - values[anchors], strict=True))
        common = np.mean(list(change.values()), axis=0)
        expected = values.copy()
        for i in range(len(graph)) if beta else ():
            weights = alpha(graph, i, set(change))
            correction = sum((w * (change[j] - common) for j, w in weights.items()), 0 * common)
            expected[i] = values[i] + common + beta * correction
        moved = sweep_change(values, graph, anchors, measured, beta)
        np.testing.assert_allclose(moved, expected, atol=1e-12)

    def test_a_change_that_all_anchors_share_reaches_every_row(self):
        rng = np.random.default_rng(0)
        graph, values = knn_graph(rng.standard_normal((20, 4)), 3), rng.standard_normal(20)
        anchors = np.array([3, 11])
        moved = sweep_change(values, graph, anchors, values[anchors] - 2, 0.7)
        np.testing.assert_allclose(moved, values - 2, atol=1e-12)


class TestAnchors:
    def test_stale_rows_and_those_unlike_their_neighbours_have_priority(self):
        ids, sims = np.array([[1], [0], [3], [2]], np.int32), np.ones((4, 1), np.float32)
        graph = KnnGraph(ids, sims, np.zeros(4, np.float32), 1)
        stale, values = np.array([9, 0, 0, 0]), np.array([1.0, 1.0, 1.0, 5.0])
        assert priority(stale, values, graph, 1.0).argmax() == 0
        assert set(np.flatnonzero(priority(stale, values, graph, 0.0) > 0.5)) == {2, 3}
        assert neighbour_mean(values, graph).tolist() == [1, 1, 5, 1]

    @given(cases(), st.floats(0, 1))
    @settings(max_examples=50)
    def test_spread_chooses_neighbours_last(self, case, share: float):
        graph, _, _, _, rng = case
        priorities, count = rng.random(len(graph)), round(share * len(graph))
        chosen, blocked = set(), set()
        order = np.argsort(-priorities, kind="stable").tolist()
        while len(chosen) < count:
            blocked = set(chosen)
            for row in order:
                if len(chosen) < count and row not in blocked:
                    chosen.add(row)
                    blocked |= {row, *graph.used[0][row].tolist()}
        assert spread(graph, priorities, count).tolist() == sorted(chosen)

    @given(cases(), st.floats(0, 1))
    @settings(max_examples=50)
    def test_spread_avoids_neighbours_of_rows_chosen_before(self, case, share: float):
        graph, _, _, _, rng = case
        n = len(graph)
        drawn = np.sort(rng.choice(n, int(rng.integers(0, n + 1)), replace=False))
        count = len(drawn) + round(share * (n - len(drawn)))
        rows = spread(graph, rng.random(n), count, drawn)
        assert len(rows) == count
        assert set(drawn) <= set(rows)
        near = {*drawn.tolist(), *graph.used[0][drawn].ravel().tolist()}
        free = set(range(n)) - near
        added = set(rows.tolist()) - set(drawn.tolist())
        # Neighbours of chosen rows come only after all others.
        assert not added & near or all(
            row in added or set(graph.used[0][list(added)].ravel().tolist()) & {row} for row in free
        )

    def test_bad_arguments_are_refused(self):
        graph = knn_graph(np.eye(4), 2)
        with pytest.raises(ValueError, match="Cannot choose 5 of 4 rows"):
            spread(graph, np.zeros(4), 5)
        with pytest.raises(ValueError, match="beta"):
            propagate(np.zeros(4), graph, np.array([0]), 1.5)
        with pytest.raises(ValueError, match="4 rows; found 3"):
            propagate(np.zeros(3), graph, np.array([0]), 0.5)
