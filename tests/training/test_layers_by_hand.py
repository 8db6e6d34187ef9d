"""A run with a layer policy is a loop by hand in which only the layers that were drawn have gradients.

What other implementations of layer-wise training got wrong shows here: a schedule or clipping without effect,
frozen weights that decay, layers that are drawn late and never move, accumulation that is counted as steps.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import UniformLayers
from tests.conftest import same_weights

ROWS, PASSES, STEPS, NORM, RATE, DECAY = 2, 2, 10, 0.5, 1e-3, 0.1


def by_hand(model: Any, batches: list[list[Any]], drawn: dict[int, list[int]], **changes: Any) -> Any:
    """Steps of plain PyTorch; `drawn` has the active layers from a step on."""
    settings = {"norm": NORM, "schedule": True, "decay": DECAY, **changes}
    blocks, collate = list(model.model.layers), Collator(0)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings["decay"]},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
        fused=True,
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, 2, STEPS)
    model.train()
    for step, parts in enumerate(batches):
        if step in drawn:
            active = {id(p) for layer in drawn[step] for p in blocks[layer].parameters()}
        collated = [collate(part) for part in parts]
        tokens = sum(int((part["labels"][:, 1:] != -100).sum()) for part in collated)
        for part in collated:
            model(**part, num_items_in_batch=tokens).loss.backward()
        for parameter in parameters:
            if id(parameter) not in active:
                parameter.grad = None
        if settings["norm"]:
            nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], settings["norm"])
        optimizer.step()
        if settings["schedule"]:
            scheduler.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("state", ["keep", "offload"])
def test_a_run_is_the_loop_by_hand(
    story_model: Any, arguments: Any, speeches: Any, tmp_path: Path, state: Any
) -> None:
    settings = {
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": PASSES,
        "max_grad_norm": NORM,
        "weight_decay": DECAY,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "learning_rate": RATE,
        "max_steps": STEPS,
    }
    layers = UniformLayers(active=1, period=2, state=state)
    model = story_model()
    trainer = gw.Trainer(
        model, arguments(**settings), Collator(0), speeches, recipe=gw.Recipe(layers=layers, seed=3)
    )
    trainer.train()
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    drawn = {event["step"]: event["active"] for event in events if event["event"] == "layers"}
    assert sorted(drawn) == [0, 2, 4, 6, 8], "a draw every two steps, not every two micro-batches"
    assert len({layer for active in drawn.values() for layer in active}) > 2, "layers that are drawn late"
    assert trainer.session.plan is not None
    indices = trainer.session.plan.indices[: STEPS * ROWS * PASSES].tolist()
    samples = speeches.remove_columns("domain")
    rows = [[samples[i] for i in indices[at : at + ROWS]] for at in range(0, len(indices), ROWS)]
    batches = [rows[at : at + PASSES] for at in range(0, len(rows), PASSES)]
    assert same_weights(by_hand(story_model(), batches, drawn), model)
    for change in ({"norm": None}, {"schedule": False}, {"decay": 0.0}):
        assert not same_weights(by_hand(story_model(), batches, drawn, **change), model), change
