"""k-center against its definition in plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.numerics import k_center
from gradwise.numerics.nearest import cosine, unit


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 6), st.booleans())
def test_is_always_the_farthest(seed: int, n: int, h: int, grid: bool):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, h))
    x = np.round(x) if grid else x
    rows, count = unit(x), int(rng.integers(0, n + 1))
    middle = unit(rows.mean(axis=0, dtype=np.float64)[None])[0]
    expected: list[int] = []
    for _ in range(count):
        left = [i for i in range(n) if i not in expected]
        if not expected:
            expected.append(max(left, key=lambda i: (cosine(rows[i], middle), -i)))
            continue
        near = {i: max(cosine(rows[i], rows[j]) for j in expected) for i in left}
        expected.append(min(left, key=lambda i: (near[i], i)))
    assert k_center(x, count).tolist() == expected


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="Of 3 rows, 4"):
        k_center(np.eye(3), 4)
    with pytest.raises(ValueError, match="Row 1 holds"):
        k_center(np.array([[1.0], [np.nan]]), 1)
