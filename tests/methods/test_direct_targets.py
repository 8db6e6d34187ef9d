"""DiReCT beside simpler selections: targets are recognised, and picks that held-out samples speak against are
not used."""

from typing import Any, ClassVar

import numpy as np
import pytest

import gradwise as gw
from gradwise.methods.direct.check import HeldOutCheck, held_out_check
from gradwise.methods.direct.problem import unlikeness
from gradwise.numerics import Rows
from tests.methods.test_direct import HELD_OUT, OBJECTIVES, POOL


class TestHeldOutCheck:
    def test_good_picks_are_used_and_shown_beside_random_ones(self) -> None:
        found = gw.Direct(count=20).select(POOL, validation=HELD_OUT)
        check = found.details["check"]
        assert (check["samples"], check["use"]) == (80, "picks") and "fallback" not in found.details
        assert check["picks"] >= check["random"] - 0.7 * check["noise"]

    def test_is_its_definition(self) -> None:
        rng = np.random.default_rng(1)
        g, z = rng.standard_normal((30, 5)), rng.standard_normal((12, 5)) + 0.3
        seen: list[np.ndarray] = []

        def choose(half: np.ndarray) -> np.ndarray:
            seen.append(half)
            return np.argsort(-(g @ half.mean(axis=0)))[:4]

        rows = Rows(g.astype(np.float32))
        check = held_out_check(choose, lambda half: np.arange(4), rows, z, 4, seed=3)
        assert check is not None and len(seen) == 2
        effects = []
        for own, other in (seen, seen[::-1]):
            step = g[choose(own)].sum(axis=0)
            effects.append(other @ step / np.sqrt(np.mean((other @ step) ** 2)))
        assert check.picks == pytest.approx(np.mean(effects), rel=1e-4)
        assert sorted(map(tuple, np.concatenate(seen[:2]).tolist())) == sorted(map(tuple, z.tolist()))

    @pytest.mark.parametrize(
        ("picks", "cosine", "use"),
        [(0.49, 0.9, "picks"), (0.47, 0.6, "cosine"), (0.47, 0.49, "cosine"), (0.47, 0.47, "random")],
    )
    def test_the_better_of_the_others_is_used(self, picks: float, cosine: float, use: str) -> None:
        check = HeldOutCheck(40, picks, cosine, random=0.55, noise=0.1, cosine_noise=0.1)
        assert check.use == use
        assert (check.sentence() is None) == (use == "picks")

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_the_fallback_keeps_count_and_budget(self, monkeypatch: Any, objective: Any) -> None:
        monkeypatch.setattr(HeldOutCheck, "use", "random")
        found = gw.Direct(count=30, tau=0.8, objective=objective).select(POOL, validation=HELD_OUT)
        assert len(set(found.indices.tolist())) == 30 and found.details["budget_used"] <= 1
        stays = objective == "paper"
        assert ("stay" if stays else "random ones take their place") in found.details["fallback"]
        plain = gw.Direct(count=30, tau=0.8, objective=objective, held_out_check=False)
        same = plain.select(POOL, validation=HELD_OUT).indices.tolist() == found.indices.tolist()
        assert same == stays

    def test_too_few_validation_samples_say_nothing(self) -> None:
        found = gw.Direct(count=9).select(POOL, validation=HELD_OUT.take(np.arange(7)))
        assert "check" not in found.details


def mixed(counts: dict[str, int], k: int = 48, seed: int = 0) -> gw.Signals:
    """Gradients of domains, each with a common part and a direction of its own."""
    rng, bases = np.random.default_rng(seed), np.random.default_rng(5).standard_normal((6, k)) / np.sqrt(k)
    parts = []
    for name, count in counts.items():
        noise = rng.standard_normal((count, k)) / np.sqrt(k)
        parts.append(bases[0] + 0.8 * bases[1 + "abc".index(name)] + noise)
    domain = np.repeat(list(counts), list(counts.values()))
    return gw.Signals(
        len(domain),
        grad=np.concatenate(parts).astype(np.float32),
        num_tokens=np.full(len(domain), 40, dtype=np.int32),
        domain=domain,
    )


class TestTarget:
    POOL: ClassVar[gw.Signals] = mixed({"a": 300, "b": 300, "c": 300}, seed=1)

    def test_validation_samples_like_the_pool_are_no_target(self) -> None:
        for seed in range(5):
            held_out = mixed({"a": 20, "b": 20, "c": 20}, seed=10 + seed)
            details = gw.Direct(count=40).select(self.POOL, validation=held_out).details
            assert details["direction"] == "curvature" and details["unlike_pool"] < 0.05
            assert details["tau"] == 1

    def test_towards_a_target_the_picks_are_those_of_cosine(self) -> None:
        held_out = mixed({"a": 60}, seed=3)
        direct = gw.Direct(count=40, outliers="keep").select(self.POOL, validation=held_out)
        cosine = gw.baselines.CosineTop(count=40).select(self.POOL, validation=held_out)
        assert direct.details["direction"] == "alignment" and direct.details["unlike_pool"] > 0.2
        assert sorted(direct.indices) == sorted(cosine.indices)
        assert self.POOL.domain is not None
        assert (self.POOL.domain[direct.indices] == "a").mean() > 0.9
        bounded = gw.Direct(count=40, tau=0.9).select(self.POOL, validation=held_out).details
        assert bounded["tau"] == 0.9 and bounded["budget_used"] <= 1

    def test_unlikeness_is_the_share_of_the_square_that_noise_does_not_explain(self) -> None:
        rng = np.random.default_rng(0)
        z, g = (
            rng.standard_normal((4000, 4)) + 1.0,
            rng.standard_normal((4000, 4)) + np.array([1.0, 1.0, 1.0, 0.0]),
        )
        assert unlikeness(z, Rows(g.astype(np.float32))) == pytest.approx(0.25, abs=0.02)
        assert unlikeness(z[:7], Rows(g.astype(np.float32))) == 0
