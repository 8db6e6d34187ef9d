"""Makes one run of a comparison, in a process of its own."""

import shutil
from pathlib import Path

from gradwise.comparison.workers import StoppedError
from gradwise.recipe import Recipe
from gradwise.run import RunDirectory, train

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
    outcome = train(recipe, folder, tell=_say, progress=False, shared=shared)
    if not outcome.finished:
        raise StoppedError
    _tidy(outcome.run, keep_checkpoints=keep_checkpoints, discard_model=discard_model)


def _tidy(finished: RunDirectory, *, keep_checkpoints: bool, discard_model: bool) -> None:
    if not keep_checkpoints:
        shutil.rmtree(finished.checkpoints, ignore_errors=True)
    if discard_model:
        for path in [path for pattern in WEIGHTS for path in finished.model.glob(pattern)]:
            path.unlink()


def _say(sentence: str) -> None:
    print(sentence, flush=True)
