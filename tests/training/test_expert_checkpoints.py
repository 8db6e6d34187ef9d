"""Checkpoints of models whose weights have other names on disk than in memory, as mixtures of experts do."""

from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import gradwise as gw
from tests.conftest import same_weights
from tests.training.sharded_run_worker import run
from tests.training.sharded_runs import WAYS, launch, losses, weights

STOPPED = 3


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """A mixture of four experts, saved as others publish it: with a file entry for each expert."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "vocab_size": 512,
    }
    folder = tmp_path / "experts"
    MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(folder)
    assert any("experts.3.w1" in name for name in names(folder))
    return folder


def names(folder: Path) -> set[str]:
    with safetensors.safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        return set(file.keys())


def job(folder: Path, experts: Path, speeches: Dataset, out: str, **changes: Any) -> dict[str, Any]:
    if not (folder / "data").exists():
        speeches.save_to_disk(folder / "data")
    arguments = {"save_strategy": "steps", "save_steps": STOPPED, "adam_epsilon": 1e-3}
    where = {"model": str(experts), "data": str(folder / "data"), "out": str(folder / out)}
    return {"sharded": "whole", "recipe": {}, "arguments": arguments, **where, **changes}


def test_a_resumed_run_has_the_weights_of_its_checkpoint(
    experts: Path, speeches: Dataset, tmp_path: Path
) -> None:
    """transformers' Trainer leaves out what has another name, with a warning: all experts."""
    run(job(tmp_path, experts, speeches, "whole"))
    run(job(tmp_path, experts, speeches, "resumed", stopped_after=STOPPED))
    run(job(tmp_path, experts, speeches, "resumed", resume=True))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert any("experts" in name for name in whole)
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())
    # A checkpoint is a model's folder all the same.
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-8")
    assert all(torch.equal(values, whole[name]) for name, values in last.state_dict().items())


def test_a_model_that_is_saved_has_the_names_that_it_was_published_with(
    experts: Path, speeches: Dataset, arguments: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(experts)
    saving = arguments(save_strategy="steps", save_steps=1, max_steps=1)
    trainer = gw.Trainer(model, saving, train_dataset=speeches)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert names(tmp_path / "model") == names(experts)
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(tmp_path / "model"))


def test_weights_with_other_names_are_not_passed_over(
    experts: Path, speeches: Dataset, arguments: Any, tmp_path: Path
) -> None:
    """As in a checkpoint of an earlier version."""
    model = AutoModelForCausalLM.from_pretrained(experts)
    trainer = gw.Trainer(model, arguments(), train_dataset=speeches)
    with pytest.raises(gw.errors.CheckpointError, match=r"lack 6 of 21 parameters"):
        trainer._load_from_checkpoint(str(experts))


@pytest.mark.slow
def test_two_ranks_are_one_process(experts: Path, speeches: Dataset, tmp_path: Path) -> None:
    def of(out: str, **changes: Any) -> dict[str, Any]:
        return job(tmp_path, experts, speeches, out, **changes)

    run(of("one"))
    jobs = []
    for sharded in WAYS:
        jobs += [
            of(sharded, sharded=sharded),
            of(f"{sharded}, resumed", sharded=sharded, stopped_after=STOPPED),
            of(f"{sharded}, resumed", sharded=sharded, resume=True),
            of(f"{sharded}, to one", sharded=sharded, stopped_after=STOPPED),
        ]
    launch(tmp_path, jobs)
    one = weights(tmp_path / "one")
    for sharded in WAYS:
        run(of(f"{sharded}, to one", resume=True))
        two, resumed = weights(tmp_path / sharded), weights(tmp_path / f"{sharded}, resumed")
        assert all(torch.equal(values, resumed[name]) for name, values in two.items())
        for out in (sharded, f"{sharded}, to one"):
            assert losses(tmp_path / out) == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
            found = weights(tmp_path / out)
            for name, values in one.items():
                torch.testing.assert_close(found[name], values, rtol=1e-3, atol=5e-5)
