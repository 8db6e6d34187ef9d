"""Herding against its definition, and how fast the mean nears the target."""

import numpy as np
import pytest

from gradwise.numerics import herd, herding
from gradwise.numerics.herding import herd_towards


def test_each_pick_is_the_best_for_what_is_owed() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4))
    target, owed, left = x.mean(axis=0), np.zeros(4), set(range(30))
    expected = []
    for _ in range(12):
        owed = owed + target
        pick = max(left, key=lambda i: x[i] @ owed)
        expected.append(pick)
        left.remove(pick)
        owed = owed - x[pick]
    assert herd_towards(x, target, 12).tolist() == expected


def test_the_mean_comes_nearer_than_by_chance() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    target = x.mean(axis=0)
    herded = np.linalg.norm(x[herd_towards(x, target, 40)].mean(axis=0) - target)
    drawn = [np.linalg.norm(x[rng.choice(400, 40, replace=False)].mean(axis=0) - target) for _ in range(50)]
    assert herded < 0.5 * min(drawn)


def test_no_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="Of 3 rows, 4 cannot be picked"):
        herd_towards(np.eye(3), np.ones(3), 4)


class TestWholeOrder:
    @pytest.mark.parametrize("shift", [0.0, 10.0])
    def test_each_row_leaves_the_sum_nearest_to_its_share(self, shift: float) -> None:
        x = np.random.default_rng(2).standard_normal((40, 5)) + shift
        mean, total, left, expected = x.mean(axis=0), np.zeros(5), list(range(40)), []
        for t in range(1, 41):
            pick = min(left, key=lambda i: np.linalg.norm(total + x[i] - t * mean))
            expected.append(pick)
            left.remove(pick)
            total += x[pick]
        assert herd(x).tolist() == expected

    def test_beginnings_are_nearer_the_mean_than_at_random(self) -> None:
        rng = np.random.default_rng(3)
        x = rng.standard_normal((300, 6))

        def farthest(order: np.ndarray) -> float:
            return float(np.linalg.norm(np.cumsum(x[order] - x.mean(axis=0), axis=0), axis=1).max())

        assert farthest(herd(x)) < 0.5 * min(farthest(rng.permutation(300)) for _ in range(50))

    def test_inner_products_need_not_be_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = np.random.default_rng(4).standard_normal((200, 3))
        kept = herd(x)
        monkeypatch.setattr(herding, "GRAM", 10)
        assert herd(x).tolist() == kept.tolist()

    def test_edges(self) -> None:
        assert herd(np.zeros((0, 3))).tolist() == []
        assert herd(np.ones((3, 2))).tolist() == [0, 1, 2]
        with pytest.raises(ValueError, match=r"\(n, d\); found shape \(3,\)"):
            herd(np.zeros(3))
        with pytest.raises(ValueError, match="Row 1 holds a value that is not finite"):
            herd(np.array([[0.0], [np.nan]]))

    @pytest.mark.parametrize("block", [1, 7, 20, 40, 100])
    def test_blocks_have_their_places_one_after_another(self, block: int) -> None:
        x = np.random.default_rng(5).standard_normal((40, 3))
        mean, total, expected = x.mean(axis=0), np.zeros(3), []
        for start in range(0, 40, block):
            left = list(range(start, min(start + block, 40)))
            while left:
                t = len(expected) + 1
                pick = min(left, key=lambda i: np.linalg.norm(total + x[i] - t * mean))
                expected.append(pick)
                left.remove(pick)
                total += x[pick]
        assert herd(x, block).tolist() == expected

    def test_a_block_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one row; found 0"):
            herd(np.eye(3), 0)
