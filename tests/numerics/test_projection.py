"""Random projections and sketches: linear, unbiased, and about as accurate as a dense Gaussian's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradwise.numerics import Fold, MatrixProjection, fold_with_signs
from gradwise.numerics.projection import SignedSums, seeded
from gradwise.numerics.streams import stream

sizes = st.integers(1, 40)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explicit_fold(x: Tensor, size: int, signs: Tensor) -> Tensor:
    """Coordinate j is added to sum j mod size, in a loop."""
    folded = torch.zeros(*x.shape[:-1], min(size, x.shape[-1]), dtype=x.dtype)
    for j in range(x.shape[-1]):
        folded[..., j % size] += signs[j] * x[..., j]
    return folded


class TestFold:
    @settings(max_examples=40)
    @given(sizes, sizes, st.integers(0, 9))
    def test_sums_equal_those_written_out(self, dimension: int, size: int, seed: int):
        fold, x = Fold(dimension, size, stream(seed, "test")), random(2, 3, dimension, seed=seed)
        signs = fold.factors(x)
        assert set(signs.abs().tolist()) == {1.0}
        torch.testing.assert_close(fold(x), explicit_fold(x, size, signs))

    @settings(max_examples=40)
    @given(sizes, sizes, st.integers(0, 9))
    def test_one_product_gives_the_same_as_parts(self, dimension: int, size: int, seed: int):
        """A CPU adds parts, an accelerator computes one product."""
        fold, x = Fold(dimension, size, stream(seed, "test")), random(2, 3, dimension, seed=seed)
        if fold.size < dimension:
            torch.testing.assert_close(fold(x), fold._in_one(x, fold.factors(x)))

    @settings(max_examples=40)
    @given(sizes, sizes, st.integers(0, 9))
    def test_scales_apply_before_folding(self, dimension: int, size: int, seed: int):
        x, scale = random(4, dimension), random(dimension, seed=1).abs()
        scaled, plain = (Fold(dimension, size, stream(seed, "test"), s) for s in (scale, None))
        torch.testing.assert_close(scaled(x), plain(x * scale), rtol=1e-6, atol=1e-6)

    @settings(max_examples=40)
    @given(sizes, sizes, st.lists(st.integers(0, 1000), min_size=1, max_size=5))
    def test_one_hot_gives_the_folded_unit_vectors(self, dimension: int, size: int, numbers: list[int]):
        fold, ids = Fold(dimension, size, stream(0, "test")), torch.tensor(numbers) % dimension
        places, entries = fold.one_hot(ids, like=random(1))
        folded = fold(torch.nn.functional.one_hot(ids, dimension).double())
        assert folded.abs().sum(dim=-1).tolist() == [1.0] * len(ids)
        assert torch.equal(folded.gather(1, places[:, None])[:, 0], entries)

    @pytest.mark.parametrize(
        ("dtype", "wide"),
        [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
    )
    @pytest.mark.parametrize("dimension", [3, 300])
    def test_sums_are_at_least_single_precision(self, dtype: torch.dtype, wide: torch.dtype, dimension: int):
        fold, x = Fold(dimension, 128, stream(0, "test")), torch.ones(2, dimension, dtype=dtype)
        assert fold(x).dtype == wide
        torch.testing.assert_close(fold(x), fold(x.to(wide)), rtol=0, atol=0)

    def test_the_input_is_not_changed(self):
        x = random(2, 9)
        before = x.clone()
        Fold(9, 4, stream(0, "test"))(x)
        assert torch.equal(x, before)


class TestDeal:
    @settings(max_examples=40)
    @given(sizes, sizes, st.integers(0, 9))
    def test_each_number_goes_to_one_sum_as_evenly_as_possible(self, count: int, size: int, seed: int):
        matrix = SignedSums(count, size, stream(seed, "test"))(torch.eye(count, dtype=torch.float64))
        assert matrix.shape == (count, size)
        assert (matrix.abs().sum(dim=1) == 1).all()
        loads = matrix.abs().sum(dim=0)
        assert float(loads.max() - loads.min()) <= 1

    @settings(max_examples=30)
    @given(st.integers(1, 20), st.integers(0, 9))
    def test_inner_products_are_exact_with_as_many_sums_as_numbers(self, count: int, seed: int):
        x = random(3, count, seed=seed)
        z = SignedSums(count, count + seed, stream(seed, "test"))(x)
        torch.testing.assert_close(z @ z.T, x @ x.T)


class TestMatrixProjection:
    @settings(max_examples=40)
    @given(sizes, sizes, sizes, st.integers(1, 16), st.integers(0, 9))
    def test_projection_of_factors_equals_that_of_the_matrix(
        self, rows: int, columns: int, size: int, side: int, seed: int
    ):
        project = MatrixProjection.named(seed, "w", rows=rows, columns=columns, size=size, side=side)
        r, c = random(2, 5, rows, seed=1), random(2, 5, columns, seed=2)
        matrix = torch.bmm(r.mT, c)
        z = project(matrix)
        assert z.shape == (2, size)
        torch.testing.assert_close(project.close(project.row(r), project.column(c)), z)

    @settings(max_examples=40)
    @given(sizes, sizes, sizes, st.integers(1, 16))
    def test_projection_is_linear(self, rows: int, columns: int, size: int, side: int):
        project = MatrixProjection.named(0, "w", rows=rows, columns=columns, size=size, side=side)
        a, b = random(1, rows, columns, seed=1), random(1, rows, columns, seed=2)
        torch.testing.assert_close(project(3 * a - b), 3 * project(a) - project(b))

    def test_inner_products_are_exact_without_folding(self):
        """No two numbers are added, so only rounding remains."""
        x = random(4, 10, 10)
        z = MatrixProjection.named(0, "w", rows=10, columns=10, size=100)(x)
        torch.testing.assert_close(z @ z.T, x.flatten(1) @ x.flatten(1).T)

    @pytest.mark.parametrize(
        ("rows", "columns", "size", "side"),
        [(12, 20, 16, 4), (12, 20, 16, 128), (3, 50, 8, 16), (30, 30, 1, 5)],
    )
    def test_inner_products_are_unbiased(self, rows: int, columns: int, size: int, side: int):
        """The mean of <z_i, z_j> over 1,000 seeds is within 4.5 standard errors of <G_i, G_j>.

        The matrices are unlike noise: all ones, a single row, a near-duplicate.
        """
        rng = random(rows, columns)
        one_row = torch.zeros(rows, columns, dtype=torch.float64)
        one_row[0] = 1
        x = torch.stack([torch.ones_like(rng), one_row, rng, rng + 0.01 * random(rows, columns, seed=1)])
        products = []
        for seed in range(1000):
            z = MatrixProjection.named(seed, "w", rows=rows, columns=columns, size=size, side=side)(x)
            products.append(z @ z.T)
        samples = torch.stack(products)
        exact = x.flatten(1) @ x.flatten(1).T
        error = samples.std(dim=0) / len(samples) ** 0.5
        assert ((samples.mean(dim=0) - exact).abs() <= 4.5 * error + 1e-9).all()

    def test_error_is_near_that_of_a_gaussian_projection(self):
        """A dense Gaussian's standard error is sqrt((|x|^2 |y|^2 + <x,y>^2) / k)."""
        x = random(30, 100, 200)
        flat = x.flatten(1)
        exact, k = flat @ flat.T, 1024
        norms = flat.square().sum(dim=1)
        gaussian = ((norms[:, None] * norms + exact.square()) / k).sqrt()
        z = [MatrixProjection.named(seed, "w", rows=100, columns=200, size=k)(x) for seed in range(5)]
        errors = torch.stack([(one @ one.T - exact) / gaussian for one in z])
        assert float(errors.square().mean().sqrt()) < 1.15

    def test_sums_that_do_not_fit_are_refused(self):
        row, column = Fold(9, 4, stream(0, "test")), Fold(9, 5, stream(1, "test"))
        with pytest.raises(ValueError, match="The folds leave 4 x 5 numbers, but the sums take 21"):
            MatrixProjection(row, column, SignedSums(21, 7, stream(2, "test")))

    def test_seed_and_name_decide(self):
        x = random(2, 20, 20)
        state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        one, same, *others = (
            MatrixProjection.named(seed, name, rows=20, columns=20, size=7)(x)
            for seed, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
        )
        assert torch.equal(one, same)
        assert not any(torch.allclose(one, other) for other in others)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]  # type: ignore[index]


