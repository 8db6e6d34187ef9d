"""Lazy greedy against naive greedy and against the best of all subsets."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import KnnGraph, facility_location, knn_graph
from gradwise.numerics.facility import Facility, Minimum


def similarity(graph: KnnGraph) -> np.ndarray:
    """(N, N) sim(i, j), dense."""
    ids, sims = graph.used
    dense = np.zeros((len(graph), len(graph)), dtype=np.float32)
    for i in range(len(graph)):
        dense[i, ids[i]] = np.maximum(sims[i], 0)
    np.fill_diagonal(dense, 1)
    return dense


def naive(problem: Facility, sim: np.ndarray, budget: float, costs: np.ndarray, by_cost: bool) -> list[int]:
    """Greedy that computes every row's marginal gain at every step, in plain loops."""
    n, covered, picks, left = len(sim), np.zeros(len(sim), dtype=np.float32), [], list(range(len(sim)))
    spent = 0.0
    while left:
        left = [j for j in left if spent + costs[j] <= budget]
        best_key, best = -np.inf, -1
        for j in left:
            gain = float(problem.counts[j]) * (1.0 - float(covered[j]))
            for i in range(n):
                if i != j and sim[i, j] > covered[i]:
                    gain += float(problem.counts[i]) * (float(sim[i, j]) - float(covered[i]))
            gain = problem.scale * gain + float(problem.worth[j])
            key = gain / costs[j] if by_cost else gain
            if key > best_key:
                best_key, best = key, j
        if best < 0:
            break
        picks.append(best)
        left.remove(best)
        spent += costs[best]
        covered = np.maximum(covered, sim[:, best])
    return picks


def objective(
    sim: np.ndarray, scores: np.ndarray, counts: np.ndarray, lam: float, size: float, picks
) -> float:
    """F as it is defined."""
    if not len(picks):
        return 0.0
    cover = (counts * sim[:, list(picks)].max(axis=1)).sum() / counts.sum()
    return lam * cover + (1 - lam) / size * scores[list(picks)].sum()


@st.composite
def problems(draw, most: int = 16):
    n = draw(st.integers(2, most))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    x = rng.standard_normal((n, 3))
    if draw(st.booleans()):
        x = np.round(x)  # equal cosines, and so equal gains
    graph = knn_graph(x, draw(st.integers(1, 6)))
    scores = np.round(rng.random(n), draw(st.sampled_from([0, 1, 8])))
    counts = rng.integers(1, 5, n) if draw(st.booleans()) else np.ones(n)
    return graph, scores, counts, draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])), rng


