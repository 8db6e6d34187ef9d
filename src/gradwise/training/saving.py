"""Writes a checkpoint: the Trainer's files, then gradwise's, then the marker that makes it count."""

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from gradwise.errors import CheckpointError
from gradwise.training import checkpoint as checkpoints
from gradwise.training.session import Session

WRITE_FAILED = ("write", "PytorchStreamWriter", "inline_container", "No space", "iostream")
"""How torch words a failure to write; its other RuntimeErrors are none of the disk's."""


def save_checkpoint(session: Session, write: Callable[[], None], limit: int | None) -> None:
    """Save the run as it stands after `session.step` steps, unless that step was saved already.

    Args:
        session: the run.
        write: the Trainer's own saving, which must not delete older checkpoints.
        limit: checkpoints of this run to keep, the newest and the best among them.

    Raises:
        GradwiseError: when the loss or a gradient was not finite since the last checkpoint: weights that may
            be spoilt are not saved.
        CheckpointError: when the disk takes no more; earlier checkpoints are left as they were.
    """
    if session.saved_step == session.step:
        return
    session.flush()
    with session.record.uncharged():
        _save(session, write, limit)


def _save(session: Session, write: Callable[[], None], limit: int | None) -> None:
    args, meet, plan = session.args, session.trainer.accelerator.wait_for_everyone, session.plan
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
    target = Path(args.output_dir) / f"checkpoint-{session.step}"
    try:
        if args.should_save:
            checkpoints.begin(target)
        meet()
        write()
        meet()
        if args.should_save:
            plan.save(target / checkpoints.PLAN)
            checkpoints.write_arrays(target, session.planner.arrays())
            checkpoints.finish(target, state)
            checkpoints.rotate(target, limit, session.trainer.state.best_model_checkpoint)
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in WRITE_FAILED):
            raise
        raise _not_written(target, error) from error
    session.saved_step = session.step
    meet()


def _not_written(target: Path, error: Exception) -> CheckpointError:
    free = shutil.disk_usage(target.parent).free / 2**20
    last = checkpoints.last_whole(target.parent)[0]
    return CheckpointError(
        f"The checkpoint {target} could not be written ({' '.join(str(error).split())[:200]}; "
        f"{free:,.0f} MiB free). Make room and run the same command again; it goes on from "
        f"{last or 'the beginning'}."
    )
