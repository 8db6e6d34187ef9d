"""Trackers (Weights & Biases, TensorBoard, ...) report on a run and must not end it.

A tracker that raises is left out from then on, with one warning. Trackers are transformers' own integrations
and their subclasses; what other callbacks raise still ends the run.

A run that was resumed is one run to TensorBoard, whose files lie in the run directory, and to Weights and
Biases.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from gradwise.console import say
from gradwise.ranks import is_first
from gradwise.text import described

EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]


Numbers = Callable[[], dict[str, float]]


def guard_trackers(callbacks: list[Any], more: Numbers) -> None:
    """Let no tracker among a trainer's callbacks raise, and show `more` numbers with each training loss."""
    for callback in callbacks:
        if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())):
            _guard(callback, more)


def add_trackers(trainer: transformers.Trainer, names: list[str], more: Numbers) -> None:
    """Add the trackers of `report_to`, those left out that cannot be made."""
    for name in names:
        try:
            tracker = INTEGRATION_TO_CALLBACK[name]()
        except Exception as error:
            _warn(name, "start", error)
            continue
        _guard(tracker, more)
        trainer.add_callback(tracker)
        # The Trainer called this event of its callbacks before this tracker was among them.
        tracker.on_init_end(trainer.args, trainer.state, trainer.control)


@contextmanager
def without_trackers(trainer_arguments: list[Any]) -> Iterator[list[str]]:
    """The trackers that TrainingArguments among a Trainer's arguments name, which meanwhile name none: the
    Trainer would make them, and fail with them."""
    args = next((each for each in trainer_arguments if isinstance(each, TrainingArguments)), None)
    names = list(getattr(args, "report_to", None) or [])
    unknown = [name for name in names if name not in INTEGRATION_TO_CALLBACK]
    if args is None or unknown:  # which the Trainer itself refuses
        yield []
        return
    args.report_to = []
    try:
        yield names
    finally:
        args.report_to = names


@contextmanager
def one_run(
    callbacks: list[Any], folder: Path, run: str, *, resumed_at: int | None, say: Callable[[str], object]
) -> Iterator[None]:
    """Let trackers continue a resumed run where its checkpoint was taken, while it trains.

    Args:
        callbacks: of the trainer.
        folder: of the run; TensorBoard's files go into `tensorboard` there.
        run: the run's identifier.
        resumed_at: step of the checkpoint; None for a new run.
        say: shows the user where the files are.
    """
    for tracker in callbacks:
        if _is(tracker, "tensorboard") and vars(tracker).get("logging_dir", "") is None:
            _open_tensorboard(tracker, folder / "tensorboard", resumed_at, say)
    ours = {"WANDB_RUN_ID": run, "WANDB_RESUME": "allow"} if any(_is(t, "wandb") for t in callbacks) else {}
    # What the user has set wins.
    ours = {} if "WANDB_RUN_ID" in os.environ else ours
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _is(callback: Any, name: str) -> bool:
    return isinstance(callback, INTEGRATION_TO_CALLBACK[name])


def _open_tensorboard(tracker: Any, folder: Path, step: int | None, say: Callable[[str], object]) -> None:
    tracker.logging_dir = str(folder)
    if not is_first():
        return
    try:
        from torch.utils.tensorboard import SummaryWriter

        # What was logged after the checkpoint comes again.
        tracker.tb_writer = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)
    except Exception as error:
        _warn("TensorBoardCallback", "start", error)
        return
    say(f"TensorBoard: tensorboard --logdir {folder}")


def _guard(tracker: Any, more: Numbers) -> None:
    failed: list[bool] = []
    for event in EVENTS:
        react = getattr(tracker, event)
        if event == "on_log":
            react = _with_numbers(react, more)
        setattr(tracker, event, _tolerated(tracker, event, react, failed))


def _with_numbers(react: Callable[..., Any], more: Numbers) -> Callable[..., Any]:
    @functools.wraps(react)
    def on_log(*args: Any, logs: Any = None, **kwargs: Any) -> Any:
        return react(*args, logs={**logs, **more()} if logs and "loss" in logs else logs, **kwargs)

    return on_log


def _tolerated(tracker: Any, event: str, react: Callable[..., Any], failed: list[bool]) -> Callable[..., Any]:
    @functools.wraps(react)
    def tolerated(*args: object, **kwargs: object) -> Any:
        # One failure is enough: a tracker that lost its connection would warn at every step.
        if failed:
            return None
        try:
            return react(*args, **kwargs)
        except Exception as error:
            failed.append(True)
            _warn(type(tracker).__name__, event, error)
            return None

    return tolerated


def _warn(name: str, when: str, error: Exception) -> None:
    reason = described(error, 200)
    say(f"Warning: the tracker {name} failed ({when}: {reason}). The run continues without it.", error=True)