class TestLazyGreedy:
    @given(problems())
    @settings(max_examples=50)
    def test_picks_equal_those_of_naive_greedy(self, problem):
        graph, scores, counts, lam, _ = problem
        n, ones = len(graph), np.ones(len(graph))
        for budget in {0, 1, n // 3, n}:
            facility = Facility.of(graph, scores, budget, lam, counts)
            slow = naive(facility, similarity(graph), budget, ones, False)
            assert facility_location(graph, scores, budget, lam, counts=counts).tolist() == slow

    @given(problems(), st.booleans(), st.sampled_from([0.0, 0.2, 0.6, 2.0]))
    @settings(max_examples=50)
    def test_picks_equal_those_of_naive_greedy_under_costs(self, problem, by_cost: bool, share: float):
        graph, scores, counts, lam, rng = problem
        costs = rng.integers(1, 9, len(graph)).astype(float)
        budget = share * costs.sum()
        facility = Facility.of(graph, scores, max(1.0, budget / costs.mean()), lam, counts)
        slow = naive(facility, similarity(graph), budget, costs, by_cost)
        fast = facility.greedy(budget, costs, by_cost=by_cost)
        assert fast.tolist() == slow
        assert costs[fast].sum() <= budget

    @given(problems())
    @settings(max_examples=50)
    def test_value_is_the_objective(self, problem):
        graph, scores, counts, lam, rng = problem
        picks = rng.permutation(len(graph))[: rng.integers(0, len(graph) + 1)]
        facility = Facility.of(graph, scores, max(1, len(picks)), lam, counts)
        exact = objective(similarity(graph), scores, counts, lam, max(1, len(picks)), picks)
        assert facility.value(picks) == pytest.approx(exact, rel=1e-6, abs=1e-9)
        covered = facility.covered(picks)
        for i, (by, near) in enumerate(zip(covered.by, covered.similarity, strict=True)):
            assert near == (similarity(graph)[i, picks[by]] if by >= 0 else 0)

    @given(problems(most=11), st.integers(1, 4))
    @settings(max_examples=30)
    def test_value_reaches_its_share_of_the_best_subset(self, problem, size: int):
        graph, scores, counts, lam, _ = problem
        size, sim = min(size, len(graph)), similarity(graph)
        best = max(
            objective(sim, scores, counts, lam, size, subset)
            for subset in combinations(range(len(graph)), size)
        )
        picks = facility_location(graph, scores, size, lam, counts=counts)
        assert objective(sim, scores, counts, lam, size, picks) >= (1 - 1 / np.e) * best - 1e-9

    @given(problems(most=9), st.sampled_from([0.2, 0.4, 0.7]))
    @settings(max_examples=30)
    def test_value_reaches_its_share_of_the_best_subset_under_costs(self, problem, share: float):
        graph, scores, counts, lam, rng = problem
        costs, sim = rng.integers(1, 9, len(graph)).astype(float), similarity(graph)
        budget = share * costs.sum()
        size = max(1.0, budget / costs.mean())
        affordable = [
            subset
            for count in range(len(graph) + 1)
            for subset in combinations(range(len(graph)), count)
            if costs[list(subset)].sum() <= budget
        ]
        best = max(objective(sim, scores, counts, lam, size, subset) for subset in affordable)
        picks = facility_location(graph, scores, budget, lam, counts=counts, costs=costs)
        assert costs[picks].sum() <= budget
        assert objective(sim, scores, counts, lam, size, picks) >= 0.5 * (1 - 1 / np.e) * best - 1e-9

    def test_value_is_nearly_optimal_on_random_graphs(self):
        shares = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            graph = knn_graph(rng.standard_normal((12, 4)), 4)
            scores, sim, ones = rng.random(12), similarity(graph), np.ones(12)
            best = max(objective(sim, scores, ones, 0.5, 4, s) for s in combinations(range(12), 4))
            picks = facility_location(graph, scores, 4)
            shares.append(objective(sim, scores, ones, 0.5, 4, picks) / best)
        assert np.mean(shares) > 0.99
        assert min(shares) > 0.95

    def test_a_copy_of_a_pick_is_worth_nothing_more(self):
        """Rows 0 and 1 are copies; rows 0 and 2 cover more."""
        graph = knn_graph(np.array([[1.0, 0], [1.0, 0], [0, 1.0]]), 2)
        assert facility_location(graph, np.zeros(3), 2, 1.0).tolist() == [0, 2]

    def test_a_group_minimum_is_met_and_the_rest_is_greedy(self):
        """Rows 3 to 5 are worth less, so only the minimum makes greedy pick any of them."""
        graph = knn_graph(np.eye(6), 1)
        facility = Facility.of(graph, np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1]), 3, 0.0)
        minimum = Minimum(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1]))
        assert facility.greedy(3, minimum=minimum).tolist() == [0, 1, 3]
        assert facility.greedy(3).tolist() == [0, 1, 2]

    @given(problems(most=30), st.floats(0.2, 0.9), st.booleans())
    def test_a_group_minimum_of_costs_is_met_but_for_its_last_row(self, problem, share: float, by_cost: bool):
        graph, scores, counts, lam, rng = problem
        costs, group = rng.integers(1, 9, len(graph)).astype(float), rng.integers(0, 3, len(graph))
        budget = np.floor(share * costs.sum())
        of_group = np.bincount(group, costs, minlength=3)
        least = np.minimum(np.floor(budget * np.array([0.5, 0.3, 0.2])), of_group)
        facility = Facility.of(graph, scores, 5, lam, counts)
        picks = facility.greedy(budget, costs, by_cost=by_cost, minimum=Minimum(group, least))
        spent = np.bincount(group[picks], costs[picks], minlength=3)
        dearest = np.array([costs[group == g].max(initial=0) for g in range(3)])
        assert len(set(picks.tolist())) == len(picks)
        assert spent.sum() <= budget
        assert np.all(spent > least - np.maximum(dearest, 1))
        left = np.setdiff1d(np.arange(len(graph)), picks)
        assert np.all(costs[left] > budget - spent.sum()), "the budget is filled"

    def test_bad_arguments_are_refused(self):
        graph = knn_graph(np.eye(4), 2)
        with pytest.raises(ValueError, match=r"within 0\.\.1"):
            facility_location(graph, np.full(4, 2.0), 2)
        with pytest.raises(ValueError, match="4 scores"):
            facility_location(graph, np.zeros(3), 2)
        with pytest.raises(ValueError, match="trade_off"):
            facility_location(graph, np.zeros(4), 2, 1.5)
        with pytest.raises(ValueError, match="positive costs"):
            facility_location(graph, np.zeros(4), 2, costs=np.zeros(4))
        with pytest.raises(ValueError, match="must not be negative"):
            facility_location(graph, np.zeros(4), -1)
