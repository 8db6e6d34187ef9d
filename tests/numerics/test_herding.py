"""Herding against its definition, and how fast the mean nears the target."""

import numpy as np
import pytest

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
