"""GRACE as a function of signals: what it picks, what it never picks, and what a refresh does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwise as gw
from gradwise.errors import RecipeError, SignalError
from gradwise.methods.grace.importance import MeanDirection, importance, worth
from gradwise.methods.grace.nodes import nodes_of
from gradwise.methods.grace.refresh import SHARE_RANGE, drawn_of, next_share
from gradwise.methods.grace.state import State
from gradwise.numerics import facility_location, knn_graph
from gradwise.numerics.propagation import neighbour_mean
from gradwise.signals import Signals


def signals(n: int = 60, seed: int = 0, **changes: Any) -> Any:
    """Clustered embeddings, losses, gradients, lengths; all of them at random."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, 8)) * 3
    found: dict[str, Any] = {
        "embedding": (centres[rng.integers(0, 6, n)] + rng.standard_normal((n, 8))).astype(np.float32),
        "loss": rng.random(n).astype(np.float32) + 1,
        "grad": rng.standard_normal((n, 16)).astype(np.float32),
        "grad_norm": rng.random(n).astype(np.float32) + 1,
        "head_norm": rng.random(n).astype(np.float32) + 1,
        "num_tokens": rng.integers(5, 50, n).astype(np.int32),
        "domain": np.array([f"d{i % 3}" for i in range(n)]),
    }
    return Signals(n, **(found | changes))


def repeated(whole: Signals, index: np.ndarray) -> Any:
    names = ("embedding", "loss", "grad", "grad_norm", "head_norm", "num_tokens", "domain", "ok", "weight")
    values = {name: getattr(whole, name) for name in names}
    return Signals(len(index), **{k: v[index] for k, v in values.items() if v is not None})


class TestSelect:
    @pytest.mark.parametrize("kind", ["loss", "alignment", "norm", "head_norm"])
    def test_is_facility_location_on_the_graph(self, kind: Any):
        found = signals()
        grace = gw.Grace(count=12, importance=kind, by_length=False, neighbours=5, trade_off=0.3)
        picked = grace.select(found)
        centred = found.embedding - found.embedding.mean(axis=0, dtype=np.float64).astype(np.float32)
        graph = knn_graph(centred, 5)
        values = {
            "loss": found.loss,
            "norm": found.grad_norm,
            "head_norm": found.head_norm,
            "alignment": MeanDirection.of(found.grad.astype(np.float64)).alignment(
                found.grad.astype(np.float64)
            ),
        }[kind]
        expected = facility_location(graph, worth(values.astype(np.float64)).scores, 12, 0.3)
        assert picked.indices.tolist() == expected.tolist()
        assert picked.scores == pytest.approx(values[expected])

    @pytest.mark.parametrize("size", [{"fraction": 0.5}, {"count": 1}, {"count": 60}, {"tokens": 300}])
    def test_stays_within_its_budget(self, size: dict[str, Any]):
        found = signals()
        picked = gw.Grace(**size).select(found)
        assert len(set(picked.indices.tolist())) == len(picked.indices)
        if "tokens" in size:
            assert 0 < found.num_tokens[picked.indices].sum() <= 300
        else:
            assert len(picked.indices) == size.get("count", 30)

    def test_says_why(self):
        picked = gw.Grace(count=10).select(signals())
        assert len(picked.why) == 10
        assert picked.why[3].startswith("pick 4: stands for")
        # Samples that no pick has among its neighbours stand for nobody.
        assert 0 < picked.columns["covers"].sum() <= 60
        assert picked.columns["rank"].tolist() == list(range(10))
        assert sum(count for count, _ in picked.details["domains"].values()) == 10
        assert 0 < picked.details["coverage"] <= 1

    def test_weights_are_what_each_stands_for(self):
        picked = gw.Grace(count=10, weighted=True).select(signals())
        assert picked.weights is not None
        assert picked.weights.mean() == pytest.approx(1)
        order = np.argsort(picked.columns["covers"])
        assert np.all(np.diff(picked.weights[order]) >= 0)
        assert picked.weights.max() / picked.weights.min() <= 16 + 1e-9

    def test_every_domain_keeps_its_minimum(self):
        found = signals(n=120)
        domain = np.where(np.arange(120) < 100, "common", "rare")
        # Nothing speaks for the rare domain: no importance, and all of it lies where others cover it.
        found = replace(found, domain=domain, loss=np.where(domain == "rare", 0, found.loss).astype("f4"))
        free = gw.Grace(count=24, importance="loss", trade_off=0.1).select(found)
        held = gw.Grace(count=24, importance="loss", trade_off=0.1, domain_minimum=1.0).select(found)
        assert (domain[free.indices] == "rare").sum() < 4
        assert (domain[held.indices] == "rare").sum() == 4
        assert len(held.indices) == 24

    def test_samples_set_aside_are_never_picked(self):
        found = signals()
        ok = np.ones(60, dtype=bool)
        ok[[3, 7]] = False
        loss = found.loss.copy()
        loss[[3, 7, 11]] = np.nan
        picked = gw.Grace(importance="loss", fraction=1.0).select(replace(found, ok=ok, loss=loss))
        assert sorted(picked.indices) == sorted(set(range(60)) - {3, 7, 11})
        with pytest.raises(SignalError, match="no sample whose"):
            gw.Grace(importance="loss", fraction=0.5).select(replace(found, ok=np.zeros(60, dtype=bool)))

    def test_coverage_alone_needs_no_gradients(self):
        found = signals(grad=None, grad_norm=None)
        alone = gw.Grace(count=12, trade_off=1.0)
        assert alone.needs == {"embedding", "num_tokens", "loss"}
        shuffled = replace(found, loss=found.loss[::-1].copy())
        assert alone.select(found).indices.tolist() == alone.select(shuffled).indices.tolist()
        assert "head_norm" in replace(alone, trade_off=0.99).needs

    def test_a_missing_signal_is_named(self):
        with pytest.raises(SignalError, match="grace with importance norm needs the signal 'grad_norm'"):
            gw.Grace(count=2, importance="norm").select(signals(grad_norm=None))

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({}, "one of fraction, count and tokens; found none of them"),
            ({"fraction": 0.1, "tokens": 9}, "found fraction and tokens"),
        ],
    )
    def test_contradictions_are_refused(self, settings: dict[str, Any], said: str):
        with pytest.raises(RecipeError, match=said):
            gw.Grace(**settings)


