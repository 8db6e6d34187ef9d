"""The `recipe.yaml` of a run: what decides it, with what was measured on this machine, written before it is
used. Running that recipe makes the same run."""

from dataclasses import replace
from pathlib import Path

from gradwise.errors import RecipeError
from gradwise.ranks import on_first
from gradwise.recipe import Recipe
from gradwise.recipe.tree import METHOD_SECTIONS

NAME = "recipe.yaml"


def with_measurements(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe with what an earlier attempt at it in the folder measured.

    Only the decisions, `signals` and the seed are compared: `gradwise train` compares the rest.
    """
    earlier = _read(folder)
    if earlier is None:
        return recipe
    filled = recipe.filled_from(earlier)
    return filled if filled in (earlier, earlier.for_trainer()) else recipe


def write(recipe: Recipe, folder: Path) -> None:
    """Write what decides a run; the sections that `gradwise train` has written stay. A collective call."""

    def save() -> None:
        earlier = _read(folder)
        if earlier is not None and earlier.for_trainer().filled_from(recipe) == recipe:
            whole = replace(earlier, **{name: getattr(recipe, name) for name in METHOD_SECTIONS})
        else:
            whole = recipe
        if whole != earlier:
            whole.save(folder / NAME)

    on_first(save)


def _read(folder: Path) -> Recipe | None:
    """The recipe that lies there; None where it cannot be read and will be replaced."""
    try:
        return Recipe.load(folder / NAME)
    except RecipeError:
        return None
