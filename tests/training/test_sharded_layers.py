"""Layer policies in a Trainer whose model FSDP2 shards over two processes have the draws and weights of one
process, also when the run is stopped and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.training.sharded_run_worker import run
from tests.training.sharded_runs import LOADED, SAMPLED, WAYS, draws, launch, losses, weights

STOPPED = 3

SHARDED = {way.split()[-1]: way for way in WAYS}

POLICIES: dict[str, dict[str, Any]] = {
    "grass, state offloaded": {
        "recipe": {"layers": {"method": "grass", "active": 2, "period": 2, "probe": 2, "state": "offload"}},
        "arguments": {
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.5,
            "gradient_checkpointing": True,
        },
    },
    "lisa": {
        "recipe": {"layers": {"method": "lisa", "active": 2, "period": 2, "embeddings": "always"}},
    },
    "lisa, state offloaded": {
        "recipe": {
            "layers": {
                "method": "lisa",
                "active": 2,
                "period": 2,
                "embeddings": "always",
                "state": "offload",
            }
        },
    },
    "grass, streamed": {
        "recipe": {"layers": {"method": "grass", "active": 2, "period": 2, "probe": 2}},
        "streamed": True,
    },
    "grass, an adapter": {
        "recipe": {"layers": {"method": "grass", "active": 2, "period": 2, "probe": 2}},
        "arguments": {"gradient_accumulation_steps": 2},
        "adapter": True,
    },
    "grass, embeddings drawn, state dropped": {
        "recipe": {"layers": SAMPLED},
        # An evaluation leaves the head whole on every rank, and it may be drawn next.
        "arguments": {"eval_strategy": "steps", "eval_steps": 1},
    },
}
"""The first is in the ordinary suite."""


def some_policies() -> list[Any]:
    names = list(POLICIES)
    return [names[0], *(pytest.param(name, marks=pytest.mark.exhaustive) for name in names[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("name", some_policies())
def test_two_ranks_are_one_process(tmp_path: Path, stories: Path, speeches: Dataset, name: str) -> None:
    speeches.save_to_disk(tmp_path / "data")

    def job(sharded: str, out: str, **changes: Any) -> dict[str, Any]:
        policy = POLICIES[name]
        # With the default of 1e-8, AdamW's first step follows the sign of a gradient that is rounding error.
        common = {"save_strategy": "steps", "save_steps": 100, "adam_epsilon": 1e-3}
        arguments = {**common, **policy.get("arguments", {})}
        where = {"model": str(stories), "data": str(tmp_path / "data"), "out": str(tmp_path / out)}
        return {"sharded": sharded, **policy, **where, "arguments": arguments, **changes}

    offloads = POLICIES[name]["recipe"]["layers"].get("state") == "offload"
    # Adapters that accelerate shards are not saved.
    kinds = {"loaded": LOADED} if "adapter" in POLICIES[name] else SHARDED
    # Without FSDP2 as well: the ranks then average gradients themselves.
    kinds = {**kinds, "whole": "whole"}
    run(job("whole", "one"))
    run(job("whole", "one, stopped", stopped_after=STOPPED))
    jobs = []
    for short, sharded in kinds.items():
        shutil.copytree(tmp_path / "one, stopped", tmp_path / f"{short}, from one")
        jobs += [
            job(sharded, short),
            job(sharded, f"{short}, resumed", stopped_after=STOPPED),
            job(sharded, f"{short}, resumed", resume=True),
            job(sharded, f"{short}, from one", resume=True),
            job(sharded, f"{short}, to one", stopped_after=STOPPED),
        ]
        if offloads:
            kept = {**POLICIES[name]["recipe"]["layers"], "state": "keep"}
            jobs.append(job(sharded, f"{short}, kept", recipe={"layers": kept}))
    launch(tmp_path, jobs)
    one = tmp_path / "one"
    start = torch.load(tmp_path / "one, stopped" / "weights.pt", weights_only=True)
    assert len(draws(one)) == 4
    for short in kinds:
        run(job("whole", f"{short}, to one", resume=True))
        for which in ("", ", resumed", ", from one", ", to one"):
            other = tmp_path / f"{short}{which}"
            assert draws(other) == draws(one), other.name
            assert losses(other) == pytest.approx(losses(one), abs=1e-3), other.name
            found = weights(other)
            for key, values in weights(one).items():
                torch.testing.assert_close(found[key], values, rtol=1e-3, atol=5e-5)
        first = weights(tmp_path / short)
        for which in (", resumed", *([", kept"] if offloads else [])):
            second = weights(tmp_path / f"{short}{which}")
            assert all(torch.equal(values, second[key]) for key, values in first.items()), which
    moved = [key for key, values in weights(one).items() if (values - start[key]).abs().max() > 1e-3]
    assert any("layers" in key for key in moved)
    with_embeddings = "embeddings" in POLICIES[name]["recipe"]["layers"]
    assert any("embed" in key for key in moved) == with_embeddings
