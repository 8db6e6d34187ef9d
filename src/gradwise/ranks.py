"""Several processes of one run: which one this is, and what one of them does for all.

Only the first rank touches files that the ranks share; the others wait for it and learn what came of it.
"""

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from gradwise.errors import GradwiseError

T = TypeVar("T")


def rank() -> int:
    """Number of this process, from 0; also before the process group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun started, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first rank, or the only process."""
    return rank() == 0


def on_first(work: Callable[[], T]) -> T:
    """Run `work` on the first rank alone and return its result on every rank; a collective call.

    What `work` raises is raised on every rank, so that no rank waits for one that has failed.

    Args:
        work: returns something that can be pickled.
    """
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except BaseException as error:
            outcome[1] = error
    shared = [outcome[0], _portable(outcome[1])]
    dist.broadcast_object_list(shared, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


def wait_for_all() -> None:
    """Wait until every rank has come here; nothing in a single process."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _portable(error: BaseException | None) -> BaseException | None:
    """The error itself where it survives pickling, otherwise one with the same message."""
    if error is None:
        return None
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return GradwiseError(str(error))