class TestCopies:
    def test_no_copy_while_a_distinct_sample_is_left(self):
        """Every sample twenty times, in a random order."""
        once = signals(n=40)
        index = np.random.default_rng(1).permutation(np.repeat(np.arange(40), 20))
        pool = repeated(once, index)
        for count in (1, 20, 40, 41, 100):
            picked = gw.Grace(count=count).select(pool)
            assert len(set(index[picked.indices].tolist())) == min(count, 40)
            assert len(set(picked.indices.tolist())) == count
            # Then every sample's second copy before anybody's third.
            times = np.bincount(index[picked.indices], minlength=40)
            assert times.max() - times.min() <= 1

    def test_nearly_equal_embeddings_are_copies_too(self):
        """What padding does to last bits."""
        once = signals(n=40)
        index = np.repeat(np.arange(40), 5)
        pool = repeated(once, index)
        noise = 1 + 3e-7 * np.random.default_rng(0).standard_normal((200, 8))
        pool = replace(pool, embedding=(pool.embedding * noise).astype(np.float32))
        picked = gw.Grace(count=40).select(pool)
        assert len(set(index[picked.indices].tolist())) == 40

    @pytest.mark.parametrize("seed", range(3))
    def test_copies_follow_in_a_budget_of_tokens_too(self, seed: int):
        rng = np.random.default_rng(seed)
        x = np.repeat(rng.standard_normal((10, 8)), 10, axis=0).astype(np.float32)
        tokens = np.repeat(rng.integers(3, 9, 10), 10).astype(np.int32)
        loss = np.repeat(rng.random(10), 10).astype(np.float32)
        pool = Signals(100, embedding=x, loss=loss, num_tokens=tokens)
        picks = gw.Grace(importance="loss", tokens=250).select(pool).indices
        assert len(set((picks // 10).tolist())) == 10 and len(set(picks.tolist())) == len(picks)
        assert 250 - tokens.max() < tokens[picks].sum() <= 250
        few = int(tokens[::10].sum()) - 1  # not enough for each distinct sample
        picks = gw.Grace(importance="loss", tokens=few).select(pool).indices
        assert len(set((picks // 10).tolist())) == len(picks)

    def test_copies_count_in_coverage(self):
        """One pick: the cluster with many copies of a few samples, not that with a few more samples."""
        rng = np.random.default_rng(0)
        a, b = (
            np.eye(8)[0] + 0.1 * rng.standard_normal((4, 8)),
            np.eye(8)[1] + 0.1 * rng.standard_normal((6, 8)),
        )
        x = np.concatenate([np.repeat(a, 10, axis=0), b]).astype(np.float32)
        pool = Signals(46, embedding=x, loss=np.ones(46, np.float32), num_tokens=np.ones(46, np.int32))
        assert gw.Grace(importance="loss", count=1, trade_off=1.0, neighbours=3).select(pool).indices[0] < 40

    def test_nodes_are_numbered_by_their_first_sample(self):
        x = np.array([[1.0, 0], [0, 1], [1, 0], [-1, 0.5], [0, 1]])
        nodes = nodes_of(x, 2)
        assert nodes.node.tolist() == [0, 1, 0, 2, 1]
        assert nodes.first.tolist() == [0, 1, 3]
        assert np.bincount(nodes.node).tolist() == [2, 2, 1]


class TestImportance:
    def test_alignment_leaves_the_sample_itself_out(self):
        grads = np.random.default_rng(0).standard_normal((9, 5))
        units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
        target = MeanDirection.of(grads)
        for i, found in enumerate(target.alignment(grads)):
            others = np.delete(units, i, axis=0)
            assert found == pytest.approx((others @ units[i]).mean())
        # Whoever is measured later is compared with the same mean.
        assert target.alignment(grads[[4, 7]]) == pytest.approx(target.alignment(grads)[[4, 7]])
        assert target.moved(-grads).mean == pytest.approx(-target.mean)
        assert target.moved(grads[:1]).mean == pytest.approx((8 * target.mean + units[0]) / 9)
        assert MeanDirection.of(grads[:1]).alignment(grads[:1]).tolist() == [0]

    def test_alignment_does_not_depend_on_size(self):
        """Garbage has large gradients; without a gradient there is nothing to agree."""
        grads = np.random.default_rng(0).standard_normal((9, 5))
        scale = np.geomspace(1e-3, 1e6, 9)[:, None]
        assert MeanDirection.of(scale * grads).alignment(scale * grads) == pytest.approx(
            MeanDirection.of(grads).alignment(grads)
        )
        grads[3] = 0
        assert MeanDirection.of(grads).alignment(grads)[3] == 0

    def test_length_counts_where_it_is_asked_for(self):
        found, rows = signals(), np.arange(60)
        plain = importance("loss", found, rows)
        scaled = importance("loss", found, rows, mean_tokens=float(found.num_tokens.mean()))
        assert scaled == pytest.approx(plain * found.num_tokens / found.num_tokens.mean())

    def test_an_outlier_does_not_take_over_and_is_listed(self):
        """One in a thousand with 1e4 times the gradient norm of the others."""
        found = signals(n=1000)
        norm = found.grad_norm.copy()
        norm[417] *= 1e4
        with_it = gw.Grace(count=100, importance="norm").select(replace(found, grad_norm=norm))
        without = gw.Grace(count=100, importance="norm").select(found)
        assert with_it.details["outliers"] == [417]
        assert without.details["outliers"] == []
        assert len(np.intersect1d(with_it.indices, without.indices)) >= 97

    def test_worth_lies_within_bounds_whatever_comes(self):
        assert worth(np.zeros(4)).scores.tolist() == [0, 0, 0, 0]
        assert worth(np.array([7.0])).scores.tolist() == [0]
        assert worth(np.array([-1.0, -2.0, -1.0])).scores.tolist() == [0.75, 0, 0.75]
        few = worth(np.array([0.0] * 200 + [3.0]))
        assert few.scores.max() == 1
        assert not few.outliers.size
        with pytest.raises(SignalError, match="not finite"):
            worth(np.array([1.0, np.nan]))


def apart(state: State) -> Any:
    """The state's graph with similarities of zero: nothing spreads but the mean change."""
    return replace(state.graph, sims=np.zeros_like(state.graph.sims))


class TestRefresh:
    def moved(self, found: Any, seed: int = 5) -> Any:
        """The same samples after some training."""
        rng = np.random.default_rng(seed)
        shift = rng.standard_normal(8)
        return replace(
            found,
            embedding=(found.embedding + shift + 0.3 * rng.standard_normal((len(found), 8))).astype("f4"),
            loss=(0.7 * found.loss + 0.05 * rng.random(len(found))).astype("f4"),
        )

    @pytest.mark.parametrize("how", ["value", "change"])
    @pytest.mark.parametrize("kind", ["loss", "alignment"])
    def test_measuring_all_equals_a_fresh_start(self, how: Any, kind: Any):
        found = signals()
        grace = gw.Grace(importance=kind, by_length=False, count=15, anchors=1.0, propagate=how)
        state = grace.begin(found)
        later = self.moved(found)
        anchors = grace.anchors_at(state, 10)
        assert anchors.tolist() == list(range(60))
        after = grace.refresh(state, anchors, later, 10).state
        fresh = grace.begin(later, step=10)
        after_arrays, fresh_arrays = after.changed(refreshes=0).arrays(), fresh.arrays()
        assert after_arrays.keys() == fresh_arrays.keys()
        for name, values in after_arrays.items():
            if not name.startswith("graph."):
                assert np.array_equal(values, fresh_arrays[name]), name
        for one, other in zip(after.graph.used, fresh.graph.used, strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(grace.pick(after, later).indices, grace.pick(fresh, later).indices)
        assert after.share == 1.0

    def test_beta_of_zero_changes_anchors_only(self):
        found = signals()
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=0.2, beta=0.0)
        state = grace.begin(found)
        anchors = grace.anchors_at(state, 10)
        after = grace.refresh(state, anchors, repeated(self.moved(found), anchors), 10).state
        others = np.setdiff1d(np.arange(60), anchors)
        assert np.array_equal(after.importance[others], state.importance[others])
        assert not np.array_equal(after.importance[anchors], state.importance[anchors])
        assert np.all(after.measured_at[anchors] == 10)
        assert np.all(after.measured_at[others] == 0)

    def test_anchors_are_mostly_drawn_and_partly_by_priority(self):
        found = signals(n=400)
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=0.1, neighbours=5)
        state = grace.begin(found)
        anchors = grace.anchors_at(state, 10)
        drawn = drawn_of(state, 10, 40, grace.random_anchors)
        assert len(anchors) == 40
        assert len(drawn) == 30
        assert set(drawn) < set(anchors)
        assert not np.array_equal(drawn, drawn_of(state, 20, 40, grace.random_anchors))
        # Those of high priority are unlike their neighbours; the drawn ones are like everybody.
        unlike = np.abs(state.importance - neighbour_mean(state.importance, state.graph))
        assert unlike[np.setdiff1d(anchors, drawn)].mean() > 1.5 * unlike[drawn].mean()

    def test_only_drawn_anchors_judge_propagation(self):
        found = signals(n=400)
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=0.1)
        state = grace.begin(found)
        anchors = grace.anchors_at(state, 10)
        later = repeated(self.moved(found), anchors)
        drawn = np.isin(anchors, drawn_of(state, 10, len(anchors), grace.random_anchors))
        odd = later.loss.copy()
        odd[~drawn] = odd[~drawn][::-1]
        # Another order of the same values: the same mean change, other values at these anchors.
        one = grace.refresh(replace(state, graph=apart(state)), anchors, later, 10).agreement
        other = grace.refresh(replace(state, graph=apart(state)), anchors, replace(later, loss=odd), 10)
        assert one is not None
        assert one == pytest.approx(other.agreement)

    @pytest.mark.parametrize("count", [1, 6])
    def test_alignment_keeps_its_target_whoever_is_measured(self, count: int):
        """Anchors move the target by their share; where all gradients are the same, nothing moves at all."""
        found = signals()
        grace = gw.Grace(count=15, importance="alignment", anchors=count / 60)
        state: Any = grace.begin(found)
        anchors = grace.anchors_at(state, 10)
        assert len(anchors) == count
        after = grace.refresh(state, anchors, repeated(found, anchors), 10).state
        share = count / 60
        grads = found.grad.astype(np.float64)
        units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
        moved = (1 - share) * state.target + share * units[anchors].mean(axis=0)
        assert after.target == pytest.approx(moved)
        flat = replace(found, grad=np.broadcast_to(found.grad[0], found.grad.shape))
        level = grace.begin(flat)
        again = grace.refresh(level, anchors, repeated(flat, anchors), 10).state
        assert again.importance == pytest.approx(level.importance, rel=1e-5)

    def test_copies_weigh_in_the_centre(self):
        """Measuring all of a pool with copies equals a fresh start, too."""
        once = signals(n=30)
        index = np.concatenate([np.arange(30), np.repeat(np.arange(5), 9)])
        pool, later = repeated(once, index), repeated(self.moved(once), index)
        grace = gw.Grace(importance="loss", by_length=False, count=10, anchors=1.0)
        state = grace.begin(pool)
        after = grace.refresh(state, np.arange(30), later.take(np.arange(30)), 10).state
        fresh = grace.begin(later, step=10)
        assert np.array_equal(after.centre, fresh.centre)
        assert np.array_equal(after.graph.used[0], fresh.graph.used[0])

    def test_the_graph_is_that_of_what_moved(self):
        found = signals()
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=0.3, drift=0.02)
        state, moved = grace.begin(found), 0
        for step in (10, 20, 30):
            anchors = grace.anchors_at(state, step)
            done = grace.refresh(state, anchors, repeated(self.moved(found, step), anchors), step)
            state, moved = done.state, moved + done.moved
            fresh = knn_graph(state.placed, 16)
            assert np.array_equal(state.graph.used[0], fresh.used[0])
        assert moved > 0

    def test_small_drift_leaves_the_graph(self):
        found = signals()
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=0.3, drift=2.0)
        state = grace.begin(found)
        anchors = grace.anchors_at(state, 10)
        done = grace.refresh(state, anchors, repeated(self.moved(found), anchors), 10)
        assert done.moved == 0
        assert done.state.graph is state.graph

    def test_a_shift_that_all_share_moves_nothing(self):
        found = signals()
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=0.3, drift=1e-4)
        state = grace.begin(found)
        anchors = grace.anchors_at(state, 10)
        shifted = replace(found, embedding=found.embedding + np.float32(4))
        done = grace.refresh(state, anchors, repeated(shifted, anchors), 10)
        assert done.moved == 0
        assert done.embedding_agreement == pytest.approx(1, abs=1e-4)

    def test_agreement_is_that_of_guesses_without_the_anchor_itself(self):
        """Changes that neighbours share are guessed well; changes at random are not, though every anchor
        was measured."""
        found = signals(n=300)
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=1.0, beta=1.0, neighbours=8)
        state = grace.begin(found)
        rng = np.random.default_rng(0)
        smooth = (found.loss * 0.01 + 3 * (found.embedding @ rng.standard_normal(8))).astype("f4")
        odd = rng.permutation(smooth)
        everyone = np.arange(300)
        good = grace.refresh(state, everyone, replace(found, loss=smooth), 1).agreement
        bad = grace.refresh(state, everyone, replace(found, loss=odd), 1).agreement
        assert good is not None and bad is not None
        assert good > 0.8
        assert abs(bad) < 0.4

    def test_anchors_that_cannot_be_measured_keep_what_was_believed(self):
        found = signals()
        grace = gw.Grace(importance="loss", by_length=False, count=15, anchors=0.2)
        state = grace.begin(found)
        anchors = grace.anchors_at(state, 10)
        later = repeated(self.moved(found), anchors)
        ok = np.ones(len(anchors), dtype=bool)
        ok[0] = False
        after = grace.refresh(state, anchors, replace(later, ok=ok), 10).state
        assert after.measured_at[anchors[0]] == 0
        with pytest.raises(SignalError, match="may have diverged"):
            grace.refresh(state, anchors, replace(later, ok=~np.ones(len(anchors), dtype=bool)), 10)

    @given(st.floats(0.001, 1), st.one_of(st.none(), st.floats(-1, 1)))
    def test_the_share_of_anchors_adapts_within_bounds(self, share: float, agreement: float | None):
        found = next_share(share, agreement, 0.8)
        low, high = SHARE_RANGE[0], max(SHARE_RANGE[1], share)
        assert low <= found <= high
        if agreement is not None and agreement < 0.8:
            assert found == pytest.approx(np.clip(1.5 * share, low, high))
        else:
            assert found == pytest.approx(np.clip(share / 1.25, low, high))
        assert next_share(share, 1.0, 0.8, least=0.3) >= 0.3

    def test_the_recall_of_an_approximate_graph_is_reported(self):
        found = signals()
        grace = gw.Grace(importance="loss", by_length=False, count=15)
        exact = grace.begin(found)
        assert "recall" not in grace.pick(exact, found).details
        approximate = exact.changed(graph=replace(exact.graph, recall=0.96713))
        assert grace.pick(approximate, found).details["recall"] == 0.9671

    def test_state_survives_being_stored(self):
        found = signals()
        for grace in (
            gw.Grace(importance="loss", by_length=False, count=15),
            gw.Grace(importance="loss", count=15, by_length=True),
        ):
            state = grace.begin(found, step=3)
            again = State.of_arrays(state.arrays())
            assert again.arrays().keys() == state.arrays().keys()
            # The name in checkpoints of earlier versions.
            assert np.array_equal(state.arrays()["looked"], state.scored_rows)
            for name, values in state.arrays().items():
                assert np.array_equal(again.arrays()[name], values), name
                assert again.arrays()[name].dtype == values.dtype, name
            assert np.array_equal(grace.pick(again, found).indices, grace.pick(state, found).indices)


