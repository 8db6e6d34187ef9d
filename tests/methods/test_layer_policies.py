"""Every layer policy through the same tests, then what sets each apart."""

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from gradwise import Grass, RecipeError
from gradwise.methods.baselines import RoundRobinLayers, StaticLayers, TopLayers, UniformLayers
from gradwise.methods.layer_policy import LayerPolicy

POLICIES = [Grass, StaticLayers, UniformLayers, RoundRobinLayers, TopLayers]
BY_SCORE = [Grass, StaticLayers]
BY_CHANCE = [*BY_SCORE, UniformLayers]
ADAPTING = [Grass, TopLayers]
SCORES = np.array([3e-5, 1e-5, 4e-5, 2e-5, 1e-5])
DRAWS = 10_000

every_policy = pytest.mark.parametrize("policy", POLICIES)
scores_of_any_size = st.lists(st.floats(0, 1e6), min_size=1, max_size=40).map(np.array)


def set_chances(p: np.ndarray, active: int) -> dict[tuple[int, ...], float]:
    """The chance of each ascending set of `active` successive draws, by enumeration."""
    chances = dict.fromkeys(combinations(range(len(p)), active), 0.0)
    for drawn in permutations(range(len(p)), active):
        chance, left = 1.0, 1.0
        for layer in drawn:
            chance *= p[layer] / left
            left -= p[layer]
        chances[tuple(sorted(drawn))] += chance
    return chances


def frequencies(policy: LayerPolicy, scores: np.ndarray, draws: int = DRAWS, seed: int = 3) -> dict[Any, int]:
    seen: dict[Any, int] = {}
    for number in range(draws):
        drawn = tuple(policy.draw(scores, number, seed).tolist())
        seen[drawn] = seen.get(drawn, 0) + 1
    return seen


class TestEveryPolicy:
    @every_policy
    @given(scores=scores_of_any_size, data=st.data())
    def test_draws_the_right_number_of_layers_ascending(
        self, policy: Any, scores: np.ndarray, data: st.DataObject
    ):
        active = data.draw(st.integers(1, len(scores)))
        settings = policy(active=active)
        settings.check_layers(len(scores))
        drawn = settings.draw(scores, data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 2**31)))
        assert len(drawn) == active
        assert np.all(np.diff(drawn) > 0)
        assert 0 <= drawn[0] <= drawn[-1] < len(scores)

    @every_policy
    def test_the_same_scores_number_and_seed_draw_the_same(self, policy: Any):
        for number in range(50):
            once, again = (policy(active=2).draw(SCORES.copy(), number, 7).tolist() for _ in range(2))
            assert once == again

    @pytest.mark.parametrize("policy", BY_CHANCE)
    def test_numbers_and_seeds_draw_differently(self, policy: Any):
        settings = policy(active=2)
        assert len({tuple(settings.draw(SCORES, number, 7)) for number in range(50)}) > 5
        assert len({tuple(settings.draw(SCORES, 0, seed)) for seed in range(50)}) > 5

    @every_policy
    def test_scores_are_left_as_they_were(self, policy: Any):
        scores = SCORES.copy()
        settings = policy(active=2)
        settings.draw(scores, 0, 0)
        settings.probabilities(scores)
        settings.adapt(scores, np.full(5, 2.0))
        assert np.array_equal(scores, SCORES)

    @every_policy
    def test_as_many_active_layers_as_there_are_is_all_of_them(self, policy: Any):
        assert policy(active=5).draw(SCORES, 3, 1).tolist() == [0, 1, 2, 3, 4]

    @every_policy
    def test_more_active_layers_than_there_are_is_refused(self, policy: Any):
        policy(active=5).check_layers(5)
        with pytest.raises(RecipeError, match=r"layers\.active is 6, but the model has 5 layers"):
            policy(active=6).check_layers(5)

    @every_policy
    @pytest.mark.parametrize("setting", ["active", "period"])
    def test_nothing_active_or_no_period_is_refused(self, policy: Any, setting: str):
        with pytest.raises(
            RecipeError, match=f"{policy.__name__}.{setting}: .*greater than or equal to 1; found 0"
        ):
            policy(**{setting: 0})

    @pytest.mark.parametrize("policy", BY_CHANCE)
    @given(scores=scores_of_any_size)
    def test_probabilities_add_up(self, policy: Any, scores: np.ndarray):
        p = policy(active=1).probabilities(scores)
        assert p.shape == scores.shape
        assert p.sum() == pytest.approx(1)
        assert np.all(p >= 0)

    @pytest.mark.parametrize("policy", [RoundRobinLayers, TopLayers])
    def test_no_probabilities_where_nothing_is_left_to_chance(self, policy: Any):
        assert policy(active=2).probabilities(SCORES) is None

    @pytest.mark.parametrize("policy", sorted({*POLICIES} - {*ADAPTING}, key=str))
    def test_scores_stay_where_the_policy_does_not_adapt(self, policy: Any):
        assert not policy.measures
        assert policy(active=2).adapt(SCORES, np.full(5, 9.0)) is SCORES


