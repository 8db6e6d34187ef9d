"""Norms of sums of outer products against those of the matrices themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics import squared_norms
from gradwise.numerics.outer_products import gathered_rows, squared_norm_with_lookup

sizes = st.integers(1, 9)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestSquaredNorms:
    @settings(max_examples=50)
    @given(
        st.integers(1, 4),
        st.integers(0, 9),
        sizes,
        sizes,
        st.sampled_from([1, 7, 40, 2**23]),
        st.integers(0, 99),
    )
    def test_norm_equals_that_of_the_matrix_for_any_bands(
        self, batch: int, length: int, rows: int, columns: int, most: int, seed: int
    ):
        r, c = random(batch, length, rows, seed=seed), random(batch, length, columns, seed=seed + 100)
        exact = torch.bmm(r.mT, c).square().sum(dim=(1, 2))
        torch.testing.assert_close(squared_norms(r, c, most), exact, rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize(("length", "rows", "columns"), [(3, 50, 50), (60, 5, 5)])
    def test_both_ways_of_computing_give_the_norm(self, length: int, rows: int, columns: int):
        """Few tokens and a large matrix; many tokens and a small one."""
        r, c = random(2, length, rows, seed=1), random(2, length, columns, seed=2)
        exact = torch.bmm(r.mT, c).square().sum(dim=(1, 2))
        for most in (1, 100, 2**23):
            torch.testing.assert_close(squared_norms(r, c, most), exact, rtol=1e-12, atol=0)

    def test_norm_is_never_negative(self):
        """r_1 c_1^T + r_2 c_2^T = 0, and rounding must not make it negative."""
        r = torch.randn(1, 1, 300).expand(1, 2, 300).contiguous()
        c = torch.randn(1, 1, 300)
        norms = squared_norms(r, torch.cat([c, -c], dim=1))
        assert float(norms) >= 0
        assert float(norms.sqrt()) < 1e-2 * float(r[0, 0].norm() * c.norm())

    def test_samples_do_not_affect_each_other(self):
        r, c = random(3, 4, 5, seed=1), random(3, 4, 6, seed=2)
        r[1, 0, 0] = torch.nan
        norms = squared_norms(r, c)
        assert norms.isfinite().tolist() == [True, False, True]
        assert torch.equal(norms[2:], squared_norms(r[2:], c[2:]))


ids = st.lists(st.integers(0, 7), min_size=1, max_size=12)


class TestLookups:
    @settings(max_examples=50)
    @given(ids, sizes, st.integers(0, 99))
    def test_gathered_rows_equal_those_of_the_dense_matrix(self, chosen: list[int], columns: int, seed: int):
        c = random(len(chosen), columns, seed=seed)
        dense = torch.zeros(8, columns, dtype=torch.float64)
        for place, row in zip(chosen, c, strict=True):
            dense[place] += row
        unique, rows = gathered_rows(torch.tensor(chosen), c)
        assert unique.tolist() == sorted(set(chosen))
        torch.testing.assert_close(rows, dense[unique])

    @settings(max_examples=50)
    @given(st.integers(1, 9), ids, sizes, st.integers(0, 99))
    def test_norm_of_a_weight_that_is_multiplied_and_looked_up(
        self, length: int, chosen: list[int], columns: int, seed: int
    ):
        r, c = random(length, 8, seed=seed), random(length, columns, seed=seed + 1)
        d = random(len(chosen), columns, seed=seed + 2)
        matrix = r.T @ c
        for place, row in zip(chosen, d, strict=True):
            matrix[place] += row
        norm = squared_norm_with_lookup(r, c, torch.tensor(chosen), d)
        assert float(norm) == pytest.approx(float(matrix.square().sum()), rel=1e-11)
