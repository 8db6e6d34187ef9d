"""D³'s benchmarks: states are restored, momentum runs out, pools and instances are what they say."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.d3 import commutator, planted, solver, two_steps
from benchmarks.d3.synthetic import CLASSES, KINDS, Planted
from gradwise.numerics import order_value


def stepped(kind: str) -> tuple[Any, Any]:
    """A layer after two steps."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3).double()
    optimizer = two_steps.optimizer_of(kind, layer)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 4).double()).square().sum().backward()
        optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_flushed_momentum_equals_many_steps_and_a_state_is_restored(kind: str) -> None:
    layer, optimizer = stepped(kind)
    state = two_steps.State(layer, optimizer)
    weights, moments = layer.weight.detach().clone(), str(optimizer.state_dict())
    two_steps.flush(layer, optimizer)
    slow, other = stepped(kind)
    if kind == "adamw":
        two_steps.hold(other)
        for one in other.state.values():
            one["step"].fill_(1e12)
    for parameter in slow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(400):
        other.step()
    assert (slow.weight - weights).abs().max() > 1e-4
    assert torch.allclose(layer.weight, slow.weight, rtol=0, atol=1e-9)
    state.restore(layer, optimizer)
    assert torch.equal(weights, layer.weight)
    assert str(optimizer.state_dict()) == moments


def test_accuracy_counts_signs() -> None:
    graph = {"difference": [1.0, -1.0, 3.0], "error": [0.1, 0.1, 9.0]}
    entry = {
        "rates": {"0.001": {"flushed": [1.0, 2.0, 3.0], "raw": [-1.0, 2.0, -3.0]}},
        "curvature": {"all": graph},
        "target_loss": 2.0,
        "second_moments": {"all": [0.0, 0.004, 0.0]},
    }
    one = commutator.accuracy([entry], "0.001", "flushed", "curvature", "all")
    assert one == {"all": 2 / 3, "out": 0.5, "large": 0.5, "pairs": 3, "pairs_out": 2}
    assert commutator.accuracy([entry], "0.001", "flushed", "curvature_moments", "all")["all"] == 1
    assert commutator.raw_agrees([entry], "0.001") == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_pool_is_what_it_says(kind: str) -> None:
    pool = Planted(kind, 0)
    tables = [pairs(rows) for rows in (pool.first, pool.last, pool.target)]
    assert all(len({key for key, _ in table}) == len(table) for table in tables), "one answer for each key"
    first, last, target = (dict(table) for table in tables)
    if kind == "conflict":
        assert last == target and all(first[key] != last[key] for key in last)
        return
    assert not set(last) & set(target), "the second domain must not answer the target's questions"
    by_class = {(first[key], answer) for key, answer in [*last.items(), *target.items()]}
    assert (len(by_class) == CLASSES) == (kind == "prerequisite")


def pairs(rows: np.ndarray) -> set[tuple[int, int]]:
    return {(int(row[at]), int(row[at + 2])) for row in rows for at in range(0, len(row), 3)}


def test_both_orders_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "HORIZONS", (1,))
    monkeypatch.setattr("benchmarks.d3.synthetic.RANDOM_STEPS", 2)
    gains = planted.both_orders("conflict", 0)["gains"]
    assert list(gains) == ["1"] and gains["1"] != 0.0


@pytest.mark.parametrize("kind", solver.KINDS)
def test_instances_are_repeatable_and_differ(kind: str) -> None:
    w = solver.instance(kind, 60, 0)
    assert np.array_equal(w, solver.instance(kind, 60, 0))
    assert not np.array_equal(w, solver.instance(kind, 60, 1))
    assert np.all(w >= 0) and np.all(w == np.round(w)) and not np.diag(w).any()


def test_economic_tables_are_sparse_and_tend_to_one_order() -> None:
    w = solver.instance("economic", 200, 0)
    off = w[~np.eye(200, dtype=bool)]
    assert 0.38 < (off == 0).mean() < 0.45
    assert off.max() > 100 * np.median(off[off > 0])
    assert solver.measure("economic", 12, 0)["of_bound"] > solver.measure("random", 12, 0)["of_bound"]


@pytest.mark.exhaustive
def test_a_measurement_contains_the_best_known_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "LONG", 2)
    entry = json.loads(json.dumps(solver.measure("random", 30, 0)))
    gaps = [run["gap_percent"] for run in (*entry["runs"].values(), *entry["long"])]
    assert min(gaps) == 0 and max(gaps) < 1
    assert list(entry["runs"]) == ["0.125", "0.25", "0.5", "1", "4"]
    assert entry["best_known"] <= entry["bound"] and entry["sorted_gap_percent"] >= 0


def test_few_items_have_their_optimum() -> None:
    w, entry = solver.instance("random", 10, 3), solver.measure("random", 10, 3)
    rng = np.random.default_rng(0)
    assert entry["optimum"] >= max(order_value(w, rng.permutation(10)) for _ in range(200))
