"""Streams differ whenever seed, purpose or numbers differ, and repeat whenever they are the same."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.numerics import stream, stream_seed

seeds = st.one_of(st.integers(0, 3), st.integers(0, 2**200))
purposes = st.one_of(st.sampled_from(["", "a", "b", "1", "a|1", "0|a", "1|0|a"]), st.text(max_size=5))
numbers = st.lists(st.one_of(st.integers(-2, 2), st.integers(-(2**80), 2**80)), max_size=4).map(tuple)
arguments = st.tuples(seeds, purposes, numbers)


def first(seed: int, purpose: str, numbers: tuple[int, ...]) -> list[int]:
    return stream(seed, purpose, *numbers).integers(0, 2**63, 2).tolist()


@given(arguments, arguments)
def test_two_streams_are_equal_only_if_all_arguments_are(one, other):
    assert (first(*one) == first(*other)) == (one == other)
    assert (stream_seed(one[0], one[1], *one[2]) == stream_seed(other[0], other[1], *other[2])) == (
        one == other
    )


@given(arguments, st.integers(1, 3))
def test_trailing_zeros_count(drawn, zeros: int):
    """numpy's SeedSequence ignores them: [5, 7] and [5, 7, 0] are one stream there."""
    seed, purpose, given_numbers = drawn
    longer = (*given_numbers, *[0] * zeros)
    assert first(seed, purpose, given_numbers) != first(seed, purpose, longer)
    assert stream_seed(seed, purpose, *given_numbers) != stream_seed(seed, purpose, *longer)


def test_no_two_of_many_share_a_number():
    numbers = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (-1,), (0, 0, 0)]
    arguments = product(range(5), ["", "a", "b", "1|a"], numbers)
    values = np.concatenate([stream(s, p, *n).integers(0, 2**63, 50) for s, p, n in arguments])
    assert len(set(values.tolist())) == len(values) == 5 * 4 * 8 * 50


@given(arguments)
def test_torch_seeds_have_63_bits(drawn):
    assert 0 <= stream_seed(drawn[0], drawn[1], *drawn[2]) < 2**63


def test_numbers_are_the_same_on_every_machine_and_for_ever():
    """A store of last year must keep its meaning."""
    assert first(0, "row signs", (3, -1)) == KNOWN
    assert stream_seed(0, "row signs", 3, -1) == KNOWN_SEED


def test_numpy_integers_count_as_integers():
    numbers = stream(np.int64(5), "a", np.int32(7)).integers(0, 2**63, 2)  # type: ignore[arg-type]
    assert first(5, "a", (7,)) == numbers.tolist()


def test_huge_seeds_and_the_global_state():
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert first(10**5000, "\ud800", ()) != first(10**5000 + 1, "\ud800", ())
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


def test_negative_seeds_and_fractions_are_refused():
    with pytest.raises(ValueError, match="must not be negative; found -1"):
        stream(-1, "a")
    with pytest.raises(TypeError):
        stream(0, "a", 0.5)  # type: ignore[arg-type]


KNOWN = [6618443540439530425, 221381031885539061]
KNOWN_SEED = 1980870788849537598
