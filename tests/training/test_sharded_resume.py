"""Runs whose model FSDP2 shards stop and resume, on as many ranks or on another number of them."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from datasets import Dataset

import gradwise as gw
from gradwise.training.sharded_checkpoint import (
    check_state_can_be_saved,
    load_state,
    load_weights,
    take_random_state,
    whole_state,
)
from tests.training.sharded_run_worker import run
from tests.training.sharded_runs import WAYS, launch, losses, served, weights
from tests.training.test_sharded_decisions import GRACE

STOPPED = 3

RECIPE = {"select": GRACE, "anneal": {"method": "direct", "last": 0.5, "count": 6}}

BEST = {
    **dict.fromkeys(("save_strategy", "eval_strategy"), "steps"),
    **dict.fromkeys(("save_steps", "eval_steps"), 2),
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}


# Of the session, since tests that are dealt out among processes come back to this module: three times these
# runs took four minutes.
@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, stories: Path, speeches: Dataset) -> Path:
    """One process and both kinds of sharding over two ranks: runs that were never interrupted, runs that were
    stopped and resumed, and runs that were resumed from what the other number of ranks saved."""
    folder = tmp_path_factory.mktemp("resumed")
    speeches.save_to_disk(folder / "data")

    def job(sharded: str, out: str, **changes: Any) -> dict[str, Any]:
        common = {"model": str(stories), "data": str(folder / "data"), "recipe": RECIPE}
        saving = {"arguments": {"save_strategy": "steps", "save_steps": 100}}
        return {"sharded": sharded, **common, "out": str(folder / out), **saving, **changes}

    run(job("whole", "one"))
    run(job("whole", "one, stopped", stopped_after=STOPPED))
    jobs = []
    for sharded in WAYS:
        # Random numbers in each rank, evaluations before checkpoints, and the best weights at the end.
        dropping: dict[str, Any] = {"options": {"attention_dropout": 0.1}, "arguments": BEST}
        shutil.copytree(folder / "one, stopped", folder / f"{sharded}, from one")
        jobs += [
            job(sharded, f"{sharded}, dropping", **dropping),
            job(sharded, f"{sharded}, dropping, resumed", **dropping, stopped_after=STOPPED),
            job(sharded, f"{sharded}, dropping, resumed", **dropping, resume=True),
            job(sharded, f"{sharded}, to one", stopped_after=STOPPED),
            job(sharded, f"{sharded}, from one", resume=True),
        ]
    launch(folder, jobs)
    for sharded in WAYS:
        run(job("whole", f"{sharded}, to one", resume=True))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sharded", WAYS)
class TestResumed:
    def test_equals_the_run_that_was_never_stopped(self, runs: Path, sharded: str) -> None:
        whole, resumed = (runs / f"{sharded}, dropping{end}" for end in ("", ", resumed"))
        assert (resumed / f"checkpoint-{STOPPED}").is_dir()
        assert served(whole) == served(resumed)
        first, second = weights(whole), weights(resumed)
        assert all(torch.equal(values, second[name]) for name, values in first.items())
        assert losses(whole) == losses(resumed)

    @pytest.mark.parametrize("which", ["to one", "from one"])
    def test_on_another_number_of_ranks(self, runs: Path, sharded: str, which: str) -> None:
        one, resumed = runs / "one", runs / f"{sharded}, {which}"
        assert served(one) == served(resumed)
        assert losses(one) == pytest.approx(losses(resumed), abs=1e-3)
        other = weights(resumed)
        for name, values in weights(one).items():
            torch.testing.assert_close(other[name], values, rtol=1e-3, atol=2e-4)

    def test_a_checkpoint_has_the_files_of_one_process(self, runs: Path, sharded: str) -> None:
        names = [
            {path.name for path in (runs / out / f"checkpoint-{STOPPED}").iterdir()}
            for out in ("one, stopped", f"{sharded}, to one")
        ]
        assert {name for name in names[0] ^ names[1] if not name.startswith("rng_state")} == set()
        first, second = (
            torch.load(runs / out / f"checkpoint-{STOPPED}" / "optimizer.pt", weights_only=True)["state"]
            for out in ("one, stopped", f"{sharded}, to one")
        )
        for number, values in first.items():
            for name, value in values.items():
                torch.testing.assert_close(second[number][name], value, rtol=1e-3, atol=1e-4)


class ByAccelerate(gw.Trainer):
    """A Trainer whose model accelerate would shard, with files of each rank's own."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        kind = "SHARDED_STATE_DICT" if self.args.run_name == "sharded" else "FULL_STATE_DICT"
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, state_dict_type=kind
        )
        self.is_fsdp_enabled = True


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _without_plugin(self) -> Any:
        yield
        AcceleratorState._reset_state(reset_partial_state=True)

    def test_files_of_each_rank_are_refused_before_the_run(
        self, story_model: Any, arguments: Any, speeches: Dataset
    ) -> None:
        saving = arguments(save_strategy="steps", run_name="sharded")
        with pytest.raises(gw.RecipeError, match="state_dict_type is SHARDED_STATE_DICT"):
            ByAccelerate(story_model(), saving, train_dataset=speeches)
        ByAccelerate(story_model(), arguments(run_name="sharded"), train_dataset=speeches)

    def test_an_adapter_that_accelerate_shards_is_refused_before_the_run(
        self, story_model: Any, arguments: Any, speeches: Dataset
    ) -> None:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(story_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
        with pytest.raises(gw.RecipeError, match="adapter that accelerate shards"):
            ByAccelerate(model, arguments(save_strategy="steps"), train_dataset=speeches)

    def test_an_optimizer_with_state_of_other_forms_is_refused(self, story_model: Any) -> None:
        optimizer = torch.optim.Adafactor(story_model().parameters())
        with pytest.raises(gw.RecipeError, match=r"Adafactor\. Take one"):
            check_state_can_be_saved(optimizer)

    def test_state_and_weights_of_another_model_are_refused(self, tiny_llama: Any, tmp_path: Path) -> None:
        one, wider, deeper = tiny_llama(), tiny_llama(intermediate_size=48), tiny_llama(layers=5)
        one.save_pretrained(tmp_path)
        torch.save(whole_state(_stepped(one)), tmp_path / "optimizer.pt")
        for other, words in ((wider, "of the shape"), (deeper, "lack 9 of 48 parameters")):
            with pytest.raises(gw.errors.CheckpointError, match=words):
                load_weights(other, tmp_path)
        for other, words in (
            (wider, "of the shape"),
            (deeper, "of 39 parameters, and the model now trains 48"),
        ):
            with pytest.raises(gw.errors.CheckpointError, match=words):
                load_state(torch.optim.AdamW(other.parameters()), tmp_path / "optimizer.pt")


def test_weights_in_several_files_are_read(tiny_llama: Any, tmp_path: Path) -> None:
    model, other = tiny_llama(), tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    load_weights(other, tmp_path)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_rank_without_random_state_takes_the_first_ranks(tmp_path: Path) -> None:
    torch.manual_seed(5)
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    torch.save(states, tmp_path / "rng_state_0.pth")
    drawn = (random.random(), np.random.rand(), torch.rand(1))
    take_random_state(tmp_path, 0, 1)
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn
    take_random_state(tmp_path, 3, 4)
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn
    before = torch.get_rng_state()
    take_random_state(tmp_path, 0, 2)  # has its own, which the Trainer loads
    assert torch.equal(torch.get_rng_state(), before)


def _stepped(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer
