"""D3's units, graph and windows, against what can be said by hand."""

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwise as gw
from gradwise.methods.baselines import Balanced
from gradwise.methods.d3 import D3, InfluenceGraph, Units, method
from gradwise.methods.d3.schedule import Windows
from gradwise.numerics.balance import imbalance
from gradwise.probing import GradientProducts, LookaheadLosses, Orders


def pool(n: int = 120, domains: int = 3, seed: int = 0, noise: float = 1.0) -> gw.Signals:
    rng = np.random.default_rng(seed)
    domain = rng.integers(0, domains, n)
    centres = 3 * rng.standard_normal((domains, 16))
    return gw.Signals(
        n,
        grad=(centres[domain] + noise * rng.standard_normal((n, 16))).astype(np.float32),
        loss=(1 + rng.random(n)).astype(np.float32),
        domain=np.array([f"d{number}" for number in domain]),
    )


METHODS = [
    D3(units="domains", size=4),
    D3(units="domains", size=4, window=None),
    D3(units="domains", size=4, balance=None, threshold=0.0),
    D3(units="clusters", size=5),
    D3(units=4, size=3, commit=8),
    D3(units=40),
    D3(units="batches", size=7),
    D3(units="samples"),
]


@pytest.mark.parametrize("d3", METHODS, ids=lambda d3: f"{d3.units}-{d3.window}-{d3.edges}")
class TestEveryKindOfUnit:
    def test_holds_each_entry_as_often_as_given(self, d3: D3) -> None:
        entries = np.random.default_rng(1).integers(0, 120, 75)
        order = d3.order(pool(), entries, seed=3)
        assert sorted(order.indices.tolist()) == sorted(entries.tolist())
        assert order.units is not None and len(order.units) == 75

    def test_depends_on_seed_and_epoch_alone(self, d3: D3) -> None:
        orders = [
            d3.order(pool(), seed=s, epoch=e).indices.tolist() for s, e in ((0, 0), (0, 0), (1, 0), (0, 1))
        ]
        assert orders[0] == orders[1]
        assert orders[0] not in orders[2:]

    def test_units_stay_together(self, d3: D3) -> None:
        order = d3.order(pool(), seed=0)
        assert order.units is not None
        changes = np.count_nonzero(np.diff(order.units))
        assert changes == len(np.unique(order.units)) - 1
        sizes = np.unique(order.units, return_counts=True)[1]
        assert len(set(sizes.tolist())) <= 2, "all of one size, but perhaps the last"


def test_a_group_keeps_its_order_and_what_is_left_comes_last() -> None:
    group = np.array(["a", "b"])[np.random.default_rng(0).integers(0, 2, 31)]
    units = Units.by_group(np.arange(31), group, size=4)
    for unit in units.parts[:-2]:
        assert np.all(np.diff(unit) > 0)
    whole = [unit for unit in units.parts[: units.whole] if len(set(group[unit].tolist())) == 1]
    assert len(whole) >= units.whole - 1
    mixed = units.in_order(np.arange(units.whole)[::-1])
    assert mixed[-3:].tolist() == units.parts[-1].tolist()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 2),
        ({"units": 3}, 2),
        ({"size": 5}, 5),
        ({"units": "batches"}, 6),
        ({"edges": "orders"}, 6),
        ({"units": "samples"}, 1),
    ],
)
def test_batches_hold_several_units_unless_these_are_batches(settings: dict[str, Any], size: int) -> None:
    assert D3(**settings).size_of(6) == D3(**settings).for_batches(6, packed=False).size_of(6) == size


class TestTheGraph:
    def test_first_order_weights_are_products_of_mean_gradients(self) -> None:
        signals, d3 = pool(), D3(units="domains", size=4)
        order = d3.order(signals, seed=0)
        graph = order.graph
        units = d3.units_of(np.random.default_rng([0, 0xD3, 0]).permutation(120), signals.domain, 16)
        assert graph.names == units.names
        grad, loss = signals.require("grad", "t").astype(np.float64), signals.require("loss", "t")
        kept = order.indices[: 4 * units.whole]  # the short unit, of what is left, is not measured
        rows = {name: kept[signals.require("domain", "t")[kept] == name] for name in graph.names}
        # Pieces that mix what is left of the groups count to the larger; within a twentieth that is nothing.
        mean = np.array([grad[rows[name]].mean(axis=0) for name in graph.names])
        losses = np.array([loss[rows[name]].mean() for name in graph.names])
        assert graph.weight == pytest.approx(
            mean @ mean.T / losses, rel=0.2, abs=0.2 * np.abs(mean @ mean.T).max()
        )

    def test_looking_ahead_counts_the_share_of_the_loss_that_is_taken_off(self) -> None:
        before = np.array([2.0, 4.0, 1.0, 1.0, 5.0])
        after = np.array([[1.0, 3.0, 1.0, 0.5, 4.0], [2.0, 4.0, 0.5, 0.5, 6.0]])
        graph = InfluenceGraph.from_lookahead(
            ("a", "b"), np.array([0, 0, 1, 1, -1]), LookaheadLosses(before, after), np.array([4])
        )
        assert graph.weight == pytest.approx(np.array([[2 / 6, 0.5 / 2], [0.0, 1 / 2]]))
        assert graph.influence == pytest.approx([0.2, -0.2])

    def test_both_orders_are_worth_what_the_target_gains(self) -> None:
        rng = np.random.default_rng(0)
        before, both = 4 + rng.random(6), 2 + rng.random((3, 3, 6))
        both[np.arange(3), np.arange(3)] = np.nan
        both[0, 1] -= 1.0  # 0 first ends lower
        alone = np.stack([before - gained for gained in (0.0, 0.6, 0.9)])
        graph = InfluenceGraph.from_orders(("a", "b", "c"), Orders(before, alone, both), np.array([2, 2, 3]))
        gains = (both[1, 0] - both[0, 1]) / before.mean() / (2 * 2)
        assert graph.weight[0, 1] - graph.weight[1, 0] == pytest.approx(gains.mean())
        assert graph.noise[0, 1] == pytest.approx(gains.std(ddof=1) / np.sqrt(6)) == graph.noise[1, 0]
        assert graph.influence == pytest.approx(np.array([0, 0.3, 0.3]) / before.mean())
        assert graph.precedences(2.0)[0, 1] and not graph.precedences(2.0)[1, 0]

    def test_a_trial_that_diverges_tells_nothing(self) -> None:
        rng = np.random.default_rng(0)
        before, alone, both = 4 + rng.random(6), 3 + rng.random((3, 6)), 2 + rng.random((3, 3, 6))
        both[0, 1], alone[2], both[1, 2, 3], both[np.arange(3), np.arange(3)] = np.inf, np.nan, np.nan, np.nan
        graph = InfluenceGraph.from_orders(("a", "b", "c"), Orders(before, alone, both), np.array([2, 2, 2]))
        assert np.isnan(graph.weight[0, 1]) and np.isnan(graph.weight[1, 0])
        assert np.isfinite(graph.weight[1, 2]) and graph.influence[2] == 0.0
        assert np.isfinite(graph.worth(1.0, 3)).all()
        assert not graph.precedences(0.0)[0, 1] and not graph.precedences(0.0)[1, 0]

    def test_noise_is_the_spread_of_parts_drawn_again(self) -> None:
        """Directions of many graphs, each from parts of its own, scatter as the noise says."""
        rng, found, details = np.random.default_rng(0), [], []
        turned, moved = rng.standard_normal((2, 3, 8))
        for _ in range(400):
            drawn = [np.repeat(true, 4, axis=0) + rng.standard_normal((12, 8)) for true in (turned, moved)]
            products = GradientProducts(
                drawn[0] @ drawn[1].T, np.zeros((12, 12)), np.zeros(12), np.ones(12), 1.0
            )
            graph = InfluenceGraph.from_products(
                ("a", "b", "c"), np.repeat(np.arange(3), 4), products, "curvature"
            )
            found.append(graph.weight - graph.weight.T)
            details.append(graph.noise)
        apart = ~np.eye(3, dtype=bool)
        ratio = np.mean(details, axis=0)[apart] / np.std(found, axis=0)[apart]
        assert np.all((ratio > 0.75) & (ratio < 1.5)), ratio

    def test_what_is_symmetric_has_no_direction_and_no_noise_of_it(self) -> None:
        slopes = np.random.default_rng(0).standard_normal((8, 5))
        products = GradientProducts(None, slopes @ slopes.T, np.zeros(8), np.ones(8), 1.0)
        graph = InfluenceGraph.from_products(("a", "b"), np.repeat([0, 1], 4), products, "first_order")
        assert np.abs(graph.noise).max() < 1e-12
        assert not graph.precedences(2.0).any()

    def test_a_part_that_is_not_finite_is_left_out(self) -> None:
        slopes = np.random.default_rng(0).standard_normal((8, 5))
        whole = slopes @ np.random.default_rng(1).standard_normal((5, 8))
        broken = whole.copy()
        broken[3], broken[:, 3] = np.nan, np.nan
        towards = np.where(np.arange(8) == 3, np.nan, 1.0)
        graph = InfluenceGraph.from_products(
            ("a", "b"),
            np.repeat([0, 1], 4),
            GradientProducts(broken, broken, towards, np.ones(8), 1.0),
            "curvature",
        )
        assert graph.weight[0, 1] == pytest.approx(whole[:3, 4:].mean())
        assert np.isfinite(graph.noise).all() and graph.influence.tolist() == [1.0, 1.0]
        assert np.isfinite(graph.worth(1.0, 10)).all()

    @given(st.integers(0, 500), st.integers(2, 8), st.floats(0, 3))
    def test_precedences_stand_out_and_close_no_cycle(self, seed: int, n: int, threshold: float) -> None:
        rng = np.random.default_rng(seed)
        weight, noise = rng.standard_normal((n, n)), 0.3 * rng.random((n, n))
        noise = noise + noise.T
        names = tuple(str(number) for number in range(n))
        before = InfluenceGraph(names, weight, noise, np.zeros(n), "curvature").precedences(threshold)
        reach = np.linalg.matrix_power(np.eye(n) + before, n)
        assert np.trace(reach) == n, "no way leads back"
        for i, j in zip(*np.nonzero(before), strict=True):
            assert weight[i, j] - weight[j, i] > threshold * noise[i, j]

    def test_nothing_follows_where_noise_is_unknown(self) -> None:
        graph = InfluenceGraph(
            ("a", "b"), np.array([[0, 9.0], [0, 0]]), np.full((2, 2), np.nan), np.zeros(2), ""
        )
        assert not graph.precedences(0.0).any()

    def test_old_values_fade(self) -> None:
        def graph(value: float, *names: str) -> InfluenceGraph:
            n = len(names)
            return InfluenceGraph(
                names, np.full((n, n), value), np.full((n, n), 0.5), np.full(n, value), "curvature"
            )

        mixed = graph(1.0, "a", "b", "c").followed_by(graph(3.0, "c", "a"), keep=0.25)
        assert mixed.names == ("c", "a")
        assert mixed.weight == pytest.approx(np.full((2, 2), 2.5))
        assert mixed.noise == pytest.approx(np.full((2, 2), np.hypot(0.125, 0.375)))
        assert graph(1.0, "a").followed_by(graph(3.0, "a", "new"), keep=0.5).weight[1, 1] == 3.0

    def test_old_values_are_brought_to_the_new_learning_rate(self) -> None:
        """What is of second order goes with its square."""
        ones, noise = np.ones((2, 2)), np.zeros((2, 2))
        for edges, weight in (("curvature", 0.25), ("lookahead", 0.5)):
            old = InfluenceGraph(("a", "b"), ones, noise, np.ones(2), edges, rate=2e-3)
            new = InfluenceGraph(("a", "b"), 0 * ones, noise, np.zeros(2), edges, rate=1e-3)
            mixed = old.followed_by(new, keep=0.5)
            assert mixed.weight == pytest.approx(0.5 * weight * ones)
            assert mixed.influence == pytest.approx(0.25 * np.ones(2))

    def test_comes_back_from_its_arrays(self) -> None:
        graph = D3(units="domains", size=4).order(pool()).graph
        again = InfluenceGraph.of_arrays(graph.arrays())
        assert (again.names, again.edges, again.step) == (graph.names, graph.edges, graph.step)
        assert np.array_equal(again.weight, graph.weight) and np.array_equal(again.noise, graph.noise)


