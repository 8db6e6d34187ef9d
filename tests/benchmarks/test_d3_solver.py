"""The solver's benchmark: instances are what they say, a curve tells what the tables need."""

import importlib
import json
from typing import Any

import numpy as np
import pytest

from gradwise.numerics import order_value

d3_solver: Any = importlib.import_module("d3_solver")


@pytest.mark.parametrize("kind", d3_solver.KINDS)
def test_instances_are_repeated_and_differ(kind: str) -> None:
    w = d3_solver.instance(kind, 60, 0)
    assert np.array_equal(w, d3_solver.instance(kind, 60, 0))
    assert not np.array_equal(w, d3_solver.instance(kind, 60, 1))
    assert np.all(w >= 0) and np.all(w == np.round(w)) and not np.diag(w).any()


def test_economic_tables_are_sparse_and_lean_to_one_order() -> None:
    w = d3_solver.instance("economic", 200, 0)
    off = w[~np.eye(200, dtype=bool)]
    assert 0.38 < (off == 0).mean() < 0.45
    assert off.max() > 100 * np.median(off[off > 0])
    told = d3_solver.curve("economic", 12, 0)
    assert told["of_bound"] > d3_solver.curve("random", 12, 0)["of_bound"]


def test_a_curve_ends_in_the_best_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d3_solver, "LONG", 2)
    told = json.loads(json.dumps(d3_solver.curve("random", 30, 0)))
    gaps = [run["gap_percent"] for run in (*told["runs"].values(), *told["long"])]
    assert min(gaps) == 0 and max(gaps) < 1
    assert list(told["runs"]) == ["0.125", "0.25", "0.5", "1", "4"]
    assert told["best_known"] <= told["bound"] and told["sorted_gap_percent"] >= 0


def test_few_items_have_their_optimum() -> None:
    w, told = d3_solver.instance("random", 10, 3), d3_solver.curve("random", 10, 3)
    rng = np.random.default_rng(0)
    assert told["optimum"] >= max(order_value(w, rng.permutation(10)) for _ in range(200))
