"""Memory of a process, and of what autograd saves. Resident memory is read from `/proc`, so on Linux only."""

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

STATUS = Path("/proc/self/status")
MEBI = 2**20

NO_HOLES = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
"""Environment in which glibc returns freed blocks of 256 KiB or more to the system at once. By default it
raises that bound up to 32 MiB, and small blocks that stay alive then pin large freed ones: with LoRA, 0.8 of
2.4 GiB of the peak were such holes."""


def peak_gib() -> float:
    """Highest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


def resident(what: str = "VmRSS") -> int:
    """Bytes of resident memory: now (VmRSS), or the highest since the last reset (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


@contextmanager
def peak_over_start() -> Iterator[list[int]]:
    """Appends how many bytes the resident memory rose above its value at the start of the block."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, peak = resident(), []
    yield peak
    peak.append(resident("VmHWM") - before)


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[list[int]]:
    """Appends the bytes of all storages that autograd saves in the block, each once, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved
    saved.append(sum(sizes.values()))
