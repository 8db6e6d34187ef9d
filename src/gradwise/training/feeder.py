"""Brings the batches of each step from the data set, with as many loader workers as asked for.

Every segment of the plan has a loader of its own, closed at the segment's end. What workers fetch ahead never
lies beyond the segment, so a decision that replaces the next segment cannot be overtaken by stale batches.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gradwise.data.tokenise import NO_LOSS
from gradwise.errors import DataError
from gradwise.numerics.streams import stream_seed
from gradwise.stopping import spare_worker, spared
from gradwise.training.batches import Batches, MicroBatch, Row
from gradwise.training.weighting import KEY, token_weights

Collate = Callable[[list[Any]], dict[str, Any]]


class Indexable(Protocol):
    """Samples by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RowDataset(Dataset[Any]):
    """A data set of rows: what the collator gets for a row is one sample, or the list of a packed row's
    samples."""

    def __init__(self, samples: Indexable, packed: bool) -> None:
        self.samples = samples
        self.packed = packed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, rows: tuple[Row, ...]) -> list[Any]:
        if self.packed:
            return [[self.samples[index] for index in row] for row in rows]
        return [self.samples[index] for (index,) in rows]


class Feeder:
    """Serves the micro-batches of any step; asking for consecutive steps is what is fast."""

    def __init__(
        self, batches: Batches, samples: Indexable, collate: Collate, *, seed: int = 0, **loader: Any
    ) -> None:
        """Args:
        batches: which rows form which step.
        samples: anything indexable by position.
        collate: makes a batch of a list of samples, or of packed rows.
        seed: of what samples or the collator draw in loader workers.
        loader: num_workers, pin_memory and the like, as torch's DataLoader takes them.
        """
        self.batches = batches
        self._rows = RowDataset(samples, packed=batches.pack is not None)
        self._collate = collate
        self._seed, self._loader = seed, loader
        self._stream: Iterator[dict[str, Any]] | None = None
        self._next = -1
        self._end = -1

    def step(self, step: int) -> list[dict[str, Any]]:
        """The collated micro-batches of this rank in `step`."""
        # A resumed run or a new plan asks for another step than the next; workers then begin there, and
        # nothing is skipped by reading it.
        if self._stream is None or step != self._next or step > self._end:
            self._open(step)
        assert self._stream is not None
        served = [self._served(next(self._stream), part) for part in self.batches.of_step(step)]
        self._next = step + 1
        # Closed at once: a decision before the next step may replace what workers would fetch ahead.
        if step == self._end:
            self.close()
        return served

    def follow(self, batches: Batches) -> None:
        """Serve another plan from now on."""
        self.close()
        self.batches = batches

    def close(self) -> None:
        """Let go of the loader and its workers."""
        self._stream = None
        self._next = -1

    def _open(self, step: int) -> None:
        self.close()
        self._end = self.batches.last_step(self.batches.segment(step))
        steps = range(step, self._end + 1)
        loader = DataLoader(
            self._rows,
            batch_sampler=_RowsOfSteps(self.batches, steps),
            collate_fn=self._collate,
            # A generator of its own: the loader's seed must not be drawn from the global random state,
            # which belongs to the model (dropout) and has to be the same after a resume.
            generator=torch.Generator().manual_seed(
                stream_seed(self._seed, "loader workers", self.batches.rank, step)
            ),
            worker_init_fn=spare_worker,
            **self._loader,
        )
        with spared():
            self._stream = iter(loader)

    def _served(self, batch: dict[str, Any], part: MicroBatch) -> dict[str, Any]:
        """A batch with the weights of its losses, or without effect where it does not count."""
        if part.weights is not None:
            return {**batch, KEY: token_weights(batch, part.weights, packed=self._rows.packed)}
        if part.counts:
            return batch
        if not isinstance(batch.get("labels"), Tensor):
            raise DataError(
                "The collator returns no labels, so a rank without samples cannot be left out of a step."
            )
        # Without labels it adds nothing to the loss, which is a sum over label tokens.
        return {**batch, "labels": torch.full_like(batch["labels"], NO_LOSS)}


class _RowsOfSteps(Sampler[Any]):
    """The rows of each micro-batch of a range of steps, as a DataLoader's batch sampler."""

    def __init__(self, batches: Batches, steps: range) -> None:
        self.batches = batches
        self.steps = steps

    def __iter__(self) -> Iterator[tuple[Row, ...]]:
        for step in self.steps:
            for part in self.batches.of_step(step):
                yield part.rows
