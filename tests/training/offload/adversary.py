"""A device on which everything that events leave open happens at the worst time.

Each stream is a queue. What is at the head of a queue runs when its events have happened, and which of the
heads runs next is drawn at random. Memory is overwritten with NaN by the compute stream after it is
allocated, as its earlier owner may, and some time after all that was issued before its release is done, as a
later owner may.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

STREAMS = ("compute", "in", "out")


@dataclass(eq=False)
class Work:
    """Something issued on a stream; it is its own event."""

    run: Callable[[], object]
    after: list["Work"] = field(default_factory=list)
    done: bool = False


class Adversary:
    """Implements `gradwise.training.offload.device.Device`.

    Args:
        seed: of the order in which things happen.
        room: bytes that the stream may take during the backward pass.
        prefers: streams whose work runs first whenever it can, the others as late as possible.
    """

    def __init__(self, seed: int = 0, room: int = 0, prefers: tuple[str, ...] = ()) -> None:
        self.rng = np.random.default_rng(seed)
        self.queues: dict[str, deque[Work]] = {name: deque() for name in STREAMS}
        self.free, self.prefers = room, prefers
        self.allocated = self.most = 0
        self.copies: list[str] = []

    def empty(self, size: int) -> Tensor:
        buffer = torch.zeros(size, dtype=torch.uint8)
        self._issue("compute", lambda: _spoil(buffer), [])
        self.free -= size
        self.allocated += size
        self.most = max(self.most, self.allocated)
        return buffer

    def release(self, buffer: Tensor) -> None:
        used = [self.queues[name][-1] for name in STREAMS if self.queues[name]]
        later = f"later {len(self.queues)}"
        self.queues[later] = deque()
        self._issue(later, lambda: _spoil(buffer), used)
        self.free += len(buffer)
        self.allocated -= len(buffer)

    def host(self, size: int) -> memoryview:
        return memoryview(bytearray(max(1, size)))

    def compute(self, work: Callable[[], None], after: Iterable[Work]) -> Work:
        return self._issue("compute", work, after)

    def copy_in(self, target: Tensor, source: Tensor, after: Iterable[Work]) -> Work:
        self.copies.append("in")
        return self._issue("in", lambda: target.copy_(source), after)

    def copy_out(self, target: Tensor, source: Tensor, after: Iterable[Work]) -> Work:
        self.copies.append("out")
        return self._issue("out", lambda: target.copy_(source), after)

    def now(self) -> Work:
        return self._issue("compute", lambda: None, [])

    def issued(self) -> None:
        if self.queues["compute"]:
            self.finish([self.queues["compute"][-1]])

    def finish(self, events: Iterable[Work]) -> None:
        for event in events:
            while not event.done:
                self._run_one()

    def room(self) -> int:
        return self.free

    def _issue(self, stream: str, run: Callable[[], object], after: Iterable[Work]) -> Work:
        work = Work(run, list(after))
        self.queues[stream].append(work)
        while self.rng.random() < 0.3 and self._ready():
            self._run_one()
        return work

    def _ready(self) -> list[str]:
        return [
            name for name, queue in self.queues.items() if queue and all(work.done for work in queue[0].after)
        ]

    def _run_one(self) -> None:
        ready = self._ready()
        assert ready, "the streams wait for each other"
        chosen = [name for name in ready if name in self.prefers] or ready
        work = self.queues[chosen[self.rng.integers(len(chosen))]].popleft()
        work.run()
        work.done = True


def _spoil(buffer: Tensor) -> None:
    buffer.fill_(0xFF)  # NaN in every float type
