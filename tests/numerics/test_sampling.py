"""Random choices against enumeration, and the promises that must hold for any input."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from gradwise.numerics import interleaved, multiplicities, successive_draw
from gradwise.numerics.sampling import evenly, looked_at

DRAWS = 10_000
UNEQUAL = np.array([0.4, 0.3, 0.15, 0.1, 0.05])

weight = st.floats(min_value=0, max_value=1e6)
weights = st.lists(weight, min_size=1, max_size=12).filter(lambda w: sum(w) > 0)
seeds = st.integers(0, 2**32)


def sequences(p: NDArray[np.float64], count: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every way in which `count` successive draws can go, and its probability: the slow, obvious oracle."""
    for drawn in permutations(range(len(p)), count):
        chance, left = 1.0, p.sum()
        for item in drawn:
            chance *= p[item] / left
            left -= p[item]
        yield drawn, chance


def inclusion(p: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(n,) chance of each item to be among `count` successive draws."""
    chances = np.zeros(len(p))
    for drawn, chance in sequences(p, count):
        chances[list(drawn)] += chance
    return chances


class TestSuccessiveDraw:
    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize(
        "p", [UNEQUAL, np.full(5, 0.2), 7.0 * UNEQUAL], ids=["unequal", "equal", "scaled"]
    )
    def test_sequences_come_as_often_as_enumerated(self, p: NDArray[np.float64], count: int):
        oracle = dict(sequences(p, count))
        seen = dict.fromkeys(oracle, 0)
        rng = np.random.default_rng(11)
        for _ in range(DRAWS):
            seen[tuple(successive_draw(p, count, rng).tolist())] += 1

        assert sum(oracle.values()) == pytest.approx(1)
        assert chisquare(list(seen.values()), DRAWS * np.array(list(oracle.values()))).pvalue > 0.001

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_items_are_included_as_often_as_enumerated(self, count: int):
        rng, times = np.random.default_rng(12), np.zeros(len(UNEQUAL))
        for _ in range(DRAWS):
            times[successive_draw(UNEQUAL, count, rng)] += 1
        expected = inclusion(UNEQUAL, count)

        assert expected.sum() == pytest.approx(count)
        spread = np.sqrt(expected * (1 - expected) / DRAWS)
        assert np.all(np.abs(times / DRAWS - expected) < 4 * spread)

    @given(weights, st.data(), seeds)
    def test_distinct_and_of_positive_weight(self, w: list[float], data: st.DataObject, seed: int):
        count = data.draw(st.integers(0, sum(x > 0 for x in w)))
        drawn = successive_draw(w, count, np.random.default_rng(seed))
        assert len(drawn) == len(set(drawn.tolist())) == count
        assert all(w[item] > 0 for item in drawn)

    @pytest.mark.parametrize("small", [5e-324, 1e-310, 1e-200])
    def test_the_smallest_weight_goes_before_none(self, small: float):
        for seed in range(20):
            assert successive_draw([0.0, small, 0.0, 1.0], 2, np.random.default_rng(seed)).tolist() == [3, 1]

    def test_logs_draw_the_same_as_the_weights(self):
        for seed in range(50):
            plain = successive_draw(UNEQUAL, 3, np.random.default_rng(seed))
            logs = successive_draw(np.log(UNEQUAL) - 2000, 3, np.random.default_rng(seed), logs=True)
            assert plain.tolist() == logs.tolist()

    def test_a_seed_repeats_its_draw(self):
        once, again = (successive_draw(UNEQUAL, 4, np.random.default_rng(5)) for _ in range(2))
        assert once.tolist() == again.tolist()

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
    def test_refuses_what_cannot_be_drawn(self, p: list[float], count: int):
        with pytest.raises(ValueError, match=r"cannot draw|probabilities must"):
            successive_draw(p, count, np.random.default_rng(0))


class TestMultiplicities:
    @given(weights, st.integers(0, 500), seeds)
    def test_add_up_to_the_total_each_within_one_of_its_share(self, w: list[float], total: int, seed: int):
        copies = multiplicities(w, total, np.random.default_rng(seed))
        share = total * np.array(w) / np.sum(w)
        assert copies.sum() == total
        assert np.all(copies >= np.floor(share - 1e-6))
        assert np.all(copies <= np.ceil(share + 1e-6))

    @given(weights, st.integers(0, 500), seeds)
    def test_no_copies_of_weight_zero(self, w: list[float], total: int, seed: int):
        copies = multiplicities(w, total, np.random.default_rng(seed))
        assert not copies[np.array(w) == 0].any()

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=10).filter(any), st.integers(1, 7), seeds)
    def test_whole_shares_leave_nothing_to_chance(self, w: list[int], times: int, seed: int):
        copies = multiplicities(np.array(w) / 3, times * sum(w), np.random.default_rng(seed))
        assert copies.tolist() == [times * weight for weight in w]

    @pytest.mark.parametrize("offset", [0.0, np.nextafter(1, 0)])
    def test_nor_does_rounding_at_either_end_of_the_comb(self, offset: float):
        class Edge(np.random.Generator):
            def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
                return offset

        for size in range(1, 60):
            whole = np.arange(1, size + 1)
            copies = multiplicities(whole / 7, whole.sum(), Edge(np.random.PCG64(0)))
            assert copies.tolist() == whole.tolist()

    def test_the_share_exactly_in_expectation(self):
        w, total, draws = np.array([0.3, 1.7, 0.0, 2.2, 0.8]), 8, 4000
        runs = [multiplicities(w, total, np.random.default_rng(seed)) for seed in range(draws)]
        share = total * w / w.sum()
        spread = np.sqrt((share % 1) * (1 - share % 1) / draws)
        assert np.all(np.abs(np.mean(runs, axis=0) - share) <= 4 * spread + 1e-12)

    @pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e308])
    def test_only_relative_weights_count(self, scale: float):
        assert multiplicities([scale, scale], 10, np.random.default_rng(0)).tolist() == [5, 5]

    @pytest.mark.parametrize("w", [[], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [[1.0]]])
    def test_refuses_weights_that_say_nothing(self, w: list[float]):
        with pytest.raises(ValueError, match="weights must"):
            multiplicities(w, 3, np.random.default_rng(0))


class TestInterleaved:
    groups = st.lists(st.integers(0, 5), max_size=60)

    @given(groups)
    def test_a_permutation_in_which_groups_keep_their_order(self, labels: list[int]):
        order = interleaved(labels)
        assert sorted(order.tolist()) == list(range(len(labels)))
        for group in set(labels):
            own = [item for item in order.tolist() if labels[item] == group]
            assert own == sorted(own)

    @given(groups)
    def test_every_prefix_within_one_of_each_groups_share(self, labels: list[int]):
        ordered = np.array(labels)[interleaved(labels)] if labels else np.array([])
        for group in set(labels):
            seen = np.cumsum(ordered == group)
            share = np.arange(1, len(labels) + 1) * labels.count(group) / len(labels)
            assert np.abs(seen - share).max() < 1

    def test_many_small_groups_are_spread_over_a_large_one(self):
        labels = ["large"] * 1000 + [f"small {number}" for number in range(10)]
        places = np.flatnonzero(interleaved(labels) >= 1000)
        assert np.diff(places).min() > 90

    def test_labels_of_any_kind_in_the_order_first_met(self):
        assert interleaved(["b", "a", "b", "a"]).tolist() == [0, 1, 2, 3]

    def test_one_group_stays_as_it_is(self):
        assert interleaved(["x"] * 7).tolist() == list(range(7))


@given(weights)
def test_drawing_everything_is_a_permutation(w: list[float]):
    assume(all(w))
    drawn = successive_draw(w, len(w), np.random.default_rng(0))
    assert sorted(drawn.tolist()) == list(range(len(w)))


class TestEvenly:
    @given(st.integers(0, 3000), st.integers(1, 3000))
    def test_gaps_differ_by_one_at_most(self, count: int, most: int):
        found = evenly(count, most)
        assert len(found) == min(count, most)
        assert len(found) < 2 or (found[0], found[-1]) == (0, count - 1)
        gaps = np.diff(found)
        assert gaps.min(initial=1) >= 1
        assert not gaps.size or np.ptp(gaps) <= 1

    def test_a_single_one_is_the_first(self):
        assert evenly(7, 1).tolist() == [0]


class TestLookedAt:
    @given(st.integers(2, 400), st.integers(1, 400), st.integers(0, 99))
    def test_every_domain_has_its_part(self, pool: int, count: int, seed: int):
        count = min(count, pool)
        domain = np.array(["a", "b", "b", "c"])[np.random.default_rng(seed).integers(0, 4, pool)]
        rows = looked_at(pool, count, domain, seed)
        assert len(set(rows.tolist())) == count
        assert rows.tolist() == sorted(rows)
        for name in "abc":
            part = (domain == name).mean() * count
            assert abs((domain[rows] == name).sum() - part) < 1 + 1e-9

    def test_another_seed_looks_elsewhere(self):
        assert looked_at(100, 20, None, 0).tolist() != looked_at(100, 20, None, 1).tolist()
