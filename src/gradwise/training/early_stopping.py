"""Early stopping for recipes: transformers' callback, made to survive interruptions."""

from collections.abc import Callable
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from gradwise.training.record import RunRecord


class EarlyStopping(EarlyStoppingCallback):
    """Ends training after a number of evaluations in a row without a better one.

    The Trainer writes the count into its checkpoints, but restores it only together with every other
    callback's state, which gradwise keeps itself. So the count is read back here. A run that was killed
    between its last evaluation and its end then makes no further step.
    """

    def __init__(self, record: RunRecord, say: Callable[[str], object], patience: int) -> None:
        super().__init__(patience)
        self._record, self._say = record, say

    def on_train_begin(self, _: object, state: TrainerState, control: TrainerControl, **__: object) -> None:
        callbacks: Any = state.stateful_callbacks or {}
        saved = callbacks.get(type(self).__name__, {})
        self.early_stopping_patience_counter = saved.get("attributes", {}).get(
            "early_stopping_patience_counter", 0
        )
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        super().on_evaluate(args, state, control, metrics or {})
        patience = self.early_stopping_patience
        if self.early_stopping_patience_counter < patience or state.global_step >= state.max_steps:
            return
        count = f"the last {patience} evaluations were" if patience > 1 else "the last evaluation was"
        self._record.event("early_stop", state.global_step, 0.0, evaluations=patience)
        self._say(
            f"Training stops after step {state.global_step} of {state.max_steps}: {count} no "
            f"better by {args.metric_for_best_model} than the best one."
        )
