"""Writes a checkpoint: the Trainer's files, then gradwise's, then the marker that makes it count."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from gradwise.atomic import AGAIN, not_written
from gradwise.ranks import lost_connection, on_first, wait_for_all
from gradwise.training import checkpoint as checkpoints
from gradwise.training.session import Session

WRITE_FAILED = ("write", "PytorchStreamWriter", "inline_container", "No space", "iostream")
"""How torch words a failure to write; its other RuntimeErrors have other causes."""


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
