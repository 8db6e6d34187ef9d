"""A layer policy in a plain Hugging Face Trainer, on streamed data, stopped and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

import gradwise as gw
from gradwise.data import Collator
from gradwise.integrations.callback import FILE, LayerCallback


@pytest.fixture
def streamed(story_model: Any, arguments: Any, speeches: Dataset) -> Any:
    """Makes a Trainer whose data set has no length and no index."""

    def make(name: str, callback: Any = None, **options: Any) -> transformers.Trainer:
        own = arguments(name, max_steps=6, save_strategy="steps", save_steps=2, **options)
        data = speeches.select_columns(["input_ids", "labels"]).to_iterable_dataset()
        callback = callback or LayerCallback(gw.Grass(active=2, period=2, probe=1))
        return transformers.Trainer(story_model(), own, Collator(0), data, callbacks=[callback])  # type: ignore[arg-type]

    return make


class _Watched(LayerCallback):
    """Notes which layers a step moves."""

    def __init__(self) -> None:
        super().__init__(gw.Grass(active=2, period=2, probe=1))
        self.seen: list[tuple[int, ...]] = []

    def on_pre_optimizer_step(self, *given: Any, **parts: Any) -> None:
        assert self.switch is not None
        self.seen.append(self.switch.active)
        super().on_pre_optimizer_step(*given, **parts)


def test_layers_of_a_streamed_run_and_resuming(streamed: Any) -> None:
    watched = _Watched()
    whole = streamed("whole", watched)
    whole.train()
    assert [len(active) for active in watched.seen[1:]] == [2] * 5 and len(set(watched.seen[1:])) > 1
    assert all(parameter.requires_grad for parameter in whole.model.parameters())
    saved = Path(whole.args.output_dir) / "checkpoint-4"
    assert (saved / FILE).exists()
    resumed = streamed("whole")
    resumed.train(resume_from_checkpoint=str(saved))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_without_layers_is_refused(streamed: Any) -> None:
    whole = streamed("whole")
    whole.train()
    saved = Path(whole.args.output_dir) / "checkpoint-4"
    (saved / FILE).unlink()
    with pytest.raises(gw.CheckpointError, match="saved with LayerCallback"):
        streamed("whole").train(resume_from_checkpoint=str(saved))


def test_the_axolotl_plugin_adds_the_callback() -> None:
    pytest.importorskip("axolotl.integrations.base")
    from gradwise.integrations.axolotl import GradwisePlugin

    class Config:
        gradwise_layers = {"method": "grass", "active": 2}  # noqa: RUF012
        gradwise_seed = None

    (callback,) = GradwisePlugin().add_callbacks_post_trainer(Config(), None)  # type: ignore[arg-type]
    assert callback.layers == gw.Grass(active=2)
