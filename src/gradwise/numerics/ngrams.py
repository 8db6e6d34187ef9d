"""Hashed n-grams: how much more likely a text is under a target's distribution than under a pool's.

A text is a row of word ids, whole numbers of 64 bits. Its n-grams are hashed into `BUCKETS` counters
(feature hashing as in DSIR, Xie et al. 2023, arXiv 2302.03169), so that counts take the same memory for any
number of texts.
All counts are whole numbers and all scores are of one text alone, so that no result depends on the order of
the texts or on how they are divided into chunks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.numerics.kernels import compiled

BUCKETS = 2**20
"""Counters of n-grams; 2^20 of eight bytes take 8 MiB."""

ORDERS = 2
"""Unigrams and bigrams, as in DSIR."""

SHORT = 16
"""n-grams that no target text has, which are added to every text: a text of a few words says little."""

SKIPS = (1, 2, 3, 5)
"""Distances of the words of a pair: neighbours, and those that they are compared with."""

PRIOR_TEXTS = 16.0
"""Target texts' worth of n-grams that the pool's distribution counts as in the target's: with few target
texts an n-gram that happens to be in one of them says little."""

Chunk = tuple[NDArray[np.int64], NDArray[np.uint64]]
"""(rows + 1,) offsets, and the flat word ids that they divide."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Hashed n-grams of many texts."""

    total: NDArray[np.int64]
    """(BUCKETS,) occurrences."""
    texts: NDArray[np.int64]
    """(BUCKETS,) texts with the n-gram."""
    size: int
    """Number of texts."""

    @staticmethod
    def of(chunks: Iterable[Chunk], buckets: int = BUCKETS) -> "Counts":
        """Count the n-grams of texts that come in chunks."""
        total, texts = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64)
        last_text, size = np.full(buckets, -1, np.int64), 0
        for offsets, words in chunks:
            _count(offsets, words, size, total, texts, last_text)
            size += len(offsets) - 1
        return Counts(total, texts, size)


@dataclass(frozen=True, eq=False)
class Affinity:
    """How texts of a pool compare with a target. Arrays of shape (N,)."""

    weight: NDArray[np.float64]
    """log p_target(x) - log p_pool(x), in nats, summed over all n-grams: DSIR's importance weight."""
    ratio: NDArray[np.float64]
    """The same on average over the text's distinct n-grams, with probabilities of finding an n-gram in a text
    and the target's drawn towards the pool's: what `Grace` ranks by. A line that is repeated counts once."""
    cohesion: NDArray[np.float64]
    """Pointwise mutual information of neighbouring words less that of words further apart, on average and in
    nats, by the counts of the other texts: about zero where words are in random order. Only words after a
    space count, since what is written in one piece stays together when words are shuffled."""
    variety: NDArray[np.float64]
    """Share of a text's bigrams that are distinct; low where lines are repeated."""

    def garbled(self, target: "Affinity") -> NDArray[np.bool_]:
        """(N,) whether a text's words are in random order, or most of it is repeated, when compared with a
        target's texts.

        In 15 pools (`benchmarks.grace.words`) the cohesion of shuffled texts was at most 0.17 at the median
        and 0.48 at the 95th percentile, that of 95 % of the natural ones above 0.45. Texts of one repeated
        sentence had a variety of 0.34 at most, 95 % of the natural ones of 0.66 and more.
        """
        if not len(target.ratio):
            return np.zeros(len(self.ratio), dtype=bool)
        least = min(0.5, 0.5 * float(np.median(target.cohesion)))
        variety = min(0.55, 0.9 * float(np.percentile(target.variety, 5)))
        return (self.cohesion < least) | (self.variety < variety)


def compile_kernels() -> None:
    """Compile what numba compiles the first time on a machine, which takes seconds."""
    chunk = word_ids(["two words"])
    _ = affinity([chunk], Counts.of([chunk]), Counts.of([chunk]))


def affinity(
    chunks: Iterable[Chunk], pool: Counts, target: Counts, *, member: bool = True, smoothing: float = 0.0
) -> Affinity:
    """Compare texts with a target.

    Args:
        chunks: the texts.
        pool, target: n-grams of both.
        member: whether the texts are counted in `pool`; their own n-grams then do not count in `cohesion`.
        smoothing: n-grams of the pool's distribution that are added to the target's in `weight`.
    """
    return affinities(chunks, pool, [target], member=member, smoothing=smoothing)[0]


