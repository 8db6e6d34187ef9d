"""Precision of float32 products, set as users and the Trainer do: in torch's newer way or the older one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gradwise.numerics import knn_graph
from gradwise.precision import full_products, in_full_products

MATMUL: Any = torch.backends.cuda.matmul


@pytest.fixture(params=["newer", "older"])
def less_precise(request: pytest.FixtureRequest) -> Iterator[None]:
    """TF32 is on, as `tf32: true` and `torch_compile` of the Trainer's arguments switch it on."""
    if request.param == "older":
        torch.set_float32_matmul_precision("high")
        yield
        torch.set_float32_matmul_precision("highest")
        return
    if not hasattr(MATMUL, "fp32_precision"):
        pytest.skip("torch 2.9 and later")
    before = MATMUL.fp32_precision
    MATMUL.fp32_precision = "tf32"
    yield
    MATMUL.fp32_precision = before


def tf32() -> bool:
    newer = getattr(MATMUL, "fp32_precision", None)
    return MATMUL.allow_tf32 if newer is None else newer == "tf32"


def test_it_is_known_and_put_back(less_precise: None) -> None:
    assert not full_products()
    with in_full_products():
        assert not tf32()
    assert tf32() and not full_products()


def test_products_on_a_cpu_are_full_whatever_is_allowed() -> None:
    """oneDNN may otherwise multiply in bfloat16, where the processor can."""
    torch.set_float32_matmul_precision("medium")
    try:
        assert not full_products()
        with in_full_products():
            assert full_products()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_by_default_products_are_full() -> None:
    assert full_products()


def test_neighbours_are_searched_on_a_device(less_precise: None) -> None:
    """The way of GPUs, on a CPU under another name."""
    x = np.random.default_rng(0).standard_normal((60, 8))
    here, there = knn_graph(x, 5, 3), knn_graph(x, 5, 3, device="cpu:0")
    assert np.array_equal(here.ids, there.ids) and np.array_equal(here.sims, there.sims)
