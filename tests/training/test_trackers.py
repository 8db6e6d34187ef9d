"""Trackers that fail are left out with one warning, and the run finishes."""

from collections.abc import Callable
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
