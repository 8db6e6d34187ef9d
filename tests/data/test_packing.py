"""Packing keeps the order and loses nothing; next-fit is as tight as the order allows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.data import even_rows, pack
from gradwise.errors import DataError

LENGTHS = st.lists(st.integers(1, 50), max_size=80).map(np.array)


def one_by_one(lengths: np.ndarray, max_length: int) -> list[int]:
    """The oracle: take samples one at a time."""
    offsets, filled = [0], 0
    for number, length in enumerate(lengths.tolist()):
        if filled + length > max_length:
            offsets, filled = [*offsets, number], 0
        filled += length
    return [*offsets, len(lengths)] if len(lengths) else offsets


@given(LENGTHS, st.integers(50, 120))
def test_rows_are_next_fit_in_the_order_given(lengths, max_length):
    offsets = pack(lengths, max_length)
    assert offsets.dtype == np.int64
    assert offsets.tolist() == one_by_one(lengths, max_length)


@given(LENGTHS, st.integers(50, 120))
def test_every_row_fits_and_could_not_have_taken_one_more(lengths, max_length):
    offsets = pack(lengths, max_length)
    rows = [lengths[start:end] for start, end in pairwise(offsets)]
    assert sum(len(row) for row in rows) == len(lengths)
    assert all(0 < row.sum() <= max_length for row in rows)
    assert all(row.sum() + after[0] > max_length for row, after in pairwise(rows))


@given(LENGTHS.filter(len), st.data())
def test_even_rows_splits_without_moving_or_losing(lengths, data):
    offsets = pack(lengths, 60)
    rows = data.draw(st.integers(len(offsets) - 1, len(lengths)))
    evened = even_rows(offsets, rows)
    assert len(evened) == rows + 1
    assert set(offsets) <= set(evened)
    assert (np.diff(evened) > 0).all()
    assert (even_rows(offsets, rows) == evened).all()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(2, [0, 5, 9]), (3, [0, 3, 5, 9]), (4, [0, 3, 5, 7, 9]), (5, [0, 2, 3, 5, 7, 9])],
)
def test_even_rows_splits_the_widest_first_and_the_earliest_of_equals(rows, expected):
    assert even_rows(np.array([0, 5, 9]), rows).tolist() == expected


@pytest.mark.parametrize("rows", [1, 10])
def test_even_rows_refuses_what_splitting_cannot_reach(rows):
    with pytest.raises(ValueError, match=f"2 rows of 9 samples cannot be split into {rows}; 2 to 9 can"):
        even_rows(np.array([0, 5, 9]), rows)


@pytest.mark.parametrize(("lengths", "said"), [([3, 9, 2], "sample 1 has 9"), ([3, 4, 0], "sample 2 has 0")])
def test_a_sample_no_row_can_hold_is_named(lengths, said):
    with pytest.raises(DataError, match=said):
        pack(np.array(lengths), 8)


def test_no_samples_make_no_rows():
    assert pack(np.array([], dtype=np.int32), 8).tolist() == [0]
    assert even_rows(np.array([0]), 0).tolist() == [0]
