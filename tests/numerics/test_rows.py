"""Rows read in parts against the matrix in one piece, and near-copies against a loop over all pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import rows as module
from gradwise.numerics.rows import Rows, first_equal, near_copy_leaders


class TestRows:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("part", [3, 100])
    def test_products_equal_those_of_the_dense_matrix(
        self, dtype: str, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "PART", part)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((20, 6)).astype(dtype)
        np.save(tmp_path / "x.npy", x)
        chosen = np.array([1, 2, 3, 4, 9, 10, 15, 19])
        scale = rng.random(8)
        without = np.linalg.qr(rng.standard_normal((6, 2)))[0]
        rows = Rows(np.load(tmp_path / "x.npy", mmap_mode="r"), chosen, scale, without)
        dense = (x[chosen].astype(np.float64) * scale[:, None]) @ (np.eye(6) - without @ without.T)
        p, weights = rng.standard_normal((6, 3)), np.array([0.5, 2.0, -1.0])
        close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(rows.times(p), dense @ p, **close)
        np.testing.assert_allclose(rows.times(p[:, 0]), dense @ p[:, 0], **close)
        np.testing.assert_allclose(rows.some([7, 0, 3]), dense[[7, 0, 3]], **close)
        np.testing.assert_allclose(rows.sum_of([7, 0, 3]), dense[[0, 3, 7]].sum(axis=0), **close)
        np.testing.assert_allclose(rows.sum_of([7, 0, 3], weights), weights @ dense[[7, 0, 3]], **close)
        np.testing.assert_allclose(rows.squares(), (dense**2).sum(axis=1), rtol=1e-5)
        np.testing.assert_allclose(rows.gram(), dense.T @ dense, **close)
        assert (len(rows), rows.width) == (8, 6)

    def test_defaults_leave_the_matrix_as_it_is(self) -> None:
        x = np.arange(6.0).reshape(3, 2)
        assert Rows(x).times(np.ones(2)).tolist() == [1, 5, 9]
        assert Rows(x).sum_of([]).tolist() == [0, 0]


def leaders_by_all_pairs(x: np.ndarray, cosine: float) -> list[int]:
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    leaders: list[int] = []
    result = []
    for i, row in enumerate(unit):
        near = [j for j in leaders if unit[j] @ row > cosine]
        result.append(near[0] if near else i)
        if not near:
            leaders.append(i)
    return result


class TestAlike:
    @pytest.mark.parametrize("width", [3, 64])
    @given(seed=st.integers(0, 200), noise=st.sampled_from([0.0, 1e-4, 3e-3]))
    @settings(max_examples=50)
    def test_leaders_equal_those_of_a_loop_over_all_pairs(self, width: int, seed: int, noise: float) -> None:
        rng = np.random.default_rng(seed)
        kinds = rng.standard_normal((12, width))
        x = kinds[rng.integers(0, 12, 40)]
        x = (x + noise * rng.standard_normal(x.shape)) * rng.uniform(0.5, 2, (40, 1))
        x = x.astype(np.float32)
        assert near_copy_leaders(x, 0.999).tolist() == leaders_by_all_pairs(x.astype(np.float64), 0.999)

    def test_scaled_copies_in_half_precision(self) -> None:
        x = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float16)
        assert (
            near_copy_leaders(np.concatenate([x, x, (2 * x).astype(np.float16)]), 0.999).tolist()
            == [*range(5)] * 3
        )

    def test_some_rows_of_a_larger_matrix(self) -> None:
        x = np.eye(4)[[0, 1, 0, 2, 0, 1]]
        assert near_copy_leaders(x, 0.99, rows=np.array([1, 2, 4, 5])).tolist() == [0, 1, 1, 0]

    def test_rows_of_zeros_are_alike_to_nothing(self) -> None:
        assert near_copy_leaders(np.zeros((3, 4)), 0.9).tolist() == [0, 1, 2]


@given(seed=st.integers(0, 200), cut=st.integers(0, 30))
@settings(max_examples=40)
def test_first_equal_rows_do_not_depend_on_parts(seed: int, cut: int) -> None:
    x = np.random.default_rng(seed).integers(-1, 2, (30, 2)) * 0.5
    expected = [next(j for j in range(30) if np.array_equal(x[j], x[i])) for i in range(30)]
    assert first_equal(x).tolist() == expected
    seen: dict[bytes, int] = {}
    parts = [first_equal(x[:cut], seen), first_equal(x[cut:], seen, cut)]
    assert np.concatenate(parts).tolist() == expected
