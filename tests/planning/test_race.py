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
