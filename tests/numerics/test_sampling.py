"""Random choices against enumeration, and properties that hold for any input."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from gradwise.numerics import interleaved, multiplicities, successive_draw
from gradwise.numerics.sampling import evenly, stratified_sample

DRAWS = 6_000
UNEQUAL = np.array([0.4, 0.3, 0.15, 0.1, 0.05])

weight = st.floats(min_value=0, max_value=1e6)
weights = st.lists(weight, min_size=1, max_size=12).filter(lambda w: sum(w) > 0)
seeds = st.integers(0, 2**32)


def sequences(p: NDArray[np.float64], count: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """All outcomes of `count` successive draws and their probabilities."""
    for drawn in permutations(range(len(p)), count):
        probability, left = 1.0, p.sum()
        for item in drawn:
            probability *= p[item] / left
            left -= p[item]
        yield drawn, probability


def inclusion(p: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(n,) probability of each item to be among `count` successive draws."""
    included = np.zeros(len(p))
    for drawn, probability in sequences(p, count):
        included[list(drawn)] += probability
    return included


class TestSuccessiveDraw:
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("p", [7.0 * UNEQUAL, np.full(5, 0.2)], ids=["unequal", "equal"])
    def test_sequences_are_as_frequent_as_enumerated(self, p: NDArray[np.float64], count: int):
        oracle = dict(sequences(p, count))
        seen = dict.fromkeys(oracle, 0)
        rng = np.random.default_rng(11)
        for _ in range(DRAWS):
            seen[tuple(successive_draw(p, count, rng).tolist())] += 1

        assert sum(oracle.values()) == pytest.approx(1)
        assert chisquare(list(seen.values()), DRAWS * np.array(list(oracle.values()))).pvalue > 0.001

    @pytest.mark.parametrize("count", [2, 4])
    def test_items_are_as_frequent_as_enumerated(self, count: int):
        rng, times = np.random.default_rng(12), np.zeros(len(UNEQUAL))
        for _ in range(DRAWS):
            times[successive_draw(UNEQUAL, count, rng)] += 1
        expected = inclusion(UNEQUAL, count)

        assert expected.sum() == pytest.approx(count)
        spread = np.sqrt(expected * (1 - expected) / DRAWS)
        assert np.all(np.abs(times / DRAWS - expected) < 4 * spread)

    @settings(max_examples=50)
    @given(weights, st.data(), seeds)
    def test_items_are_distinct_and_of_positive_weight(self, w: list[float], data: st.DataObject, seed: int):
        count = data.draw(st.integers(0, sum(x > 0 for x in w)))
        drawn = successive_draw(w, count, np.random.default_rng(seed))
        assert len(drawn) == len(set(drawn.tolist())) == count
        assert all(w[item] > 0 for item in drawn)

    @pytest.mark.parametrize("small", [5e-324, 1e-310, 1e-200])
    def test_the_smallest_weight_is_drawn_before_a_weight_of_zero(self, small: float):
        for seed in range(20):
            assert successive_draw([0.0, small, 0.0, 1.0], 2, np.random.default_rng(seed)).tolist() == [3, 1]

    def test_logarithms_draw_the_same_as_their_weights(self):
        for seed in range(50):
            plain = successive_draw(UNEQUAL, 3, np.random.default_rng(seed))
            logs = successive_draw(np.log(UNEQUAL) - 2000, 3, np.random.default_rng(seed), logs=True)
            assert plain.tolist() == logs.tolist()

    def test_the_same_seed_draws_the_same(self):
        one, same = (successive_draw(UNEQUAL, 4, np.random.default_rng(5)) for _ in range(2))
        assert one.tolist() == same.tolist()

    @pytest.mark.parametrize(
        ("p", "count"),
        [
            ([0.5, 0.5], 3),
            ([1.0, 0.0], 2),
            ([1.0], -1),
            ([], 1),
            ([-0.1, 1.1], 1),
            ([np.nan, 1.0], 1),
            ([np.inf, 1.0], 1),
            ([[0.5, 0.5]], 1),
        ],
    )
    def test_bad_weights_and_counts_are_refused(self, p: list[float], count: int):
        with pytest.raises(ValueError, match=r"Cannot draw|probabilities must"):
            successive_draw(p, count, np.random.default_rng(0))


