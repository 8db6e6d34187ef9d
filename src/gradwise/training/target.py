"""The target of a Trainer's decisions: given, or a half of its evaluation data."""

from typing import Any, NamedTuple

from gradwise.data.parts import not_among, split
from gradwise.data.settings import HALF
from gradwise.errors import RecipeError
from gradwise.methods.interfaces import Selector
from gradwise.recipe import Recipe
from gradwise.signals.samples import rows_of


class Target(NamedTuple):
    """What chooses, and what is left to measure."""

    method: Selector
    """With its target settled."""
    samples: Any
    """Examples of what the model should become good at; None where nothing is chosen by them."""
    evaluation: Any
    """The evaluation data without samples that choose."""
    notes: tuple[str, ...] = ()
    """Sentences for the user."""


def target_of(
    recipe: Recipe, dataset: Any, evaluation: Any, *, planned: bool, selects: bool = True
) -> Target:
    """What `select` and `anneal` choose by.

    Args:
        recipe: of the run.
        dataset: the target, if the user gave one.
        evaluation: the evaluation data: None, one set, or several by name.
        planned: whether a plan takes the place of the selection.
        selects: whether `select` aims at the given target, or only `anneal` chooses by it.

    Raises:
        RecipeError: a target has no effect, or one is needed and there is none.
        DataError: the evaluation data are too few to be split, or all of them are among the target's.
    """
    method = recipe.select
    chooses = recipe.anneal is not None and recipe.anneal.uses_validation
    single = evaluation is not None and not isinstance(evaluation, dict)
    if dataset is None:
        goal = method.resolve_target(target=False, validation=single)
        if goal is None:
            return Target(method, None, evaluation)
        count = len(evaluation or ()) if hasattr(evaluation, "__len__") else None
        if count is None:
            raise RecipeError(
                "The eval_dataset is to choose and has no length; give one that can be indexed, or a "
                "target_dataset."
            )
        # `anneal` chooses by the same half. It once chose by all of them, and so by the samples that measure
        # (docs/log.md, 2026-11-29).
        halves = split(None, count, HALF)
        choosing, measuring = (rows_of(evaluation, rows) for rows in halves)
        return Target(
            method.with_target(goal), choosing, *_apart(measuring, choosing, halves.sentence("eval_dataset"))
        )
    targeted = method.with_target("target") if selects else method
    if planned or not (chooses or targeted.uses_target):
        what = "a plan" if planned else f"select: {method.method}"
        raise RecipeError(
            f"target_dataset has no effect with {what}; leave it out, or select by a method that takes a "
            "target: grace, dsir, nearest, less, tsds or trial (or anneal by direct, cosine_top or herding)."
        )
    by_position = all(hasattr(dataset, name) for name in ("__getitem__", "__len__"))
    if not by_position or not len(dataset) or "input_ids" not in dataset[0]:
        raise RecipeError(
            "target_dataset must hold samples by position, with input_ids (and labels), tokenised as the "
            f"training data; found {type(dataset).__name__}."
        )
    if isinstance(evaluation, dict):
        parts = {
            name: _apart(each, dataset, of=f"eval_dataset {name!r}: ") for name, each in evaluation.items()
        }
        notes = tuple(note for _, of_part in parts.values() for note in of_part)
        return Target(targeted, dataset, {name: rest for name, (rest, _) in parts.items()}, notes)
    return Target(targeted, dataset, *_apart(evaluation, dataset))


def _apart(measuring: Any, choosing: Any, *notes: str, of: str = "") -> tuple[Any, tuple[str, ...]]:
    """The samples that measure without those that choose, and what to say.

    Args:
        measuring, choosing: samples.
        notes: sentences before.
        of: begins the sentence on samples that both have.
    """
    if not hasattr(measuring, "__len__") or not len(measuring) or "input_ids" not in measuring[0]:
        return measuring, notes
    rows, note = not_among(measuring, choosing, "the target's")
    return (rows_of(measuring, rows) if note else measuring), (*notes, *(of + each for each in note))
