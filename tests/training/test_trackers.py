"""Trackers that fail are left out with one warning, and the run finishes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

import gradwise as gw
from gradwise.data import Collator


class _Unmade(TrainerCallback):
    def __init__(self) -> None:
        raise RuntimeError("no login\x1b[2J")


class _Failing(TrainerCallback):
    calls = 0

    def on_log(self, *_: Any, **__: Any) -> None:
        type(self).calls += 1
        raise OSError("the server is gone")


class _FailingSubclass(_Failing):
    """A user's own, handed over as a callback."""


@pytest.mark.parametrize("given", ["report_to", "callbacks"])
def test_a_tracker_that_fails_does_not_end_a_run(
    given: str,
    story_model: Callable[[], Any],
    arguments: Any,
    speeches: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", _Unmade)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", _Failing)
    _Failing.calls = _FailingSubclass.calls = 0
    named = given == "report_to"
    own = arguments(max_steps=3, **({"report_to": ["wandb", "tensorboard"]} if named else {}))
    callbacks = [] if named else [_FailingSubclass()]
    trainer = gw.Trainer(story_model(), own, Collator(0), speeches, callbacks=callbacks)
    trainer.train()
    assert trainer.state.global_step == 3
    assert (_Failing if named else _FailingSubclass).calls == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: the tracker")]
    kind = "_Failing" if named else "_FailingSubclass"
    assert f"the tracker {kind} failed (on_log: OSError: the server is gone)" in said[-1]
    if named:
        assert "the tracker wandb failed (start: RuntimeError: no login\\x1b[2J)" in said[0]
    assert len(said) == 1 + named


def test_other_callbacks_still_end_it(story_model: Callable[[], Any], arguments: Any, speeches: Any) -> None:
    trainer = gw.Trainer(story_model(), arguments(max_steps=3), Collator(0), speeches, callbacks=[_Failing()])
    with pytest.raises(OSError, match="the server is gone"):
        trainer.train()


def test_decisions_are_tracked_as_one_run_over_a_resume(
    story_model: Callable[[], Any], arguments: Any, speeches: Any, tmp_path: Path, capsys: Any
) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = gw.Recipe(layers=gw.Grass(active=2, period=2, probe=1))

    def trainer(steps: int) -> Any:
        own = arguments(
            max_steps=steps,
            report_to=["tensorboard"],
            disable_tqdm=False,
            save_strategy="steps",
            save_steps=4,
        )
        return gw.Trainer(
            story_model(), own, Collator(0), speeches, eval_dataset=speeches, recipe=recipe,
            run_dir=tmp_path / "run",
        )  # fmt: skip

    first = trainer(6)
    first.train()
    first.evaluate()
    resumed = trainer(6)
    resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / "checkpoint-4"))
    folder = tmp_path / "run" / "tensorboard"
    assert f"TensorBoard: tensorboard --logdir {folder}" in capsys.readouterr().out
    found = reading.EventAccumulator(str(folder))
    found.Reload()
    steps = [event.step for event in found.Scalars("train/loss")]
    assert steps == [1, 2, 3, 4, 5, 6]
    tags = set(found.Tags()["scalars"])
    assert {
        "train/deciding_seconds",
        "train/active_layers",
        "train/layer_score/0",
        "eval/held_out_loss",
    } <= tags
    active = {n: [e.value for e in found.Scalars(f"train/layer_active/{n}")] for n in range(5)}
    assert [sum(column) for column in zip(*active.values(), strict=True)] == [2.0] * 6
    deciding = [event.value for event in found.Scalars("train/deciding_seconds")]
    assert deciding == sorted(deciding) and deciding[0] > 0
    assert not any("layer_score" in name for line in resumed.state.log_history for name in line)


def test_wandb_sees_one_run(
    story_model: Callable[[], Any], arguments: Any, speeches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Wandb(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            seen.append((os.environ["WANDB_RUN_ID"], os.environ["WANDB_RESUME"]))

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", Wandb)
    for steps, resume in ((2, None), (2, True)):
        own = arguments(max_steps=steps, report_to=["wandb"], save_strategy="steps", save_steps=1)
        trainer = gw.Trainer(story_model(), own, Collator(0), speeches)
        trainer.train(resume_from_checkpoint=resume)
    assert seen == [(trainer.session.record.run, "allow")] * 2
    assert "WANDB_RUN_ID" not in os.environ
