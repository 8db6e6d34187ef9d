"""Whether a recipe fits a device: its peak by part, its time by part, and what to change."""

from dataclasses import dataclass, replace
from typing import Any

from gradwise.errors import RecipeError
from gradwise.estimating.trace import Trace, trace
from gradwise.methods import Grass
from gradwise.planning.shares import cost_per_sample, shares
from gradwise.ranks import world_size
from gradwise.recipe import Adapter, Recipe
from gradwise.training.record_names import PARTS

GIBI = 2**30


@dataclass(frozen=True)
class Change:
    """A recipe with one thing changed."""

    setting: str
    peak: int


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a recipe."""

    traced: Trace
    memory: int | None
    """Bytes of the device, if given."""
    training: float
    """Forward passes that training on one sample is worth."""
    shares: dict[str, dict[str, Any]]
    changes: tuple[Change, ...]
    """What would need less, where the recipe does not fit."""

    @property
    def peak(self) -> int:
        """Bytes of tensors at the peak."""
        return self.traced.peak.total

    @property
    def fits(self) -> bool | None:
        """Whether the peak is at most the device's memory; None where that is not given."""
        return None if self.memory is None else self.peak <= self.memory

    def as_dict(self) -> dict[str, Any]:
        """Plain values, sizes in bytes."""
        phases = {phase.name: {**phase.parts, "total": phase.total} for phase in self.traced.phases}
        return {
            "peak": self.peak,
            "peak_in": self.traced.peak.name,
            "memory": self.memory,
            "fits": self.fits,
            "phases": phases,
            "host": self.traced.host,
            "ranks": self.traced.ranks,
            "parameters": self.traced.parameters,
            "trainable": self.traced.trainable,
            "micro_batch": self.traced.micro_batch,
            "micro_batches_per_step": self.traced.passes,
            "forward_passes_per_sample": self.training,
            "time": self.shares,
            "changes": [{"setting": change.setting, "peak": change.peak} for change in self.changes],
        }

    def __str__(self) -> str:
        return "\n".join([*self._memory(), "", *self._time(), *self._changes()])

    def _memory(self) -> list[str]:
        traced, peak = self.traced, self.traced.peak
        rows = [f"  {part:<20}{_gib(peak.parts.get(part, 0)):>10}" for part in PARTS]
        phases = ", ".join(f"{phase.name} {_gib(phase.total)}" for phase in traced.phases)
        head = (
            f"{traced.parameters:,} parameters, {traced.trainable:,} updated at a time; micro-batch of "
            f"{traced.micro_batch}, {traced.passes} per step"
        )
        if traced.ranks > 1:
            head += f"; the first of {traced.ranks} ranks, which share the model by FSDP2"
        verdict = ""
        if self.memory is not None:
            verdict = f"; {'fits' if self.fits else 'does not fit'} in {_gib(self.memory)} GiB"
        lines = [head, "", f"Peak of tensors, GiB (in the {peak.name} phase{verdict}):", *rows]
        lines += [f"  {'peak':<20}{_gib(peak.total):>10}", f"Phases: {phases}."]
        if traced.host:
            lines.append(f"Host memory for optimizer state: {_gib(traced.host)} GiB.")
        return [*lines, "What CUDA itself takes, and holes in the allocator's memory, come on top."]

    def _time(self) -> list[str]:
        lines = [f"Time: training on a sample, update included, is worth {self.training:.2f} forward passes."]
        for name, part in self.shares.items():
            share = "?" if part["share"] is None else f"{part['share']:.0%}"
            lines.append(f"  {name:<8}{share:>6} of the training time  ({part['why']})")
        return lines

    def _changes(self) -> list[str]:
        rows = [f"  {_gib(change.peak):>8} GiB  {change.setting}" for change in self.changes]
        return (
            ["", "To fit, change one or more of these; peaks with this change alone:", *rows] if rows else []
        )