class TestMultiplicities:
    @settings(max_examples=50)
    @given(weights, st.integers(0, 500), seeds)
    def test_copies_add_up_and_differ_from_their_shares_by_less_than_one(
        self, w: list[float], total: int, seed: int
    ):
        copies = multiplicities(w, total, np.random.default_rng(seed))
        share = total * np.array(w) / np.sum(w)
        assert copies.sum() == total
        assert np.all(copies >= np.floor(share - 1e-6))
        assert np.all(copies <= np.ceil(share + 1e-6))

    @settings(max_examples=50)
    @given(weights, st.integers(0, 500), seeds)
    def test_a_weight_of_zero_has_no_copies(self, w: list[float], total: int, seed: int):
        copies = multiplicities(w, total, np.random.default_rng(seed))
        assert not copies[np.array(w) == 0].any()

    @settings(max_examples=50)
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=10).filter(any), st.integers(1, 7), seeds)
    def test_whole_shares_are_exact(self, w: list[int], times: int, seed: int):
        copies = multiplicities(np.array(w) / 3, times * sum(w), np.random.default_rng(seed))
        assert copies.tolist() == [times * weight for weight in w]

    @pytest.mark.parametrize("offset", [0.0, np.nextafter(1, 0)])
    def test_whole_shares_are_exact_for_extreme_offsets(self, offset: float):
        class Edge(np.random.Generator):
            def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
                return offset

        for size in range(1, 60):
            whole = np.arange(1, size + 1)
            copies = multiplicities(whole / 7, whole.sum(), Edge(np.random.PCG64(0)))
            assert copies.tolist() == whole.tolist()

    def test_copies_equal_the_share_in_expectation(self):
        w, total, draws = np.array([0.3, 1.7, 0.0, 2.2, 0.8]), 8, 2000
        runs = [multiplicities(w, total, np.random.default_rng(seed)) for seed in range(draws)]
        share = total * w / w.sum()
        spread = np.sqrt((share % 1) * (1 - share % 1) / draws)
        assert np.all(np.abs(np.mean(runs, axis=0) - share) <= 4 * spread + 1e-12)

    @pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e308])
    def test_only_relative_weights_count(self, scale: float):
        assert multiplicities([scale, scale], 10, np.random.default_rng(0)).tolist() == [5, 5]

    @pytest.mark.parametrize("w", [[], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [[1.0]]])
    def test_bad_weights_are_refused(self, w: list[float]):
        with pytest.raises(ValueError, match="weights must"):
            multiplicities(w, 3, np.random.default_rng(0))


class TestInterleaved:
    groups = st.lists(st.integers(0, 5), max_size=60)

    @settings(max_examples=50)
    @given(groups)
    def test_order_is_a_permutation_that_keeps_each_groups_order(self, labels: list[int]):
        order = interleaved(labels)
        assert sorted(order.tolist()) == list(range(len(labels)))
        for group in set(labels):
            members = [item for item in order.tolist() if labels[item] == group]
            assert members == sorted(members)

    @settings(max_examples=50)
    @given(groups)
    def test_prefixes_differ_from_each_groups_share_by_less_than_one(self, labels: list[int]):
        ordered = np.array(labels)[interleaved(labels)] if labels else np.array([])
        for group in set(labels):
            seen = np.cumsum(ordered == group)
            share = np.arange(1, len(labels) + 1) * labels.count(group) / len(labels)
            assert np.abs(seen - share).max() < 1

    def test_small_groups_are_spread_over_a_large_one(self):
        labels = ["large"] * 1000 + [f"small {number}" for number in range(10)]
        places = np.flatnonzero(interleaved(labels) >= 1000)
        assert np.diff(places).min() > 90

    def test_ties_go_to_the_group_that_occurs_first(self):
        assert interleaved(["b", "a", "b", "a"]).tolist() == [0, 1, 2, 3]

    def test_a_single_group_stays_as_it_is(self):
        assert interleaved(["x"] * 7).tolist() == list(range(7))


class TestEvenly:
    @settings(max_examples=50)
    @given(st.integers(0, 3000), st.integers(1, 3000))
    def test_gaps_differ_by_at_most_one(self, count: int, most: int):
        numbers = evenly(count, most)
        assert len(numbers) == min(count, most)
        assert len(numbers) < 2 or (numbers[0], numbers[-1]) == (0, count - 1)
        gaps = np.diff(numbers)
        assert gaps.min(initial=1) >= 1
        assert not gaps.size or np.ptp(gaps) <= 1

    def test_a_single_number_is_the_first(self):
        assert evenly(7, 1).tolist() == [0]


class TestStratifiedSample:
    @settings(max_examples=50)
    @given(st.integers(2, 400), st.integers(1, 400), st.integers(0, 99))
    def test_domains_are_drawn_in_proportion(self, pool: int, count: int, seed: int):
        count = min(count, pool)
        domain = np.array(["a", "b", "b", "c"])[np.random.default_rng(seed).integers(0, 4, pool)]
        rows = stratified_sample(pool, count, domain, seed)
        assert len(set(rows.tolist())) == count
        assert rows.tolist() == sorted(rows)
        for name in "abc":
            part = (domain == name).mean() * count
            assert abs((domain[rows] == name).sum() - part) < 1 + 1e-9

    def test_the_seed_decides(self):
        one, same, other = (stratified_sample(100, 20, None, seed).tolist() for seed in (0, 0, 1))
        assert one == same != other
