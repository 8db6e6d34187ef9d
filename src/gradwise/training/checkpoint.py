"""Checkpoints that count only when they are whole.

The Trainer writes a checkpoint file by file, so a kill can leave half of one. Each of ours is marked as
incomplete while it is written. Its final marker, with the size and SHA-256 of every file, is written after
all of them are on disk; older checkpoints are deleted only after that. A folder without a marker is not ours
and stays as it is.
"""

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from gradwise.atomic import (
    TEMPORARY,
    Digests,
    difference,
    sync_files,
    sync_folder,
    write_bytes,
    write_json,
    writing,
)
from gradwise.errors import CheckpointError, RecipeError
from gradwise.folders import MARKER, Marker, mark, read_marker
from gradwise.stored import damaged, read_json
from gradwise.training.plan import Plan

STATE = "gradwise.json"
PLAN = "plan.safetensors"
DECIDING = "deciding.safetensors"

WRITTEN = (
    "*.safetensors", "*.safetensors.index.json", "*.pt", "*.pth", "*.bin", "*.distcp", ".metadata",
    "config.json", "generation_config.json", "adapter_config.json", "trainer_state.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "chat_template*", "*processor_config.json", "latest", "zero_to_fp32.py", STATE, f"{TEMPORARY}*",
)  # fmt: skip
"""What the Trainer and gradwise may have written into a checkpoint that has no list of its files."""


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders in `folder`, whole or not, by step."""
    folders = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def check_ours(folder: Path) -> None:
    """Raise RecipeError where a checkpoint that gradwise did not write stands where one of its own may go."""
    for checkpoint in checkpoints(folder):
        _check_marked(checkpoint)


def _check_marked(checkpoint: Path) -> None:
    if (checkpoint / MARKER).is_file():
        return
    # A kill before its marker was written, or after it was deleted, leaves nothing of anybody's.
    if checkpoint.is_dir() and all(path.name.startswith(TEMPORARY) for path in checkpoint.iterdir()):
        return
    raise RecipeError(
        f"{checkpoint} was not written by gradwise (it has no {MARKER}) and could be overwritten; move it, "
        "or give another output folder."
    )


def is_finished(checkpoint: Path) -> bool:
    """Whether it was written completely; it may have been damaged since."""
    if not (checkpoint / MARKER).is_file():
        return False
    try:
        marker = read_marker(checkpoint)
    except RecipeError:
        return True
    return marker is not None and marker["complete"]


def check_whole(checkpoint: Path, *, contents: bool = True) -> None:
    """Raise CheckpointError naming the first file of a checkpoint that is not as it was written.

    Args:
        checkpoint: the folder.
        contents: compare what the files hold; otherwise only their sizes.
    """
    marker = _marker(checkpoint)
    if damage := difference(checkpoint, marker["digests"], contents=contents):
        raise CheckpointError(f"The checkpoint {checkpoint} is damaged: {damage}. Use an earlier one.")


def _marker(checkpoint: Path) -> Marker:
    if not checkpoint.is_dir():
        raise CheckpointError(f"There is no checkpoint at {checkpoint}.")
    marker = read_marker(checkpoint, CheckpointError)
    if marker is None or marker["kind"] != "checkpoint":
        raise CheckpointError(f"{checkpoint} is no checkpoint of gradwise's (it has no {MARKER}).")
    if not marker["complete"]:
        raise CheckpointError(f"The checkpoint {checkpoint} was not written to its end; use an earlier one.")
    return marker


def last_whole(folder: Path, *, contents: bool = True) -> tuple[Path | None, list[str]]:
    """The latest whole checkpoint, and a sentence for each later one that was passed over.

    Args:
        folder: where the checkpoints are.
        contents: as in `check_whole`.

    Raises:
        CheckpointError: checkpoints were finished, but all of them are damaged: starting from the beginning
            would throw work away that may be recoverable.
    """
    passed_over, lost = [], []
    for checkpoint in reversed(checkpoints(folder)):
        try:
            check_whole(checkpoint, contents=contents)
        except CheckpointError as error:
            # Said even where an earlier one is whole: steps are made a second time, and the user should know
            # why.
            passed_over.append(str(error))
            if is_finished(checkpoint):
                lost.append(str(error))
            continue
        return checkpoint, passed_over
    # Damaged, and not merely unfinished: work is there that a copy or a repair may bring back.
    if lost:
        raise CheckpointError(f"{lost[0]} No earlier one is whole; to start from step 0, delete {folder}.")
    return None, passed_over


def discard_torn(folder: Path) -> None:
    """Delete the checkpoints that gradwise began to write and did not finish.

    Raises:
        RecipeError: one was not written by gradwise.
        StorageError: a file cannot be deleted.
    """
    for checkpoint in checkpoints(folder):
        if not is_finished(checkpoint):
            delete(checkpoint)


def begin(checkpoint: Path) -> None:
    """Make room for a new checkpoint of this step, marked as incomplete until it is finished.

    Raises:
        RecipeError: there is one that gradwise did not write.
        StorageError: the folder cannot be written.
    """
    delete(checkpoint)
    with writing(checkpoint):
        checkpoint.mkdir(parents=True, exist_ok=True)
        # What lies there before anything is written is somebody else's, and stays when the checkpoint is
        # deleted.
        foreign = [name for name in _all_files(checkpoint) if name != MARKER]
    mark(checkpoint, "checkpoint", complete=False, digests={}, foreign=foreign)


def delete(checkpoint: Path) -> None:
    """Delete the files of a checkpoint of gradwise's, and its folder where the user added none.

    Raises:
        RecipeError: gradwise did not write it.
        StorageError: a file cannot be deleted.
    """
    if not checkpoint.exists():
        return
    _check_marked(checkpoint)
    digests = _written(checkpoint)
    # Marked as incomplete first, so that a kill in between leaves nothing that looks whole.
    mark(checkpoint, "checkpoint", complete=False, digests=digests, foreign=[])
    with writing(checkpoint):
        for name in (*digests, *(path.name for path in checkpoint.glob(f"{TEMPORARY}*"))):
            (checkpoint / name).unlink(missing_ok=True)
        # Reversed, so that inner folders come before those that hold them.
        for below in sorted((path for path in checkpoint.rglob("*") if path.is_dir()), reverse=True):
            if not below.is_symlink() and not any(below.iterdir()):
                below.rmdir()
        if not checkpoint.is_symlink() and _all_files(checkpoint) == [MARKER]:
            (checkpoint / MARKER).unlink()
            checkpoint.rmdir()


def _written(checkpoint: Path) -> Digests:
    """The files that gradwise or the Trainer wrote; by their names where the marker has no list of them."""
    try:
        marker = read_marker(checkpoint)
    except RecipeError:
        marker = None
    if marker is not None and marker["digests"]:
        return marker["digests"]
    foreign = [] if marker is None else marker["foreign"]
    return {
        name: [0, ""]
        for name in _all_files(checkpoint)
        if name not in foreign
        and any(fnmatch.fnmatchcase(name.rpartition("/")[2], pattern) for pattern in WRITTEN)
    }


def _all_files(checkpoint: Path) -> list[str]:
    return [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if not path.is_dir()]


def finish(checkpoint: Path, state: dict[str, Any]) -> None:
    """Add gradwise's own state, force everything to disk, and set the marker.

    Raises:
        StorageError: something cannot be written.
    """
    write_json(checkpoint / STATE, state)
    begun = read_marker(checkpoint, CheckpointError)
    apart = {MARKER, *(begun["foreign"] if begun else ())}
    with writing(checkpoint):
        digests = {name: digest for name, digest in sync_files(checkpoint).items() if name not in apart}
    # Last, after every file is on disk: until then the folder counts as torn.
    mark(checkpoint, "checkpoint", complete=True, digests=digests)
    # The folder's own entry has to reach the disk too, or a power cut could lose a checkpoint whose files are
    # all there.
    with writing(checkpoint.parent):
        sync_folder(checkpoint.parent)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """gradwise's own state of a whole checkpoint."""
    return read_json(checkpoint / STATE, take=_state)