def affinities(
    chunks: Iterable[Chunk],
    pool: Counts,
    targets: Sequence[Counts],
    *,
    member: bool = True,
    smoothing: float = 0.0,
) -> list[Affinity]:
    """Compare texts with several targets while reading the texts once; arguments as of `affinity`."""
    tables = [_tables(pool, target, smoothing) for target in targets]
    parts: list[list[NDArray[np.float64]]] = [[np.zeros((0, 4))] for _ in targets]
    start = 0
    for offsets, words in chunks:
        for (log_weight, log_ratio, last_text), blocks in zip(tables, parts, strict=True):
            scores = np.zeros((len(offsets) - 1, 4))
            _score(offsets, words, start, log_weight, log_ratio, pool.total, int(member), last_text, scores)
            blocks.append(scores)
        start += len(offsets) - 1
    return [Affinity(*np.concatenate(blocks).T) for blocks in parts]


def _tables(pool: Counts, target: Counts, smoothing: float) -> tuple[NDArray[Any], ...]:
    """By counter: log weight, log ratio, and the text that was last seen there."""
    buckets = len(pool.total)
    # 1e-8 as in the authors' code. Alone it makes `weight` prefer the shortest texts where the target is
    # small (losses of 5.15 and 5.54, docs/log.md), so callers add `smoothing` as well.
    p = (pool.total + 1e-8) / (pool.total.sum() + 1e-8 * buckets)
    aimed = target.total + smoothing * p + 1e-8
    in_pool = (pool.texts + 0.5) / (pool.size + 1.0)
    # Drawn towards the pool's share, so that an n-gram of one target text among few is worth little.
    in_target = (target.texts + PRIOR_TEXTS * in_pool) / (target.size + PRIOR_TEXTS)
    last_text = np.full(buckets, -1, np.int64)
    return np.log(aimed / aimed.sum()) - np.log(p), np.log(in_target / in_pool), last_text


