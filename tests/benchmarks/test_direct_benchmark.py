"""DiReCT's benchmarks: pools are what they say, pieces of work give what the tables need."""

import importlib
import json
from typing import Any

import numpy as np
import pytest

direct_decay: Any = importlib.import_module("direct_decay")
direct_pools: Any = importlib.import_module("direct_pools")
direct_scale: Any = importlib.import_module("direct_scale")
direct_tables: Any = importlib.import_module("direct_tables")
frame: Any = importlib.import_module("frame")

real_data = pytest.mark.skipif(not frame.DATA.exists(), reason="the real data are not beside the repository")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_pool_has_what_it_says(seed: int) -> None:
    draw = direct_pools.draw(planted=True, seed=seed)
    counts = np.bincount(draw.kinds)
    assert counts.tolist() == [885, 75, 120, 120]
    copies = set(draw.rows[draw.kinds == 1].tolist())
    assert len(copies) == 1 and copies <= set(draw.rows[draw.kinds == 0].tolist())
    clean = sum(direct_pools.STOCK.values())
    assert draw.rows[draw.kinds <= 1].max() < clean
    noise, short = draw.rows[draw.kinds == 2], draw.rows[draw.kinds == 3]
    assert clean <= noise.min() and noise.max() < clean + direct_pools.JUNK <= short.min()


@pytest.mark.parametrize("planted", [False, True])
def test_nobody_trains_on_what_validates(planted: bool) -> None:
    for seed in range(3):
        draw = direct_pools.draw(planted, seed)
        assert not set(draw.rows.tolist()) & set(draw.validation.tolist())
        assert len(draw.rows) == direct_pools.POOL and len(draw.validation) == direct_pools.VALIDATING


def test_a_stream_is_passes_over_the_picks_and_long_enough() -> None:
    lengths = np.full(50, 100)
    rows = np.arange(10, 30)
    entries = direct_decay._stream(rows, lengths, 5, seed=0)
    assert lengths[entries].sum() >= 6 * direct_decay.ROWS * 512
    for start in range(0, len(entries), 20):
        assert sorted(entries[start : start + 20].tolist()) == rows.tolist()


def test_the_solvers_pieces_make_tables() -> None:
    entries: dict[str, Any] = {
        "linear/ties/1000": direct_scale.linear("ties", 1000),
        "movement/200": direct_scale.movement(200),
        "gpt2/whole": {
            "parameters": 120_000,
            **{name: {"measuring": 1.0, "choosing": 0.1} for name in ("curvature", "paper")},
        },
    }
    assert entries["linear/ties/1000"]["difference"] < 1e-9
    ours, theirs = entries["movement/200"]["ours"], entries["movement/200"]["published"]
    assert ours["over_budget"] == 0
    if theirs["picks_over_budget"] == 0:
        assert ours["objective"] >= theirs["objective"] * (1 - 1e-6)
    content = {"settings": {"part": "solver"}, "entries": json.loads(json.dumps(entries))}
    text = "\n".join(direct_tables.sections(content))
    assert "| ties | 1,000 |" in text and "| 200 |" in text


def test_decays_are_compared_by_seed() -> None:
    def entry(loss: float) -> dict[str, Any]:
        kinds = dict.fromkeys(direct_pools.KINDS, 1)
        return {"loss": loss, "tokens": 100, "kinds": kinds, "select_seconds": 0.1}

    entries = {
        f"decay/{arm}/{seed}": entry(base + 0.1 * seed)
        for arm, base in (("full", 3.0), ("random", 3.0), ("curvature", 2.9))
        for seed in range(5)
    }
    settings = {"part": "decay_planted", "steps": 30, "fraction": 0.2}
    text = "\n".join(direct_tables.sections({"settings": settings, "entries": entries}))
    assert "| `curvature` | 5 | -0.1000 | -0.1000 to -0.1000 | < 0.001 | better |" in text
    assert "random tokens" in text


@real_data
def test_nothing_held_out_is_in_the_stock() -> None:
    stock, check = direct_pools.clean_records()
    assert (len(stock), len(check)) == (sum(direct_pools.STOCK.values()), 180)
    prompts = [record["prompt"] for record in stock]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {record["prompt"] for record in check}
