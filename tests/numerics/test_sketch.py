"""The sketch's promises: linear, unbiased, with the spread the docstring states."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradwise.numerics import fold_with_signs

SHAPES = [(64,), (1000,), (37, 23), (3, 5, 7), (5,), (0,), ()]


def tensor(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_also_where_the_size_is_no_multiple(shape: tuple[int, ...]):
    one, other = tensor(shape, 1), tensor(shape, 2)
    sketched = 3 * fold_with_signs(one, 64, 9) - fold_with_signs(other, 64, 9)
    assert sketched.shape == (64,)
    assert torch.allclose(fold_with_signs(3 * one - other, 64, 9), sketched, atol=1e-4)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31))
def test_every_entry_lands_once_with_a_sign(numel: int, size: int, seed: int):
    # Powers of two in float32 keep every subset sum apart, so the sketch of each basis vector is its column.
    columns = torch.stack([fold_with_signs(row, size, seed) for row in torch.eye(numel)])
    assert torch.equal(columns.abs().sum(dim=1), torch.ones(numel))
    assert torch.equal(columns.abs().sum(dim=0).sort().values, expected_load(numel, size))


def expected_load(numel: int, size: int) -> torch.Tensor:
    """Entries per bucket, ascending: as even as can be."""
    return torch.tensor([float((numel + bucket) // size) for bucket in range(size)])


@pytest.mark.parametrize(("numel", "size"), [(20_000, 256), (5_000, 64), (300, 256)])
def test_squared_length_unbiased_with_the_stated_spread(numel: int, size: int):
    values = tensor((numel,))
    exact = values.square().sum().item()
    relative = np.array(
        [fold_with_signs(values, size, s).square().sum().item() / exact - 1 for s in range(1000)]
    )
    bound = np.sqrt(2 / size)
    assert abs(relative.mean()) < 4 * bound / np.sqrt(1000)
    assert relative.std() < 1.1 * bound
    if numel >= 50 * size:
        assert relative.std() > 0.9 * bound


def test_unbiased_however_unevenly_the_values_lie():
    values = torch.zeros(4096)
    values[::64] = tensor((64,), 3)  # all in one bucket of 64
    exact = values.square().sum().item()
    squares = np.array([fold_with_signs(values, 64, seed).square().sum().item() for seed in range(4000)])
    assert abs(squares.mean() / exact - 1) < 4 * squares.std() / exact / np.sqrt(4000)


def test_half_precision_is_sketched_in_float32():
    rounded = tensor((5000,), dtype=torch.bfloat16)
    sketch = fold_with_signs(rounded, 64, 0)
    assert sketch.dtype == torch.float32
    assert torch.equal(sketch, fold_with_signs(rounded.float(), 64, 0))


def test_bfloat16_agrees_with_float32_up_to_its_rounding():
    values = tensor((5000,))
    sketch, rounded = fold_with_signs(values, 64, 0), fold_with_signs(values.bfloat16(), 64, 0)
    error = (rounded - sketch).norm() / sketch.norm()
    assert 0 < error < 2**-8


def test_views_count_like_their_contents():
    values = tensor((40, 30))
    assert torch.equal(fold_with_signs(values.T, 16, 1), fold_with_signs(values.T.contiguous(), 16, 1))


def test_seeds_decide_the_signs_and_leave_the_global_state_alone():
    values, state = tensor((500,)), torch.get_rng_state()
    assert torch.equal(fold_with_signs(values, 32, 5), fold_with_signs(values, 32, 5))
    assert not torch.equal(fold_with_signs(values, 32, 5), fold_with_signs(values, 32, 6))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_tensor_itself_is_not_touched():
    values = tensor((500,))
    before = values.clone()
    fold_with_signs(values, 512, 0).mul_(0)
    assert torch.equal(values, before)
