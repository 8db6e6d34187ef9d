"""The folder of a comparison: what was asked for, what was found out once and is fixed, and who writes there.

comparison.yaml      the recipe, the arms' changes of it, seeds, budget, steps, calibrated speeds
runs/<arm>/seed-<s>/ a run directory each, its output in log.txt, failure.txt where it failed
calibration/<arm>/   the runs that a speed was measured with
signals/             per-sample signals that runs share
results, runs        .csv and .parquet; table.txt; loss_by_*.png
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradwise.atomic import write_text
from gradwise.comparison.arms import Arm
from gradwise.comparison.budget import MARGIN, Budget
from gradwise.comparison.pairs import Pairs, check_pairs, pairs_of
from gradwise.errors import GradwiseError, RecipeError
from gradwise.folders import claimed
from gradwise.plain import differences
from gradwise.recipe import Recipe
from gradwise.recipe.yaml_text import read_yaml, to_yaml
from gradwise.report.reading import check_comparison
from gradwise.run.environment import versions

Tree = dict[str, Any]

FILES = (
    "comparison.yaml", "runs", "calibration", "signals", "results.csv", "results.parquet", "runs.csv",
    "runs.parquet", "table.txt", "loss_by_*.png",
)  # fmt: skip


class ComparisonFolder:
    """A comparison's folder, and what its `comparison.yaml` says.

    Args:
        path: created when a comparison starts in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.file = self.path / "comparison.yaml"
        self.signals = self.path / "signals"
        self.contents: Tree = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Claim the folder while the context lasts, and read what is there.

        Raises:
            RecipeError: it cannot be written, holds something else, is damaged, or is in use.
        """
        with claimed(self.path, "comparison", FILES):
            if self.file.exists():
                self.contents = read_yaml(self.file)
                check_comparison(self.contents, self.file)
            yield

    def recipe(self) -> Recipe | None:
        """The recipe of a comparison that is there; None where there is none that can be read."""
        try:
            return Recipe.from_dict(read_yaml(self.file)["recipe"])
        except (GradwiseError, OSError, KeyError, TypeError, AttributeError):
            return None  # `opened` says what is wrong with it

    def run(self, arm: str, seed: int) -> Path:
        """The run directory of an arm and a seed."""
        return self.path / "runs" / arm / f"seed-{seed}"

    def calibration(self, arm: str, copy: int = 0) -> Path:
        """Where an arm's speed is measured; several copies at once under --jobs."""
        return self.path / "calibration" / (arm if not copy else f"{arm}.{copy}")

    # ---- what was requested ------------------------------------------------------------------------------

    def extend(
        self,
        recipe: Recipe,
        arms: list[Arm],
        seeds: list[int],
        reference: str,
        budget: Budget,
        pairs: Pairs = (),
    ) -> None:
        """Add arms, seeds and pairs of arms to what is there; what was asked before must still hold.

        Raises:
            RecipeError: naming the difference, when the recipe, an arm or the budget is another; or a pair
                that names no arm.
        """
        base = recipe.to_dict()
        new = {arm.name: {"spec": arm.spec, "changes": _changes(base, arm)} for arm in arms}
        if self.contents and not self._check_same(base, new, budget):
            # An earlier attempt that failed before its first run must not hold a mended recipe up.
            self.contents = {}
        self.contents.setdefault("versions", versions())
        self.contents.setdefault("recipe", base)
        self.contents.setdefault("budget", {"kind": budget.kind, "amount": budget.amount, "margin": MARGIN})
        self.contents["arms"] = {**self.contents.get("arms", {}), **new}
        self.contents["seeds"] = sorted({*self.contents.get("seeds", []), *seeds})
        # That of an attempt that has just been dropped may be none of the arms.
        arms_there = self.contents["arms"]
        self.contents["reference"] = reference if reference in arms_there else next(iter(arms_there))
        self._extend_pairs(pairs)
        for part in ("steps", "calibration", "failed", "data"):
            self.contents.setdefault(part, {})

    def _extend_pairs(self, pairs: Pairs) -> None:
        base, arms = self.contents["recipe"], self.contents["arms"]
        check_pairs(pairs, arms)
        requested = [tuple(pair) for pair in self.contents.get("requested_pairs", [])]
        requested = list(dict.fromkeys([*requested, *pairs]))
        recipes = {name: Recipe.from_dict(base | arm["changes"]) for name, arm in arms.items()}
        self.contents["requested_pairs"] = [list(pair) for pair in requested]
        self.contents["pairs"] = pairs_of(recipes, self.contents["reference"], requested)

    def save(self) -> None:
        """Write `comparison.yaml`, atomically."""
        write_text(self.file, to_yaml(self.contents))

    @property
    def started(self) -> bool:
        """Whether any run has come to its first step."""
        return any(path.stat().st_size for path in self.path.glob("runs/*/*/metrics.jsonl"))

    def _check_same(self, base: Tree, arms: Tree, budget: Budget) -> bool:
        """Whether this is the comparison that is there; raises RecipeError when that one has runs to lose."""
        there = self.contents["recipe"]
        different = list(differences(there, base))
        for name in arms.keys() & self.contents["arms"].keys():
            before, now = self.contents["arms"][name]["changes"], arms[name]["changes"]
            different += [f"in the arm {name}, {each}" for each in differences(there | before, there | now)]
        kind, amount = self.contents["budget"]["kind"], self.contents["budget"]["amount"]
        before = Budget(kind, amount)
        if kind != budget.kind or budget.amount not in (None, amount):
            different.append(f"the budget was {before}, now {budget}")
        if different and self.started:
            listed = "; ".join(different[:4]) + ("; ..." if len(different) > 4 else "")
            raise RecipeError(
                f"{self.path} holds another comparison; different: {listed}. Give --out a new folder, or a "
                "changed arm another name."
            )
        return not different

    # ---- what was found out ------------------------------------------------------------------------------

    def steps(self, arm: str, seed: int) -> int | None:
        """Optimizer steps of a run, once they are known."""
        steps_of_arm = self.contents["steps"].get(arm)
        return steps_of_arm.get(seed) if isinstance(steps_of_arm, dict) else steps_of_arm

    @property
    def budget(self) -> Budget:
        """With its amount, once that is known."""
        return Budget(self.contents["budget"]["kind"], self.contents["budget"]["amount"])


def _changes(base: Tree, arm: Arm) -> Tree:
    """The sections of an arm's recipe that differ from the base's, each as a whole."""
    sections = arm.recipe.to_dict()
    return {section: sections[section] for section in sections if sections[section] != base[section]}
