"""Which contender of a trial wins."""

import numpy as np
import pytest

from gradwise import GradwiseError
from gradwise.planning.race import decided


def test_the_lowest_mean_wins_and_the_first_among_equals() -> None:
    losses = {"before": np.ones(4), "a": np.array([2.0, 1.0, 2.0, 1.0]), "b": np.full(4, 1.5)}
    winner, means, noise = decided(losses)
    assert (winner, means) == ("a", {"a": 1.5, "b": 1.5})
    assert noise == pytest.approx(np.std(losses["a"], ddof=1) / 2, rel=1e-2)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_never_wins(broken: float) -> None:
    found = decided({"before": np.ones(3), "a": np.full(3, broken), "b": np.full(3, 9.0)})
    assert found[0] == "b"
    with pytest.raises(GradwiseError, match="no contender has a finite held-out loss"):
        decided({"before": np.ones(3), "a": np.full(3, broken), "b": np.full(3, broken)})


def test_a_judge_without_a_loss_is_left_out() -> None:
    losses = {"before": [1, np.nan, 1], "a": [2, np.nan, 1], "b": [1, 5, 1]}
    assert decided({name: np.array(each, float) for name, each in losses.items()})[:2] == (
        "b",
        {"a": 1.5, "b": 1.0},
    )
    with pytest.raises(GradwiseError, match="none of the 2 validation samples that judge has a finite loss"):
        decided({"before": np.full(2, np.nan), "a": np.ones(2), "b": np.ones(2)})


@pytest.mark.filterwarnings("error")
def test_a_single_judge_knows_no_noise() -> None:
    losses = {"before": np.ones(1), "a": np.ones(1), "b": np.zeros(1)}
    assert decided(losses) == ("b", {"a": 1.0, "b": 0.0}, None)
