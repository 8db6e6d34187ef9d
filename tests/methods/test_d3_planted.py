"""D3 on pools in which the order matters by construction (benchmarks/d3_planted.py has the pools)."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
d3_planted: Any = importlib.import_module("d3_planted")

SEEDS = 12


def found(kind: str, edges: str) -> list[Any]:
    return [d3_planted.direction(kind, edges, seed) for seed in range(SEEDS)]


@pytest.mark.slow
def test_what_would_be_overwritten_is_put_first() -> None:
    graphs = found("conflict", "curvature")
    assert sum(graph["difference"] > 0 for graph in graphs) > 0.9 * SEEDS
    assert not any(graph["precedes"] == "last" for graph in graphs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", d3_planted.RUNS)
def test_going_both_ways_round_tells_what_comes_first(kind: str) -> None:
    """Also a prerequisite, of which two steps show nothing: what represents it and what reads it both have to
    be learned, which is of the third order."""
    graphs = found(kind, "orders")
    assert sum(graph["difference"] > 0 for graph in graphs) > 0.9 * SEEDS
    assert sum(graph["precedes"] == "first" for graph in graphs) > 0.9 * SEEDS
