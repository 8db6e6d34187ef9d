"""A Trainer's own loader, read step by step: for streamed data, and for prompts that a trainer repeats.

A stream has no length and no positions, so where training stands in it is counted: epochs read, and
micro-batches used of the next one. A run that resumes reads up to there again.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_utils import has_length

from gradwise.errors import CheckpointError, DataError


class Position(NamedTuple):
    """Where training stands in the data."""

    epoch: int = 0
    """Epochs that were read to their end."""
    batches: int = 0
    """Micro-batches that were used of the next one."""


class TrainerLoader:
    """The micro-batches of one rank.

    A step takes `accumulation` of them. At the end of a loader that has a length it takes those that are
    left, as the Trainer expects it; a stream without a length continues with its beginning.

    Args:
        loader: yields a micro-batch at a time; it is iterated once per epoch.
        accumulation: micro-batches of a step.
        begin: called with the number of an epoch before it is read.
        start: where a resumed run stands.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        accumulation: int,
        *,
        begin: Callable[[int], object],
        start: Position = Position(),  # noqa: B008
    ) -> None:
        self.length: int | None = len(loader) if has_length(loader) else None
        """Micro-batches of an epoch; None if not known."""
        self.position = start
        """After the steps that were served."""
        self._loader: Any = loader
        self._accumulation, self._begin = accumulation, begin
        self._epoch, self._read = start
        if self._read == self.length:
            self._epoch, self._read = self._epoch + 1, 0
        self._stream: Iterator[Any] | None = None
        self._fetched: deque[tuple[list[Any], Position]] = deque()

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch; None if its length is not known."""
        return None if self.length is None else -(-self.length // self._accumulation)

    def step(self) -> list[Any]:
        """The micro-batches of the next step."""
        batches = self.ahead(0)
        self.position = self._fetched.popleft()[1]
        return batches

    def ahead(self, number: int) -> list[Any]:
        """The micro-batches of the step `number` steps after the next one, which stay to be served."""
        while len(self._fetched) <= number:
            count = self._accumulation
            if self.length:
                # No step takes micro-batches of two epochs, as in the Trainer.
                count = min(count, self.length - self._read % self.length)
            batches = [self._next() for _ in range(count)]
            self._fetched.append((batches, Position(self._epoch, self._read)))
        return self._fetched[number][0]

    def close(self) -> None:
        """Let go of the loader's workers."""
        self._stream = None
        self._fetched.clear()

    def _next(self) -> Any:
        batch = next(self._stream, None) if self._stream is not None else None
        if batch is None:
            if self._stream is not None:
                self._epoch, self._read = self._epoch + 1, 0
            batch = self._first()
        self._read += 1
        return batch

    def _first(self) -> Any:
        """The first micro-batch of an epoch that training has not used."""
        self._begin(self._epoch)
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(self._epoch)
        # A loader draws a seed when it is opened. The random state belongs to the model, and has to be the
        # same in a run that was resumed since.
        with torch.random.fork_rng([]):
            stream = self._stream = iter(self._loader)
            # A stream cannot be entered in the middle: what was used is read again and dropped.
            for _ in range(self._read):
                next(stream, None)
            batch = next(stream, None)
        if batch is None and self._read:
            raise CheckpointError(
                "The training data end before the checkpoint's place in them; give the same data."
            )
        if batch is None:
            raise DataError("The training data set is empty.")
        return batch


class RepeatedPrompts(Sampler[int]):
    """The prompts of an epoch as a trainer that generates takes them: `group` times each, and each chunk of
    prompts `repeats` times over. Prompts that fill no chunk are left out.

    Args:
        chunk: different prompts of one generation, over all ranks.
        group: answers to each prompt.
        repeats: how often a chunk is served.
    """

    def __init__(self, chunk: int, group: int, repeats: int) -> None:
        self.chunk, self.group, self.repeats = chunk, group, repeats
        self.order: Sequence[int] = ()
        """Positions in the data set of the epoch's prompts."""

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self.order) - self.chunk + 1, self.chunk):
            for _ in range(self.repeats):
                for index in self.order[start : start + self.chunk]:
                    yield from [index] * self.group

    def __len__(self) -> int:
        return len(self.order) // self.chunk * self.chunk * self.group * self.repeats
