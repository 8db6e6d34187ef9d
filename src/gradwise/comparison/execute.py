"""Makes one run of a comparison, in a process of its own."""

from pathlib import Path

from gradwise.comparison.workers import StoppedError
from gradwise.recipe import Recipe
from gradwise.run import train

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def run(recipe: Recipe, folder: Path, shared: Path, *, keep_checkpoints: bool, discard_model: bool) -> None:
    """Make a run, or what is left of it.

    Args:
        recipe: as `run_recipe` makes it.
        folder: the run directory.
        shared: folder of signals that runs share.
        keep_checkpoints: leave them when the run is finished.
        discard_model: delete the final weights once they are scored; the run stays finished.

    Raises:
        StoppedError: when it was asked to stop, with a checkpoint saved.
        GradwiseError: as `gradwise.run.train` does.
    """
    outcome = train(recipe, folder, shared=shared)
    if not outcome.finished:
        raise StoppedError
    outcome.run.tidy(weights=WEIGHTS if discard_model else (), keep_checkpoints=keep_checkpoints)
