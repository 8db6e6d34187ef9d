"""DiReCT's benchmarks: pools are what they say, and the solvers are compared fairly."""

import numpy as np
import pytest

from benchmarks.common.folders import DATA
from benchmarks.direct import decay, pools, sketch, solver
from benchmarks.direct.pools import SMALL_LLAMA, SMOLLM2, Stock


@pytest.mark.parametrize(
    ("stock", "counts"), [(SMALL_LLAMA, [885, 75, 120, 120]), (SMOLLM2, [206, 18, 28, 28])]
)
def test_pools_are_what_they_say_and_share_nothing_with_validation(stock: Stock, counts: list[int]) -> None:
    for seed in range(3):
        planted, clean = (pools.draw(stock, kind, seed) for kind in (True, False))
        for draw in (planted, clean):
            assert not set(draw.rows.tolist()) & set(draw.validation.tolist())
            assert (len(draw.rows), len(draw.validation)) == (stock.pool, stock.validating)
        assert np.bincount(planted.kinds).tolist() == counts
        of_kind = [planted.rows[planted.kinds == kind] for kind in range(4)]
        copies = set(of_kind[1].tolist())
        assert len(copies) == 1 and copies <= set(of_kind[0].tolist())
        assert max(of_kind[0]) < stock.clean <= min(of_kind[2])
        assert max(of_kind[2]) < stock.clean + stock.junk <= min(of_kind[3])


def test_a_stream_repeats_the_picks_and_is_long_enough() -> None:
    lengths, rows = np.full(50, 100), np.arange(10, 30)
    entries = decay.stream(rows, lengths, 10, seed=0)
    assert lengths[entries].sum() >= 10 * 512
    for start in range(0, len(entries), 20):
        assert sorted(entries[start : start + 20].tolist()) == rows.tolist()


def test_the_solvers_equal_or_exceed_their_references() -> None:
    assert solver.linear("ties", 1000)["difference"] < 1e-9
    entry = solver.movement(200)
    ours, theirs = entry["ours"], entry["published"]
    assert ours["over_budget"] == 0
    assert entry["at_their_cost"] >= theirs["objective"] * (1 - 1e-6)
    if theirs["picks_over_budget"] == 0:
        assert ours["objective"] >= theirs["objective"] * (1 - 1e-6)


def test_the_cost_of_the_decision_is_on_smollm2s_page() -> None:
    kinds = dict.fromkeys(pools.KINDS, 1)
    entry = {"loss": 1.7, "tokens": 7000, "seconds": 60.0, "steps": 15, "kinds": kinds, "select_seconds": 0.1}
    entries = {
        "start/smollm2": {"loss": 1.9, "measured": {"samples": 512, "tokens": 32423, "seconds": 300.0}},
        "decay/random/0": entry,
        "decay/longer/0": {**entry, "steps": 50},
    }
    page = decay.page({"settings": decay.settings("decay_smollm2"), "entries": entries})
    text = "\n".join(page.sections)
    assert "held-out loss is 1.9000" in text and "took 300 s" in text
    assert "costs 3.2 times the decay" in text and "`longer` has 35 additional steps" in text
    assert "including 18 copies of one record" in text


def test_the_sketchs_pool_is_what_its_page_says() -> None:
    pool, validation = sketch.records()
    assert (len(pool), len(validation)) == (140 + 75 + 30 + 30, 40)
    rows = [tuple(sample["input_ids"]) for sample in pool]
    assert rows.count(rows[0]) == 76
    assert {len(row) for row in rows[-30:]} <= {1, 2, 3}
    assert not {tuple(sample["input_ids"]) for sample in validation} & set(rows)


@pytest.mark.skipif(not DATA.exists(), reason="the real data are not beside the repository")
@pytest.mark.parametrize("stock", [SMALL_LLAMA, SMOLLM2])
def test_no_held_out_record_is_in_the_stock(stock: Stock) -> None:
    records, check = pools.clean_records(stock)
    assert (len(records), len(check)) == (stock.clean, 3 * stock.held_out)
    prompts = [record["prompt"] for record in records]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {record["prompt"] for record in check}