class TestFrequencies:
    """Over 10,000 draws; p > 0.001 at a fixed seed."""

    @pytest.mark.parametrize("policy", BY_SCORE)
    def test_one_active_layer_comes_as_often_as_its_probability(self, policy: Any):
        settings = policy(active=1, temperature=0.7)
        seen = frequencies(settings, SCORES)
        p = settings.probabilities(SCORES)
        assert chisquare([seen[layer,] for layer in range(5)], DRAWS * p).pvalue > 0.001

    @pytest.mark.parametrize("active", [2, 3])
    @pytest.mark.parametrize("policy", BY_SCORE)
    def test_several_come_as_often_as_enumerated(self, policy: Any, active: int):
        settings = policy(active=active, temperature=0.7)
        seen = frequencies(settings, SCORES)
        oracle = set_chances(settings.probabilities(SCORES), active)
        counts = np.array([seen.get(layers, 0) for layers in oracle])
        chances = np.array(list(oracle.values()))
        assert chisquare(counts, DRAWS * chances).pvalue > 0.001

        member = np.array([[layer in layers for layers in oracle] for layer in range(5)])
        included, expected = member @ counts / DRAWS, member @ chances
        assert np.all(np.abs(included - expected) < 4 * np.sqrt(expected * (1 - expected) / DRAWS))

    @pytest.mark.parametrize("active", [1, 2, 3])
    def test_lisa_draws_every_set_alike_whatever_the_scores(self, active: int):
        seen = frequencies(UniformLayers(active=active), SCORES)
        assert chisquare([seen.get(layers, 0) for layers in combinations(range(5), active)]).pvalue > 0.001
        assert UniformLayers(active=active).probabilities(SCORES).tolist() == [0.2] * 5

    @pytest.mark.parametrize("active", [1, 2, 3, 5])
    def test_round_robin_gives_every_layer_the_same_number_of_turns(self, active: int):
        turns = np.zeros(5)
        for number in range(10):
            drawn = RoundRobinLayers(active=active).draw(SCORES, number, seed=0)
            turns[drawn] += 1
            assert np.ptp(turns) <= 1
        assert turns.tolist() == [2 * active] * 5

    def test_round_robin_continues_where_it_left_off(self):
        turns = [RoundRobinLayers(active=2).draw(SCORES, number, seed=9).tolist() for number in range(4)]
        assert turns == [[0, 1], [2, 3], [0, 4], [1, 2]]

    def test_top_takes_the_highest_the_earlier_where_they_tie(self):
        assert TopLayers(active=2).draw(SCORES, 0, 0).tolist() == [0, 2]
        assert TopLayers(active=4).draw(SCORES, 5, 1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("policy", BY_SCORE)
class TestSoftmax:
    def test_formula(self, policy: Any):
        p = policy(temperature=0.8, floor=0.02).probabilities(SCORES)
        relative = np.exp(SCORES / SCORES.mean() / 0.8)
        assert p == pytest.approx(0.02 + (1 - 5 * 0.02) * relative / relative.sum())

    @given(scale=st.floats(1e-30, 1e30))
    def test_only_relative_scores_count(self, policy: Any, scale: float):
        settings = policy(temperature=0.3)
        assert settings.probabilities(scale * SCORES) == pytest.approx(settings.probabilities(SCORES))

    @given(scores=scores_of_any_size, temperature=st.floats(1e-3, 1e3), share=st.floats(0, 1))
    def test_no_layer_below_the_floor(
        self, policy: Any, scores: np.ndarray, temperature: float, share: float
    ):
        floor = min(share / len(scores), 0.999)
        p = policy(temperature=temperature, floor=floor).probabilities(scores)
        assert p.min() >= floor * (1 - 1e-9)

    def test_high_temperature_is_uniform(self, policy: Any):
        assert policy(temperature=1e9, floor=0.0).probabilities(SCORES) == pytest.approx(0.2)

    @pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-308])
    def test_low_temperature_is_top(self, policy: Any, temperature: float):
        settings = policy(active=1, temperature=temperature, floor=0.0)
        assert settings.probabilities(SCORES) == pytest.approx([0, 0, 1, 0, 0])
        assert all(settings.draw(SCORES, number, 0).tolist() == [2] for number in range(20))

    def test_low_temperature_without_a_floor_draws_several_from_the_top(self, policy: Any):
        settings = policy(active=3, temperature=1e-3, floor=0.0)
        assert all(settings.draw(SCORES, number, 0).tolist() == [0, 2, 3] for number in range(20))

    def test_higher_scores_have_higher_chances(self, policy: Any):
        p = policy(floor=0.01).probabilities(SCORES)
        assert np.argsort(p, kind="stable").tolist() == np.argsort(SCORES, kind="stable").tolist()

    def test_scores_of_zero_are_uniform(self, policy: Any):
        assert policy().probabilities(np.zeros(8)) == pytest.approx(1 / 8)

    @pytest.mark.parametrize(("floor", "layers"), [(0.2, 5), (0.1, 10), (0.01, 100), (0.0, 1000)])
    def test_the_largest_floor_that_fits_makes_it_uniform(self, policy: Any, floor: float, layers: int):
        settings = policy(active=1, floor=floor)
        settings.check_layers(layers)
        assert settings.probabilities(np.arange(layers, dtype=float)).sum() == pytest.approx(1)

    @pytest.mark.parametrize("layers", [3, 6, 7, 11, 101, 126])
    def test_a_floor_that_cannot_be_is_refused_and_what_the_message_advises_is_not(
        self, policy: Any, layers: int
    ):
        with pytest.raises(RecipeError, match=f"layers.floor is 0.5, but {layers} layers cannot") as caught:
            policy(floor=0.5).check_layers(layers)
        advised = float(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
        assert advised > 0.8 / layers
        policy(floor=advised).check_layers(layers)

    @pytest.mark.parametrize("changes", [{"floor": -0.1}, {"floor": 1.0}, {"temperature": 0.0}, {"probe": 0}])
    def test_values_out_of_range_are_refused(self, policy: Any, changes: dict[str, float]):
        (key, value) = next(iter(changes.items()))
        with pytest.raises(RecipeError, match=f"{policy.__name__}.{key}: input should be .*; found {value}"):
            policy(**changes)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_temperature_that_is_no_number_is_refused(self, policy: Any, value: float):
        with pytest.raises(RecipeError, match=r"temperature: input should be"):
            policy(temperature=value)


@pytest.mark.parametrize("policy", ADAPTING)
class TestAdapting:
    measured = np.array([np.nan, 5e-5, np.nan, 6e-5, np.nan])

    def test_frozen_layers_keep_their_score(self, policy: Any):
        adapted = policy(smoothing=0.25).adapt(SCORES, self.measured)
        assert adapted[[0, 2, 4]].tolist() == SCORES[[0, 2, 4]].tolist()

    def test_active_layers_are_smoothed(self, policy: Any):
        adapted = policy(smoothing=0.25).adapt(SCORES, self.measured)
        assert adapted[[1, 3]] == pytest.approx([0.25 * 5e-5 + 0.75 * 1e-5, 0.25 * 6e-5 + 0.75 * 2e-5])

    def test_smoothing_of_one_forgets(self, policy: Any):
        adapted = policy(smoothing=1).adapt(SCORES, self.measured)
        assert adapted[[1, 3]].tolist() == [5e-5, 6e-5]

    def test_an_overflow_is_no_measurement(self, policy: Any):
        adapted = policy(smoothing=0.5).adapt(SCORES, np.array([np.inf, np.nan, np.nan, np.nan, np.nan]))
        assert adapted.tolist() == SCORES.tolist()

    @pytest.mark.parametrize("value", [0.0, 1.1, -1.0])
    def test_smoothing_out_of_range_is_refused(self, policy: Any, value: float):
        with pytest.raises(RecipeError, match=f"smoothing: input should be .*; found {value}"):
            policy(smoothing=value)

    def test_follows_a_change(self, policy: Any):
        settings, scores = policy(active=1, smoothing=0.5), SCORES
        for _ in range(20):
            scores = settings.adapt(scores, np.array([1.0, 9.0, 1.0, 1.0, 1.0]) * 1e-5)
        assert scores == pytest.approx([1e-5, 9e-5, 1e-5, 1e-5, 1e-5], rel=1e-4)


def test_static_draws_by_the_probe_alone():
    assert StaticLayers.probes
    assert not StaticLayers.measures
    assert StaticLayers(active=2).draw(SCORES, 4, 1).tolist() == Grass(active=2).draw(SCORES, 4, 1).tolist()


class TestAsPublished:
    """The paper's formula taken literally, and what is bounded or unset where it is ours."""

    @given(scores=scores_of_any_size, temperature=st.floats(0.1, 1e3))
    def test_a_softmax_over_raw_norms_without_a_floor(self, scores: np.ndarray, temperature: float):
        policy = Grass.published(active=1, temperature=temperature)
        exponentials = [np.exp((m - scores.max()) / temperature) for m in scores]
        expected = [each / sum(exponentials) for each in exponentials]
        assert policy.probabilities(scores) == pytest.approx(expected, abs=1e-12)

    def test_raw_norms_of_a_large_model_draw_uniformly(self):
        assert Grass.published().probabilities(SCORES) == pytest.approx(0.2, rel=1e-4)
        relative = Grass(active=1).probabilities(SCORES)
        assert relative is not None and relative.max() > 0.3

    def test_states_its_cadence_and_takes_changes(self):
        policy = Grass.published(active=3, adapt_every=7)
        assert (policy.period, policy.adapts_every, policy.floor, policy.active) == (25, 7, 0.0, 3)

    @pytest.mark.parametrize("layers", [1, 5, 30, 126, 1000])
    def test_an_unset_floor_scales_with_the_layers(self, layers: int):
        scores = np.zeros(layers)
        scores[0] = 1e6
        policy = Grass(active=1, temperature=1e-3)
        policy.check_layers(layers)
        p = policy.probabilities(scores)
        assert p is not None and p[-1] == pytest.approx(0.1 / layers if layers > 1 else 1)

    @pytest.mark.parametrize(
        ("policy", "steps", "expected"),
        [(Grass, 15, 0), (Grass, 20, 1), (Grass, 79, 3), (Grass, 10**6, 4), (Grass, None, 4)]
        + [(cls, 15, 1) for cls in (StaticLayers, TopLayers)],
    )
    def test_an_unset_probe_takes_at_most_its_share_of_the_run(self, policy: Any, steps: Any, expected: int):
        assert policy().probes_in(steps) == expected
        assert policy(probe=9).probes_in(steps) == 9
        assert policy(probe_share=1.0).probes_in(3) == 3

    def test_a_share_without_effect_is_refused(self):
        with pytest.raises(RecipeError, match="probe_share has no effect"):
            Grass(probe=2, probe_share=0.1)
