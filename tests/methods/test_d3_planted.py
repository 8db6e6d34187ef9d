"""D³ on pools in which the order matters by construction (`benchmarks.d3.synthetic` has the pools)."""

from typing import Any

import numpy as np
import pytest

from benchmarks.d3 import planted

SEEDS = 12


def graphs_of(kind: str, edges: str) -> list[Any]:
    return [planted.direction(kind, edges, seed) for seed in range(SEEDS)]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_would_be_overwritten_comes_first() -> None:
    """On the mean over seeds: a single one may come out within its noise (2 of 12 below zero, by less than
    half a standard error)."""
    graphs = graphs_of("conflict", "curvature")
    differences = np.array([graph["difference"] for graph in graphs])
    assert differences.mean() > 3 * differences.std(ddof=1) / np.sqrt(SEEDS)
    assert not any(graph["precedes"] == "last" for graph in graphs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", planted.RUNS)
@pytest.mark.exhaustive
def test_training_both_orders_detects_which_ends_lower(kind: str) -> None:
    """Also for a prerequisite, which two steps cannot show: a representation and what reads it must both be
    learned, so the effect is of third order. Most of it is forgetting all the same (below)."""
    graphs = graphs_of(kind, "orders")
    assert sum(graph["difference"] > 0 for graph in graphs) > 0.9 * SEEDS
    assert sum(graph["precedes"] == "first" for graph in graphs) > 0.9 * SEEDS


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_does_not_tell_a_prerequisite_from_what_is_merely_trained_last() -> None:
    """A control: the first half says nothing about the second."""
    graphs = graphs_of("unrelated", "orders")
    assert sum(graph["difference"] > 0 for graph in graphs) > 0.9 * SEEDS
