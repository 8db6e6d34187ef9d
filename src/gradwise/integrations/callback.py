"""A layer policy as a callback of any Hugging Face Trainer: for trainers that cannot be subclassed.

    trainer = transformers.Trainer(..., callbacks=[LayerCallback(Grass(active=2))])

`gradwise.Trainer` does more: it plans the data, records the run and measures gradients before clipping. Here
scores are those of clipped gradients, which scales all layers of a step alike.
"""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradwise.atomic import write_bytes
from gradwise.errors import CheckpointError, RecipeError
from gradwise.methods.layer_policy import LayerPolicy
from gradwise.signals.model_state import unwrapped
from gradwise.training.layers import LayerSwitch

FILE = "gradwise_layers.json"
"""What a checkpoint keeps of the policy."""


class LayerCallback(TrainerCallback):
    """Freezes and thaws a model's layers as a policy says.

    Args:
        layers: the policy.
        seed: decides the draws.
    """

    def __init__(self, layers: LayerPolicy, *, seed: int = 0) -> None:
        self.layers, self.seed = layers, seed
        self.switch: LayerSwitch | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **parts: Any,
    ) -> None:
        """The optimizer exists and its state is loaded: put the switch around it."""
        if args.world_size > 1 or args.fp16:
            raise RecipeError(
                "LayerCallback runs on one device without loss scaling (fp16); use gradwise.Trainer instead."
            )
        optimizer = unwrapped(parts["optimizer"])
        self.switch = LayerSwitch(
            parts["model"], self.layers, optimizer, seed=self.seed, steps=state.max_steps
        )
        # The Trainer has loaded the optimizer by now, whose state the switch's own refers to.
        if state.global_step:
            self.switch.load_state_dict(_read(_checkpoint(args, state) / FILE))

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Draw layers before the first forward pass of a step, if it is time."""
        if self.switch is not None:
            self.switch.before_step()

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        """The step's gradient is complete."""
        if self.switch is not None:
            self.switch.after_backward()

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        """Keep what a resumed run needs in the checkpoint."""
        if self.switch is not None and state.is_world_process_zero:
            write_bytes(_checkpoint(args, state) / FILE, json.dumps(self.switch.state_dict()).encode())

    def on_train_end(self, *_: object, **__: object) -> None:
        """Make trainable again what was."""
        if self.switch is not None:
            self.switch.restore()
            self.switch = None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The layers' state {path} cannot be read ({error}); resume from a checkpoint of output_dir that "
            "was saved with LayerCallback."
        ) from None
