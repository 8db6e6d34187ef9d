"""Writes a checkpoint: the Trainer's files, then gradwise's, then the marker that makes it count. And tries,
before the first step, whether what belongs to the model can be saved at all."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import modeling_utils

from gradwise.atomic import AGAIN, not_written
from gradwise.errors import RecipeError
from gradwise.ranks import lost_connection, on_first, wait_for_all
from gradwise.training import checkpoint as checkpoints
from gradwise.training.session import Session

WRITE_FAILED = ("write", "PytorchStreamWriter", "inline_container", "No space", "iostream")
"""How torch words a failure to write; its other RuntimeErrors have other causes."""


def check_saves(trainer: Any) -> None:
    """Save all that a checkpoint holds of the model but its weights, into a temporary folder.

    transformers checks some of it only when it is saved, which would be after the steps.

    Raises:
        RecipeError: something cannot be saved; names it.
    """
    model, parts = trainer.model, {"tokenizer": trainer.processing_class}
    parts |= {f"adapter {name!r}": part for name, part in getattr(model, "peft_config", {}).items()}
    if isinstance(model, modeling_utils.PreTrainedModel):
        parts["configuration (model.config)"] = model.config
        parts["generation settings (model.generation_config)"] = model.generation_config
        if not trainer.is_deepspeed_enabled:  # whose sharded weights all look alike
            _check_shared_weights(model)
    try:
        with tempfile.TemporaryDirectory(prefix="gradwise-saving-") as folder:
            for name, part in parts.items():
                _check_saves(name, part, folder)
    except OSError as error:
        raise RecipeError(f"Cannot write temporary files ({error}); make room, or set TMPDIR.") from error


def _check_saves(name: str, part: Any, folder: str) -> None:
    if not hasattr(part, "save_pretrained"):
        return
    try:
        # A copy, since a configuration changes while it is saved.
        (part if name == "tokenizer" else copy.deepcopy(part)).save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        raise RecipeError(f"The model's {name} cannot be saved: {_one_line(error)}.") from error


def _check_shared_weights(model: modeling_utils.PreTrainedModel) -> None:
    try:
        modeling_utils.remove_tied_weights_from_state_dict(model.state_dict(), model)
    except RuntimeError as error:
        raise RecipeError(
            f"The model's weights cannot be saved, since some share memory: {_one_line(error)}."
        ) from error


def save_checkpoint(session: Session, write: Callable[[], None], limit: int | None) -> None:
    """Save the run as it stands after `session.step` steps, unless that step was saved already.

    Neither writing nor hashing is charged to the run.

    Args:
        session: the run.
        write: the Trainer's own saving, which must not delete older checkpoints.
        limit: checkpoints of this run to keep, the newest and the best among them.

    Raises:
        GradwiseError: when the loss or a gradient was not finite since the last checkpoint: weights that may
            be spoilt are not saved.
        StorageError: the checkpoint cannot be written; earlier ones are left as they were.
    """
    if session.saved_step == session.step:
        return
    session.flush()
    with session.record.uncharged():
        target = Path(session.args.output_dir) / f"checkpoint-{session.step}"
        # The first rank owns the folder: it begins and ends it, the others come in between.
        on_first(lambda: checkpoints.begin(target))
        written(target, write, target.parent)
        wait_for_all()
        on_first(lambda: _finish(session, target, limit))
        session.saved_step = session.step


def _finish(session: Session, target: Path, limit: int | None) -> None:
    plan = session.plan
    assert plan is not None
    state = {
        "run": session.record.run,
        "step": session.step,
        "decisions": session.decisions(),
        "plan": plan.digest,
        "position": session.schedule.used(session.step),
        "layers": session.switch.state_dict() if session.switch else None,
        "record": session.record.state(),
    }
    plan.save(target / checkpoints.PLAN)
    checkpoints.write_arrays(target, session.planner.arrays())
    checkpoints.finish(target, state)
    checkpoints.rotate(target, limit, session.trainer.state.best_model_checkpoint)


def written(target: Path, write: Callable[[], None], kept: Path) -> None:
    """Let a library write.

    Args:
        target: where it writes.
        write: calls it.
        kept: the folder of the run's checkpoints.

    Raises:
        StorageError: the system or the disk refuses.
    """
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        disk = any(word in str(error) for word in WRITE_FAILED) and not lost_connection(error)
        if isinstance(error, RuntimeError) and not disk:
            raise
        last = checkpoints.last_whole(kept, contents=False)[0]
        advice = f"{AGAIN}; it resumes from {last or 'the beginning'}"
        raise not_written(target, error, advice) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
