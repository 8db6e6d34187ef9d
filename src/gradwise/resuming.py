"""What a resumed run must have in common with the run that it resumes."""

from pathlib import Path
from typing import Any

from gradwise.errors import CheckpointError, RecipeError
from gradwise.recipe import Recipe
from gradwise.training import checkpoint as checkpoints
from gradwise.training import recipe_file
from gradwise.training.layout import Layout
from gradwise.training.plan import Plan
from gradwise.training.record import RunRecord

DECISIVE = ("select", "order", "layers", "anneal", "signals", "weights", "seed")
"""Sections of a recipe that decide what a run trains on and how."""


def decisive_sections(recipe: Recipe) -> dict[str, Any]:
    """The sections that a resumed run may not change, as plain values."""
    settings = recipe.to_dict()
    return {name: settings[name] for name in DECISIVE}


def opened(
    recipe: Recipe, resume: Path | None, output: Path, folder: Path, record: RunRecord
) -> tuple[dict[str, Any] | None, Recipe]:
    """The state of the checkpoint to resume from, once it is known to be this run's, and the recipe with what
    the run has measured.

    Args:
        recipe: as it is given now.
        resume: the checkpoint; None starts a new run.
        output: folder of the checkpoints.
        folder: the run's.
        record: must reach as far as the checkpoint.

    Raises:
        CheckpointError: the checkpoint is another run's, or a new run would be mixed with an earlier one.
    """
    # Before anything is compared: what a killed process left half written must not be resumed from.
    checkpoints.discard_torn(output)
    if resume:
        state = checkpoints.read_state(resume)
        checked = checked_recipe(recipe, state["decisions"], resume, folder)
        record.check(state["record"])
        return state, checked
    if any(checkpoints.is_finished(path) for path in checkpoints.checkpoints(output)):
        raise CheckpointError(
            f"{output} holds checkpoints of an earlier run; resume it (resume_from_checkpoint=True) or "
            "give another output_dir."
        )
    return None, recipe_file.with_measurements(recipe, folder)


def checked_recipe(recipe: Recipe, stored: dict[str, Any], checkpoint: Path, folder: Path) -> Recipe:
    """The recipe with what the run has measured.

    Args:
        recipe: as it is given now.
        stored: decisive sections that the checkpoint was taken with.
        checkpoint: named in messages.
        folder: the run's; until its annealing phase is planned, settings of that phase may change.

    Raises:
        CheckpointError: the stored sections cannot be read, or decide otherwise.
    """
    try:
        # As a recipe, so that settings which a later version added have their defaults.
        earlier = Recipe.from_dict(stored)
    except RecipeError as error:
        raise CheckpointError(f"The settings in {checkpoint} cannot be read: {error}") from None
    recipe = recipe.filled_from(earlier)
    # What a run finds for itself and the checkpoint does not have yet may be given now: a recipe.yaml has the
    # winner of a trial that was held after the checkpoint.
    before = decisive_sections(earlier.filled_from(recipe))
    for name, now in decisive_sections(recipe).items():
        then = before[name]
        if name == "anneal" and not recipe_file.annealed(folder):
            then, now = recipe_file.binding(then), recipe_file.binding(now)
        if then != now:
            raise CheckpointError(
                f"The checkpoint {checkpoint} was taken with {name} = {then}, now it is {now}; "
                "resume with the same settings, or start a new run."
            )
    return recipe


def check_plan(plan: Plan, state: dict[str, Any], checkpoint: Path, layout: Layout, *, pool: int) -> None:
    """Raise CheckpointError where a stored plan is not that of the checkpoint's state, of a pool of `pool`
    samples, or of the batch size and epochs of `layout`."""
    if plan.digest != state["plan"]:
        raise CheckpointError(f"The plan in {checkpoint} is not the one the checkpoint was taken with.")
    if plan.pool != pool:
        raise CheckpointError(
            f"The checkpoint {checkpoint} was trained on {plan.pool} samples, "
            f"the data now have {pool}; give the same data, or start a new run."
        )
    batches = layout.cut(plan)
    # The number of samples served by then differs where the batch size or the packing does.
    if state["step"] > batches.steps or batches.used(state["step"]) != state["position"]:
        raise CheckpointError(
            f"The checkpoint {checkpoint} was taken with another batch size; give the same one."
        )
    if layout.epochs_needed(plan) > plan.epochs_of_run:
        raise CheckpointError(
            f"The run in {checkpoint} was planned for {plan.epochs_of_run} epochs; a longer one is a new run."
        )
