"""The k-NN graph against an all-pairs search in plain loops, and repaired graphs against new ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import KnnGraph, knn_graph, repair
from gradwise.numerics import nearest as search
from gradwise.numerics.knn import repaired
from gradwise.numerics.nearest import Heaps


def slow_lists(x: np.ndarray, k: int) -> list[list[int]]:
    """The k nearest rows of each by sorting the cosines of all pairs."""
    unit = search.unit(x).astype(np.float64)
    lists = []
    for i in range(len(unit)):
        pairs = [(-np.float32(exact_cosine(unit[i], unit[j])), j) for j in range(len(unit)) if j != i]
        lists.append([j for _, j in sorted(pairs)[:k]])
    return lists


def exact_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Products of float32 are exact in float64; the eight partial sums are added in the documented order."""
    products, whole = a * b, len(a) // 8 * 8
    sums = [0.0] * 8
    for place in range(whole):
        sums[place % 8] += products[place]
    for place in range(whole, len(a)):
        sums[0] += products[place]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


def rows(seed: int, n: int, h: int, kind: str) -> np.ndarray:
    """Rows without structure, on a coarse grid (many equal cosines), as copies of each other, or zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, h))
    if kind == "grid":
        x = np.round(x)
    if kind == "copies":
        x = x[rng.integers(0, max(1, n // 4), n)]
    if kind == "zeros":
        x[rng.random(n) < 0.3] = 0
    return x


kinds = st.sampled_from(["plain", "grid", "copies", "zeros"])


class TestKnnGraph:
    @given(
        st.integers(0, 99),
        st.integers(2, 50),
        st.integers(1, 20),
        st.integers(1, 8),
        st.integers(0, 4),
        kinds,
    )
    @settings(max_examples=60)
    def test_equals_that_of_all_pairs(self, seed: int, n: int, h: int, k: int, spare: int, kind: str):
        x = rows(seed, n, h, kind)
        graph = knn_graph(x, k, spare)
        assert graph.ids.shape == (n, min(k + spare, n - 1))
        assert graph.ids.tolist() == slow_lists(x, min(k + spare, n - 1))
        assert graph.k == min(k, n - 1)

    @pytest.mark.parametrize("tile", [1, 7, 64])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_does_not_depend_on_how_the_work_is_cut(self, tile: int, threads: int, monkeypatch):
        x = rows(3, 100, 24, "grid")
        whole = knn_graph(x, 6, 3)
        monkeypatch.setattr(search, "TILE", tile)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            cut = knn_graph(x, 6, 3)
        finally:
            torch.set_num_threads(before)
        assert np.array_equal(cut.ids, whole.ids)
        assert np.array_equal(cut.sims.view(np.int32), whole.sims.view(np.int32))

    def test_equal_rows_are_sorted_by_id(self):
        """There are more copies than candidates: all have cosine 1, and the lowest ids come first."""
        x = np.tile(np.array([[1.0, 2.0, 3.0]]), (120, 1))
        graph = knn_graph(x, 3)
        assert graph.ids[0].tolist() == [1, 2, 3]
        assert graph.ids[2].tolist() == [0, 1, 3]
        assert graph.ids[119].tolist() == [0, 1, 2]

    @pytest.mark.parametrize("n", [40, 300])
    def test_products_may_err_by_as_much_as_the_slack(self, n: int, monkeypatch):
        """The cosines differ by less than the products err."""
        rng = np.random.default_rng(0)
        x = np.ones(16) + 2e-4 * rng.standard_normal((n, 16))
        honest, slack = search.products, search.slack(16)

        def wrong(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            exact = honest(a, b)
            return exact + (slack / 2 * rng.choice([-1, 1], exact.shape)).astype(np.float32)

        monkeypatch.setattr(search, "products", wrong)
        assert knn_graph(x, 3, 1).ids.tolist() == slow_lists(x, 4)

    def test_cosines_are_symmetric_and_do_not_depend_on_lengths(self):
        x = rows(1, 80, 33, "plain")
        graph = knn_graph(x, 79)
        scaled = knn_graph(x * np.linspace(0.5, 9, 80)[:, None], 79)
        dense = np.eye(80)
        for i, (ids, sims) in enumerate(zip(graph.ids, graph.sims, strict=True)):
            dense[i, ids] = sims
        assert np.array_equal(dense, dense.T)
        np.testing.assert_allclose(scaled.sims, graph.sims, atol=3e-7)

    def test_bound_covers_all_missing_rows(self):
        x = rows(5, 90, 8, "plain")
        graph, complete = knn_graph(x, 4, 3), knn_graph(x, 89)
        assert np.all(complete.sims[:, 7] <= graph.bound)
        assert np.all(complete.bound == -np.inf)

    def test_progress_counts_every_row(self):
        finished: list[int] = []
        knn_graph(rows(1, 50, 4, "plain"), 2, progress=finished.append)
        assert sum(finished) == 50

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_few_rows(self, n: int):
        graph = knn_graph(np.ones((n, 3)), 4)
        assert graph.ids.shape == (n, max(0, n - 1)) and len(graph) == n

    def test_bad_arguments_are_refused(self):
        x = rows(0, 9, 3, "plain")
        x[6, 1] = np.inf
        with pytest.raises(ValueError, match="Row 6 holds a value that is not finite"):
            knn_graph(x, 2)
        with pytest.raises(ValueError, match=r"\(N, h\); found shape \(9,\)"):
            knn_graph(x[:, 0], 2)
        with pytest.raises(ValueError, match="k >= 1"):
            knn_graph(x[:5], 0)


class TestHeaps:
    @given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 40), st.integers(1, 9))
    @settings(max_examples=50)
    def test_keep_the_highest_products(self, seed: int, m: int, n: int, count: int):
        tile = np.random.default_rng(seed).integers(0, 6, (m, n)).astype(np.float32)
        nobody = np.full(m, -1)
        heaps = Heaps(m, count)
        for first in range(0, n, 5):
            heaps.offer(np.ascontiguousarray(tile[:, first : first + 5]), 0, nobody, first)
        highest = -np.sort(-tile, axis=1)[:, :count]
        kept = -np.sort(-heaps.products, axis=1)
        assert np.array_equal(kept[:, : highest.shape[1]], highest)
        assert np.all(heaps.lowest == (highest[:, -1] if n >= count else -np.inf))
        ids = heaps.ids[heaps.ids >= 0]
        assert np.array_equal(tile[np.nonzero(heaps.ids >= 0)[0], ids], heaps.products[heaps.ids >= 0])


class TestRepair:
    @given(
        st.integers(0, 999),
        st.integers(3, 60),
        st.integers(1, 6),
        st.integers(0, 5),
        kinds,
        st.sampled_from([0.0, 0.05, 1.0]),
    )
    @settings(max_examples=60)
    def test_equals_a_new_graph_time_after_time(
        self, seed: int, n: int, k: int, spare: int, kind: str, distance: float
    ):
        """Rows move onto others or near them, five times in a row."""
        rng = np.random.default_rng(seed)
        x = rows(seed, n, 5, kind)
        graph = knn_graph(x, k, spare)
        for _ in range(5):
            moved = rng.choice(n, rng.integers(0, n // 2 + 1), replace=False)
            x[moved] = x[rng.choice(n, len(moved))] + distance * rng.standard_normal((len(moved), 5))
            graph = repair(graph, x, moved)
            new = knn_graph(x, k, spare)
            assert np.array_equal(graph.used[0], new.used[0])
            assert np.array_equal(graph.used[1], new.used[1])
            check_bound(graph, x)

    def test_searches_only_for_unproven_lists(self):
        """Clusters lie far apart: rows that move in one leave the lists of the others alone."""
        rng = np.random.default_rng(0)
        x = np.eye(10)[np.repeat(np.arange(10), 30)] + 0.05 * rng.standard_normal((300, 10))
        moved = np.array([0, 1])
        graph = knn_graph(x, 5, 10)
        x[moved] += 0.05 * rng.standard_normal((2, 10))
        recomputed = repaired(graph, x, moved).recomputed
        assert set(recomputed) >= {0, 1}
        assert len(recomputed) < 10

    def test_without_moved_rows_the_graph_is_returned(self):
        x = rows(2, 40, 6, "plain")
        graph = knn_graph(x, 3, 2)
        assert repair(graph, x, np.array([], dtype=int)) is graph

    def test_mismatches_are_refused(self):
        x = rows(2, 40, 6, "plain")
        graph = knn_graph(x, 3)
        with pytest.raises(ValueError, match="40 rows, x has 39"):
            repair(graph, x[1:], np.array([0]))
        with pytest.raises(ValueError, match="row 40, of 40"):
            repair(graph, x, np.array([40]))


def check_bound(graph: KnnGraph, x: np.ndarray) -> None:
    """No row missing from a list exceeds the list's bound."""
    full = knn_graph(x, len(x) - 1)
    for ids, sims, listed, bound in zip(full.ids, full.sims, graph.ids, graph.bound, strict=True):
        assert np.all(sims[~np.isin(ids, listed)] <= bound)


