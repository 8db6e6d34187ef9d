"""D3 on pools in which the order matters by construction (benchmarks/d3_planted.py has the pools)."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
d3_planted: Any = importlib.import_module("d3_planted")

SEEDS = 12


def found(kind: str) -> list[Any]:
    return [d3_planted.direction(kind, "curvature", seed) for seed in range(SEEDS)]


@pytest.mark.slow
def test_what_would_be_overwritten_is_put_first() -> None:
    graphs = found("conflict")
    assert sum(graph["difference"] > 0 for graph in graphs) > 0.9 * SEEDS
    assert not any(graph["precedes"] == "last" for graph in graphs)


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    reason="what `last` gains from `first` is of the third order: both a representation and what reads it "
    "have to be learned; the commutator of two steps does not see it before either is there",
)
def test_a_prerequisite_is_put_first() -> None:
    assert sum(graph["difference"] > 0 for graph in found("prerequisite")) > 0.9 * SEEDS
