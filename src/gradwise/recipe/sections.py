"""The sections of a recipe that are not decisions: the model, the training, the adapter, the measuring."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gradwise.errors import RecipeError
from gradwise.recipe.argument_rules import check_schedule, check_together
from gradwise.settings import Settings, from_text, nearest
from gradwise.text import shown


@dataclass(frozen=True)
class Model(Settings):
    """The model to train."""

    name: str
    """A Hugging Face hub name, or a local folder."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory; `auto` takes the checkpoint's own."""

    attention: str | None = None
    """Attention implementation: `sdpa`, `eager`, `flash_attention_2`, ...; if unset, transformers chooses."""

    gguf_file: str | None = None
    """Name of a GGUF file in the folder to read the weights from."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    def check(self) -> None:
        # A kernel on the hub has a slash in its name; what it is shows when it is fetched.
        if self.attention not in (None, "eager", "sdpa") and "/" not in self.attention:
            _check_attention(self.attention)


@dataclass(frozen=True)
class Train(Settings):
    """The training of a run. Any argument of `transformers.TrainingArguments` may stand beside these."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Number of epochs over the selection. `max_steps` takes precedence if it is set."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples (or packed rows) per optimizer step, over all ranks and accumulation."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-5
    """Peak learning rate."""

    schedule: str = "linear"
    """Learning-rate schedule: `linear`, `cosine`, `constant`, `wsd` (warm-up, stable, decay), or any of
    transformers'."""

    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """With `schedule: wsd`, the fraction of the steps over which the learning rate decays. If unset, 0.2, or
    `anneal.last`."""

    decay_shape: Literal["linear", "cosine", "1-sqrt"] | None = None
    """With `schedule: wsd`, how the learning rate decays. If unset, half a cosine."""

    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Number of evaluations in a row without a better one after which training stops with the best
    checkpoint's weights; if unset, training runs to its end. The held-out loss decides, or
    `metric_for_best_model`."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Further TrainingArguments. In YAML they stand directly under `train`."""

    def check(self) -> None:
        if self.decay is not None and self.schedule != "wsd":
            raise RecipeError(f"train.decay belongs to schedule: wsd; found schedule: {self.schedule}.")
        if self.decay_shape is not None and self.schedule != "wsd":
            raise RecipeError(f"train.decay_shape belongs to schedule: wsd; found schedule: {self.schedule}.")
        if self.early_stopping_patience is not None:
            for key in ("eval_strategy", "save_strategy", "load_best_model_at_end"):
                if self.arguments.get(key) in ("no", False):
                    raise RecipeError(
                        f"train.early_stopping_patience needs evaluations and checkpoints; leave {key} out."
                    )
        scheduler_kwargs = self.arguments.get("lr_scheduler_kwargs")
        # Of a value of another type only `check_arguments` below complains, in its own sentence.
        scheduler_kwargs = scheduler_kwargs if isinstance(scheduler_kwargs, dict) else {}
        if self.decay is not None and "num_decay_steps" in scheduler_kwargs:
            raise RecipeError("train.decay and lr_scheduler_kwargs.num_decay_steps say the same; give one.")
        if self.decay_shape is not None and "decay_type" in scheduler_kwargs:
            raise RecipeError("train.decay_shape and lr_scheduler_kwargs.decay_type say the same; give one.")
        if self.schedule not in _SIMPLE:
            _check_schedule(self.schedule)
        if self.arguments:
            from gradwise.recipe.foreign_keys import check_arguments

            check_arguments(self.arguments)
            # Early stopping has a metric by default, on which other arguments depend.
            stopping = (
                {} if self.early_stopping_patience is None else {"metric_for_best_model": "held_out_loss"}
            )
            check_together(self.schedule, stopping | self.arguments)
        if scheduler_kwargs or self.schedule not in _SIMPLE:
            check_schedule(self.schedule, self.learning_rate, scheduler_kwargs)


_SIMPLE = ("linear", "cosine", "constant", "wsd")
"""Schedules that need no check of their own."""


def _check_attention(name: str) -> None:
    from transformers import AttentionInterface

    # Paged attention is for generation only.
    implementations = [
        "eager",
        *(key for key in AttentionInterface().valid_keys() if not key.startswith("paged")),
    ]
    if name not in implementations:
        raise RecipeError(
            f"model.attention: unknown implementation {shown(name)}{nearest(name, implementations)}"
        )


def _check_schedule(schedule: str) -> None:
    from transformers import SchedulerType

    schedules = ["wsd", *(kind.value for kind in SchedulerType)]
    if schedule not in schedules:
        raise RecipeError(f"train.schedule: unknown schedule {shown(schedule)}{nearest(schedule, schedules)}")


@dataclass(frozen=True)
class Adapter(Settings):
    """A PEFT adapter in place of the model's own weights. Any key of the method's PEFT configuration may
    stand here."""

    method: str = "lora"
    """PEFT method: `lora`, `ia3`, `loha`, ..."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further keys of the method's PEFT configuration. In YAML they stand directly under `adapter`."""

    def check(self) -> None:
        from gradwise.recipe.foreign_keys import check_adapter

        check_adapter(self.method, self.options)


@dataclass(frozen=True)
class SignalSettings(Settings):
    """How per-sample signals are computed."""

    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Largest number of padded tokens in one batch of a scoring run."""

    grad_dim: Annotated[int, Field(ge=1)] | None = 1024
    """Length of a projected gradient; null for whole gradients, which only tiny models can afford."""

    parameters: str | list[str] = "blocks"
    """What gradients are taken over: `blocks` (linear weights of the transformer blocks, or the adapters in
    them), `all`, or patterns that names of parameters match."""

    grad_dtype: Literal["float32", "float16"] = "float32"
    """Type that gradients are stored in; `float16` halves memory and disk space."""

    model: Annotated[
        Model | None,
        BeforeValidator(from_text("name"), json_schema_input_type=str | Model | None),
    ] = None
    """A smaller model that computes signals in place of the one that is trained: a name, or a section like
    `model`. It reads the same data with its own tokenizer."""
