"""Herding and k-center against their definitions in plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import coresets, herd, herd_towards, k_center
from gradwise.numerics.nearest import cosine, unit


def slow_herd(x: np.ndarray, block: int) -> list[int]:
    """The row that brings the sum nearest to t times the mean, among the rows left in the block."""
    mean, total, order = x.mean(axis=0), np.zeros(x.shape[1]), []
    for start in range(0, len(x), block):
        left = list(range(start, min(start + block, len(x))))
        while left:
            t = len(order) + 1
            pick = min(left, key=lambda i: np.linalg.norm(total + x[i] - t * mean))
            order.append(pick)
            left.remove(pick)
            total += x[pick]
    return order


class TestHerd:
    @pytest.mark.parametrize(
        ("shift", "block"), [(0.0, None), (10.0, None), (0.0, 1), (0.0, 7), (0.0, 20), (0.0, 99)]
    )
    def test_each_row_brings_the_sum_nearest_to_its_share(self, shift: float, block: int | None) -> None:
        x = np.random.default_rng(2).standard_normal((40, 5)) + shift
        assert herd(x, block).tolist() == slow_herd(x, block or 40)

    def test_prefixes_are_nearer_the_mean_than_at_random(self) -> None:
        rng = np.random.default_rng(3)
        x = rng.standard_normal((300, 6))

        def farthest(order: np.ndarray) -> float:
            return float(np.linalg.norm(np.cumsum(x[order] - x.mean(axis=0), axis=0), axis=1).max())

        assert farthest(herd(x)) < 0.5 * min(farthest(rng.permutation(300)) for _ in range(50))

    def test_the_order_does_not_depend_on_keeping_inner_products(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = np.random.default_rng(4).standard_normal((200, 3))
        order = herd(x)
        monkeypatch.setattr(coresets, "GRAM", 10)
        assert herd(x).tolist() == order.tolist()

    def test_edges(self) -> None:
        assert herd(np.zeros((0, 3))).tolist() == []
        assert herd(np.ones((3, 2))).tolist() == [0, 1, 2]
        with pytest.raises(ValueError, match=r"\(n, d\); found shape \(3,\)"):
            herd(np.zeros(3))
        with pytest.raises(ValueError, match="Row 1 holds a value that is not finite"):
            herd(np.array([[0.0], [np.nan]]))
        with pytest.raises(ValueError, match="at least one row; found 0"):
            herd(np.eye(3), 0)


class TestHerdTowards:
    def test_each_pick_has_the_largest_product_with_what_is_owed(self) -> None:
        x = np.random.default_rng(0).standard_normal((30, 4))
        target, owed, left, expected = x.mean(axis=0), np.zeros(4), set(range(30)), []
        for _ in range(12):
            owed = owed + target
            pick = max(left, key=lambda i: x[i] @ owed)
            expected.append(pick)
            left.remove(pick)
            owed = owed - x[pick]
        assert herd_towards(x, target, 12).tolist() == expected

    def test_the_mean_is_nearer_than_by_chance(self) -> None:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((400, 8))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        target = x.mean(axis=0)
        herded = np.linalg.norm(x[herd_towards(x, target, 40)].mean(axis=0) - target)
        random = [rng.choice(400, 40, replace=False) for _ in range(50)]
        assert herded < 0.5 * min(np.linalg.norm(x[rows].mean(axis=0) - target) for rows in random)


class TestKCenter:
    @given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 6), st.booleans())
    @settings(max_examples=50)
    def test_each_pick_is_the_farthest(self, seed: int, n: int, h: int, grid: bool):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, h))
        x = np.round(x) if grid else x
        rows, count = unit(x), int(rng.integers(0, n + 1))
        mean = unit(rows.mean(axis=0, dtype=np.float64)[None])[0]
        expected: list[int] = []
        for _ in range(count):
            left = [i for i in range(n) if i not in expected]
            if not expected:
                expected.append(max(left, key=lambda i: (cosine(rows[i], mean), -i)))
                continue
            near = {i: max(cosine(rows[i], rows[j]) for j in expected) for i in left}
            expected.append(min(left, key=lambda i: (near[i], i)))
        assert k_center(x, count).tolist() == expected

    def test_values_that_are_not_finite_are_refused(self):
        with pytest.raises(ValueError, match="Row 1 holds"):
            k_center(np.array([[1.0], [np.nan]]), 1)


@pytest.mark.parametrize("pick", [k_center, lambda x, count: herd_towards(x, np.ones(3), count)])
@pytest.mark.parametrize("count", [4, -1])
def test_more_picks_than_rows_are_refused(pick, count: int) -> None:
    with pytest.raises(ValueError, match=f"Cannot pick {count} of 3 rows"):
        pick(np.eye(3), count)
