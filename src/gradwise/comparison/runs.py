"""The runs of a comparison: an arm, a seed, and the number of steps that the budget allows it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradwise.atomic import writing
from gradwise.comparison.workers import StoppedError
from gradwise.folders import claimed
from gradwise.recipe import Recipe
from gradwise.run import train
from gradwise.run.directory import FILES

EVALUATIONS = 10
"""Evaluations over a run, besides the one at its start, if the recipe does not set them."""

CHECKPOINTS = 4
"""Checkpoints over a run, if the recipe does not set them; at most every `FEWEST_BETWEEN` steps."""

FEWEST_BETWEEN = 10

LOG, FAILURE = "log.txt", "failure.txt"
"""Files in a run directory: the output of the run, and the reason of its last failure."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def run_recipe(recipe: Recipe, seed: int, steps: int) -> Recipe:
    """An arm's recipe as one of its runs has it: seed, length, and evaluations on the way for the curves.

    >>> run_recipe(Recipe(), seed=3, steps=200).train.arguments
    {'save_strategy': 'steps', 'save_steps': 50, 'save_total_limit': 1, 'max_steps': 200}
    """
    recipe_arguments = recipe.train.arguments
    # Of a target that is given alone, a part measures.
    validated = recipe.data is not None and (recipe.data.validation or recipe.data.target) is not None
    arguments = {
        **_looks(recipe_arguments, steps, validated),
        "save_total_limit": 1,
        **recipe_arguments,
        "max_steps": steps,
    }
    return replace(recipe, seed=seed, train=replace(recipe.train, arguments=arguments))


def _looks(arguments: dict[str, Any], steps: int, validated: bool) -> dict[str, Any]:
    """When to evaluate and to save, where the recipe does not say it."""
    evaluates = validated and "eval_strategy" not in arguments
    every = math.ceil(steps / EVALUATIONS)
    looks: dict[str, Any] = {}
    if evaluates:
        looks |= {"eval_strategy": "steps", "eval_steps": every, "eval_on_start": True}
    best = arguments.get("load_best_model_at_end", False)
    if not {"save_strategy", "save_steps"} & arguments.keys() and (evaluates or not best):
        between = max(FEWEST_BETWEEN, math.ceil(steps / CHECKPOINTS))
        if best:  # the Trainer can keep only a checkpoint that it has evaluated
            between = every * math.ceil(between / arguments.get("eval_steps", every))
        looks |= {"save_strategy": "steps", "save_steps": between}
    return looks


def is_done(folder: Path) -> bool:
    """Whether a run is complete: its model is saved and scored."""
    return (folder / "model").is_dir() and (folder / "scores.json").exists()


def prepare_folder(folder: Path) -> None:
    """Make a run directory ready for a run and its log, and delete the reason of an earlier failure."""
    with claimed(folder, "run", (*FILES, LOG, FAILURE)) as owned:
        owned.remove(FAILURE)
        with writing(folder / LOG):
            (folder / LOG).touch()


def run(recipe: Recipe, folder: Path, shared: Path, *, keep_checkpoints: bool, discard_model: bool) -> None:
    """Make a run of a recipe by `run_recipe`, or resume it, with signals shared in `shared`. `discard_model`
    deletes the final weights once they are scored; the run stays finished. Raises StoppedError if it was
    asked to stop, with a checkpoint saved."""
    outcome = train(recipe, folder, shared=shared)
    if not outcome.finished:
        raise StoppedError
    outcome.run.delete_leftovers(weights=WEIGHTS if discard_model else (), keep_checkpoints=keep_checkpoints)
