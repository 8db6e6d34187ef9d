"""What a CPU cannot show: neighbours that are searched on a CUDA device are those of the processor."""

import numpy as np
import pytest
import torch

from gradwise.numerics import knn_graph, repair

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("tf32", [False, True])
def test_graphs_are_those_of_the_processor(tf32: bool) -> None:
    x = np.random.default_rng(0).standard_normal((3000, 64))
    x[::50] = x[0]  # equal cosines
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        here, there = knn_graph(x, 10, 5), knn_graph(x, 10, 5, device="cuda")
        moved = np.arange(40)
        x[moved] *= -1.0
        again = repair(there, x, moved, device="cuda")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert np.array_equal(here.ids, there.ids) and np.array_equal(here.sims, there.sims)
    assert np.array_equal(again.ids[:, :10], knn_graph(x, 10).ids)
