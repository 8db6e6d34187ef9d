"""DiReCT's benchmarks: pools are what they say, pieces of work give what the tables need."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

direct_decay: Any = importlib.import_module("direct_decay")
direct_pools: Any = importlib.import_module("direct_pools")
direct_scale: Any = importlib.import_module("direct_scale")
direct_sketch: Any = importlib.import_module("direct_sketch")
direct_tables: Any = importlib.import_module("direct_tables")
frame: Any = importlib.import_module("frame")

STOCKS = (direct_pools.SMALL_LLAMA, direct_pools.SMOLLM2)
real_data = pytest.mark.skipif(not frame.DATA.exists(), reason="the real data are not beside the repository")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("stock", "counts"), zip(STOCKS, ([885, 75, 120, 120], [206, 18, 28, 28]), strict=True)
)
def test_a_planted_pool_has_what_it_says(stock: Any, counts: list[int], seed: int) -> None:
    draw = direct_pools.draw(stock, planted=True, seed=seed)
    assert np.bincount(draw.kinds).tolist() == counts
    copies = set(draw.rows[draw.kinds == 1].tolist())
    assert len(copies) == 1 and copies <= set(draw.rows[draw.kinds == 0].tolist())
    assert draw.rows[draw.kinds <= 1].max() < stock.clean
    noise, short = draw.rows[draw.kinds == 2], draw.rows[draw.kinds == 3]
    assert stock.clean <= noise.min() and noise.max() < stock.clean + stock.junk <= short.min()


@pytest.mark.parametrize(("stock", "planted"), [(STOCKS[0], False), (STOCKS[0], True), (STOCKS[1], True)])
def test_nobody_trains_on_what_validates(stock: Any, planted: bool) -> None:
    for seed in range(3):
        draw = direct_pools.draw(stock, planted, seed)
        assert not set(draw.rows.tolist()) & set(draw.validation.tolist())
        assert len(draw.rows) == stock.pool and len(draw.validation) == stock.validating


def test_a_stream_is_passes_over_the_picks_and_long_enough() -> None:
    lengths = np.full(50, 100)
    rows = np.arange(10, 30)
    entries = direct_decay._stream(rows, lengths, 10, seed=0)
    assert lengths[entries].sum() >= 10 * 512
    for start in range(0, len(entries), 20):
        assert sorted(entries[start : start + 20].tolist()) == rows.tolist()


@pytest.mark.parametrize("part", direct_decay.SUBJECTS)
def test_earlier_results_can_be_gone_on_with(part: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    shutil.copy(frame.RESULTS / f"direct-{part}.json", path)
    kept = frame.ResultFile(path, "direct", direct_decay.settings(part), threads=1)
    assert "decay/random/0" in kept


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
    assert entries["movement/200"]["at_their_cost"] >= theirs["objective"] * (1 - 1e-6)
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


def test_what_a_smollm2_decay_is_charged_is_told() -> None:
    entry = {
        "loss": 1.7, "tokens": 7000, "seconds": 60.0, "steps": 15,
        "kinds": dict.fromkeys(direct_pools.KINDS, 1), "select_seconds": 0.1,
    }  # fmt: skip
    measured = {"samples": 512, "tokens": 32423, "seconds": 300.0}
    entries = {
        "start/smollm2": {"loss": 1.9, "measured": measured},
        "decay/random/0": entry,
        "decay/longer/0": {**entry, "steps": 50},
    }
    content = {"settings": direct_decay.settings("decay_smollm2"), "entries": entries}
    text = "\n".join(direct_tables.sections(content))
    assert "held-out loss is 1.9000" in text and "took 300 s" in text
    assert "costs 3.2 times the decay" in text and "`longer` has 35 more steps" in text
    assert "of which 18 are copies of one" in text


def test_the_sketchs_pool_is_what_its_table_says() -> None:
    pool, validation = direct_sketch.records()
    assert (len(pool), len(validation)) == (140 + 75 + 30 + 30, 40)
    rows = [tuple(sample["input_ids"]) for sample in pool]
    assert rows.count(rows[0]) == 76
    assert {len(row) for row in rows[-30:]} <= {1, 2, 3}
    assert not {tuple(sample["input_ids"]) for sample in validation} & set(rows)


def test_the_sketchs_tables_have_every_width_and_setting() -> None:
    content = json.loads((frame.RESULTS / "direct-sketch.json").read_text())
    text = "\n".join(direct_tables.sections(content))
    for width in direct_sketch.WIDTHS:
        assert f"| {width:,} |" in text
    for tau in direct_sketch.TAUS:
        assert f"| clipped, tau {tau:g} |" in text and f"| as they are, tau {tau:g} |" in text
    kept = content["entries"]["sketch/stories"]["kept"]["1024"]
    assert min(kept["objective"]) >= 0.97


@real_data
@pytest.mark.parametrize("stock", STOCKS)
def test_nothing_held_out_is_in_the_stock(stock: Any) -> None:
    records, check = direct_pools.clean_records(stock)
    assert (len(records), len(check)) == (stock.clean, 3 * stock.held_out)
    prompts = [record["prompt"] for record in records]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {record["prompt"] for record in check}
