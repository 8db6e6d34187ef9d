"""Spectra from rows and from matrices, and what is derived from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.numerics.spectrum import Spectrum


@settings(max_examples=40)
@given(m=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_rows_and_their_matrix_have_the_same_spectrum(m: int, k: int, seed: int) -> None:
    z = np.random.default_rng(seed).standard_normal((m, k))
    spectrum, matrix = Spectrum.of_rows(z), z.T @ z / m
    assert len(spectrum) == min(m, k)
    np.testing.assert_allclose(spectrum.vectors * spectrum.values @ spectrum.vectors.T, matrix, atol=1e-12)
    np.testing.assert_allclose(spectrum.vectors.T @ spectrum.vectors, np.eye(len(spectrum)), atol=1e-12)
    np.testing.assert_allclose(spectrum.values, Spectrum.of_matrix(matrix).values[: len(spectrum)], rtol=1e-6)
    assert np.all(np.diff(spectrum.values) <= 0)
    assert spectrum.trace == pytest.approx(np.trace(matrix))


@settings(max_examples=40)
@given(m=st.integers(1, 12), share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_stiff_directions_are_the_fewest_that_hold_the_share(m: int, share: float, seed: int) -> None:
    spectrum = Spectrum.of_rows(np.random.default_rng(seed).standard_normal((m, 8)))
    stiff = spectrum.stiff(share)
    assert spectrum.values[:stiff].sum() >= share * spectrum.trace * (1 - 1e-9)
    assert spectrum.values[: stiff - 1].sum() < share * spectrum.trace


def test_effective_rank_counts_equal_eigenvalues() -> None:
    assert Spectrum.of_rows(np.eye(7)).effective_rank == pytest.approx(7)
    assert Spectrum.of_rows(np.ones((5, 3))).effective_rank == pytest.approx(1)


def test_zeros_have_an_empty_spectrum() -> None:
    spectrum = Spectrum.of_rows(np.zeros((3, 4)))
    assert (len(spectrum), spectrum.stiff(0.9), spectrum.effective_rank, spectrum.trace) == (0, 0, 0.0, 0.0)


def test_eigenvalues_below_zero_are_left_out() -> None:
    assert Spectrum.of_matrix(np.diag([-3.0, 2.0, 0.0, 1.0])).values.tolist() == [2.0, 1.0]


@settings(max_examples=40)
@given(m=st.integers(1, 9), ridge=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_solution_equals_that_of_the_dense_matrix(m: int, ridge: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, b = rng.standard_normal((m, 6)), rng.standard_normal(6)
    expected = np.linalg.solve(z.T @ z / m + ridge * np.eye(6), b)
    np.testing.assert_allclose(Spectrum.of_rows(z).solve(b, ridge), expected, rtol=1e-7, atol=1e-9)
