"""Copies and near copies against a plain loop over all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.numerics.alike import alike, first_equal


def by_all_pairs(x: np.ndarray, cosine: float) -> list[int]:
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    leaders: list[int] = []
    result = []
    for i, row in enumerate(unit):
        near = [j for j in leaders if unit[j] @ row > cosine]
        result.append(near[0] if near else i)
        if not near:
            leaders.append(i)
    return result


@pytest.mark.parametrize("width", [3, 64])
@given(seed=st.integers(0, 200), noise=st.sampled_from([0.0, 1e-4, 3e-3]))
def test_equals_a_loop_over_all_pairs(width: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((12, width))
    x = kinds[rng.integers(0, 12, 40)]
    x = (x + noise * rng.standard_normal(x.shape)) * rng.uniform(0.5, 2, (40, 1))
    x = x.astype(np.float32)
    found, expected = alike(x, 0.999), by_all_pairs(x.astype(np.float64), 0.999)
    assert found.tolist() == expected


def test_half_precision_and_scaled_copies() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 256)).astype(np.float16)
    assert alike(np.concatenate([x, x, (2 * x).astype(np.float16)]), 0.999).tolist() == [*range(5)] * 3


def test_some_rows_of_a_larger_matrix() -> None:
    x = np.eye(4)[[0, 1, 0, 2, 0, 1]]
    assert alike(x, 0.99, rows=np.array([1, 2, 4, 5])).tolist() == [0, 1, 1, 0]


def test_rows_of_zeros_are_alike_to_nothing() -> None:
    assert alike(np.zeros((3, 4)), 0.9).tolist() == [0, 1, 2]


@given(seed=st.integers(0, 200), cut=st.integers(0, 30))
def test_first_equal_rows_are_the_same_in_parts(seed: int, cut: int) -> None:
    x = np.random.default_rng(seed).integers(-1, 2, (30, 2)) * 0.5
    expected = [next(j for j in range(30) if np.array_equal(x[j], x[i])) for i in range(30)]
    assert first_equal(x).tolist() == expected
    seen: dict[bytes, int] = {}
    parts = [first_equal(x[:cut], seen), first_equal(x[cut:], seen, cut)]
    assert np.concatenate(parts).tolist() == expected
