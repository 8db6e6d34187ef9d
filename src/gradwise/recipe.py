"""The recipe: everything that decides a run, in one YAML file or one frozen dataclass.

Unknown keys, wrong types, values out of range and impossible combinations are refused with the key, what was
found, and what is allowed. What `Recipe.save` writes is itself a runnable recipe.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from gradwise import recipe_tree as tree
from gradwise.data.settings import Data
from gradwise.errors import RecipeError
from gradwise.methods import Layers, OrderBy, Select
from gradwise.methods.baselines import AllLayers, FullData, Shuffle
from gradwise.settings import Settings


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
    """Attention implementation (`sdpa`, `eager`, `flash_attention_2`, ...); None lets transformers choose."""

    gguf_file: str | None = None
    """Name of a GGUF file in the folder to read the weights from."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@dataclass(frozen=True)
class Train(Settings):
    """How long and how to train. Any argument of `transformers.TrainingArguments` may stand beside these."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Passes over the selection; `max_steps` takes precedence where it is given."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples (or packed rows) per optimizer step, over all ranks and accumulation."""

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-5
    """Peak learning rate."""

    schedule: str = "linear"
    """Learning-rate schedule: `linear`, `cosine`, `constant`, `wsd` (warm-up, stable, decay), or any of
    transformers'."""

    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """With `schedule: wsd`, the share of the steps over which the learning rate decays; 0.2 unless given."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Further TrainingArguments. In YAML they stand directly under `train`."""

    def check(self) -> None:
        if self.decay is not None and self.schedule != "wsd":
            raise RecipeError(f"train.decay belongs to schedule: wsd; found schedule: {self.schedule}.")
        if self.schedule not in ("linear", "cosine", "constant", "wsd"):
            _check_schedule(self.schedule)
        if self.arguments:
            from gradwise.training.arguments import check_arguments

            check_arguments(self.arguments)


def _check_schedule(schedule: str) -> None:
    from transformers import SchedulerType

    known = ["wsd", *(kind.value for kind in SchedulerType)]
    if schedule not in known:
        raise RecipeError(f"train.schedule: unknown schedule {schedule!r}{tree.nearest(schedule, known)}")


@dataclass(frozen=True)
class Adapter(Settings):
    """A PEFT adapter in place of the model's own weights. Any key of the method's PEFT configuration may
    stand here."""

    method: str = "lora"
    """PEFT method: `lora`, `ia3`, `loha`, ..."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further keys of the method's PEFT configuration. In YAML they stand directly under `adapter`."""

    def check(self) -> None:
        from gradwise.training.adapter import check_adapter

        check_adapter(self.method, self.options)


@dataclass(frozen=True)
class SignalSettings(Settings):
    """How per-sample quantities are measured."""

    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Padded tokens in one batch of a measuring pass."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Everything that decides a run.

    >>> recipe = Recipe.from_dict({"layers": {"method": "grass", "active": 4}, "order": "given"})
    >>> recipe.layers.active, recipe.order.method, recipe.select.method
    (4, 'given', 'full')
    """

    model: Model | None = None
    """The model to train. With `gradwise.Trainer` it is passed to the trainer instead."""

    data: Data | None = None
    """What to train on. With `gradwise.Trainer` it is passed to the trainer instead."""

    train: Train = Train()
    """How long and how to train. With `gradwise.Trainer` its TrainingArguments say that instead."""

    adapter: Adapter | None = None
    """Train an adapter through PEFT instead of the weights themselves."""

    signals: SignalSettings = SignalSettings()
    """How per-sample quantities are measured."""

    select: Select = FullData()
    """Which samples to train on."""

    order: OrderBy = Shuffle()
    """In which order."""

    layers: Layers = AllLayers()
    """Which layers are updated."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Decides everything that is left to chance."""

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> "Recipe":
        """Read a YAML file; relative paths in it are taken from the file's own folder.

        Args:
            path: the file.
            overrides: settings of the form "select.fraction=0.2", values in YAML, that replace the file's;
                relative paths in them are taken from the working directory.

        Raises:
            RecipeError: with the key, what was found and what is allowed.
        """
        found = tree.read_yaml(Path(path))
        tree.anchor_paths(found, Path(path).resolve().parent)
        replaced: dict[str, Any] = {}
        for override in overrides or []:
            tree.override(replaced, override)
        tree.anchor_paths(replaced, Path.cwd())
        return cls.from_dict(tree.merged(found, replaced), source=str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "recipe") -> "Recipe":
        """A recipe from plain values, as YAML or JSON has them; raises RecipeError."""
        return tree.validate(_adapter(), tree.nested(values), source)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with every default written out; `from_dict` gives the same recipe back."""
        return tree.flattened(_adapter().dump_python(self, mode="json"))

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, atomically, with every default written out."""
        from gradwise.atomic import write_text

        write_text(Path(path), tree.to_yaml(self.to_dict()))

    def anchored(self) -> "Recipe":
        """The same recipe with its relative paths made absolute, from the working directory."""
        values = self.to_dict()
        tree.anchor_paths(values, Path.cwd())
        return self.from_dict(values)

    @staticmethod
    def schema() -> dict[str, Any]:
        """JSON schema of the YAML form, for editors."""
        return tree.flattened_schema(_adapter().json_schema())


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)