def _state(contents: dict[str, Any]) -> dict[str, Any]:
    names = ("run", "step", "decisions", "plan", "position", "layers", "record")
    return {name: contents[name] for name in names}


def write_arrays(checkpoint: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write what the planner remembers; nothing where it remembers nothing."""
    if arrays:
        # Contiguous and of at least one dimension, as the format wants them.
        stored = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        scalars = json.dumps(sorted(name for name, values in arrays.items() if not values.ndim))
        write_bytes(checkpoint / DECIDING, safetensors.numpy.save(stored, {"scalars": scalars}))


def read_decided(checkpoint: Path) -> tuple[Plan, dict[str, NDArray[Any]]]:
    """The plan that a whole checkpoint was taken with, and what the planner remembered."""
    return Plan.load(checkpoint / PLAN), read_arrays(checkpoint)


def read_arrays(checkpoint: Path) -> dict[str, NDArray[Any]]:
    """What `write_arrays` wrote."""
    path = checkpoint / DECIDING
    if not path.exists():
        return {}
    with damaged(path), safetensors.safe_open(str(path), framework="numpy") as file:
        scalars = json.loads(file.metadata()["scalars"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {name: values.reshape(()) if name in scalars else values for name, values in arrays.items()}


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints of the run of `newest` beyond `limit`; never it nor the best.

    Args:
        newest: the checkpoint just finished.
        limit: how many to keep; None keeps all.
        best: path of the best one, where the Trainer tracks one.
    """
    if not limit or limit <= 0:
        return
    run = read_state(newest)["run"]
    ours = [path for path in checkpoints(newest.parent) if is_finished(path) and _run(path) == run]
    # Only this run's: an output folder may hold the checkpoints of an earlier run, which are not ours to
    # rotate.
    protected = {newest.resolve(), *([Path(best).resolve()] if best else [])}
    spare = [path for path in ours if path.resolve() not in protected]
    for checkpoint in spare[: max(0, len(ours) - limit)]:
        delete(checkpoint)


def _run(checkpoint: Path) -> str | None:
    try:
        return read_state(checkpoint)["run"]
    except (CheckpointError, KeyError):  # damaged: whose it was is not known
        return None
