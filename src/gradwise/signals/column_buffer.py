"""Where the rows of a scoring run are put: in memory, or in a store on disk (`gradwise.signals.store`).

A scoring run is cut into blocks, the unit of work. Whoever does a block writes the block's rows and nothing
else, so any number of processes can fill one buffer.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwise.ranks import connected, gathered
from gradwise.signals.request import QUANTITIES

MEASURED, NOT_HELD = 1, 2
"""Flags of a row beside those of its quantities: it was measured; half precision does not hold it."""

NOT_FINITE = {name: 4 << place for place, name in enumerate(QUANTITIES)}
"""Flag of each quantity that is not finite."""


class Column(NamedTuple):
    """One quantity: its type and the shape of one row."""

    dtype: str
    tail: tuple[int, ...]


class ColumnBuffer(ABC):
    """N rows of several quantities, filled block by block."""

    columns: Mapping[str, Column]

    @abstractmethod
    def done(self) -> NDArray[np.bool_]:
        """(blocks,) which were filled when the buffer was opened; the same on all ranks."""

    @abstractmethod
    def fill(self, name: str, values: NDArray) -> None:
        """Put a whole column that is known beforehand."""

    @abstractmethod
    def leave_out(self, rows: NDArray[np.int64]) -> None:
        """Put NaN in rows that are in no block."""

    @abstractmethod
    def write(self, block: int, rows: NDArray[np.int64], values: Mapping[str, NDArray]) -> None:
        """Fill a block: `values` by quantity, with as many rows as `rows` has numbers."""

    @abstractmethod
    def close(self, blocks: Sequence[NDArray[np.int64]]) -> dict[str, NDArray]:
        """All quantities once every rank has done its share of `blocks`; a collective call."""


class InMemoryBuffer(ColumnBuffer):
    """A buffer of ordinary arrays, brought together over ranks at the end."""

    def __init__(self, size: int, columns: Mapping[str, Column], blocks: int) -> None:
        self.columns = columns
        self._done = np.zeros(blocks, dtype=bool)
        self._arrays = {name: blank(size, column) for name, column in columns.items()}

    def done(self) -> NDArray[np.bool_]:
        return self._done.copy()

    def fill(self, name: str, values: NDArray) -> None:
        self._arrays[name][:] = values

    def leave_out(self, rows: NDArray[np.int64]) -> None:
        pass  # the arrays begin with NaN everywhere

    def write(self, block: int, rows: NDArray[np.int64], values: Mapping[str, NDArray]) -> None:
        for name, rows_of in values.items():
            self._arrays[name][rows] = rows_of
        self._done[block] = True

    def close(self, blocks: Sequence[NDArray[np.int64]]) -> dict[str, NDArray]:
        if connected()[1] > 1:
            # Each rank has NaN where others measured, so that only finished blocks are exchanged.
            finished = np.flatnonzero(self._done).tolist()
            mine = {b: {name: array[blocks[b]] for name, array in self._arrays.items()} for b in finished}
            for share in gathered(mine):
                for block, values in share.items():
                    self.write(block, blocks[block], values)
        return self._arrays


def blank(size: int, column: Column) -> NDArray:
    """Rows of what was not measured: NaN, or 0 where the type has none."""
    fill = np.nan if np.issubdtype(column.dtype, np.floating) else 0
    return np.full((size, *column.tail), fill, dtype=column.dtype)


def stored(values: NDArray, column: Column) -> tuple[NDArray, NDArray[np.bool_]]:
    """Values in the type they are kept in, and (rows,) which of them that type can hold.

    Half precision holds neither what is beyond 65,504 nor, to three digits, what is below 6e-5: a row whose
    length changes by more than a hundredth is reported.
    """
    with np.errstate(over="ignore"):
        converted = values.astype(column.dtype)
    if column.dtype != "float16":
        return converted, np.ones(len(values), dtype=bool)
    before = np.linalg.norm(values.astype(np.float64), axis=-1)
    with np.errstate(invalid="ignore"):
        after = np.linalg.norm(converted.astype(np.float64), axis=-1)
        # The length of a row is what selections compare; a change of 1 % is about three digits, all that half
        # precision has.
        fits = np.isfinite(after) & (np.abs(after - before) <= 1e-2 * before)
    return converted, fits | ~np.isfinite(before)
