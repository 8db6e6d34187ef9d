"""Several processes of one run: which one this is, and what one of them does for all.

Only the first rank touches files that the ranks share; the others wait for it and learn of its failure. Every
function here that is called collective must be called by all ranks at the same place.
"""

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from gradwise.console import say
from gradwise.errors import GradwiseError

T = TypeVar("T")


def rank() -> int:
    """Number of this process, from 0; also before the process group exists."""
    group = _group()
    return group.get_rank() if group else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that work together, or 1; also before the process group exists."""
    group = _group()
    return group.get_world_size() if group else int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first rank, or the only process."""
    return rank() == 0


def say_first(sentence: str) -> None:
    """Print a sentence, on the first rank only."""
    if is_first():
        say(sentence)


def connected() -> tuple[int, int]:
    """Number of this process among those connected now, and how many they are; (0, 1) before they are."""
    group = _group()
    return (group.get_rank(), group.get_world_size()) if group else (0, 1)


def gathered(value: T) -> list[T]:
    """What every rank gives, by rank; a collective call."""
    group = _group()
    if group is None:
        return [value]
    values: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def on_cpu() -> bool:
    """Whether several ranks have to train on CPUs, because no accelerator that they could share is there.

    accelerate then sees a single process on every rank, unless it is given `use_cpu`.
    """
    import torch

    if world_size() == 1:
        return False
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is None or device.type == "mps"


def join(*, cpu: bool = False) -> Any:
    """Enter the process group where torchrun started several processes; returns this rank's device.

    Args:
        cpu: use CPUs although there are accelerators.
    """
    from accelerate import PartialState

    return PartialState(cpu=cpu or on_cpu()).device


def on_first(work: Callable[[], T]) -> T:
    """Run `work` on the first rank alone and return its result on every rank; a collective call.

    What `work` raises is raised on every rank, so that no rank waits for one that has failed.

    Args:
        work: returns something that can be pickled.
    """
    group = _group()
    if group is None:
        return work()
    # The error is shared like a value: a rank that failed before the broadcast would leave the others
    # waiting.
    value, error = _outcome(work) if group.get_rank() == 0 else (None, None)
    shared: list[Any] = [(value, portable(error))]
    group.broadcast_object_list(shared, src=0)
    value, shared_error = shared[0]
    if shared_error is not None:
        raise error or shared_error
    return value


def on_each(work: Callable[[], T]) -> T:
    """Run `work`, which calls nothing collective, on every rank and return its own result; a collective call.

    Where it fails on some rank, the first of these errors is raised on all ranks that have none.
    """
    if _group() is None:
        return work()
    value, error = _outcome(work)
    # Every rank learns of every failure before any continues, so that none waits in the next collective call.
    errors = [each for each in gathered(portable(error)) if each is not None]
    if errors:
        raise error or errors[0]
    return value  # type: ignore[return-value]


def check_same(value: object, what: str) -> None:
    """Raise GradwiseError on every rank where `value` differs between ranks; a collective call.

    Args:
        value: anything that can be pickled and compared.
        what: its name, as the sentence's subject.
    """
    values = gathered(value)
    other = next((number for number, each in enumerate(values) if each != values[0]), None)
    if other is not None:
        sentence = f"{what} differ between rank 0 and rank {other}; give all ranks the same files."
        raise marked(GradwiseError(sentence))


def wait_for_all() -> None:
    """Wait until every rank has come here; nothing in a single process."""
    if group := _group():
        group.barrier()


def raised_everywhere(error: BaseException) -> bool:
    """Whether every rank raises this error, so that one of them is enough to show it."""
    return getattr(error, "_everywhere", False)


def lost_connection(error: BaseException) -> bool:
    """Whether this is how a rank learns that another one has ended."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None:
        return False
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    matches_sign = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return matches_sign or isinstance(error, dist.DistBackendError | dist.DistNetworkError)


def _group() -> Any:
    """`torch.distributed` where several processes are connected through it, otherwise None."""
    dist: Any = sys.modules.get("torch.distributed")  # without torch there is no group either
    several = dist is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist if several else None


def _outcome(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:
        return None, marked(error)


def marked(error: BaseException) -> BaseException:
    """The error, which every rank will raise."""
    error._everywhere = True  # type: ignore[attr-defined]
    return error


def portable(error: BaseException | None) -> BaseException | None:
    """The error itself where it survives pickling, otherwise one with the same message."""
    if error is None:
        return None
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return marked(GradwiseError(str(error)))
