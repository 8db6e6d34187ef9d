"""What a CPU cannot show: loss scaling, fused optimizers and pinned loaders on a CUDA device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import AllLayers
from tests.conftest import same_weights

pytestmark = pytest.mark.gpu

ON_GPU: dict[str, Any] = {"use_cpu": False, "dataloader_pin_memory": True, "dataloader_num_workers": 2}
GRASS = gw.Grass(active=2, period=2, probe=2)


def train(model: Any, arguments: Any, data: Any, resume: str | None = None, **sections: Any) -> gw.Trainer:
    trainer = gw.Trainer(model, arguments, Collator(0), data, recipe=gw.Recipe(**sections))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}])
def test_all_layers_active_is_ordinary_training(story_model, arguments, speeches, precision: dict) -> None:
    plain, switched = story_model(), story_model()
    train(
        plain, arguments("plain", full_determinism=True, **ON_GPU, **precision), speeches, layers=AllLayers()
    )
    layers = gw.Grass(active=5, embeddings="always", probe=1)
    train(
        switched, arguments("switched", full_determinism=True, **ON_GPU, **precision), speeches, layers=layers
    )
    assert same_weights(plain, switched)


def test_scores_do_not_depend_on_loss_scaling(story_model, arguments, speeches, tmp_path: Path) -> None:
    scores = []
    for name, precision in (("full", {}), ("half", {"fp16": True})):
        train(story_model(), arguments(name, **ON_GPU, **precision), speeches, layers=GRASS)
        events = [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        scores.append(next(event["scores"] for event in events if event["event"] == "layers"))
    assert scores[0] == pytest.approx(scores[1], rel=0.1)


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}])
def test_resumed_is_never_stopped(story_model, arguments, speeches, tmp_path: Path, precision: dict) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5, "full_determinism": True}
    whole, resumed = story_model(), story_model()
    train(whole, arguments(**saving, **ON_GPU, **precision), speeches, layers=GRASS)
    checkpoint = str(tmp_path / "out" / "checkpoint-15")
    train(resumed, arguments(**saving, **ON_GPU, **precision), speeches, checkpoint, layers=GRASS)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}])
def test_offloaded_state_is_kept_state(story_model, arguments, speeches, precision: dict) -> None:
    """Loss scaling may skip updates whose state is on its way already."""
    models = [story_model(), story_model()]
    for model, state in zip(models, ("keep", "offload"), strict=True):
        layers = gw.Grass(active=2, period=2, probe=2, state=state)  # type: ignore[arg-type]
        train(model, arguments(state, full_determinism=True, **ON_GPU, **precision), speeches, layers=layers)
    assert same_weights(*models)


@pytest.mark.parametrize("tf32", [True, False])
def test_samples_are_scored_whatever_products_are_computed_in(
    story_model, arguments, speeches, tf32: bool
) -> None:
    """Where TF32 is set, torch refuses to say so in its older words."""
    precision = torch.backends.cuda.matmul.fp32_precision
    try:
        select = gw.Grace(count=40, candidates="all", refresh_every=4)
        train(story_model(), arguments(tf32=tf32, **ON_GPU), speeches, select=select)
    finally:
        torch.backends.cuda.matmul.fp32_precision = precision


def test_layer_wise_training_needs_less_memory(story_model, arguments, speeches) -> None:
    """Gradients and optimizer state of the frozen layers are never there."""
    peaks = []
    for layers in (AllLayers(), gw.Grass(active=1, period=100, probe=2)):
        model = story_model().to("cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train(model, arguments(layers.method, **ON_GPU), speeches, layers=layers)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model
    assert peaks[1] < peaks[0]
