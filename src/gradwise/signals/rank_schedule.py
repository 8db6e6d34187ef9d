"""Keeps the ranks that share a sharded model in step while each measures batches of its own.

FSDP gathers parameters in the forward and the backward pass, and all ranks must take part. So before each
forward/backward run the ranks agree on its kind: those that had planned such a run make theirs, the others
make one with a spare sample and throw the result away. Nothing is assumed of how many runs a rank makes, nor
in which order: a rank may measure a batch again, sample by sample.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gradwise.ranks import gathered, marked, portable, raised_everywhere


class RunKind(NamedTuple):
    """What decides which parameters a forward/backward run gathers, and in which order."""

    gradients: bool = False
    """Whether gradients of the scope are watched."""
    head: bool = False
    """Whether those of the head are."""
    learning: tuple[str, ...] = ()
    """Parameters whose gradients autograd gives."""


class RankSchedule:
    """The runs that the ranks make together.

    Args:
        join: makes a run of a kind with a spare sample.
    """

    def __init__(self, join: Callable[[RunKind], object]) -> None:
        self._join = join
        self._interrupted = False

    @contextmanager
    def shared_run(self, kind: RunKind) -> Iterator[None]:
        """The forward/backward run within it is one that all ranks make now; a collective call."""
        while (due := self._due(kind)) != kind:
            assert due is not None
            self._joined(due)
        self._interrupted = True
        yield
        self._interrupted = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Each rank makes runs within it, and leaves it when all ranks are done; a collective call.

        What one rank raises between two runs is raised on all of them. After an error within a run nothing
        can be agreed on: the others learn of it when that rank's process ends.
        """
        try:
            yield
            while (due := self._due(None)) is not None:
                self._joined(due)
        except BaseException as error:
            # Within a run the other ranks are in the model's own collective calls, which this exchange would
            # not meet.
            if not self._interrupted and not raised_everywhere(error):
                self._exchanged((None, portable(marked(error))))
            raise

    def _due(self, mine: RunKind | None) -> RunKind | None:
        """The kind of the next run of all ranks; None where no rank has any left."""
        states = self._exchanged((mine, None))
        for _, error in states:
            if error is not None:
                raise error
        return next((kind for kind, _ in states if kind is not None), None)

    def _exchanged(
        self, mine: tuple[RunKind | None, BaseException | None]
    ) -> list[tuple[RunKind | None, BaseException | None]]:
        self._interrupted = True
        states = gathered(mine)
        self._interrupted = False
        return states

    def _joined(self, kind: RunKind) -> None:
        self._interrupted = True
        self._join(kind)
        self._interrupted = False
