"""D3's benchmarks: states are given back, momentum runs out, pieces of work give what the tables need."""

import importlib
import json
from typing import Any

import numpy as np
import pytest
import torch

d3_commutator: Any = importlib.import_module("d3_commutator")
d3_planted: Any = importlib.import_module("d3_planted")
d3_tables: Any = importlib.import_module("d3_tables")
frame: Any = importlib.import_module("frame")


def stepped(kind: str) -> tuple[Any, Any]:
    """A layer after two steps."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3).double()
    optimizer = d3_commutator.optimizer_of(kind, layer)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 4).double()).square().sum().backward()
        optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_momentum_runs_out_at_once_as_it_would_step_by_step(kind: str) -> None:
    layer, optimizer = stepped(kind)
    d3_commutator.flush(layer, optimizer)
    slow, other = stepped(kind)
    if kind == "adamw":
        d3_commutator.hold(other)
        for state in other.state.values():
            state["step"].fill_(1e12)
    before = slow.weight.detach().clone()
    for parameter in slow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(400):
        other.step()
    assert (slow.weight - before).abs().max() > 1e-4
    assert torch.allclose(layer.weight, slow.weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_state_comes_back_exactly(kind: str) -> None:
    layer, optimizer = stepped(kind)
    state = d3_commutator.State(layer, optimizer)
    weights, moments = layer.weight.detach().clone(), json.dumps(str(optimizer.state_dict()))
    d3_commutator.flush(layer, optimizer)
    assert not torch.equal(weights, layer.weight)
    state.back(layer, optimizer)
    assert torch.equal(weights, layer.weight)
    assert json.dumps(str(optimizer.state_dict())) == moments


def test_a_planted_pool_is_what_it_says() -> None:
    for kind in d3_planted.KINDS:
        planted = d3_planted.Planted(kind, 0)
        tables = [pairs(rows) for rows in (planted.first, planted.last, planted.target)]
        assert all(len({key for key, _ in table}) == len(table) for table in tables), "an answer for each key"
        first, last, target = (dict(table) for table in tables)
        if kind == "conflict":
            assert last == target and all(first[key] != last[key] for key in last)
            continue
        assert not set(last) & set(target), "what is asked for is not told"
        by_class = {(first[key], answer) for key, answer in [*last.items(), *target.items()]}
        assert (len(by_class) == d3_planted.CLASSES) == (kind == "prerequisite")


def pairs(rows: np.ndarray) -> set[tuple[int, int]]:
    return {(int(row[at]), int(row[at + 2])) for row in rows for at in range(0, len(row), 3)}


def test_commutators_make_tables() -> None:
    told = {"difference": [1.0, -1.0, 3.0], "error": [0.1, 0.1, 9.0]}
    both = {"all": told, "four": told}
    entries: dict[str, Any] = {
        "trained/adamw/0": {
            "rates": {"0.001": {"flushed": [1.0, 2.0, 3.0], "raw": [-1.0, 2.0, -3.0], "lookahead": both}}
        },
        "estimated/adamw/0": {
            "curvature": both, "first_order": both, "target_loss": 2.0,
            "second_moments": {"all": [0.0, 0.004, 0.0], "four": [0.0, 0.0, 0.0]},
        },
    }  # fmt: skip
    content = {"settings": {"part": "commutator"}, "entries": entries}
    text = "\n".join(d3_tables.sections(content))
    assert "| AdamW after 30 steps, curvature | 0.001 | 3 | 2.0e+00 | 67% | 50% of 2 | 50% |" in text
    assert "| AdamW after 30 steps, curvature and second moments | 0.001 | 3 | 2.0e+00 | 100% |" in text
    assert "| AdamW after 30 steps | 0.001 | 33% |" in text


def test_planted_orders_make_tables() -> None:
    graph = {"step": 0, "difference": 0.1, "error": 0.01, "precedes": "first", "influence": [0.1, 0.2]}
    entries: dict[str, Any] = {
        f"run/conflict/{arm}/{seed}": {"target": base + 0.1 * seed, "graphs": [graph]}
        for arm, base in (("random", 2.0), ("d3", 1.0))
        for seed in range(5)
    }
    entries["tried/conflict/0"] = {"gains": {"1": 0.25}}
    text = "\n".join(d3_tables.sections({"settings": {"part": "planted"}, "entries": entries}))
    assert "| `d3` | 5 | -1.0000 | -1.0000 to -1.0000 | < 0.001 | better |" in text
    assert "| conflict: curvature, 4 probes, at the start | 5 | 100% | 48% to 100% | 5 | 0 |" in text
    assert "| conflict | 1 | 1 | +0.2500 | 100% |" in text


def test_both_orders_are_really_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d3_planted, "HORIZONS", (1,))
    monkeypatch.setattr(d3_planted, "SEEN_STEPS", 2)
    gains = d3_planted.tried("conflict", 0)["gains"]
    assert list(gains) == ["1"] and gains["1"] != 0.0