def word_ids(texts: list[str]) -> Chunk:
    """Words of texts as hashed numbers: runs of letters and digits, and every other visible character alone;
    ASCII letters in lower case.

    >>> offsets, words = word_ids(["Two plus two.", "two"])
    >>> offsets.tolist(), bool(words[0] == words[2] == words[4])
    ([0, 4, 5], True)
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    joined = np.frombuffer(b"".join(encoded) or b"\0", dtype=np.uint8)
    words, counts = np.empty(int(ends[-1]), np.uint64), np.zeros(len(texts), np.int64)
    used = _words(joined, ends, words, counts)
    return np.concatenate([[0], np.cumsum(counts)]), words[:used].copy()


def token_ids(chunks: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Iterator[Chunk]:
    """Token ids in the place of words."""
    for offsets, tokens in chunks:
        yield offsets.astype(np.int64), (2 * tokens.astype(np.int64) + 1).view(np.uint64)


# ---- kernels -----------------------------------------------------------------------------------------------

_ODD = np.uint64(0x9E3779B97F4A7C15)
_FNV = np.uint64(1099511628211)
_START = np.uint64(14695981039346656037)


@partial(compiled, inline="always")
def _bucket(first: np.uint64, second: np.uint64, buckets: int) -> np.int64:
    # The lowest bit says what comes before a word, and is no part of it.
    mixed = ((first | np.uint64(1)) * _ODD) ^ (second + _ODD)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return np.int64(mixed % np.uint64(buckets))


@partial(compiled, inline="always")
def _pair(words: NDArray[np.uint64], first: int, second: int, buckets: int) -> np.int64:
    return _bucket(words[second], words[first] | np.uint64(1), buckets)


@compiled
def _count(
    offsets: NDArray[np.int64],
    words: NDArray[np.uint64],
    start: int,
    total: NDArray[np.int64],
    texts: NDArray[np.int64],
    last_text: NDArray[np.int64],
) -> None:
    buckets = len(total)
    for row in range(len(offsets) - 1):
        before = np.uint64(0)
        for place in range(offsets[row], offsets[row + 1]):
            word = words[place]
            for order in range(ORDERS):
                if order == 1 and place == offsets[row]:
                    continue
                bucket = _bucket(word, before if order else np.uint64(0), buckets)
                total[bucket] += 1
                if last_text[bucket] != start + row:
                    last_text[bucket] = start + row
                    texts[bucket] += 1
            # The lowest bit is set in every predecessor: a bigram has one bucket whether or not a space came
            # before.
            before = word | np.uint64(1)


@compiled
def _score(
    offsets: NDArray[np.int64],
    words: NDArray[np.uint64],
    start: int,
    log_weight: NDArray[np.float64],
    log_ratio: NDArray[np.float64],
    total: NDArray[np.int64],
    member: int,
    last_text: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> None:
    buckets = len(total)
    everything = max(1.0, total.sum() / 2.0)
    unseen = log_ratio.min()
    text_pairs = np.zeros(buckets, np.int64)
    for row in range(len(offsets) - 1):
        first, last = offsets[row], offsets[row + 1]
        for place in range(first + 1, last):
            text_pairs[_pair(words, place - 1, place, buckets)] += member
        weight, ratio, distinct, distinct_pairs = 0.0, 0.0, 0, 0
        sums, pairs = np.zeros(2), np.zeros(2)
        for place in range(first, last):
            at = _bucket(words[place], np.uint64(0), buckets)
            weight += log_weight[at]
            if last_text[at] != start + row:
                last_text[at] = start + row
                distinct += 1
                ratio += log_ratio[at]
            for skip in SKIPS:
                if place - skip < first:
                    continue
                pair = _pair(words, place - skip, place, buckets)
                before = _bucket(words[place - skip], np.uint64(0), buckets)
                expected = total[at] * (total[before] / everything)
                # Pointwise mutual information with one occurrence added on both sides, so that a pair never
                # seen elsewhere counts as little evidence rather than as minus infinity.
                bound = np.log((max(0, total[pair] - text_pairs[pair]) + 1.0) / (expected + 1.0))
                if words[place] & np.uint64(1):
                    sums[min(skip, 2) - 1] += bound
                    pairs[min(skip, 2) - 1] += 1
                if skip > 1:
                    continue
                weight += log_weight[pair]
                if last_text[pair] != start + row:
                    last_text[pair] = start + row
                    distinct += 1
                    distinct_pairs += 1
                    ratio += log_ratio[pair]
        for place in range(first + 1, last):
            text_pairs[_pair(words, place - 1, place, buckets)] = 0
        scores[row, 0] = weight
        # SHORT unseen n-grams are added, since the mean over a few words is mostly luck.
        scores[row, 1] = (ratio + SHORT * unseen) / (distinct + SHORT)
        # Neighbours less words further apart: a topic raises both alike, an order of words only the first.
        scores[row, 2] = sums[0] / max(1.0, pairs[0]) - sums[1] / max(1.0, pairs[1])
        scores[row, 3] = distinct_pairs / max(1, last - first - 1)


@compiled
def _words(
    joined: NDArray[np.uint8], ends: NDArray[np.int64], words: NDArray[np.uint64], counts: NDArray[np.int64]
) -> int:
    used = 0
    for row in range(len(ends) - 1):
        begun, hashed = used, np.uint64(0)
        inside, spaced = False, np.uint64(1)
        for place in range(ends[row], ends[row + 1]):
            byte = joined[place]
            if 65 <= byte <= 90:
                byte += np.uint8(32)
            if byte >= 128 or 97 <= byte <= 122 or 48 <= byte <= 57:
                hashed = ((hashed if inside else _START) ^ np.uint64(byte)) * _FNV
                inside = True
                continue
            if inside:
                words[used] = (hashed | np.uint64(1)) ^ np.uint64(1) ^ spaced
                used, inside, spaced = used + 1, False, np.uint64(0)
            if byte <= 32 or byte == 127:
                spaced = np.uint64(1)
                continue
            words[used] = (((_START ^ np.uint64(byte)) * _FNV) | np.uint64(1)) ^ np.uint64(1) ^ spaced
            used, spaced = used + 1, np.uint64(0)
        if inside:
            words[used] = (hashed | np.uint64(1)) ^ np.uint64(1) ^ spaced
            used += 1
        counts[row] = used - begun
    return used
