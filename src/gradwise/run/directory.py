"""The run directory: what belongs to one run, and who may write there.

recipe.yaml        the resolved recipe, itself runnable
environment.json   versions, machine, fingerprint of the data, data report
metrics.jsonl      a line per step and per evaluation
events.jsonl       a line per decision, with its cost
plan/              the index stream
checkpoints/       to go on from
model/             the result; its presence means that the run is finished
scores.json        what the result is measured by, and how long that took
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gradwise.atomic import sync_files, sync_folder, write_json
from gradwise.errors import CheckpointError, RecipeError
from gradwise.recipe import Recipe
from gradwise.recipe.yaml_text import read_yaml
from gradwise.training.finishing import binding, not_yet_finishing

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the system calls a disk that takes no more."""


class RunDirectory:
    """One run's folder.

    Args:
        path: the folder; made when a run starts in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.events_file = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.scores_file = self.path / "scores.json"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.model.is_dir()

    @property
    def scored(self) -> bool:
        """Whether the result has been measured."""
        return self.scores_file.exists()

    @property
    def started(self) -> bool:
        """Whether there is anything of a run to lose: a training step or a checkpoint."""
        kept = self.finished or any(self.checkpoints.glob("checkpoint-*"))
        return kept or any("loss" in line for line in self.metrics())

    @contextlib.contextmanager
    def opened(self, recipe: Recipe, *, writes: bool = True) -> Iterator[None]:
        """Claim the folder for a run of `recipe`, new or going on, for as long as the context lasts.

        Args:
            recipe: must be the one the folder was started with, if it was.
            writes: False on all ranks but the first.

        Raises:
            RecipeError: when the folder cannot be written, belongs to another recipe, holds something else,
                or is in use by another process.
        """
        if not writes:
            yield
            return
        self._check_ours()
        lock = self._locked()
        try:
            if self.started:
                self._check_same(recipe)
                self._take_changes(recipe)
            else:
                # An earlier attempt that failed before its first step must not hold a mended recipe up.
                self.environment_file.unlink(missing_ok=True)
                recipe.save(self.recipe_file)
            yield
        finally:
            os.close(lock)

    def _check_ours(self) -> None:
        """Refuse a folder of somebody else's before anything is written to it."""
        try:
            # A kill can leave the temporary file of the very first write.
            own = (".lock", f".{self.recipe_file.name}.")
            found = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(own))
        except OSError:
            return  # not there yet, or not to be written: locking it tells
        if found and not self.recipe_file.exists():
            raise RecipeError(
                f"{self.path} is not empty and holds no run (found {', '.join(found[:3])}); "
                "give --out a new folder."
            )

    def _locked(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RecipeError(
                f"Cannot write to the run directory {self.path}: {error.strerror}; give another --out."
            ) from None
        try:
            # A record lock, which loader workers do not inherit: they outlive a killed run by some seconds.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise RecipeError(
                f"Another process is training in {self.path}; wait for it, or give another --out."
            ) from None
        return lock

    def _check_same(self, recipe: Recipe) -> None:
        there, here = self._recipe().to_dict(), recipe.to_dict()
        if not self.scored:
            # They have no part in training: those that failed may be mended, and others may be added.
            here["metrics"] = there["metrics"]
        if there["anneal"] and here["anneal"] and not_yet_finishing(self.path):
            # Decided later: a budget that could not be kept to may be mended.
            kept = here["anneal"] | binding(there["anneal"])
            here["anneal"] = there["anneal"] if kept == here["anneal"] else here["anneal"]
        differences = sorted(_differences(there, here))
        if differences:
            if there | {"metrics": None} == here | {"metrics": None}:
                raise RecipeError(
                    f"{self.path} was scored by other metrics; remove {self.scores_file} to score it anew."
                )
            raise RecipeError(
                f"{self.path} holds a run of another recipe; different: {'; '.join(differences[:4])}"
                f"{'; ...' if len(differences) > 4 else ''}. Give --out a new folder, or run "
                f"{self.recipe_file} to go on with that one."
            )

    def _recipe(self) -> Recipe:
        return Recipe.from_dict(read_yaml(self.recipe_file), source=str(self.recipe_file))

    def _take_changes(self, recipe: Recipe) -> None:
        there = self._recipe()
        if there.metrics != recipe.metrics or there.anneal != recipe.anneal:
            recipe.save(self.recipe_file)

    def check_data(self, fingerprint: str, key: str = "fingerprint") -> None:
        """Refuse to go on with data other than the run was started with; raises CheckpointError."""
        if self.environment_file.exists():
            before = json.loads(self.environment_file.read_text())["data"].get(key, fingerprint)
            if before != fingerprint:
                raise CheckpointError(
                    f"The {'held-out ' if key != 'fingerprint' else ''}data have changed since the run in "
                    f"{self.path} was started (fingerprint {before[:12]}, now {fingerprint[:12]}); restore "
                    "them, or give --out a new folder."
                )

    def note_environment(self, environment: dict[str, Any]) -> None:
        """Write `environment.json` unless the run that goes on has written it."""
        if not self.environment_file.exists():
            write_json(self.environment_file, environment)

    def save_model(self, write: Callable[[str], None], meet: Callable[[], None], *, first: bool) -> None:
        """Let `write` fill a folder with the final model, then put it in place in one move.

        Args:
            write: called on every rank, since a sharded model is gathered from all.
            meet: waits for all ranks.
            first: whether this rank writes files.
        """
        partial = self.path / ".model"
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        meet()
        write(str(partial))
        meet()
        if first:
            (partial / "training_args.bin").unlink(missing_ok=True)
            sync_files(partial)
            partial.rename(self.model)
            sync_folder(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`."""
        return _lines(self.metrics_file)

    def events(self) -> list[dict[str, Any]]:
        """All lines of `events.jsonl`."""
        return _lines(self.events_file)

    def scores(self) -> dict[str, dict[str, Any]]:
        """`value`, `better` and `samples` of every score, by name; empty for a run without."""
        return json.loads(self.scores_file.read_text())["scores"] if self.scored else {}


@contextlib.contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn the many shapes of "no room left" into one CheckpointError that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in NO_ROOM:
            raise
        free = shutil.disk_usage(folder).free / 2**20
        raise CheckpointError(
            f"Could not write to {folder} ({' '.join(str(error).split())[:200]}; {free:,.0f} MiB free). "
            "Make room and run the same command again; it goes on from the last whole checkpoint."
        ) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # A kill can leave the last line half written; it is cut off at the next resume.
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in dict.fromkeys([*there, *here]):
            below = f"{key}.{name}" if key else name
            yield from _differences(there.get(name), here.get(name), below)
    elif there != here:
        yield f"{key} was {there!r}, now {here!r}"
