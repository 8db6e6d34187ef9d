"""Hashed n-grams against counting by hand; no result depends on order or chunks."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from gradwise.numerics.ngrams import Affinity, Chunk, Counts, affinity, word_ids

TEXTS = [
    "Tom has 3 apples and 4 pears. How many pieces of fruit has Tom?",
    "the cat sat on the mat, and the dog sat on the cat",
    "",
    "Ünïcode words: naïve café, 東京 and emoji 🙂",
    "How many pears are 3 pears and 4 pears? 3+4=7",
]


def _parts(chunk: Chunk, sizes: list[int]) -> list[Chunk]:
    offsets, words = chunk
    ends = np.cumsum([0, *sizes])
    return [
        (offsets[a : b + 1] - offsets[a], words[offsets[a] : offsets[b]]) for a, b in pairwise(ends.tolist())
    ]


def _affinity(texts: list[str], target: list[str]) -> Affinity:
    chunk = word_ids(texts)
    return affinity([chunk], Counts.of([chunk]), Counts.of([word_ids(target)]))


def test_words_are_runs_of_letters_and_single_marks() -> None:
    offsets, words = word_ids(["Two plus two!", "two+TWO", "two"])
    assert np.diff(offsets).tolist() == [4, 3, 1]
    two = {int(words[place]) | 1 for place in (0, 2, 4, 6, 7)}
    assert len(two) == 1
    assert int(words[3]) | 1 not in two


def test_counts_are_those_of_a_counter() -> None:
    offsets, words = chunk = word_ids(TEXTS)
    found = Counts.of([chunk])
    expected: Counter[tuple[int, ...]] = Counter()
    texts: Counter[tuple[int, ...]] = Counter()
    for start, end in pairwise(offsets.tolist()):
        row = [int(word) | 1 for word in words[start:end]]
        grams = [(word,) for word in row] + list(pairwise(row))
        expected.update(grams)
        texts.update(set(grams))
    # No two of these few n-grams share one of 2^20 counters.
    assert sorted(found.total[found.total > 0].tolist()) == sorted(expected.values())
    assert sorted(found.texts[found.texts > 0].tolist()) == sorted(texts.values())


@pytest.mark.parametrize("sizes", [[5], [1, 4], [2, 0, 3], [1, 1, 1, 1, 1]])
def test_chunks_change_nothing(sizes: list[int]) -> None:
    chunk, target = word_ids(TEXTS), Counts.of([word_ids([TEXTS[4]])])
    whole, apart = Counts.of([chunk]), Counts.of(_parts(chunk, sizes))
    assert np.array_equal(whole.total, apart.total)
    assert np.array_equal(whole.texts, apart.texts)
    one, many = affinity([chunk], whole, target), affinity(_parts(chunk, sizes), whole, target)
    for name in ("weight", "ratio", "cohesion", "variety"):
        assert np.array_equal(getattr(one, name), getattr(many, name)), name


def test_order_changes_nothing() -> None:
    turned = _affinity(TEXTS[::-1], [TEXTS[4]])
    for name in ("weight", "ratio", "cohesion", "variety"):
        assert np.array_equal(getattr(_affinity(TEXTS, [TEXTS[4]]), name), getattr(turned, name)[::-1]), name


def test_what_resembles_the_target_ranks_first() -> None:
    target = ["How many apples are 5 apples and 2 apples? 5+2=7", "Anna has 9 pears. How many has she?"]
    ratio = _affinity(TEXTS, target).ratio
    assert set(np.argsort(-ratio)[:2].tolist()) == {0, 4}


def test_a_repeated_line_gains_nothing() -> None:
    once, often = "How many pears are 3 pears and 4 pears?", "How many pears are 3 pears and 4 pears? " * 9
    found = _affinity([*TEXTS, once, often], [TEXTS[4]])
    assert found.ratio[-1] <= found.ratio[-2] + 0.05
    assert found.variety[-1] < 0.3 < found.variety[-2]


def test_dsirs_weight_is_the_likelihood_ratio() -> None:
    chunk, aim = word_ids(TEXTS), word_ids([TEXTS[0], TEXTS[4]])
    pool, target = Counts.of([chunk], 97), Counts.of([aim], 97)
    found = affinity([chunk], pool, target, smoothing=10.0).weight
    p = (pool.total + 1e-8) / (pool.total + 1e-8).sum()
    q = target.total + 10.0 * p + 1e-8
    q /= q.sum()
    for row, text in enumerate(TEXTS):
        own = Counts.of([word_ids([text])], 97).total
        assert found[row] == pytest.approx(float(own @ (np.log(q) - np.log(p))), abs=1e-9)
