"""Checkpoints that count only when they are whole.

The Trainer writes a checkpoint file by file, so a kill can leave half of one. Ours ends with a marker that
lists every file and its size, written after all of them are on disk; older checkpoints are deleted only after
that.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from gradwise.atomic import sync_files, sync_folder, write_bytes, write_json
from gradwise.errors import CheckpointError

MARKER = "complete.json"
BEGUN = ".begun-by-gradwise"
STATE = "gradwise.json"
PLAN = "plan.safetensors"
DECIDING = "deciding.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders in `folder`, whole or not, by step."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def is_finished(checkpoint: Path) -> bool:
    """Whether writing it came to its end; it may have been damaged since."""
    return (checkpoint / MARKER).is_file()


def check_whole(checkpoint: Path) -> None:
    """Raise CheckpointError naming the first thing that is missing from a checkpoint or of the wrong size."""
    if not checkpoint.is_dir():
        raise CheckpointError(f"There is no checkpoint at {checkpoint}.")
    try:
        sizes = json.loads((checkpoint / MARKER).read_text())["files"]
    except FileNotFoundError:
        raise CheckpointError(
            f"The checkpoint {checkpoint} was not written to its end; use an earlier one."
        ) from None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise CheckpointError(f"{checkpoint / MARKER} is damaged; use an earlier checkpoint.") from None
    for name, size in sizes.items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(
                f"The checkpoint {checkpoint} is damaged: {name} {state}. Use an earlier one."
            )


def last_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The latest whole checkpoint, and a sentence for each later one that was passed over.

    Raises:
        CheckpointError: when checkpoints were finished, but all of them are damaged: starting from the
            beginning would throw work away that may be recoverable.
    """
    passed_over, damaged = [], []
    for checkpoint in reversed(checkpoints(folder)):
        try:
            check_whole(checkpoint)
        except CheckpointError as error:
            passed_over.append(str(error))
            if is_finished(checkpoint):
                damaged.append(str(error))
            continue
        return checkpoint, passed_over
    if damaged:
        raise CheckpointError(f"{damaged[0]} No earlier one is whole; to start anew, delete {folder}.")
    return None, passed_over


def discard_torn(folder: Path) -> None:
    """Delete what gradwise began to write and did not finish; what others wrote stays."""
    for checkpoint in checkpoints(folder):
        if (checkpoint / BEGUN).is_file() and not is_finished(checkpoint):
            shutil.rmtree(checkpoint)


def begin(checkpoint: Path) -> None:
    """Make room for a new checkpoint of this step, and mark it as ours until it is finished."""
    _delete(checkpoint)
    checkpoint.mkdir(parents=True)
    (checkpoint / BEGUN).touch()


def _delete(checkpoint: Path) -> None:
    # Without its marker first, so that a kill in between leaves nothing that looks whole.
    if is_finished(checkpoint):
        (checkpoint / BEGUN).touch()
        (checkpoint / MARKER).unlink()
    if checkpoint.exists():
        shutil.rmtree(checkpoint)


def finish(checkpoint: Path, state: dict[str, Any]) -> None:
    """Add gradwise's own state, force everything to disk, and set the marker."""
    write_json(checkpoint / STATE, state)
    (checkpoint / BEGUN).unlink()
    write_json(checkpoint / MARKER, {"files": sync_files(checkpoint)})
    sync_folder(checkpoint.parent)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """gradwise's own state of a whole checkpoint."""
    return json.loads((checkpoint / STATE).read_text())


def write_arrays(checkpoint: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """What the planner remembers; nothing is written where it remembers nothing."""
    if arrays:
        # Contiguous and of at least one dimension, as the format wants them.
        stored = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        scalars = json.dumps(sorted(name for name, values in arrays.items() if not values.ndim))
        write_bytes(checkpoint / DECIDING, safetensors.numpy.save(stored, {"scalars": scalars}))


def read_arrays(checkpoint: Path) -> dict[str, NDArray[Any]]:
    """What `write_arrays` wrote."""
    if not (checkpoint / DECIDING).exists():
        return {}
    with safetensors.safe_open(str(checkpoint / DECIDING), framework="numpy") as file:
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
    ours = [
        path for path in checkpoints(newest.parent) if is_finished(path) and read_state(path)["run"] == run
    ]
    kept = {newest.resolve(), *([Path(best).resolve()] if best else [])}
    spare = [path for path in ours if path.resolve() not in kept]
    for checkpoint in spare[: max(0, len(ours) - limit)]:
        _delete(checkpoint)
