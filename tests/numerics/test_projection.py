"""Random projections: linear, unbiased, about as accurate as a dense Gaussian's, and always the same ones."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradwise.numerics import Fold, MatrixProjection
from gradwise.numerics.projection import Deal, seeded

sizes = st.integers(1, 40)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explicit_fold(x: Tensor, size: int, signs: Tensor) -> Tensor:
    """Coordinate j goes to sum j mod size, one after another."""
    folded = torch.zeros(*x.shape[:-1], min(size, x.shape[-1]), dtype=x.dtype)
    for j in range(x.shape[-1]):
        folded[..., j % size] += signs[j] * x[..., j]
    return folded


class TestFold:
    @given(sizes, sizes, st.integers(0, 9))
    def test_is_the_sum_written_out(self, dimension: int, size: int, seed: int):
        fold, x = Fold(dimension, size, seeded(seed)), random(2, 3, dimension, seed=seed)
        signs = fold.factors(x)
        assert set(signs.abs().tolist()) == {1.0}
        torch.testing.assert_close(fold(x), explicit_fold(x, size, signs))

    @given(sizes, sizes, st.integers(0, 9))
    def test_both_ways_of_computing_it(self, dimension: int, size: int, seed: int):
        """One for a CPU, one for an accelerator."""
        fold, x = Fold(dimension, size, seeded(seed)), random(2, 3, dimension, seed=seed)
        if fold.size < dimension:
            torch.testing.assert_close(fold(x), fold._in_one(x, fold.factors(x)))

    @given(sizes, sizes, st.integers(0, 9))
    def test_scales_come_first(self, dimension: int, size: int, seed: int):
        x, scale = random(4, dimension), random(dimension, seed=1).abs()
        scaled, plain = (Fold(dimension, size, seeded(seed), s) for s in (scale, None))
        torch.testing.assert_close(scaled(x), plain(x * scale), rtol=1e-6, atol=1e-6)

    @given(sizes, sizes, st.lists(st.integers(0, 1000), min_size=1, max_size=5))
    def test_unit_vectors(self, dimension: int, size: int, numbers: list[int]):
        fold, ids = Fold(dimension, size, seeded(0)), torch.tensor(numbers) % dimension
        places, entries = fold.one_hot(ids, like=random(1))
        folded = fold(torch.nn.functional.one_hot(ids, dimension).double())
        assert folded.abs().sum(dim=-1).tolist() == [1.0] * len(ids)
        assert torch.equal(folded.gather(1, places[:, None])[:, 0], entries)

    @pytest.mark.parametrize(
        ("dtype", "wide"),
        [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
    )
    @pytest.mark.parametrize("dimension", [3, 300])
    def test_sums_are_held_wide(self, dtype: torch.dtype, wide: torch.dtype, dimension: int):
        fold, x = Fold(dimension, 128, seeded(0)), torch.ones(2, dimension, dtype=dtype)
        assert fold(x).dtype == wide
        torch.testing.assert_close(fold(x), fold(x.to(wide)), rtol=0, atol=0)

    def test_leaves_its_input_alone(self):
        x = random(2, 9)
        before = x.clone()
        Fold(9, 4, seeded(0))(x)
        assert torch.equal(x, before)


class TestDeal:
    @given(sizes, sizes, st.integers(0, 9))
    def test_each_number_goes_to_one_sum_with_a_sign_as_evenly_as_possible(
        self, count: int, size: int, seed: int
    ):
        matrix = Deal(count, size, seeded(seed))(torch.eye(count, dtype=torch.float64))
        assert matrix.shape == (count, size)
        assert (matrix.abs().sum(dim=1) == 1).all()
        loads = matrix.abs().sum(dim=0)
        assert float(loads.max() - loads.min()) <= 1

    @given(st.integers(1, 20), st.integers(0, 9))
    def test_nothing_is_lost_where_there_is_room(self, count: int, seed: int):
        x = random(3, count, seed=seed)
        z = Deal(count, count + seed, seeded(seed))(x)
        torch.testing.assert_close(z @ z.T, x @ x.T)


class TestMatrixProjection:
    @given(sizes, sizes, sizes, st.integers(1, 16), st.integers(0, 9))
    def test_of_outer_products_equals_that_of_the_matrix(
        self, rows: int, columns: int, size: int, side: int, seed: int
    ):
        project = MatrixProjection.named(seed, "w", rows=rows, columns=columns, size=size, side=side)
        r, c = random(2, 5, rows, seed=1), random(2, 5, columns, seed=2)
        matrix = torch.bmm(r.mT, c)
        z = project(matrix)
        assert z.shape == (2, size)
        torch.testing.assert_close(project.close(project.row(r), project.column(c)), z)

    @given(sizes, sizes, sizes, st.integers(1, 16))
    def test_linear(self, rows: int, columns: int, size: int, side: int):
        project = MatrixProjection.named("w", rows=rows, columns=columns, size=size, side=side)
        a, b = random(1, rows, columns, seed=1), random(1, rows, columns, seed=2)
        torch.testing.assert_close(project(3 * a - b), 3 * project(a) - project(b))

    def test_exact_where_there_is_room(self):
        """Nothing folded and nothing summed: inner products are kept to rounding."""
        x = random(4, 10, 10)
        z = MatrixProjection.named("w", rows=10, columns=10, size=100)(x)
        torch.testing.assert_close(z @ z.T, x.flatten(1) @ x.flatten(1).T)

    @pytest.mark.parametrize(
        ("rows", "columns", "size", "side"),
        [(12, 20, 16, 4), (12, 20, 16, 128), (3, 50, 8, 16), (30, 30, 1, 5)],
    )
    def test_unbiased(self, rows: int, columns: int, size: int, side: int):
        """Mean over 3,000 seeds of <z_i, z_j> against <G_i, G_j>, within 4.5 standard errors of the mean; on
        matrices as unlike noise as can be: ones, one row, a near-duplicate."""
        rng = random(rows, columns)
        one_row = torch.zeros(rows, columns, dtype=torch.float64)
        one_row[0] = 1
        x = torch.stack([torch.ones_like(rng), one_row, rng, rng + 0.01 * random(rows, columns, seed=1)])
        products = []
        for seed in range(3000):
            z = MatrixProjection.named(seed, "w", rows=rows, columns=columns, size=size, side=side)(x)
            products.append(z @ z.T)
        found = torch.stack(products)
        exact = x.flatten(1) @ x.flatten(1).T
        error = found.std(dim=0) / len(found) ** 0.5
        assert ((found.mean(dim=0) - exact).abs() <= 4.5 * error + 1e-9).all()

    def test_error_of_noise_is_a_gaussian_projections(self):
        """sqrt((|x|^2 |y|^2 + <x,y>^2) / k) for a dense Gaussian; random matrices of 200 x 300."""
        x = random(30, 200, 300)
        flat = x.flatten(1)
        exact, k = flat @ flat.T, 1024
        norms = flat.square().sum(dim=1)
        gaussian = ((norms[:, None] * norms + exact.square()) / k).sqrt()
        z = [MatrixProjection.named(seed, rows=200, columns=300, size=k)(x) for seed in range(5)]
        errors = torch.stack([(one @ one.T - exact) / gaussian for one in z])
        assert float(errors.square().mean().sqrt()) < 1.15

    def test_a_deal_of_other_numbers_is_refused(self):
        row, column = Fold(9, 4, seeded(0)), Fold(9, 5, seeded(1))
        with pytest.raises(ValueError, match="folds leave 4 x 5 numbers, but the deal takes 21"):
            MatrixProjection(row, column, Deal(21, 7, seeded(2)))

    def test_names_decide(self):
        x = random(2, 20, 20)
        one, same, other = (
            MatrixProjection.named(*names, rows=20, columns=20, size=7)(x)
            for names in ((0, "a"), (0, "a"), (1, "a"))
        )
        assert torch.equal(one, same)
        assert not torch.allclose(one, other)


class TestSeeded:
    def test_known_numbers(self):
        """The same on every machine, for ever: stores of last year must not change their meaning."""
        assert seeded(0, "model.layers.0.mlp.up_proj.weight").integers(0, 1000, 5).tolist() == KNOWN

    def test_the_same_in_another_process(self):
        code = "from gradwise.numerics.projection import seeded; print(seeded(3, 'w').integers(0, 10**9))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert int(other.stdout) == seeded(3, "w").integers(0, 10**9)

    def test_every_name_counts(self):
        streams = [seeded(0, "a"), seeded(1, "a"), seeded(0, "b"), seeded(0, "a", "rows"), seeded(0)]
        assert len({tuple(stream.integers(0, 2**31, 4).tolist()) for stream in streams}) == 5

    def test_touches_no_global_state(self):
        torch.manual_seed(0)
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        MatrixProjection.named("w", rows=9, columns=9, size=3)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


KNOWN = [839, 427, 430, 276, 39]