class TestApproximate:
    def test_recall_is_as_stated(self):
        """Clusters in few dimensions, as embeddings have; the recall is computed here as well."""
        pytest.importorskip("faiss")
        rng = np.random.default_rng(0)
        centres, directions = rng.standard_normal((60, 6)), rng.standard_normal((6, 32))
        points = centres[rng.integers(0, 60, 6000)] + 0.4 * rng.standard_normal((6000, 6))
        x = (points @ directions).astype("f4")
        graph, exact = knn_graph(x, 8, 4, approximate=True), knn_graph(x, 8)
        shares = [np.isin(true, ids).mean() for true, ids in zip(exact.ids, graph.used[0], strict=True)]
        assert 0.95 <= graph.recall <= 1
        assert np.mean(shares) == pytest.approx(graph.recall, abs=0.02)
        assert np.all(np.diff(graph.sims, axis=1) <= 0)
        ranking = search.ranked(search.unit(x), np.arange(6000), graph.ids)
        assert np.array_equal(ranking.ids, graph.ids)
        assert not np.any(graph.ids == np.arange(6000)[:, None])
        again = knn_graph(x, 8, 4, approximate=True)
        assert np.array_equal(again.ids, graph.ids), "the same seed gives the same lists"

    def test_many_copies_still_have_complete_lists(self):
        pytest.importorskip("faiss")
        x = np.repeat(np.random.default_rng(0).standard_normal((20, 8)), 30, axis=0)
        graph = knn_graph(x, 5, approximate=True)
        assert graph.ids.min() >= 0
        assert np.allclose(graph.sims, 1)
        assert not np.any(graph.ids == np.arange(600)[:, None])
