"""Products over parts of a matrix against the matrix in one piece."""

from pathlib import Path

import numpy as np
import pytest

from gradwise.numerics import rows as module
from gradwise.numerics.rows import Rows


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("part", [3, 100])
def test_equal_those_of_the_dense_matrix(
    dtype: str, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    p = rng.standard_normal((6, 3))
    np.testing.assert_allclose(rows.times(p), dense @ p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.times(p[:, 0]), dense @ p[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.sum_of([7, 0, 3]), dense[[0, 3, 7]].sum(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.squares(), (dense**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows.gram(), dense.T @ dense, rtol=1e-5, atol=1e-6)
    assert (len(rows), rows.width) == (8, 6)


def test_all_rows_as_they_are() -> None:
    x = np.arange(6.0).reshape(3, 2)
    assert Rows(x).times(np.ones(2)).tolist() == [1, 5, 9]
    assert Rows(x).sum_of([]).tolist() == [0, 0]
