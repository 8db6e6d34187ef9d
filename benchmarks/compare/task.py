"""A task of the comparison: a model, its data, arms, and budgets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.folders import ROOT
from gradwise.comparison.arms import parse_arms
from gradwise.recipe import Recipe
from gradwise.recipe.tree import anchor_paths, merged
from gradwise.recipe.yaml_text import read_yaml

HERE = Path("benchmarks") / "compare"
"""Relative to the root of the repository, where `gradwise compare` runs."""


Claims = tuple[tuple[str, str, str, str], ...]
"""Rows of the index: budget, text, arm, reference."""


def arm(name: str, method: str, overrides: str) -> str:
    """An arm for `gradwise compare`: a method with a file of settings."""
    return f"{name}={method}+{HERE}/arms/{overrides}.yaml"


@dataclass(frozen=True)
class Comparison:
    """One table: a folder of `gradwise compare`."""

    budget: str
    rounds: tuple[tuple[str, ...], ...]
    """Arms that run together, one call after the other in the same folder; a call keeps the earlier arms."""
    references: tuple[str, ...]
    """Arms that the others are compared with; `gradwise compare` gets the first."""
    amount: str = ""
    """The budget's amount, such as `60` for a minute; if empty, what the first reference spends."""

    @property
    def spent(self) -> str:
        """The budget as `gradwise compare` takes it."""
        return f"{self.budget}={self.amount}" if self.amount else self.budget

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms of all rounds."""
        return tuple(arm for together in self.rounds for arm in together)


def both_budgets(*rounds: tuple[str, ...]) -> tuple[Comparison, ...]:
    """At equal steps and at equal time, against `random` and `full`."""
    return tuple(Comparison(budget, rounds, ("random", "full")) for budget in ("steps", "time"))


@dataclass(frozen=True)
class Task:
    """A model with its data, and what is compared on them."""

    name: str
    title: str
    """Title of the page."""
    text: str
    """Model, data and arms in some sentences, for the page."""
    prepare: Callable[[], Any]
    """Makes what the recipe names."""
    arms: dict[str, str]
    """By name, as `gradwise compare` takes them."""
    comparisons: tuple[Comparison, ...]
    claims: Claims = ()
    seeds: int = 5
    recipe_name: str = ""
    """Name of the file in `recipes`; if empty, the task's name."""
    fraction: float | None = None
    """Share of the pool that selections keep, where the arms' files do not say."""
    own_rates: bool = False
    """Every arm has its own learning rate, in its file; otherwise all have the recipe's."""
    first_rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Learning rates that an arm tries first, neighbours in `rates.RATES`; arms without an entry are not
    tuned."""
    check_rates: dict[str, str] = field(default_factory=dict)
    """Files that learning rates are judged by, by domain."""

    @property
    def recipe_path(self) -> Path:
        return ROOT / HERE / "recipes" / f"{self.recipe_name or self.name}.yaml"

    @property
    def tuning_steps(self) -> int:
        """Half the steps of the tables. All of them for small selections: over half the steps, which repeat
        the selection half as often, twice the rate is best."""
        steps = read_yaml(self.recipe_path)["train"]["max_steps"]
        return steps // 2 if self.own_rates else steps

    def rate_path(self, arm: str) -> Path:
        """The file that has the learning rate of an arm."""
        return ROOT / self.arms[arm] if self.own_rates else self.recipe_path

    def recipe(self, arm: str, changes: dict[str, Any] | None = None) -> Recipe:
        """The recipe of one run: the task's, an arm's, and further changes."""
        values, source = read_yaml(self.recipe_path), str(self.recipe_path)
        anchor_paths(values, self.recipe_path.parent)
        spec = self.arms[arm].replace(str(HERE), str(ROOT / HERE))
        recipe = parse_arms([spec], Recipe.from_dict(values, source=source), fraction=self.fraction)[0].recipe
        return Recipe.from_dict(merged(recipe.to_dict(), changes or {}), source=source)

    def command(
        self, comparison: Comparison, seeds: int | list[int], arms: Iterable[str] | None = None
    ) -> list[str]:
        """`gradwise compare` for some arms, by default all, with the first seeds or with a list of them."""
        names = list(comparison.arms if arms is None else arms)
        sized = self.fraction is not None and any(self._takes_size(name) for name in names)
        size = ["--fraction", str(self.fraction)] if sized else []
        # A trailing comma makes a list of a single seed, which alone would be a number of seeds.
        listed = str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds)
        first = comparison.references[0]
        return [
            "gradwise", "compare", str(self.recipe_path.relative_to(ROOT)), "--arms",
            ",".join(self.arms[name] for name in names), "--seeds", listed, "--budget", comparison.spent,
            "--reference", first if first in names else names[0],
            "--discard-models", *size, "--out", f"build/compare/{self.name}-{comparison.budget}",
        ]  # fmt: skip

    def _takes_size(self, arm: str) -> bool:
        return getattr(self.recipe(arm).select, "fraction", None) == self.fraction

    def settings(self, tuning_seed: int) -> dict[str, Any]:
        """What all entries of a result file share, in plain values."""
        recipe = read_yaml(self.recipe_path)
        if not self.own_rates:
            # Tuning may change it; every run records the rate it had.
            del recipe["train"]["learning_rate"]
        tuning = {"tuning_steps": self.tuning_steps, "tuning_seed": tuning_seed} if self.first_rates else {}
        return {
            "name": self.name,
            "recipe": recipe,
            "fraction": self.fraction,
            **tuning,
            "comparisons": [
                {"budget": one.spent, "references": list(one.references)} for one in self.comparisons
            ],
        }
