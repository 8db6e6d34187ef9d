"""Which arms are compared with each other, and in which parts of the recipe the two of a pair differ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradwise.errors import RecipeError
from gradwise.recipe import Recipe, tree
from gradwise.text import shown

DECISIONS = (*tree.METHOD_SECTIONS, "adapter")

Pairs = Sequence[tuple[str, str]]
"""Arms, each with the one that it is compared with."""


def pairs_of(recipes: Mapping[str, Recipe], reference: str, requested: Pairs) -> list[dict[str, Any]]:
    """All pairs of a comparison with the sections in which they differ, as comparison.yaml has them;
    `requested` are those beside each arm and its reference."""
    default_pairs = [
        (arm, _closest_reference(arm, recipes, reference)) for arm in recipes if arm != reference
    ]
    default_sets = set(map(frozenset, default_pairs))
    pairs = [*default_pairs, *(pair for pair in requested if frozenset(pair) not in default_sets)]
    return [
        {"arm": arm, "against": against, "differs": differing(recipes[arm], recipes[against])}
        for arm, against in dict.fromkeys(pairs)
    ]


def _closest_reference(arm: str, recipes: Mapping[str, Recipe], reference: str) -> str:
    """The reference, or an arm on all data in the usual way if `arm` differs from that one in fewer sections:
    an order or a layer policy is no selection, and is not compared with one."""
    # These train on all data, shuffled, through all layers.
    plain = [name for name, recipe in recipes.items() if not {*DECISIONS} & {*differing(recipe, Recipe())}]
    if arm in plain:
        plain = plain[: plain.index(arm)]
    return min([reference, *plain], key=lambda other: len(differing(recipes[arm], recipes[other])))


def differing(one: Recipe, other: Recipe) -> list[str]:
    """Sections in which two recipes differ, decisions first.

    >>> differing(Recipe.from_dict({"order": "given", "layers": "lisa"}), Recipe())
    ['order', 'layers']
    """
    left, right = _effective(one), _effective(other)
    different = [name for name in dict.fromkeys([*DECISIONS, *left]) if left[name] != right[name]]
    if {"select", "order", "anneal"} & set(different):
        # How a decision's signals are made is a part of the decision.
        different = [name for name in different if name != "signals"]
    return different


def _effective(recipe: Recipe) -> dict[str, Any]:
    """A recipe without its seed, and with the decay that an annealing phase brings."""
    values = recipe.to_dict()
    del values["seed"]
    if recipe.anneal is not None and recipe.train.schedule == "wsd" and recipe.train.decay is None:
        values["train"] = values["train"] | {"decay": recipe.anneal.last}
    return values


def check_pairs(pairs: Iterable[tuple[str, str]], arms: Iterable[str]) -> None:
    """Raise RecipeError for a pair that names no arm, or one arm twice."""
    arm_names = list(arms)
    for arm, against in pairs:
        for name in (arm, against):
            if name not in arm_names:
                raise RecipeError(
                    f"--pairs: {shown(name)} is none of the arms; found {', '.join(arm_names)}."
                )
        if arm == against:
            raise RecipeError(f"--pairs: {arm} cannot be compared with itself; name two arms.")
