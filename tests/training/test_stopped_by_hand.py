"""A run that is stopped, as Ctrl-C does, ends after resuming as one that was never stopped."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import gradwise as gw
from gradwise.data import Collator
from gradwise.training.checkpoint import is_finished
from tests.conftest import same_weights, some
from tests.training.test_resume import lines


class _AskToStop(TrainerCallback):
    """What Ctrl-C does, at a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any
    ) -> None:
        self.trainer.session.stop_requested = state.global_step + 1 == self.step

    trainer: Any = None


STOPS = {
    "within an epoch": (7, {"eval_strategy": "epoch"}),
    "at an epoch's end": (10, {"eval_strategy": "epoch"}),
    "where a checkpoint is due": (6, {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 3}),
    "at an evaluation": (8, {"eval_strategy": "steps", "eval_steps": 4}),
    "plateau": (7, {"eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"}),
    "best": (
        8,
        {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "best", "metric_for_best_model": "loss"},
    ),
    "best at end": (
        7,
        {
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_strategy": "steps",
            "save_steps": 3,
            "load_best_model_at_end": True,
            "save_total_limit": 1,
        },
    ),
}


@pytest.mark.parametrize(("step", "settings"), some(STOPS.values()), ids=STOPS.keys())
def test_stopped_by_hand_and_resumed_is_never_stopped(
    story_model, arguments, speeches, tmp_path: Path, step: int, settings: dict[str, Any]
) -> None:
    def make(name: str) -> gw.Trainer:
        own = arguments(name, **{"num_train_epochs": 2, "save_strategy": "no"} | settings)
        parts = speeches.select(range(40)), speeches.select(range(40, 48))
        return gw.Trainer(
            story_model(), own, Collator(0), *parts, recipe=gw.Recipe(layers=gw.Grass(period=3))
        )

    whole = make("whole")
    whole.train()
    stopped = make("stopped")
    asking = _AskToStop(step)
    asking.trainer = stopped
    stopped.add_callback(asking)
    stopped.train()
    assert stopped.session.stopped and stopped.state.global_step == step
    assert is_finished(tmp_path / "stopped" / f"checkpoint-{step}")
    resumed = make("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(whole.model, resumed.model)
    assert lines(tmp_path / "stopped" / "metrics.jsonl") == lines(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.parametrize("event", ["on_step_end", "on_substep_end"])
def test_a_callback_that_ends_an_epoch_is_refused(story_model, arguments, speeches, event: str) -> None:
    """The next epoch would begin with what is left of this one, half of a step's samples twice."""

    def end_epoch(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_epoch_stop = True

    ends = type("EndsEpochs", (TrainerCallback,), {event: end_epoch})()
    own = arguments(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2)
    trainer = gw.Trainer(story_model(), own, Collator(0), speeches.select(range(16)), callbacks=[ends])
    with pytest.raises(gw.RecipeError, match=r"set control\.should_epoch_stop, .* should_training_stop"):
        trainer.train()
