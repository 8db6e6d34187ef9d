"""The recipe: everything that decides a run, in one YAML file or one frozen dataclass.

Unknown keys, wrong types, values out of range and impossible combinations are refused with the key, what was
found, and what is allowed. What `Recipe.save` writes is itself a runnable recipe.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from gradwise.atomic import write_text
from gradwise.data.settings import Data, Goal, Sources
from gradwise.errors import RecipeError
from gradwise.evaluation.settings import Metrics
from gradwise.folders import FORMAT, check_format
from gradwise.methods import Anneal, Layers, OrderBy, Select
from gradwise.methods.baselines import AllLayers, FullData, Shuffle
from gradwise.plain import plain
from gradwise.recipe import tree
from gradwise.recipe.mistakes import naming, validate
from gradwise.recipe.sections import Adapter, Model, SignalSettings, Train
from gradwise.recipe.yaml_text import read_yaml, to_yaml
from gradwise.settings import Settings
from gradwise.signals.request import QUANTITIES
from gradwise.text import shown


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
    """Length and settings of the training. With `gradwise.Trainer`, TrainingArguments take its place."""

    adapter: Adapter | None = None
    """Train an adapter through PEFT instead of the weights themselves."""

    signals: SignalSettings = SignalSettings()
    """How per-sample signals are computed."""

    select: Select = FullData()
    """Which samples to train on."""

    order: OrderBy = Shuffle()
    """In which order."""

    layers: Layers = AllLayers()
    """Which layers are updated."""

    weights: Literal["repeat", "loss"] = "repeat"
    """What the weights of samples do, those of the data or of `select` and `anneal`: `repeat` trains on a
    sample as often as its weight says; `loss` trains on it once and multiplies its loss by its weight over
    the mean weight of the selection."""

    anneal: Anneal | None = None
    """Which samples the annealing phase trains on, while the learning rate decays. Needs `train.schedule:
    wsd`."""

    metrics: Metrics = field(default_factory=Metrics)
    """What the final model is measured by. With `gradwise.Trainer` call `gradwise.evaluation.score`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed of the run."""

    def __post_init__(self) -> None:
        # As in YAML: `select="random"`, `train={"epochs": 2, "bf16": True}`.
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        plainly = {name: value for name, value in values.items() if isinstance(value, str | dict)}
        for name, value in tree.nested(plainly).items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def check(self) -> None:
        loss_arguments = ("label_smoothing_factor", "use_liger_kernel")
        if self.weights == "loss" and (
            conflicting := [key for key in loss_arguments if self.train.arguments.get(key)]
        ):
            raise RecipeError(
                f"weights: loss weighs the model's own loss, and train.{conflicting[0]} replaces it; leave "
                "one of them out."
            )
        if self.anneal is None:
            return
        if self.data is not None or self.anneal.data is not None:
            self.check_annealing_data(self.anneal.data is not None, proxied=self.signals.model is not None)
        # A default `train` may be that of a recipe for a Trainer, whose own arguments decide then;
        # `check_phase` examines those.
        if self.train == Train():
            return
        if self.train.early_stopping_patience is not None:
            raise RecipeError(
                "train.early_stopping_patience could end the run before its annealing phase; leave one of "
                "them out."
            )
        if self.train.schedule != "wsd":
            raise RecipeError(
                "anneal chooses what is trained on while the learning rate decays, and needs train.schedule: "
                f"wsd; found {self.train.schedule}."
            )
        if self.train.decay not in (None, self.anneal.last):
            raise RecipeError(
                f"anneal.last is {self.anneal.last:g} and train.decay {self.train.decay:g}; the annealing "
                "phase is the decay, so give one of them."
            )

    def check_annealing_data(self, has_data: bool, *, proxied: bool) -> None:
        """Raise RecipeError for what cannot go with data for the annealing phase only, or without.

        Args:
            has_data: whether there are such data.
            proxied: whether another model than the one that trains computes the signals.
        """
        assert self.anneal is not None
        self.anneal.check_data(has_data)
        if not has_data or not self.order.needs & set(QUANTITIES):
            return
        name = self.order.method
        if proxied:
            raise RecipeError(
                f"order: {name} uses what signals.model measures, which are the training data and not "
                "anneal.data; leave one of them out."
            )
        if self.order.influence is not None:
            raise RecipeError(
                f"order: {name} makes clusters of the training data before the first step, and anneal.data "
                "have no place in them; give order.units: domains, batches or samples."
            )

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
        read = read_yaml(Path(path))
        with naming(str(path)):
            plain_values = plain(read)
            # The folder of the file itself, also where that is a link to a recipe elsewhere.
            tree.anchor_paths(plain_values, Path(path).parent.resolve())
        replaced: dict[str, Any] = {}
        for override in overrides or []:
            tree.override(replaced, override)
        # Before they are merged, while it is known which paths are from the file and which from the command
        # line.
        tree.anchor_paths(replaced, Path.cwd())
        return cls.from_dict(tree.merged(plain_values, replaced), source=str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "recipe") -> "Recipe":
        """A recipe from plain values, as YAML or JSON has them; raises RecipeError."""
        with naming(source):
            if not isinstance(values, dict):
                raise RecipeError(f"a recipe is a mapping of sections; found {shown(values)}.")
            plain_values = plain(values)
            check_format(plain_values.pop("format", FORMAT), "the recipe", RecipeError)
            return validate(_adapter(), tree.nested(plain_values), cls)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with every default written out; `from_dict` gives the same recipe back."""
        return tree.flattened(_adapter().dump_python(self, mode="json"))

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, atomically, with every default and the format's number written out."""
        write_text(Path(path), to_yaml({"format": FORMAT} | self.to_dict()))

    def anchored(self) -> "Recipe":
        """The same recipe with its relative paths made absolute, from the working directory."""
        values = self.to_dict()
        tree.anchor_paths(values, Path.cwd())
        return self.from_dict(values)

    @property
    def needs(self) -> frozenset[str]:
        """Signals that its methods use."""
        parts = [part for part in (self.select, self.order, self.anneal) if part is not None]
        return frozenset().union(*(part.needs for part in parts))

    @property
    def goal(self) -> Goal | None:
        """The set that `select` aims at; raises RecipeError where it is not given."""
        data = self.data or Data()
        return self.select.resolve_target(
            target=data.target is not None, validation=data.validation is not None
        )

    @property
    def uses_target(self) -> bool:
        """Whether `select` or `anneal` chooses by samples that `data` keeps apart for that."""
        return self.goal is not None or (self.anneal is not None and self.anneal.uses_validation)

    @property
    def annealing_data(self) -> Sources:
        """Sources of what only the annealing phase trains on."""
        return None if self.anneal is None else self.anneal.data

    def filled_from(self, earlier: "Recipe") -> "Recipe":
        """This recipe with what an earlier run of the same methods measured, where it leaves that open."""
        sections = {name: getattr(self, name) for name in tree.METHOD_SECTIONS}
        changes = {
            name: section.filled_from(getattr(earlier, name))
            for name, section in sections.items()
            if section is not None
        }
        return replace(self, **changes)

    def for_trainer(self) -> "Recipe":
        """What of it goes to a `gradwise.Trainer`; the rest is that trainer's own arguments."""
        return replace(
            self,
            model=None,
            data=None,
            train=Train(),
            adapter=None,
            metrics=Metrics(),
            signals=replace(self.signals, model=None),
        )

    @staticmethod
    def schema() -> dict[str, Any]:
        """JSON schema of the YAML form, for editors."""
        schema = tree.flattened_schema(_adapter().json_schema())
        schema["properties"]["format"] = {
            "type": "integer",
            "minimum": FORMAT,
            "maximum": FORMAT,
            "description": "Written by gradwise into recipes that it saves; to be left out in others.",
        }
        return schema


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe)
