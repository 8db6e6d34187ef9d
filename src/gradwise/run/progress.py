"""How a run shows that it is alive: bars on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from gradwise.console import Lines, duration, on_terminal
from gradwise.run.time_left import TimeLeft

if TYPE_CHECKING:
    from gradwise.session import Session
    from gradwise.trainer import Trainer


SHOWN_EVERY = 1.0
"""Seconds between two estimates of the time left beside a bar."""

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
"""A bar without tqdm's own estimate, which leaves out the decisions to come."""


class ProgressBar(ProgressCallback):
    """The Trainer's bars, with the loss and the time left beside them instead of a line for each log."""

    def __init__(self, session: "Session") -> None:
        super().__init__()
        self._session = session
        self._numbers: dict[str, str] = {}
        self._due = 0.0
        self._time_left: TimeLeft | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        super().on_train_begin(args, state, control, **more)
        self._time_left = TimeLeft(self._session)
        if self.training_bar is not None:
            self.training_bar.bar_format = BAR

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        super().on_step_end(args, state, control, **more)
        now = time.monotonic()
        if self.training_bar is None or self._time_left is None or now < self._due:
            return
        self._due = now + SHOWN_EVERY
        if (seconds := self._time_left.seconds()) is not None:
            self._numbers["left"] = duration(seconds)
            self.training_bar.set_postfix(self._numbers, refresh=False)

    def on_log(
        self, _: object, state: TrainerState, __: object, logs: dict[str, Any] | None = None, **___: object
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self._numbers |= {
                name: f"{float(logs[name]):.3g}" for name in ("loss", "eval_loss") if name in logs
            }
            self.training_bar.set_postfix(self._numbers)


class LogLines(TrainerCallback):
    """Lines with the step, its loss and learning rate, and the time left."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._time_left: TimeLeft | None = None
        self._steps: Lines | None = None
        self._batches: Lines | None = None

    def on_train_begin(self, _: object, state: TrainerState, __: object, **___: object) -> None:
        self._steps = Lines("training", state.max_steps, "steps", done=state.global_step)
        self._time_left = TimeLeft(self._session)

    def on_step_end(self, _: object, state: TrainerState, __: object, **___: object) -> None:
        if self._steps is not None and self._time_left is not None:
            self._steps.update(state.global_step, self._figures, self._time_left.seconds)

    def on_prediction_step(self, *_: object, eval_dataloader: Sized | None = None, **__: object) -> None:
        if self._batches is None:
            total = len(eval_dataloader) if isinstance(eval_dataloader, Sized) else None
            self._batches = Lines("evaluation", total, "batches")
        self._batches.update(self._batches.done + 1)

    def on_evaluate(self, *_: object, **__: object) -> None:
        self._batches = None

    def _figures(self) -> str:
        formats = {"loss": "loss {:.4f}", "learning_rate": "learning rate {:.3g}"}
        latest = self._session.record.latest
        return ", ".join(form.format(latest[name]) for name, form in formats.items() if name in latest)


def show_progress(trainer: "Trainer", shown: bool) -> None:
    """Replace the Trainer's own display by ours, or by none."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if shown and trainer.is_world_process_zero():
        trainer.add_callback(ProgressBar(trainer.session) if on_terminal() else LogLines(trainer.session))


@contextmanager
def quiet_libraries(bars: bool) -> Iterator[None]:
    """Let libraries report errors only, and show bars only if `bars` is set."""
    import datasets

    logging = transformers.utils.logging
    verbosity, shown, hidden = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
        if not hidden:
            datasets.enable_progress_bars()
