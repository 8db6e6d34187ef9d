"""The `recipe.yaml` of a run, with what was measured on this machine, written before anything depends on it.
Running that recipe makes the same run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gradwise.errors import RecipeError
from gradwise.ranks import on_first
from gradwise.recipe import Recipe
from gradwise.recipe.tree import METHOD_SECTIONS
from gradwise.stored import read_lines

NAME = "recipe.yaml"

BINDING = ("last", "times", "method", "pool", "data")
"""Settings of `anneal` that bind a run before its annealing phase begins: when a plan is cut, which data and
optimizer the run was checked for, and whether its checkpoints hold what was selected. A budget that cannot be
kept shows only when the phase begins; with another one the run resumes."""


def annealed(folder: Path) -> bool:
    """Whether anything of the annealing phase was decided in a run directory so far."""
    return any(line.get("event") == "anneal" for line in read_lines(folder / "events.jsonl"))


def binding(anneal: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings of `anneal` that count before its phase begins."""
    return None if anneal is None else {name: anneal[name] for name in BINDING}


def with_measurements(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe with what an earlier attempt at it in the folder measured of the machine.

    Only the decisions, `signals` and the seed are compared: `gradwise train` compares the rest. What follows
    from the data is found again, since a `gradwise.Trainer` may have others now.
    """
    earlier = _read(folder)
    if earlier is None:
        return recipe
    filled = recipe.filled_from(earlier)
    if filled not in (earlier, earlier.for_trainer()):
        return recipe
    sections: dict[str, Any] = {name: getattr(recipe, name) for name in METHOD_SECTIONS}
    changes = {
        name: replace(
            getattr(filled, name), **{field: getattr(section, field) for field in section.found_in_data}
        )
        for name, section in sections.items()
        if section is not None and section.found_in_data
    }
    return replace(filled, **changes)


def write(recipe: Recipe, folder: Path) -> None:
    """Write what decides a run; the sections that `gradwise train` has written stay. A collective call."""

    def save() -> None:
        earlier, whole = _read(folder), recipe
        if earlier is not None and (earlier.model is not None or earlier.data is not None):
            # Whatever else differs: a run that resumes before its trial has no winner yet, and the file has.
            whole = replace(
                earlier,
                **{name: getattr(recipe, name) for name in (*METHOD_SECTIONS, "weights", "seed")},
                signals=replace(recipe.signals, model=earlier.signals.model),
            )
        if whole != earlier:
            whole.save(folder / NAME)

    on_first(save)


def _read(folder: Path) -> Recipe | None:
    """The recipe that lies there; None where it cannot be read and will be replaced."""
    try:
        return Recipe.load(folder / NAME)
    except RecipeError:
        return None
