"""What the stream of optimizer state needs of a device: buffers, three streams, events between them.

Work on one stream runs in the order in which it was issued. Between streams nothing is ordered except by the
events that are passed as `after`. The tests have a device of their own that delays and reorders everything
that these rules leave open.
"""

import mmap
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from gradwise.errors import RecipeError

Event = Any
"""A point in a stream: everything issued on it before. Opaque; the device that made it understands it."""


Mapped = TypeVar("Mapped", bound=mmap.mmap)


class Device(Protocol):
    """Streams for computing, for copies to the device and for copies to the host."""

    def empty(self, size: int) -> Tensor:
        """(size,) uint8 on the device. Earlier work of the compute stream may still use that memory."""
        ...

    def release(self, buffer: Tensor) -> None:
        """Let the memory be used again once everything issued so far on all three streams is done."""
        ...

    def host(self, size: int) -> memoryview:
        """Zeroed host memory that copies can read and write asynchronously."""
        ...

    def compute(self, work: Callable[[], None], after: Iterable[Event]) -> Event:
        """Issue work on the compute stream."""
        ...

    def copy_in(self, target: Tensor, source: Tensor, after: Iterable[Event]) -> Event:
        """Issue a copy from the host to the device."""
        ...

    def copy_out(self, target: Tensor, source: Tensor, after: Iterable[Event]) -> Event:
        """Issue a copy from the device to the host."""
        ...

    def now(self) -> Event:
        """What was issued on the compute stream so far."""
        ...

    def issued(self) -> None:
        """Return once all compute work is issued, since what it reads may change after this."""
        ...

    def finish(self, events: Iterable[Event]) -> None:
        """Block the host until the events have happened."""
        ...

    def room(self) -> int:
        """Bytes that can be allocated on the device now without raising the peak of the run so far."""
        ...


class CpuDevice:
    """No accelerator: everything is done at once, so that no event is needed."""

    def empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def release(self, buffer: Tensor) -> None:
        pass

    def host(self, size: int) -> memoryview:
        return memoryview(_mapped(size, mmap.mmap))

    def compute(self, work: Callable[[], None], after: Iterable[Event]) -> Event:  # noqa: ARG002
        work()

    def copy_in(self, target: Tensor, source: Tensor, after: Iterable[Event]) -> Event:  # noqa: ARG002
        target.copy_(source)

    copy_out = copy_in

    def now(self) -> Event:
        return None

    def issued(self) -> None:
        pass

    def finish(self, events: Iterable[Event]) -> None:
        pass

    def room(self) -> int:
        return 0


class CudaDevice:
    """A CUDA device. The compute stream is the one that is current when work is issued."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def release(self, buffer: Tensor) -> None:
        # The allocator knows only the stream that asked for the buffer; the copies on the other two may not
        # have run yet.
        buffer.record_stream(self._in)
        buffer.record_stream(self._out)

    def host(self, size: int) -> memoryview:
        # torch's own pinned memory comes in powers of two: up to twice what is needed, of all the state.
        driver: Any = torch.cuda.cudart()
        memory = _mapped(size, Registered)
        address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
        try:
            with torch.cuda.device(self.device):  # or a context would be made on the first GPU
                torch.cuda.check_error(int(driver.cudaHostRegister(address, len(memory), 0)))
        except RuntimeError as error:
            raise RecipeError(
                f"The optimizer state needs {size / 2**30:.1f} GiB of pinned host memory, which the system "
                f"refuses ({error}); raise its limit of locked memory, or use state: keep."
            ) from error
        # Pages that stay registered are lost to the system until the process ends.
        memory.unregister = partial(driver.cudaHostUnregister, address)
        return memoryview(memory)

    def compute(self, work: Callable[[], None], after: Iterable[Event]) -> Event:
        stream = self._current()
        for event in after:
            stream.wait_event(event)
        work()
        return stream.record_event()

    def copy_in(self, target: Tensor, source: Tensor, after: Iterable[Event]) -> Event:
        return self._copy(self._in, target, source, after)

    def copy_out(self, target: Tensor, source: Tensor, after: Iterable[Event]) -> Event:
        return self._copy(self._out, target, source, after)

    def now(self) -> Event:
        return self._current().record_event()

    def issued(self) -> None:
        pass

    def finish(self, events: Iterable[Event]) -> None:
        for event in events:
            event.synchronize()

    def room(self) -> int:
        # What the run has taken at its peak is free to use between peaks; more would raise the peak.
        # Asked once and not through two functions, each of which sorts all of the statistics: this is called
        # at every gradient while something waits.
        allocated = torch.cuda.memory_stats_as_nested_dict(self.device)["allocated_bytes"]["all"]
        return allocated["peak"] - allocated["current"]

    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def _copy(
        self, stream: torch.cuda.Stream, target: Tensor, source: Tensor, after: Iterable[Event]
    ) -> Event:
        for event in after:
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return stream.record_event()


def device_of(device: torch.device) -> Device:
    """The interface to the device that parameters are on.

    Raises:
        RecipeError: it is neither a CPU nor a CUDA device.
    """
    if device.type == "cuda":
        return CudaDevice(device)
    if device.type == "cpu":
        return CpuDevice()
    raise RecipeError(
        f"Optimizer state can be offloaded from CUDA devices only; found {device.type}. Use state: keep."
    )


class Registered(mmap.mmap):
    """Mapped memory that a driver knows of until shortly before it is unmapped."""

    unregister: Callable[[], object] | None = None

    def __del__(self) -> None:
        # Not weakref.finalize, which Python calls when the memory is unmapped already: the driver would be
        # asked to let go of addresses that may belong to something else by then.
        if self.unregister is not None:
            self.unregister()


def _mapped(size: int, kind: type[Mapped]) -> Mapped:
    """Page-aligned memory of this size; a page is taken when it is first written."""
    try:
        return kind(-1, max(1, size))
    except OSError as error:
        raise RecipeError(
            f"The optimizer state needs {size / 2**30:.1f} GiB of host memory, which the system refuses "
            f"({error}); use state: keep or state: drop."
        ) from error
