"""`state: offload` in runs of the Trainer, and decisions that try out steps with offloaded state."""

from pathlib import Path
from typing import Any

import pytest
import torch

import gradwise as gw
from gradwise.data import Collator
from gradwise.probing.restoring import restoring
from gradwise.training.offload import offload_state
from tests.conftest import same_weights
from tests.training.offload.adversary import Adversary


def train(model: Any, arguments: Any, data: Any, state: Any, resume: str | None = None) -> None:
    layers = gw.Grass(active=2, period=3, probe=1, state=state, embeddings="always")
    trainer = gw.Trainer(model, arguments, Collator(0), data, recipe=gw.Recipe(layers=layers))
    trainer.train(resume_from_checkpoint=resume)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_of_kept_state(
    story_model, arguments, speeches, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Resumed in the middle of a period as well."""
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4, "max_steps": 10}
    models = [story_model().to(dtype) for _ in range(3)]
    train(models[0], arguments("keep", **settings), speeches, "keep")
    train(models[1], arguments("offload", **settings), speeches, "offload")
    checkpoint = str(tmp_path / "offload" / "checkpoint-4")
    train(models[2], arguments("offload", **settings), speeches, "offload", checkpoint)
    assert same_weights(models[0], models[1]) and same_weights(models[0], models[2])


@pytest.mark.parametrize("warmed", [False, True])
def test_what_was_tried_is_given_back(tiny_llama, warmed: bool) -> None:
    """The copies of a step that is taken back must not arrive after it was; nor may what was tried stay where
    the state was made before it was offloaded."""
    results = []
    for tries in (0, 2):
        model = tiny_llama()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.arange(12).view(1, 12)

        def step(model: Any = model, optimizer: Any = optimizer, ids: Any = ids) -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def offload(optimizer: Any = optimizer) -> None:
            offload_state(optimizer, device=Adversary(2, 1 << 20, prefers=("compute",)))

        for action in (step, offload) if warmed else (offload, step):
            action()
        with restoring(model, optimizer) as restore:
            for _ in range(tries):
                step()
                restore()
        step()
        results.append(model)
    assert same_weights(*results)