class TestWindows:
    @given(st.integers(0, 300), st.integers(1, 40), st.none() | st.integers(1, 9), st.floats(0, 1))
    def test_precedences_hold_within_a_window(
        self, seed: int, units: int, window: int | None, share: float
    ) -> None:
        rng = np.random.default_rng(seed)
        nodes = 5
        hidden = rng.permutation(nodes)
        before = np.zeros((nodes, nodes), dtype=bool)
        for first in range(nodes):
            for later in range(first + 1, nodes):
                before[hidden[first], hidden[later]] = rng.random() < share
        reach = units if window is None else window
        node, commit = rng.integers(0, nodes, units), int(rng.integers(1, reach + 1))
        windows = Windows(node, rng.standard_normal((nodes, nodes)), before, window, commit, 0)
        order = windows.order(np.arange(units), np.eye(nodes)[node], 1.0)
        assert sorted(order.tolist()) == list(range(units))
        left, at, place = [], 0, 0
        while place < units:  # the windows again: what was compared when a unit was committed
            more = reach - len(left)
            left += list(range(at, min(at + more, units)))
            at = min(at + more, units)
            count = min(commit, len(left)) if at < units else len(left)
            for unit in order[place : place + count]:
                left.remove(int(unit))
                assert not any(before[node[other], node[unit]] for other in left)
            place += count

    @pytest.mark.parametrize("seed", range(5))
    def test_an_epoch_in_one_window_holds_all_precedences_and_the_best_value(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        worth, hidden = rng.standard_normal((6, 6)), rng.permutation(6)
        before = np.zeros((6, 6), dtype=bool)
        before[np.ix_(hidden, hidden)] = np.triu(rng.random((6, 6)) < 0.3, 1)
        assert before.any()
        windows = Windows(np.arange(6), worth, before, None, 4, 0)
        order = windows.order(rng.permutation(6), np.zeros((6, 1)), None)
        value = {
            p: sum(worth[p[i], p[j]] for i in range(6) for j in range(i + 1, 6))
            for p in _permutations(6)
            if not np.tril(before[np.ix_(p, p)]).any()
        }
        assert tuple(order.tolist()) in value
        assert windows.value(order) == pytest.approx(max(value.values()))

    def test_a_limit_on_balance_is_kept_where_nothing_must_precede(self) -> None:
        signals = pool(600, noise=0.1)
        settings: Any = {"units": "domains", "size": 4, "window": None, "threshold": 1e9, "early": 1.0}
        free, kept = (D3(**settings, balance=limit).order(signals) for limit in (None, 1.0))
        assert free.details["imbalance"] > 2
        assert kept.details["imbalance"] <= 1.0 + 1e-6
        assert kept.objective is not None and free.objective is not None and kept.objective < free.objective
        domain = signals.require("domain", "t")
        assert kept.units is not None
        units = np.array([np.eye(3)[[int(d[1]) for d in domain[kept.indices[kept.units == u]]]].mean(axis=0)
                          for u in dict.fromkeys(kept.units.tolist())])  # fmt: skip
        assert imbalance(units, np.arange(len(units))) < 1.2

    @given(st.integers(0, 300), st.integers(1, 60), st.integers(0, 60), st.integers(2, 9))
    def test_the_first_units_are_placed_as_all_are(
        self, seed: int, units: int, first: int, window: int
    ) -> None:
        rng = np.random.default_rng(seed)
        node, worth = rng.integers(0, 4, units), rng.standard_normal((4, 4))
        before = np.triu(rng.random((4, 4)) < 0.2, 1)
        windows = Windows(node, worth, before, window, int(rng.integers(1, window + 1)), 0)
        base, features = rng.permutation(units), np.eye(4)[node]
        whole = windows.order(base, features, 1.0)
        some = windows.order(base, features, 1.0, first)
        assert some[:first].tolist() == whole[:first].tolist()
        assert sorted(some.tolist()) == list(range(units))
        if not first:
            assert some.tolist() == base.tolist()


@given(st.integers(0, 200), st.integers(1, 80), st.integers(1, 30), st.integers(1, 6))
def test_units_of_groups_are_those_of_a_loop_over_groups(seed: int, n: int, groups: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    group, entries = rng.integers(0, groups, n), rng.integers(0, n, 2 * n)
    units = Units.by_group(entries, group, size)
    kept, rest, node = [], [], []
    for number, name in enumerate(np.unique(group[entries])):
        members = entries[group[entries] == name]
        whole = len(members) // size * size
        kept += members[:whole].tolist()
        rest += members[whole:].tolist()
        node += [number] * (whole // size)
    assert units.entries.tolist() == kept + rest
    assert units.node.tolist() == node + [len(np.unique(group[entries]))] * -(-len(rest) // size)
    order = rng.permutation(units.whole)
    parts = units.parts
    expected = np.concatenate([*(parts[unit] for unit in order), *parts[units.whole :], np.zeros(0, int)])
    assert units.in_order(order).tolist() == expected.tolist()


def test_more_groups_than_fit_in_memory_are_balanced_alone_or_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals, d3 = pool(domains=20), D3(units="domains", size=2)
    as_usual = d3.initial_order(signals, np.arange(120), group=signals.domain, batch_size=8, epoch=0, seed=0)
    monkeypatch.setattr(method, "MOST_BALANCED", 500)
    monkeypatch.setattr(
        Units, "one_hot", lambda _: pytest.fail("a number for each unit and group was stored")
    )
    order = d3.initial_order(signals, np.arange(120), group=signals.domain, batch_size=8, epoch=0, seed=0)
    assert order.indices.tolist() == as_usual.indices.tolist()
    with pytest.raises(gw.RecipeError, match=r"2[01] domains"):
        d3.order(signals)


def test_single_units_have_no_more_probes_than_samples() -> None:
    """And a measurement of them is no more expensive than that."""
    single, batches = D3(units="samples", overhead=0.5), D3(units="batches", overhead=0.5)
    assert single.timetable(400, 4, 8).probes == 1
    assert batches.timetable(400, 4, 8).probes == 4
    assert single.timetable(400, 4, 8).cost <= 0.5


def test_what_the_graph_does_not_care_about_stays_as_it_came() -> None:
    node = np.random.default_rng(0).integers(0, 3, 40)
    windows = Windows(node, np.zeros((3, 3)), np.zeros((3, 3), dtype=bool), 8, 4, 0)
    base = np.random.default_rng(1).permutation(40)
    assert windows.order(base, np.eye(3)[node], None).tolist() == base.tolist()


def test_differences_within_noise_are_worth_nothing() -> None:
    weight = np.array([[0.0, 3.0, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    graph = InfluenceGraph(("a", "b", "c"), weight, np.ones((3, 3)), np.zeros(3), "curvature")
    assert graph.worth(0.0, 3).tolist() == [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def _permutations(n: int) -> list[tuple[int, ...]]:
    import itertools

    return list(itertools.permutations(range(n)))


class TestMistakes:
    def test_edges_that_ask_a_model_need_one(self) -> None:
        with pytest.raises(
            gw.RecipeError, match=r"order.edges: lookahead asks a model; give a gradwise.Probe"
        ):
            D3(units="batches", edges="lookahead").order(pool())

    def test_what_was_not_collected_is_named(self) -> None:
        with pytest.raises(gw.SignalError, match="needs the signal 'grad'"):
            D3(units="domains", size=2).order(gw.Signals(4, domain=np.array(["a", "b", "a", "b"])))
        with pytest.raises(gw.SignalError, match="d3 needs the signal 'domain'"):
            D3(units="domains").order(gw.Signals(4))
        with pytest.raises(gw.SignalError, match="needs label tokens, gradients or domains"):
            Balanced().order(gw.Signals(4))

    def test_a_single_group_leaves_nothing_to_order(self) -> None:
        with pytest.raises(gw.RecipeError, match="d3 found only one of the domains"):
            D3(units="domains").order(gw.Signals(4, domain=np.full(4, "a")))

    def test_fewer_entries_than_a_unit_has_are_kept(self) -> None:
        order = D3(units="domains", size=9).order(gw.Signals(4, domain=np.array(["a", "b", "a", "b"])))
        assert sorted(order.indices.tolist()) == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"units": "domains", "commit": 9}, "order.commit is 9, more than the window of 8"),
            ({"units": "samples", "size": 3}, "samples are units of one; found size 3"),
            ({"units": 1}, "units"),
            ({"edges": "psychic"}, "edges"),
            ({"units": 4, "trial_steps": 5}, "order.trial_steps is about edges: orders, and .* curvature"),
            ({"units": 4, "edges": "orders", "probes": 2}, "order.probes is about edges: curvature or"),
        ],
    )
    def test_contradictions_are_refused(self, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(gw.RecipeError, match=sentence):
            D3(**settings)


@pytest.mark.parametrize("edges", ["curvature", "lookahead", "first_order", "orders"])
def test_what_a_measurement_would_need_is_more_than_is_allowed(edges: Any) -> None:
    """And as much as it would need affords one."""
    shares = (0.01, 0.05, 0.2, 0.5)
    for share, steps, nodes in itertools.product(shares, (8, 40), (2, 5)):
        probes: Any = {} if edges == "orders" else {"probes": 2}
        d3 = D3(units="domains", edges=edges, target_samples=4, overhead=share, **probes)
        problem = d3.timetable(steps, 8, nodes).problem
        if problem is None:
            continue
        needed, allowed = (
            int(re.findall(pattern, problem)[0].replace(",", ""))
            for pattern in (r"need ([\d,]+)", r"allows ([\d,]+)")
        )
        assert needed >= allowed
        enough = replace(d3, overhead=(needed + 1) / (steps * 8))
        assert enough.timetable(steps, 8, nodes).problem is None
