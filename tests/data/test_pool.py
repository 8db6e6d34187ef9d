"""Pools: overlap between parts, against an oracle; and counts that hold for slices of a dataset."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.data import Data, Pool, Report, Source, load, overlap

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=12)


def pool(rows: list[list[int]]) -> Pool:
    made = [{"input_ids": ids, "labels": ids, "domain": "d", "weight": 1.0, "origin": "f:1"} for ids in rows]
    return Pool(datasets.Dataset.from_list(made), Report(len(rows), len(rows)), "", np.arange(len(rows)))


@settings(max_examples=50, deadline=None)
@given(ROWS, ROWS)
def test_overlap_countsvalidation_samples_that_stand_in_train(train, validation):
    assert overlap(pool(train), pool(validation)) == sum(row in train for row in validation)


def test_overlap_compares_tokens_and_not_labels():
    train, validation = pool([[1, 2], [3]]), pool([[1, 2], [1, 2], [2, 1]])
    unlearned = validation.dataset.map(lambda row: {"labels": [-100] * len(row["input_ids"])})
    assert overlap(train, replace(validation, dataset=unlearned)) == 2


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_gsm8k_parts_do_not_overlap(stories, shared, head_of, count: int):
    parts = [Source(str(head_of(shared / "gsm8k" / f"{name}.jsonl", count))) for name in ("train", "test")]
    data = Data(train=parts[0], validation=parts[1])
    train, validation = load(data, "train", stories), load(data, "validation", stories)
    assert overlap(train, validation) == 0
    assert overlap(train, train) == len(train)


def test_counts_follow_a_selection_of_rows():
    whole = pool([[1], [1, 2], [1, 2, 3]])
    some = replace(whole, dataset=whole.dataset.select([2, 0]))
    assert some.lengths.tolist() == [3, 1]
    assert some.label_tokens.tolist() == [2, 0]
    assert some.domains == {"d": 2}
    assert replace(whole, dataset=whole.dataset.select([])).lengths.tolist() == []


def test_samples_know_their_records_in_parts_and_together():
    one, other = pool([[1], [2], [3]]), pool([[1], [2]])
    assert one.take(np.array([2, 0])).records.tolist() == [2, 0]
    assert one.take(np.array([1])).followed_by(other).records.tolist() == [1, 3, 4]
