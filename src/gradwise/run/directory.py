"""The run directory: what belongs to one run, and who may write there.

recipe.yaml        the resolved recipe, itself runnable
environment.json   versions, machine, fingerprint of the data, data report
metrics.jsonl      a line per step and per evaluation
events.jsonl       a line per decision, with its cost
plan/              the index stream
checkpoints/       to resume from
model/             the result; its presence means that the run is finished
scores.json        what the result is measured by, and how long that took
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gradwise.atomic import TEMPORARY, difference, sync_files, sync_folder, write_json, writing
from gradwise.errors import CheckpointError, GradwiseError, RecipeError
from gradwise.folders import OwnedFolder, claimed
from gradwise.plain import differences
from gradwise.ranks import on_first, wait_for_all
from gradwise.recipe import Recipe
from gradwise.recipe.yaml_text import read_yaml
from gradwise.stored import ADVICE, read_json, read_lines
from gradwise.training import checkpoint as checkpoints
from gradwise.training import recipe_file
from gradwise.training.saving import write_or_explain

MODEL = "model"
FILES = (
    recipe_file.NAME, "environment.json", "metrics.jsonl", "events.jsonl", "plan", "checkpoints", MODEL,
    "scores.json",
)  # fmt: skip
FOLDERS = ("plan", "checkpoints", MODEL)
WHICH = {
    "fingerprint": "",
    "held_out_fingerprint": "held-out ",
    "target_fingerprint": "target ",
    "anneal_fingerprint": "annealing ",
}
"""Names of the data whose fingerprints are kept."""


class RunDirectory:
    """One run's folder, created when a run starts in it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.recipe_file = self.path / recipe_file.NAME
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / MODEL
        self.scores_file = self.path / "scores.json"
        self._owned: OwnedFolder | None = None

    @property
    def owned(self) -> OwnedFolder:
        """The folder as it was claimed by `opened`."""
        assert self._owned is not None, "the run directory is not open"
        return self._owned

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.model.is_dir()

    @property
    def scored(self) -> bool:
        """Whether the result has been measured."""
        return self.scores_file.exists()

    @property
    def started(self) -> bool:
        """Whether there is a run to lose: a training step or a checkpoint."""
        if self.finished or any(self.checkpoints.glob("checkpoint-*")):
            return True
        # With its quotes: a line of an evaluation has `eval_loss` alone.
        return self.metrics_file.exists() and b'"loss"' in self.metrics_file.read_bytes()

    @contextlib.contextmanager
    def opened(self, recipe: Recipe) -> Iterator[None]:
        """Claim the folder for a run of `recipe`, new or resumed, while the context lasts; a collective call.
        Raises GradwiseError if it holds another recipe or something else, is damaged, or is in use."""
        with claimed(self.path, "run", FILES) as self._owned:
            on_first(lambda: self._begin(recipe))
            yield

    def _begin(self, recipe: Recipe) -> None:
        for name in FILES:
            path, folder = self.path / name, name in FOLDERS
            if path.exists() and path.is_dir() != folder:
                raise CheckpointError(
                    f"{path} is a {'file' if folder else 'folder'} and should be a "
                    f"{'folder' if folder else 'file'}; {ADVICE}."
                )
        if self.started:
            recipe = recipe.filled_from(self.recipe())
            self._check_same(recipe)
            self._take_changes(recipe)
        else:
            # An earlier attempt that failed before its first step must not hold a mended recipe up.
            self.owned.remove(self.environment_file.name)
            recipe_file.with_measurements(recipe, self.path).save(self.recipe_file)

    def _check_same(self, recipe: Recipe) -> None:
        there, here = self.recipe().to_dict(), recipe.to_dict()
        if not self.scored:
            # They have no part in training: those that failed may be mended, and others may be added.
            here["metrics"] = there["metrics"]
        if there["anneal"] and here["anneal"] and not recipe_file.annealed(self.path):
            # Decided later: a budget that could not be met may be corrected.
            annealing = here["anneal"] | recipe_file.binding(there["anneal"])
            here["anneal"] = there["anneal"] if annealing == here["anneal"] else here["anneal"]
        different = sorted(differences(there, here))
        if different:
            if there | {"metrics": None} == here | {"metrics": None}:
                raise RecipeError(
                    f"{self.path} was scored by other metrics; delete {self.scores_file} to score it again."
                )
            raise RecipeError(
                f"{self.path} holds a run of another recipe; different: {'; '.join(different[:4])}"
                f"{'; ...' if len(different) > 4 else ''}. Give --out a new folder, or "
                f"resume that one by: gradwise train {self.recipe_file} --out {self.path}"
            )

    def begun_with(self) -> Recipe | None:
        """The recipe of the run in the folder; None if there is no run, or no recipe that can be read."""
        try:
            return self.recipe() if self.started else None
        except (GradwiseError, OSError):
            return None  # `opened` says what is wrong with it

    def recipe(self) -> Recipe:
        """The recipe that the run was started with, and the values that were measured for it."""
        return Recipe.from_dict(read_yaml(self.recipe_file), source=str(self.recipe_file))

    def _take_changes(self, recipe: Recipe) -> None:
        there = self.recipe()
        if there.metrics != recipe.metrics or there.anneal != recipe.anneal:
            recipe.save(self.recipe_file)

    def check_data(self, fingerprint: str, key: str = "fingerprint") -> None:
        """Raise CheckpointError if the data differ from those that the run was started with."""
        if not self.environment_file.exists():
            return
        before = read_json(
            self.environment_file, take=lambda environment: str(environment["data"].get(key, fingerprint))
        )
        if before != fingerprint:
            raise CheckpointError(
                f"The {WHICH[key]}data have changed since the run in "
                f"{self.path} was started (fingerprint {before[:12]}, now {fingerprint[:12]}); restore "
                "them, or give --out a new folder."
            )

    def note_environment(self, environment: dict[str, Any]) -> None:
        """Write `environment.json` unless the run that is resumed has written it."""
        if not self.environment_file.exists():
            write_json(self.environment_file, environment)

    def save_model(self, write: Callable[[str], None]) -> None:
        """Let `write` fill a folder with the final model on every rank, then put it in place in one move. A
        collective call; raises StorageError if the model cannot be written."""
        partial = self.path / f"{TEMPORARY}{MODEL}"
        write_or_explain(partial, lambda: write(str(partial)), self.checkpoints)
        wait_for_all()
        on_first(lambda: self._place_model(partial))

    def _place_model(self, partial: Path) -> None:
        with writing(self.model):
            # A pickle, which runs code where it is loaded, and which nothing here reads.
            (partial / "training_args.bin").unlink(missing_ok=True)
            self.owned.digests[MODEL] = sync_files(partial)
            self.owned.write_marker()
            # One move, so that a model is there whole or not at all: its presence means that the run is
            # finished.
            partial.rename(self.model)
            sync_folder(self.path)

    def check_model(self, *, contents: bool = False) -> None:
        """Raise CheckpointError if the saved model is not as the run left it: by the sizes of its files, or
        with `contents` by what they hold."""
        if damage := difference(self.model, self.owned.digests.get(MODEL, {}), contents=contents):
            raise CheckpointError(
                f"The model in {self.model} is not as the run saved it: {damage}. Restore it, or delete "
                f"{self.model} and run the same command again: it resumes from the last checkpoint."
            )

    def delete_leftovers(self, *, weights: tuple[str, ...] = (), keep_checkpoints: bool = False) -> None:
        """Delete what a finished run no longer needs; what the user put beside it stays. `weights` are
        patterns of files of the saved model, without which the run still counts as finished."""
        with claimed(self.path, "run") as self._owned:
            for path in [path for pattern in weights for path in self.model.glob(pattern)]:
                # Out of the marker first: a kill in between leaves a file that nobody checks, not a model
                # that looks damaged.
                if self.owned.digests[MODEL].pop(path.name, None):
                    self.owned.write_marker()
                    path.unlink()
            if not keep_checkpoints:
                for checkpoint in checkpoints.checkpoints(self.checkpoints):
                    checkpoints.delete(checkpoint)
                # The user may have put something else there.
                with contextlib.suppress(OSError):
                    self.checkpoints.rmdir()

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`; raises CheckpointError where it is damaged."""
        return read_lines(self.metrics_file)

    def events(self) -> list[dict[str, Any]]:
        """All lines of `events.jsonl`; raises CheckpointError where it is damaged."""
        return read_lines(self.events_file)

    def scores(self) -> dict[str, dict[str, Any]]:
        """`value`, `better` and `samples` of every score, by name; empty for a run without."""
        return read_json(self.scores_file, take=_scores) if self.scored else {}


def _scores(contents: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = ("value", "better", "samples")
    return {name: {each: score[each] for each in names} for name, score in contents["scores"].items()}
