"""Precedence relations: their extensions, cycles and implications, against slow definitions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics.precedence import components, linear_extension, on_a_cycle, reachable


@st.composite
def relations(draw):
    n = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    return rng.random((n, n)) < draw(st.sampled_from([0.0, 0.05, 0.15, 0.5])), rng


def reached(arcs: np.ndarray) -> np.ndarray:
    reach = arcs.copy()
    for k in range(len(arcs)):
        reach |= reach[:, k, None] & reach[None, k, :]
    return reach


@given(relations())
@settings(max_examples=60)
def test_components_reach_each_other_and_follow_the_arcs(drawn):
    arcs, _ = drawn
    reach, parts = reached(arcs), components(arcs)
    number = np.full(len(arcs), -1)
    for place, part in enumerate(parts):
        number[part] = place
        assert part.tolist() == sorted(part)
    mutual = (reach & reach.T) | np.eye(len(arcs), dtype=bool)
    assert np.array_equal(mutual, number[:, None] == number[None, :])
    assert np.all((number[:, None] <= number[None, :])[arcs])
    assert on_a_cycle(arcs).tolist() == np.flatnonzero(np.diag(reach)).tolist()


@given(relations())
@settings(max_examples=60)
def test_an_extension_takes_the_first_preferred_item_without_predecessors(drawn):
    arcs, rng = drawn
    preferred = rng.permutation(len(arcs))
    expected, left = [], list(preferred)
    while free := [item for item in left if not any(arcs[other, item] for other in left)]:
        expected.append(free[0])
        left.remove(free[0])
    assert linear_extension(arcs, preferred).tolist() == expected
    assert bool(left) == bool(len(on_a_cycle(arcs)))


@given(relations())
@settings(max_examples=60)
def test_reachable_items_are_those_on_a_path(drawn):
    arcs = np.triu(drawn[0], 1)
    hidden = drawn[1].permutation(len(arcs))
    arcs = arcs[np.ix_(hidden, hidden)]
    assert np.array_equal(reachable(arcs), reached(arcs))
