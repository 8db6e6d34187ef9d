"""The Trainer's events, forwarded to the session and to what measures its memory."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradwise.errors import RecipeError
from gradwise.session import Session
from gradwise.training.sharding import by_accelerate


class SessionCallback(TrainerCallback):
    """Forwards the Trainer's events to the session.

    Comes after the Trainer's own flow callback, which decides when to save; keeps no state of its own, since
    the session's is in the checkpoint.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._save_at_epoch_end = False
        self._all_done = False

    def on_train_begin(
        self, *_: object, model: nn.Module, optimizer: torch.optim.Optimizer, **__: object
    ) -> None:
        self.session.begin(model, optimizer)
        trainer = self.session.trainer
        trainer.step_memory.begin(
            self.session.record,
            trainer.model,
            optimizer,
            switch=self.session.switch,
            steps=trainer.state.max_steps,
            followed=self.session.follows_memory
            and not (trainer.args.torch_compile or trainer.is_deepspeed_enabled)
            and (not trainer.is_fsdp_enabled or by_accelerate(trainer)),
        )

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.session.before_step()

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        self.session.before_update()
        self.session.trainer.step_memory.before_update(self.session.step)

    def on_epoch_begin(self, _: object, state: TrainerState, control: TrainerControl, **__: object) -> None:
        # The Trainer would make one more step when resumed from the last step of a run that ends within an
        # epoch.
        self._all_done = state.global_step >= state.max_steps or control.should_training_stop
        control.should_training_stop = self._all_done

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.session.after_step(state.epoch, self.session.trainer.last_grad_norm)
        self.session.trainer.step_memory.after_update(state.global_step)
        if state.global_step < state.max_steps and self.session.should_stop():
            self.session.stopped = control.should_training_stop = True
            # A stopped run resumes from its last weights; the best ones belong to its end.
            args.load_best_model_at_end = False
        if control.should_save and (self.session.ends_epoch() or self.session.stopped):
            # The evaluation due at the epoch's end comes after this; a run killed between the two would
            # resume behind it and never make it. So the checkpoint waits for the epoch's end.
            control.should_save, self._save_at_epoch_end = False, True

    def on_epoch_end(self, _: object, __: object, control: TrainerControl, **___: object) -> None:
        if control.should_epoch_stop and not control.should_training_stop:
            # The Trainer would count the next epoch from here, and the plan has steps left in this one.
            raise RecipeError(
                "A callback set control.should_epoch_stop, and a plan is followed to the end of every epoch; "
                "let the callback set should_training_stop, or leave it out."
            )
        if self._all_done or (self.session.stopped and not self.session.ends_epoch()):
            # Not the end of an epoch, whatever the Trainer says: what is due there comes after resuming.
            control.should_evaluate = control.should_log = control.should_save = False
        if self._save_at_epoch_end:
            control.should_save, self._save_at_epoch_end = True, False

    def on_evaluate(self, *_: object, metrics: dict[str, Any] | None = None, **__: object) -> None:
        self.session.after_evaluation(metrics or {})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        best, saved = state.best_global_step, Path(state.best_model_checkpoint or "").name
        if args.load_best_model_at_end and best and saved != f"checkpoint-{best}":
            self.session.say(
                f"Warning: the evaluation after step {best} was the best, and no checkpoint was saved then. "
                f"The model is that of {saved or 'the last step'}; save at every evaluation to get the best."
            )