class TestAsPublished:
    """The paper's formulas taken literally."""

    def state(self, **changes: Any) -> tuple[Any, Any, Any]:
        found = signals(n=80)
        grace = gw.Grace.published(count=15, neighbours=5, **changes)
        return grace, found, grace.begin(found)

    def test_anchors_have_the_highest_priority_and_none_is_drawn(self):
        grace, _, state = self.state(staleness=0.3)
        state = state.changed(measured_at=np.arange(80) % 7)
        ages, values = 20 - state.measured_at, state.importance
        ids, sims = state.graph.used
        distance = np.zeros(80)
        for i in range(80):
            positive = [max(float(sim), 0.0) for sim in sims[i]]
            mean = sum(a * values[j] for a, j in zip(positive, ids[i], strict=True)) / sum(positive)
            distance[i] = abs(values[i] - mean)

        def ranks(of: np.ndarray) -> np.ndarray:
            below, same = (of[:, None] > of).sum(axis=1), (of[:, None] == of).sum(axis=1)
            return (below + (same - 1) / 2) / (len(of) - 1)

        priority = 0.3 * ranks(ages) + 0.7 * ranks(distance)
        anchors = grace.anchors_at(state, 20)
        assert len(anchors) == 8
        # Spread over the graph: the best of all, then each the best that is no neighbour of those before.
        chosen: list[int] = []
        for row in np.argsort(-priority, kind="stable"):
            if len(chosen) < 8 and not any(row in ids[other] for other in chosen):
                chosen.append(int(row))
        assert anchors.tolist() == sorted(chosen)

    def test_values_spread_by_equation_21(self):
        grace, found, state = self.state()
        anchors = grace.anchors_at(state, 50)
        later = repeated(replace(found, grad_norm=found.grad_norm * 1.5 + 0.2), anchors)
        after = grace.refresh(state, anchors, later, 50).state
        new = state.importance.copy()
        new[anchors] = later.grad_norm
        ids, sims = state.graph.used
        for i in range(80):
            alphas = [max(float(sim), 0.0) for sim in sims[i]]
            spread = sum(a * new[j] for a, j in zip(alphas, ids[i], strict=True)) / sum(alphas)
            expected = new[i] if i in anchors else 0.5 * state.importance[i] + 0.5 * spread
            assert after.importance[i] == pytest.approx(expected)
        assert after.share == state.share, "the number of anchors does not adapt"
