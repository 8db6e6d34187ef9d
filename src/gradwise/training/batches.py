"""How a plan is cut into optimizer steps, rows and micro-batches: the one place that knows of ranks and
accumulation.

Step s of an epoch takes the next `batch_size` rows of the plan. They are dealt out in micro-batches, rank by
rank and pass by pass, so that accumulation and ranks change who computes a sample, never which samples form a
step. A row is one sample, or with packing the run of samples that fit `max_length` together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import PlanError, RecipeError
from gradwise.training.plan import Plan

Row = tuple[int, ...]
"""Positions in the data set of the samples of one row."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank passes through the model at one time."""

    rows: tuple[Row, ...]

    counts: bool = True
    """False for what a rank computes without effect when a step has too few rows for all."""

    weights: tuple[tuple[float, ...], ...] | None = None
    """What the loss of each row's samples is multiplied by; None where that is 1 for all."""


@dataclass(frozen=True, eq=False)
class Batches:
    """A plan cut into the steps of one rank."""

    plan: Plan
    batch_size: int
    """Rows per step over all ranks and passes."""
    micro_batch: int
    """Rows per rank and pass; `micro_batch * ranks` divides `batch_size`."""
    rank: int = 0
    ranks: int = 1
    drop_last: bool = False
    """Leave out rows at an epoch's end that do not fill a micro-batch on every rank."""
    pack: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None
    """Offsets (rows + 1,) at which rows start, given a segment's indices; None: a row per sample."""
    weighted: bool = False
    """Whether the plan's weights multiply losses."""

    def __post_init__(self) -> None:
        if self.batch_size % (self.micro_batch * self.ranks):
            raise RecipeError(
                f"A batch of {self.batch_size} is not a multiple of {self.micro_batch} per micro-batch times "
                f"{self.ranks} ranks."
            )
        if not self.steps_per_epoch:
            raise RecipeError(
                f"{len(self._offsets[0]) - 1} rows fill no batch of {self.micro_batch * self.ranks}, and "
                "dataloader_drop_last leaves them out; lower the batch size."
            )
        self._check_epochs()

    def _check_epochs(self) -> None:
        """The Trainer counts passes: each epoch must have as many; a step may be short at its end."""
        epochs = self._epochs
        rows = np.bincount(epochs, weights=self._rows).astype(np.int64)
        passes = -(-rows // (self.micro_batch * self.ranks))
        steps = self._steps_of_epochs
        # The Trainer multiplies one number of steps by the number of epochs, and would end too early or too
        # late.
        if np.any(steps != steps[0]) or np.any(passes != passes[0]):
            raise PlanError(
                "Every epoch of a plan must have the same number of steps and of passes; found "
                f"{steps.tolist()} steps and {passes.tolist()} passes."
            )
        # A step that a segment ends in the middle of accumulation would mix rows of two decisions.
        inner = self._rows[:-1][epochs[1:] == epochs[:-1]]
        if self.batch_size > self.micro_batch * self.ranks and np.any(inner % self.batch_size):
            raise PlanError(
                "With accumulation, a segment that is not the last of its epoch must hold whole steps of "
                f"{self.batch_size} rows; found {inner.tolist()} rows."
            )

    @cached_property
    def _offsets(self) -> list[NDArray[np.int64]]:
        """For each segment where its rows start, all epochs brought to the same number of rows."""
        if self.pack is None:
            return [np.arange(len(segment) + 1) for segment in self.plan.segments]
        from gradwise.data.packing import even_rows

        offsets = [self.pack(segment.indices) for segment in self.plan.segments]
        if len(offsets) == self.plan.epochs - self.plan.first_epoch:
            most = max(len(starts) for starts in offsets) - 1
            # Packing gives epochs different numbers of rows; the Trainer uses one number of steps for all, so
            # rows are split.
            offsets = [even_rows(starts, most) for starts in offsets]
        return offsets

    @cached_property
    def _epochs(self) -> NDArray[np.int64]:
        """(segments,) epoch of each segment, counted from the first that the plan holds."""
        return np.array([segment.epoch for segment in self.plan.segments]) - self.plan.first_epoch

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """(segments,) rows of each segment that are used."""
        rows = np.array([len(starts) - 1 for starts in self._offsets])
        if self.drop_last:
            last_of_epoch = np.append(np.diff(self._epochs) > 0, True)
            whole = self.micro_batch * self.ranks
            rows = np.where(last_of_epoch, rows // whole * whole, rows)
        return rows

    @cached_property
    def _first_steps(self) -> NDArray[np.int64]:
        """(segments + 1,) step at which each segment starts."""
        first = self.plan.first_epoch * self.steps_per_epoch
        return first + np.concatenate([[0], np.cumsum(self._steps)])

    @cached_property
    def _steps(self) -> NDArray[np.int64]:
        """(segments,) steps of each segment."""
        return -(-self._rows // self.batch_size)

    @cached_property
    def _steps_of_epochs(self) -> NDArray[np.int64]:
        return np.bincount(self._epochs, weights=self._steps).astype(np.int64)

    @property
    def steps(self) -> int:
        """Steps up to the end of what the plan lays out."""
        return int(self._first_steps[-1])

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass, the same for all."""
        return int(self._steps_of_epochs[0])

    @cached_property
    def micro_batches_per_epoch(self) -> int:
        """Passes that every rank makes in one epoch."""
        first_epoch = self._rows[self._epochs == 0]
        whole, rest = np.divmod(first_epoch, self.batch_size)
        passes = whole * (self.batch_size // (self.micro_batch * self.ranks))
        return int(np.sum(passes - (-rest // (self.micro_batch * self.ranks))))

    @cached_property
    def has_stand_ins(self) -> bool:
        """Whether some step has too few rows to give every rank as many passes."""
        last_steps = self._first_steps[1:] - 1
        return any(-(-self._rows_of(int(step))[1] // self.micro_batch) % self.ranks for step in last_steps)

    def segment(self, step: int) -> int:
        """Number of the segment that step belongs to."""
        if not self._first_steps[0] <= step < self.steps:
            raise PlanError(
                f"The plan holds the steps {self._first_steps[0]} to {self.steps}; there is no step {step}."
            )
        return int(np.searchsorted(self._first_steps, step, side="right")) - 1

    def first_step(self, segment: int) -> int:
        """The first step of a segment."""
        return int(self._first_steps[segment])

    def last_step(self, segment: int) -> int:
        """The last step of a segment."""
        return int(self._first_steps[segment + 1]) - 1

    def used(self, step: int) -> int:
        """Samples of the plan served before `step`, those that an epoch's end dropped included."""
        if step == self.steps:
            return int(self.plan.starts[-1])
        segment = self.segment(step)
        first = (step - self._first_steps[segment]) * self.batch_size
        return int(self.plan.starts[segment] + self._offsets[segment][first])

    def entries_between(self, start: int, stop: int) -> int:
        """Entries that a run without packing trains on from one step up to another, also beyond what the plan
        lays out."""
        of_epoch = int(self._rows[self._epochs == 0].sum())

        def before(step: int) -> int:
            epochs, rest = divmod(step, self.steps_per_epoch)
            return epochs * of_epoch + min(rest * self.batch_size, of_epoch)

        return before(stop) - before(start)

    def samples(self, step: int) -> NDArray[np.int64]:
        """Positions in the data set of all samples of a step, over all ranks, in the plan's order."""
        rows = self._step_rows(step)
        return np.array([index for row in rows for index in row], dtype=np.int64)

    def of_step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of this rank in one step."""
        rows = self._step_rows(step)
        chunks = [tuple(rows[at : at + self.micro_batch]) for at in range(0, len(rows), self.micro_batch)]
        weights = self._step_weights(step)
        parts = [
            MicroBatch(chunk, weights=_acting(weights and weights[number * self.micro_batch :][: len(chunk)]))
            for number, chunk in enumerate(chunks)
        ]
        # A rank without rows still has to call the model as often as the others, or their collectives wait
        # for it forever. What it computes has no label. accelerate would repeat samples instead, which would
        # then count twice.
        stand_in = MicroBatch(rows[:1], counts=False)
        mine = range(self.rank, -(-len(chunks) // self.ranks) * self.ranks, self.ranks)
        return [parts[number] if number < len(parts) else stand_in for number in mine]

    def _rows_of(self, step: int) -> tuple[int, int]:
        """The first row of a step within its segment, and the number of its rows."""
        segment = self.segment(step)
        first = int((step - self._first_steps[segment]) * self.batch_size)
        return first, min(self.batch_size, int(self._rows[segment]) - first)

    def _step_rows(self, step: int) -> tuple[Row, ...]:
        return self._by_row(step, self.plan.segments[self.segment(step)].indices)

    def _step_weights(self, step: int) -> tuple[tuple[float, ...], ...] | None:
        weights = self.plan.segments[self.segment(step)].weights
        return self._by_row(step, weights) if self.weighted and weights is not None else None

    def _by_row(self, step: int, values: NDArray[Any]) -> tuple[tuple[Any, ...], ...]:
        """Values of a segment's entries, for each row of a step."""
        first, count = self._rows_of(step)
        starts = self._offsets[self.segment(step)]
        return tuple(
            tuple(values[starts[row] : starts[row + 1]].tolist()) for row in range(first, first + count)
        )


def _acting(weights: tuple[tuple[float, ...], ...] | None) -> tuple[tuple[float, ...], ...] | None:
    """None where all weights are 1, so that the loss is computed as it is without weights."""
    return weights if weights and any(weight != 1 for row in weights for weight in row) else None