def estimate(
    recipe: Recipe,
    memory: int | None = None,
    *,
    ranks: int | None = None,
    sharded_as_loaded: bool = False,
) -> Estimate:
    """Predict memory and time of a recipe; no weights and no data are read.

    Args:
        recipe: with `model` and `data.max_length`.
        memory: bytes of the device.
        ranks: processes that share a model sharded by FSDP2; if unset, as many as were started together. The
            memory is that of the first one.
        sharded_as_loaded: whether transformers shards the model in loading it (`DistributedConfig`), and not
            accelerate (`train.fsdp`).

    Raises:
        RecipeError: no model is named, or the memory of a setting is not known.
    """
    if recipe.model is None or recipe.data is None:
        raise RecipeError("gradwise estimate needs model.name, and data with its max_length.")
    traced = trace(recipe, ranks, sharded_as_loaded=sharded_as_loaded)
    changes: list[Change] = []
    if memory is not None and traced.peak.total > memory:
        for setting, changed in _alternatives(recipe, traced).items():
            needed = trace(changed, ranks, sharded_as_loaded=sharded_as_loaded).peak.total
            if needed < traced.peak.total:
                changes.append(Change(setting, needed))
    # The change that saves most comes first.
    changes.sort(key=lambda change: change.peak)
    training = cost_per_sample(recipe, traced.layers, traced.shape)
    time_shares = shares(recipe, traced.layers, shape=traced.shape)
    return Estimate(traced, memory, training, time_shares, tuple(changes))


def expected_memory(recipe: Recipe) -> dict[str, dict[str, int]] | None:
    """Bytes of each part at the peak of each phase of a run; None where they cannot be predicted, since a run
    does not depend on it."""
    if world_size() > 1:
        return None
    try:
        phases = trace(recipe).phases
    except Exception:  # a model may do what cannot be done without storage
        return None
    return {phase.name: {part: phase.parts.get(part, 0) for part in PARTS} for phase in phases}


def _alternatives(recipe: Recipe, traced: Trace) -> dict[str, Recipe]:
    """Recipes that may need less, by what is changed."""
    alternatives: dict[str, Recipe] = {}
    arguments, model, data = recipe.train.arguments, recipe.model, recipe.data
    assert model is not None and data is not None
    if not arguments.get("gradient_checkpointing") and not arguments.get("activation_checkpointing"):
        alternatives["train.gradient_checkpointing: true"] = _with_arguments(
            recipe, gradient_checkpointing=True
        )
    if traced.micro_batch > 1:
        alternatives["train.per_device_train_batch_size: 1"] = _with_arguments(
            recipe, per_device_train_batch_size=1
        )
    if model.dtype == "float32":
        alternatives["model.dtype: bfloat16"] = replace(recipe, model=replace(model, dtype="bfloat16"))
    half = data.max_length // 2
    if half > 1:
        alternatives[f"data.max_length: {half}"] = replace(recipe, data=replace(data, max_length=half))
    policy = recipe.layers.policy
    if policy is not None and policy.state == "keep":
        alternatives["layers.state: offload"] = replace(recipe, layers=replace(policy, state="offload"))
    elif policy is None and recipe.adapter is None:
        grass: Any = Grass(state="offload")
        alternatives["layers: {method: grass, state: offload}"] = replace(recipe, layers=grass)
        if traced.ranks == 1:
            alternatives["adapter: {method: lora}"] = replace(recipe, adapter=Adapter())
    return alternatives


def _with_arguments(recipe: Recipe, **arguments: object) -> Recipe:
    return replace(recipe, train=replace(recipe.train, arguments={**recipe.train.arguments, **arguments}))


def _gib(size: int) -> str:
    return f"{size / GIBI:.2f}" if size >= GIBI / 100 else f"{size / GIBI:.5f}"


def bytes_of(text: str) -> int:
    """A size such as 24GiB, 80GB or 512MiB in bytes.

    >>> bytes_of("24GiB"), bytes_of("80 GB")
    (25769803776, 80000000000)
    """
    units = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    compact = text.strip().upper()
    for unit, factor in units.items():
        number = compact.removesuffix(unit).strip()
        if number != compact:
            try:
                size = float(number) * factor
            except ValueError:
                break
            if 0 < size < 2**60:
                return int(size)
    raise RecipeError(f"--memory must be a size such as 24GiB or 80GB; found {text}.")
