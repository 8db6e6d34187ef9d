"""The estimate against the measured peak of real training, and what it says where a recipe does not fit."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer
from packaging.version import Version
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from benchmarks.layers.estimate import arms, compare
from gradwise import Adapter, Data, Direct, Grace, Grass, Model, Recipe, RecipeError, Train
from gradwise.cli.train import estimate as command
from gradwise.estimating import estimate
from gradwise.estimating.estimate import bytes_of
from gradwise.methods.baselines import UniformLayers
from gradwise.training.record_names import BUFFERS
from gradwise.training.tensor_bytes import TensorBytes

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def recipe(stories: Path) -> Recipe:
    data: Any = Data(train="unread.jsonl", max_length=64)  # type: ignore[arg-type]
    return Recipe(model=Model(name=str(stories)), data=data, train=Train(batch_size=4))


@pytest.mark.parametrize("arm", [name for name in arms(1) if name != "grass-drop"])
def test_the_peak_is_within_ten_percent_of_the_measured_one(arm: str) -> None:
    found = compare(SMALL, arm, rows=2, length=64, active=2, steps=12)
    assert found["layers_drawn"] in (0, 4), "a run in which all layers have state"
    assert found["ratio"] == pytest.approx(1.0, abs=0.1)


def test_bytes_are_counted_from_creation_to_end() -> None:
    with TensorBytes() as counted:
        first = torch.ones(1000)
        second = first.view(10, 100)  # the same memory
        assert counted.alive.total() == 4000
        third = second + 1
        assert counted.alive.total() == 8000
        del first, second
        assert counted.alive.total() == 4000
        del third
    assert not counted.alive.total() and counted.at_peak.total() == 8000


def test_parts_are_those_of_the_model(recipe: Recipe, story_model) -> None:
    model = story_model()
    weights = sum(p.nbytes for p in model.parameters())
    step, update = estimate(recipe).traced.phases
    for phase in (step, update):
        assert phase.parts["weights"] + phase.parts["embeddings and head"] == pytest.approx(weights, rel=0.01)
        assert phase.parts["optimizer state"] == pytest.approx(2 * weights, rel=0.01)
    assert update.parts["gradients"] == weights


def test_policies_need_what_they_keep(recipe: Recipe) -> None:
    def state(**settings: Any) -> tuple[int, int, int]:
        layers: Any = UniformLayers(active=1, **settings)
        traced = estimate(replace(recipe, layers=layers)).traced
        passes, update = traced.phases
        return passes.parts["optimizer state"], update.parts["optimizer state"], traced.host

    kept, dropped, offloaded = state(), state(state="drop"), state(state="offload")
    assert kept[0] == kept[1] == offloaded[2] == pytest.approx(5 * dropped[0], rel=0.01)
    assert offloaded[0] == 0 < offloaded[1] <= kept[1] and not kept[2] + dropped[2]


@pytest.mark.parametrize(("words", "largest"), [(64, "a block"), (4096, "embeddings")])
def test_of_layers_drawn_one_at_a_time_the_largest_counts(
    recipe: Recipe, tmp_path: Path, words: int, largest: str
) -> None:
    shape: dict[str, Any] = SMALL | {"vocab_size": words}
    LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    layers: Any = UniformLayers(active=1, embeddings="sampled", state="drop")
    found = estimate(replace(recipe, model=Model(name=str(tmp_path)), layers=layers)).traced
    model = LlamaForCausalLM(LlamaConfig(**shape))
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    outside = sum(p.numel() for p in model.parameters()) - 4 * block
    assert (outside > block) == (largest == "embeddings")
    assert found.trainable == max(block, outside)


def test_a_recipe_that_does_not_fit_gets_changes(recipe: Recipe) -> None:
    whole = estimate(recipe)
    assert whole.fits is None and not whole.changes
    small = estimate(recipe, whole.peak - 1)
    assert small.fits is False and all(change.peak < whole.peak for change in small.changes)
    settings = {change.setting for change in small.changes}
    assert {"train.gradient_checkpointing: true", "model.dtype: bfloat16", "data.max_length: 32"} <= settings
    assert estimate(recipe, whole.peak).fits


def test_time_is_given_in_shares(recipe: Recipe) -> None:
    assert estimate(recipe).training == 3.0
    layers: Any = Grass(active=5, probe=2)
    train = Train(batch_size=4, schedule="wsd", arguments={"max_steps": 20})
    found = estimate(replace(recipe, layers=layers, select=Grace(fraction=0.5), anneal=Direct(), train=train))
    # Head: 512 by 64 of them; five blocks with all layers trained, but not the head.
    head = found.traced.shape.head
    assert found.traced.shape.width == 64 and head == pytest.approx(0.125, abs=0.01)
    assert found.training == pytest.approx(3 - head)
    assert found.shares["select"]["share"] == 0.15
    assert found.shares["layers"]["share"] == pytest.approx(2 * 3.4 / (20 * (3 - head)))
    assert found.shares["anneal"]["share"] is None and "size of the pool" in found.shares["anneal"]["why"]


def test_the_update_of_a_large_model_takes_time_as_well(recipe: Recipe, tmp_path: Path) -> None:
    """Of one beyond the caches of a processor; nothing is allocated."""
    shape: dict[str, Any] = SMALL | {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 4096}
    LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    found = estimate(replace(recipe, model=Model(name=str(tmp_path))))
    assert found.traced.parameters > 5e7 and found.traced.shape.step_tokens == 4 * 64
    assert found.training == pytest.approx(3 + 256 / (4 * 64))


def test_the_command_prints_a_table_or_json(stories: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {stories}}}\ndata: {{train: {{path: none.jsonl}}, max_length: 32}}\n"
        "train: {batch_size: 2}\n"
    )
    app = typer.Typer()
    app.command()(command)
    table = CliRunner().invoke(app, [str(path), "--memory", "1GiB"])
    assert table.exit_code == 0 and "fits in 1.00 GiB" in table.output
    plain = CliRunner().invoke(app, [str(path), "--memory", "1MB", "--json"])
    found = json.loads(plain.output)
    assert found["fits"] is False and found["memory"] == 10**6
    assert found["peak"] == max(phase["total"] for phase in found["phases"].values())


@pytest.mark.parametrize("text", ["24", "much", "-1GiB", "GiB", "nanGiB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--memory must be a size such as 24GiB"):
        bytes_of(text)


@pytest.mark.parametrize(
    ("arguments", "sections", "given", "words"),
    [
        ({"fsdp": "full_shard"}, {}, {}, "say how many, such as --ranks 8"),
        ({}, {}, {"ranks": 2}, "only where FSDP2 shards the model"),
        ({"fsdp": "full_shard"}, {}, {"ranks": 3}, "3 ranks cannot share"),
        ({"fsdp": "full_shard"}, {}, {"ranks": 2, "sharded_as_loaded": True}, "takes no train.fsdp"),
        (
            {"fsdp": "full_shard"},
            {"adapter": Adapter()},
            {"ranks": 2},
            "an adapter on a model that FSDP2 shards",
        ),
        ({"fsdp": "full_shard", "fsdp_config": {"cpu_offload": True}}, {}, {"ranks": 2}, "with cpu_offload"),
    ],
)
def test_a_rank_that_is_not_known_is_refused(
    recipe: Recipe, arguments: Any, sections: Any, given: Any, words: str
) -> None:
    """`tests/training/test_sharded_memory.py` compares the others with two processes."""
    before = os.environ.copy()
    with pytest.raises(RecipeError, match=words):
        estimate(replace(recipe, train=Train(batch_size=4, arguments=arguments), **sections), **given)
    assert os.environ == before and not torch.distributed.is_initialized()


def test_the_memory_of_a_device_asks_about_a_gpu(recipe: Recipe) -> None:
    """There torch's unfused AdamW computes denominators of all weights at once, and here one by one."""

    def room(memory: int | None, **arguments: object) -> int:
        train = Train(batch_size=4, arguments={"optim": "adamw_torch", **arguments})
        return estimate(replace(recipe, train=train), memory).as_dict()["phases"]["update"][BUFFERS]

    here = room(None, use_cpu=True)
    assert room(1 << 40) > 3 * here
    assert room(1 << 40, use_cpu=True) == here


@pytest.mark.skipif(Version(transformers.__version__) >= Version("5.19"), reason="transformers can do it")
def test_a_model_sharded_in_loading_needs_a_later_transformers(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"--sharded-as-loaded needs transformers 5\.19 or later"):
        estimate(recipe, ranks=2, sharded_as_loaded=True)


def test_settings_whose_memory_is_not_known_are_refused(recipe: Recipe) -> None:
    for key, value in (("optim", "adafactor"), ("optim", "adamw_8bit"), ("torch_compile", True)):
        with pytest.raises(RecipeError, match="gradwise estimate"):
            estimate(replace(recipe, train=Train(batch_size=4, arguments={key: value})))
    with pytest.raises(RecipeError, match=r"needs model\.name"):
        estimate(Recipe())
