"""How loops over rows run: compiled by numba, shared among threads, cut into parts."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast

import numba
import numpy as np

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(kernel: Kernel, *, inline: Literal["never", "always"] = "never") -> Kernel:
    """A function compiled by numba, which releases the interpreter's lock while it runs.

    The machine code is cached on disk. Where neither the package's folder nor the user's cache can be
    written, each process compiles for itself.
    """
    try:
        return cast(Kernel, numba.njit(nogil=True, cache=True, inline=inline)(kernel))
    except RuntimeError:  # numba found no folder for its cache
        return cast(Kernel, numba.njit(nogil=True, inline=inline)(kernel))


def in_threads(work: Callable[[int, int], object], count: int) -> None:
    """Call `work(start, stop)` on contiguous shares of `range(count)`, one share for each torch thread.

    The threads run at once only if `work` releases the interpreter's lock, as compiled kernels do.
    """
    import torch

    shares = min(count, torch.get_num_threads())
    if shares <= 1:
        work(0, count)
        return
    edges = np.linspace(0, count, shares + 1).astype(int).tolist()
    with ThreadPoolExecutor(shares) as pool:
        for future in [pool.submit(work, *share) for share in pairwise(edges)]:
            future.result()


def parts(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices that cover `range(count)`, of at most `size` items each."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
