"""Verdicts: against scipy, against the definition, and against chance itself: A/A comparisons and power."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradwise.report import statistics
from gradwise.report.statistics import (
    BETTER,
    LEVEL,
    NO_DIFFERENCE,
    PRELIMINARY,
    TOO_FEW_SEEDS,
    WORSE,
    compare,
    compare_pairs,
    holm,
    intervals,
    mean_sd,
    p_value,
    t_interval,
)


def table(**arms: list[float]) -> dict[str, dict[int, float]]:
    return {arm: dict(enumerate(values)) for arm, values in arms.items()}


def comparison_of_twins(rng: np.random.Generator, *, arms: int, seeds: int = 5) -> list[str]:
    """Verdicts on arms that differ from the reference by nothing but luck; pairs share half of it."""
    shared = rng.normal(size=seeds)
    values = {f"a{k}": dict(enumerate(2 + shared + rng.normal(size=seeds))) for k in range(arms + 1)}
    return [one.verdict for one in compare(values, "a0")]


class TestAgainstOthers:
    values = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=12)

    @given(values, st.integers(0, 2**32 - 1))
    def test_one_arm_is_scipys_paired_test(self, base: list[float], seed: int) -> None:
        other = np.array(base) + np.random.default_rng(seed).normal(size=len(base))
        found = compare(table(a=base, b=other.tolist()), "a")[0]
        theirs = stats.ttest_rel(other, base)
        assert found.p == pytest.approx(theirs.pvalue, rel=1e-6)
        assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-6)
        assert found.difference == pytest.approx(np.mean(other - np.array(base)))

    @given(st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1, max_size=8))
    def test_holm_is_its_definition(self, p: dict[str, float]) -> None:
        """Adjusted p_(k) = max over j <= k of min(1, (m - j + 1) p_(j))."""
        ranked = sorted(p.values())
        adjusted = [max(min(1.0, (len(p) - j) * ranked[j]) for j in range(k + 1)) for k in range(len(ranked))]
        found = holm(p)
        assert found.keys() == p.keys()
        assert sorted(found.values()) == pytest.approx(adjusted)
        assert all(found[name] >= p[name] for name in p)


class TestChance:
    """Fixed random streams: how often luck is called a difference, and how often a difference is seen."""

    def test_of_100_comparisons_of_twins_about_5_see_a_difference(self) -> None:
        rng = np.random.default_rng(20)
        alarms = sum(comparison_of_twins(rng, arms=1) != [NO_DIFFERENCE] for _ in range(100))
        low, high = stats.binom.ppf([0.001, 0.999], 100, 0.05)
        assert low <= alarms <= high
        assert alarms > 0  # a test of level 5 % does err

    def test_holm_keeps_a_table_at_5_percent_and_without_it_would_not_be(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def share_of_tables_with_an_alarm() -> float:
            rng = np.random.default_rng(21)
            tables = [comparison_of_twins(rng, arms=6) for _ in range(600)]
            return float(np.mean([any(verdict != NO_DIFFERENCE for verdict in found) for found in tables]))

        assert share_of_tables_with_an_alarm() <= stats.binom.ppf(0.999, 600, 0.05) / 600
        monkeypatch.setattr(statistics, "holm", dict)
        assert share_of_tables_with_an_alarm() > 0.12

    def test_a_difference_of_three_standard_deviations_is_seen_with_five_seeds(self) -> None:
        rng = np.random.default_rng(22)
        found = [
            compare(table(a=base.tolist(), b=(base - 3 + rng.normal(size=5)).tolist()), "a")[0].verdict
            for base in rng.normal(size=(200, 5))
        ]
        assert found.count(BETTER) > 190
        assert WORSE not in found

    def test_pairing_sees_what_means_alone_would_not(self) -> None:
        """Seeds that differ by far more than the arms do."""
        rng = np.random.default_rng(23)
        base = 10 * rng.normal(size=5)
        other = base - 0.5 + 0.1 * rng.normal(size=5)
        unpaired: Any = stats.ttest_ind(base, other)
        assert unpaired.pvalue > 0.5
        assert compare(table(a=base.tolist(), b=other.tolist()), "a")[0].verdict == BETTER


class TestIntervals:
    """They agree with Holm's decisions, and cover together what they should."""

    @staticmethod
    def of_table(
        rng: np.random.Generator, effects: list[float], seeds: int = 5
    ) -> list[statistics.ArmDifference]:
        shared = rng.normal(size=seeds)
        arms = {
            f"a{k}": dict(enumerate(shared + gap + rng.normal(size=seeds))) for k, gap in enumerate(effects)
        }
        return compare({"r": dict(enumerate(shared + rng.normal(size=seeds))), **arms}, "r")

    def test_one_excludes_zero_exactly_if_its_corrected_p_is_small(self) -> None:
        """Also where Bonferroni's contains 0, and where an interval that is not corrected excludes it."""
        rng = np.random.default_rng(24)
        uncorrected = beyond_bonferroni = 0
        for number in range(400):
            effects = rng.uniform(-3, 3, size=1 + number % 6)
            gaps = {str(k): rng.normal(gap, size=3 + number % 4) for k, gap in enumerate(effects)}
            raw = {name: p for name, gap in gaps.items() if (p := p_value(gap)) is not None}
            corrected, found = holm(raw), intervals(gaps, raw)
            for name, (low, high) in found.items():
                assert low < gaps[name].mean() < high
                assert (low > 0 or high < 0) == (corrected[name] < LEVEL)
                beyond_bonferroni += corrected[name] < LEVEL <= raw[name] * len(raw)
                uncorrected += raw[name] < LEVEL <= corrected[name]
        assert uncorrected > 20 and beyond_bonferroni > 20

    @pytest.mark.parametrize("effects", [[0.0] * 4, [20.0] * 4, [0.0, 0.0, 20.0, 20.0], [0.0, 1.5, 3.0, 5.0]])
    def test_all_of_a_table_cover_in_9_of_10_tables_and_uncorrected_ones_do_not(
        self, effects: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def covered(one: statistics.ArmDifference, true: float) -> bool:
            assert one.interval is not None
            return one.interval[0] <= true <= one.interval[1]

        def share() -> float:
            rng = np.random.default_rng(25)
            found = [self.of_table(rng, effects) for _ in range(1000)]
            return float(np.mean([all(map(covered, table, effects)) for table in found]))

        assert share() > 0.91
        narrow = statistics.t_interval
        monkeypatch.setattr(statistics, "t_interval", lambda differences, _: narrow(differences))
        assert share() < 0.87

    def test_pairs_are_corrected_together(self) -> None:
        rng = np.random.default_rng(26)
        base = rng.normal(size=5)
        values = table(
            a=base.tolist(),
            b=(base + np.array([1.0, 2.0, 0.2, 1.5, 0.9])).tolist(),
            c=rng.normal(size=5).tolist(),
        )
        (alone,) = compare_pairs(values, [("b", "a")])
        both = compare_pairs(values, [("b", "a"), ("c", "b")])
        assert [(one.arm, one.against) for one in both] == [("b", "a"), ("c", "b")]
        assert alone.p is not None and both[0].p == pytest.approx(2 * alone.p)


class TestVerdicts:
    @pytest.mark.parametrize(
        ("differences", "lower", "higher"),
        [
            ([-0.1, -0.11, -0.09], BETTER, WORSE),
            ([0.1, 0.11, 0.09], WORSE, BETTER),
            ([-0.1, 0.1, 0.02], NO_DIFFERENCE, NO_DIFFERENCE),
            ([-0.5, -0.5, -0.5], BETTER, WORSE),
            ([0.0, 0.0, 0.0], NO_DIFFERENCE, NO_DIFFERENCE),
            ([-0.1, -0.11], TOO_FEW_SEEDS, TOO_FEW_SEEDS),
            ([0.0, 0.0], TOO_FEW_SEEDS, TOO_FEW_SEEDS),
            ([-5.0], TOO_FEW_SEEDS, TOO_FEW_SEEDS),
        ],
    )
    def test_in_words(self, differences: list[float], lower: str, higher: str) -> None:
        values = table(a=[1.0] * len(differences), b=[1 + gap for gap in differences])
        ending = PRELIMINARY if len(differences) >= 3 else ""
        assert compare(values, "a", "lower")[0].verdict == lower + ending
        assert compare(values, "a", "higher")[0].verdict == higher + ending

    def test_is_preliminary_below_five_seeds(self) -> None:
        for seeds, said in (
            (2, TOO_FEW_SEEDS),
            (3, f"{WORSE} (preliminary)"),
            (4, f"{WORSE} (preliminary)"),
            (5, WORSE),
        ):
            values = table(a=[1.0] * seeds, b=[2 + 0.01 * k for k in range(seeds)])
            assert compare(values, "a")[0].verdict == said

    def test_the_same_run_twice_has_no_difference_at_all(self) -> None:
        found = compare(table(a=[1.25, 1.5, 1.375], b=[1.25, 1.5, 1.375]), "a")[0]
        assert (found.difference, found.p, found.interval) == (0.0, 1.0, (0.0, 0.0))

    def test_only_seeds_that_both_have_are_paired(self) -> None:
        values = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {1: 2.5, 2: 3.5, 7: 100.0}, "c": {9: 1.0}}
        found = compare(values, "a")
        assert [(one.arm, one.seeds, one.difference) for one in found] == [("b", 2, 0.5)]
        assert found[0].mean == pytest.approx(106 / 3)

    def test_correction_can_take_a_verdict_back(self) -> None:
        close = [-1.0, -2.0, -0.2, -1.5, -0.9]  # p = 0.02 alone
        noise = {f"n{k}": [1.0, -1.0, 0.5, -0.4, 0.1 * k] for k in range(4)}
        assert compare(table(r=[0.0] * 5, c=close), "r")[0].verdict == BETTER
        assert compare(table(r=[0.0] * 5, c=close, **noise), "r")[0].verdict == NO_DIFFERENCE

    def test_an_arm_with_too_few_seeds_costs_the_others_nothing(self) -> None:
        close = [-1.0, -2.0, -0.2, -1.5, -0.9]
        few = {f"f{k}": [1.0, 2.0] for k in range(8)}
        assert compare(table(r=[0.0] * 5, c=close, **few), "r")[0].verdict == BETTER


def test_small_numbers() -> None:
    assert mean_sd({0: 2.0, 5: 4.0}) == (3.0, pytest.approx(math.sqrt(2)))
    assert math.isnan(mean_sd({0: 2.0})[1])
    assert compare(table(a=[1.0, 2.0], b=[1.5, 2.4]), "a")[0].interval is None
    assert t_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert p_value(np.array([1.0, 2.0])) is None
