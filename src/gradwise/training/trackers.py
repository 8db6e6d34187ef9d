"""Trackers (Weights & Biases, TensorBoard, ...) report on a run and must not end it.

A tracker that raises is left out from then on, with one warning. Trackers are transformers' own integrations
and their subclasses; what other callbacks raise still ends the run.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from gradwise.console import say
from gradwise.text import clipped

EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]


def guard_trackers(callbacks: list[Any]) -> None:
    """Let no tracker among a trainer's callbacks raise."""
    for callback in callbacks:
        if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())):
            _guard(callback)


def add_trackers(trainer: transformers.Trainer, names: list[str]) -> None:
    """Add the trackers of `report_to`, those left out that cannot be made."""
    for name in names:
        try:
            tracker = INTEGRATION_TO_CALLBACK[name]()
        except Exception as error:
            _warn(name, "start", error)
            continue
        _guard(tracker)
        trainer.add_callback(tracker)
        tracker.on_init_end(trainer.args, trainer.state, trainer.control)


@contextmanager
def without_trackers(given: list[Any]) -> Iterator[list[str]]:
    """The trackers that TrainingArguments among a Trainer's arguments name, which meanwhile name none: the
    Trainer would make them, and fail with them."""
    args = next((each for each in given if isinstance(each, TrainingArguments)), None)
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


def _guard(tracker: Any) -> None:
    failed: list[bool] = []
    for event in EVENTS:
        setattr(tracker, event, _tolerated(tracker, event, getattr(tracker, event), failed))


def _tolerated(tracker: Any, event: str, react: Callable[..., Any], failed: list[bool]) -> Callable[..., Any]:
    @functools.wraps(react)
    def tolerated(*args: object, **kwargs: object) -> Any:
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
    reason = clipped(" ".join(f"{type(error).__name__}: {error}".split()), 200)
    say(f"Warning: the tracker {name} failed ({when}: {reason}). The run continues without it.", error=True)