def test_seeded_numbers_are_the_same_on_every_machine_and_for_ever():
    """A store of last year must keep its meaning."""
    numbers = seeded(0, "model.layers.0.mlp.up_proj.weight").integers(0, 1000, 5)
    assert numbers.tolist() == [839, 427, 430, 276, 39]
    streams = [seeded(0, "a"), seeded(1, "a"), seeded(0, "b"), seeded(0, "a", "rows"), seeded(0)]
    assert len({tuple(rng.integers(0, 2**31, 4).tolist()) for rng in streams}) == 5


def vector(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestFoldWithSigns:
    @pytest.mark.parametrize("shape", [(64,), (1000,), (37, 23), (3, 5, 7), (5,), (0,), ()], ids=str)
    def test_sketch_is_linear(self, shape: tuple[int, ...]):
        one, other = vector(shape, 1), vector(shape, 2)
        sketched = 3 * fold_with_signs(one, 64, 9) - fold_with_signs(other, 64, 9)
        assert sketched.shape == (64,)
        assert torch.allclose(fold_with_signs(3 * one - other, 64, 9), sketched, atol=1e-4)

    @given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 50))
    @settings(max_examples=30)
    def test_each_value_goes_to_the_next_sum_with_a_sign(self, count: int, size: int, seed: int, offset: int):
        rows = torch.stack([fold_with_signs(row, size, seed, offset) for row in torch.eye(count)])
        expected = torch.zeros(count, size)
        expected[torch.arange(count), (torch.arange(count) + offset) % size] = 1
        assert torch.equal(rows.abs(), expected)

    @pytest.mark.parametrize(("count", "size"), [(5_000, 64), (300, 256)])
    def test_squared_length_is_unbiased_with_the_stated_spread(self, count: int, size: int):
        values = vector((count,))
        exact = values.square().sum().item()
        sketches = (fold_with_signs(values, size, seed) for seed in range(1000))
        relative = np.array([sketch.square().sum().item() / exact - 1 for sketch in sketches])
        bound = np.sqrt(2 / size)
        assert abs(relative.mean()) < 4 * bound / np.sqrt(1000)
        assert relative.std() < 1.1 * bound
        if count >= 50 * size:
            assert relative.std() > 0.9 * bound

    def test_squared_length_is_unbiased_for_values_in_one_sum(self):
        values = torch.zeros(4096)
        values[::64] = vector((64,), 3)
        exact = values.square().sum().item()
        squares = np.array([fold_with_signs(values, 64, seed).square().sum().item() for seed in range(1500)])
        assert abs(squares.mean() / exact - 1) < 4 * squares.std() / exact / np.sqrt(1500)

    def test_half_precision_is_sketched_in_float32(self):
        values = vector((5000,)).bfloat16()
        sketch = fold_with_signs(values, 64, 0)
        assert sketch.dtype == torch.float32
        assert torch.equal(sketch, fold_with_signs(values.float(), 64, 0))

    def test_views_count_like_their_contents(self):
        values = vector((40, 30))
        assert torch.equal(fold_with_signs(values.T, 16, 1), fold_with_signs(values.T.contiguous(), 16, 1))

    def test_seeds_decide_and_nothing_else_changes(self):
        values, state = vector((500,)), torch.get_rng_state()
        before = values.clone()
        assert torch.equal(fold_with_signs(values, 32, 5), fold_with_signs(values, 32, 5))
        assert not torch.equal(fold_with_signs(values, 32, 5), fold_with_signs(values, 32, 6))
        fold_with_signs(values, 512, 0).mul_(0)
        assert torch.equal(torch.get_rng_state(), state) and torch.equal(values, before)
