"""Sketches of label tokens against counts of them."""

import numpy as np
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from gradwise.data import label_words

samples = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=6)


def counted(labels: list[int]) -> np.ndarray:
    counts = np.zeros(50_000)
    for label in labels[1:]:
        if label != -100:
            counts[label] += 1
    return counts


@given(samples)
def test_the_same_from_any_kind_of_data_set(rows: list[list[int]]):
    plain = [{"input_ids": row, "labels": row} for row in rows]
    assert np.array_equal(label_words(plain), label_words(Dataset.from_list(plain)))


def test_inner_products_are_those_of_the_counts():
    rng = np.random.default_rng(0)
    rows = [rng.choice(3000, 60, p=rng.dirichlet(np.full(3000, 0.02))).tolist() for _ in range(60)]
    rows += [row[:30] + [-100] * 30 for row in rows[:20]]
    counts = np.array([counted(row) for row in rows])
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    found = label_words([{"labels": row} for row in rows])
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    apart = ~np.eye(len(rows), dtype=bool)
    errors = (found @ found.T - counts @ counts.T)[apart]
    assert np.abs(errors.mean()) < 0.01
    assert errors.std() < 1.5 / np.sqrt(256)


def test_prompts_and_first_tokens_do_not_count():
    rows = label_words(
        [{"labels": [7, 1, 2]}, {"labels": [8, -100, 1, 2]}, {"labels": [9]}, {"labels": [-100, -100]}]
    )
    assert np.array_equal(rows[0], rows[1])
    assert not rows[2:].any()


def test_where_labels_are_made_later_every_token_counts():
    made = label_words([{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}])
    assert np.array_equal(made, label_words(Dataset.from_list([{"input_ids": [3, 4, 5]}])))
    assert np.array_equal(made, label_words([{"input_ids": [3, 4, 5]}]))


def test_an_empty_data_set_has_no_rows():
    assert label_words([]).shape == (0, 256)
