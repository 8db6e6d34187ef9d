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

MIN_NEIGHBOURS = 8
"""Neighbouring words by which a text is judged, at least; the cohesion of fewer is mostly luck."""

ORDERED = 0.2
"""Median cohesion of a target whose words have an order. That of lists of random numbers was -0.01, of Python
functions 0.4 and more, of six sets of texts 0.8 and more."""

COLUMNS = 5
"""Numbers of a text in `Affinity`."""

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
    """Number of texts that are counted."""
    digests: NDArray[np.uint64]
    """(N,) hash of each text's words; empty where copies count."""
    copies: NDArray[np.bool_]
    """(N,) whether an earlier text has the same words; empty where copies count."""

    @staticmethod
    def of(chunks: Iterable[Chunk], buckets: int = BUCKETS, *, distinct: bool = False) -> "Counts":
        """Count the n-grams of texts that come in chunks.

        Args:
            chunks: the texts.
            buckets: number of counters.
            distinct: count texts with the same words once.
        """
        total, texts = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64)
        last_text, size = np.full(buckets, -1, np.int64), 0
        # Sorted hashes of all texts so far: 8 bytes for each text.
        seen, digests, copies = np.zeros(0, np.uint64), [np.zeros(0, np.uint64)], [np.zeros(0, bool)]
        for offsets, words in chunks:
            repeated = np.zeros(len(offsets) - 1, dtype=bool)
            if distinct:
                hashed = np.zeros(len(repeated), np.uint64)
                _digests(offsets, words, hashed)
                repeated, seen = _seen_before(hashed, seen)
                digests.append(hashed)
                copies.append(repeated)
            _count(offsets, words, repeated, size, total, texts, last_text)
            size += int((~repeated).sum())
        return Counts(total, texts, size, np.concatenate(digests), np.concatenate(copies))


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
    """Share of a text's bigrams that are distinct; low where lines are repeated. 1 for short texts."""
    pairs: NDArray[np.float64]
    """Neighbouring words that `cohesion` is the mean of."""

    def garbled(self, target: "Affinity") -> NDArray[np.bool_]:
        """(N,) whether a text's words are in random order, or most of it is repeated, when compared with a
        target's texts.

        Texts of fewer than `MIN_NEIGHBOURS` neighbours are too short to be judged, and where the target's own
        words have no order (lists of numbers), none is judged by it.

        In 15 pools (`benchmarks.grace.words`) the cohesion of shuffled texts was at most 0.17 at the median
        and 0.48 at the 95th percentile, that of 95 % of the natural ones above 0.45. Texts of one repeated
        sentence had a variety of 0.34 at most, 95 % of the natural ones of 0.66 and more.
        """
        if not len(target.ratio):
            return np.zeros(len(self.ratio), dtype=bool)
        usual = float(np.median(target.cohesion))
        shuffled = (
            (self.cohesion < min(0.5, 0.5 * usual)) & (self.pairs >= MIN_NEIGHBOURS) & (usual >= ORDERED)
        )
        return shuffled | (self.variety < min(0.55, 0.9 * float(np.percentile(target.variety, 5))))


def _seen_before(
    digests: NDArray[np.uint64], seen: NDArray[np.uint64]
) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Which digests occur earlier or in `seen`, ascending; and `seen` with those of these."""
    distinct, firsts = np.unique(digests, return_index=True)
    places = np.minimum(np.searchsorted(seen, distinct), max(0, len(seen) - 1))
    fresh = seen[places] != distinct if len(seen) else np.ones(len(distinct), dtype=bool)
    repeated = np.ones(len(digests), dtype=bool)
    repeated[firsts[fresh]] = False
    # A stable sort merges two sorted parts in linear time.
    return repeated, np.sort(np.concatenate([seen, distinct[fresh]]), kind="stable")


def compile_kernels() -> None:
    """Compile what numba compiles the first time on a machine, which takes seconds."""
    chunk = word_ids(["two words"])
    _ = affinity([chunk], Counts.of([chunk], distinct=True), Counts.of([chunk]))


def affinity(
    chunks: Iterable[Chunk],
    pool: Counts,
    target: Counts,
    *,
    member: bool = True,
    smoothing: float = 0.0,
) -> Affinity:
    """Compare texts with a target.

    Args:
        chunks: the texts.
        pool, target: n-grams of both.
        member: whether the texts are counted in `pool`; their own n-grams then do not count in `cohesion`.
            Copies must then have been counted once (`Counts.of` with `distinct`), or they vouch for each
            other.
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
    parts: list[list[NDArray[np.float64]]] = [[np.zeros((0, COLUMNS))] for _ in targets]
    start = 0
    for offsets, words in chunks:
        for (log_weight, log_ratio, last_text), blocks in zip(tables, parts, strict=True):
            scores = np.zeros((len(offsets) - 1, COLUMNS))
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
    ASCII letters in lower case. In scripts that are written without spaces each letter is a word.

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
def _digests(offsets: NDArray[np.int64], words: NDArray[np.uint64], digests: NDArray[np.uint64]) -> None:
    for row in range(len(offsets) - 1):
        hashed = _START
        for place in range(offsets[row], offsets[row + 1]):
            # The space before a word is no difference between texts.
            hashed = (hashed ^ (words[place] | np.uint64(1))) * _ODD
            hashed ^= hashed >> np.uint64(29)
        digests[row] = hashed * np.uint64(0xBF58476D1CE4E5B9)


@compiled
def _count(
    offsets: NDArray[np.int64],
    words: NDArray[np.uint64],
    left_out: NDArray[np.bool_],
    start: int,
    total: NDArray[np.int64],
    texts: NDArray[np.int64],
    last_text: NDArray[np.int64],
) -> None:
    buckets = len(total)
    for row in range(len(offsets) - 1):
        if left_out[row]:
            continue
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
        scores[row, 3] = distinct_pairs / (last - first - 1) if last - first > MIN_NEIGHBOURS else 1.0
        scores[row, 4] = pairs[0]


_RUN, _ALONE, _MARK, _SPACE = 0, 1, 2, 3


@partial(compiled, inline="always")
def _kind(code: np.int64) -> int:
    """What a character of at least U+0800, or of Thai and other scripts without spaces, is."""
    if code < 0x3000:
        # Thai and Lao; Tibetan, which has marks between syllables; Burmese; Khmer; Tai Le to Tai Tham.
        alone = 0x0E00 <= code < 0x10A0 or 0x1780 <= code < 0x1800
        if alone or 0x1950 <= code < 0x1AB0 or 0x2E80 <= code < 0x2FE0:
            return _ALONE
        return _RUN
    if code < 0x3040:
        if code == 0x3000:
            return _SPACE
        # Numerals and the sign that repeats a character stand among the marks.
        return _ALONE if 0x3005 <= code <= 0x3007 or 0x3021 <= code <= 0x3029 else _MARK
    # Kana, Bopomofo, ideographs; halfwidth kana; ideographs beyond the first 65,536 characters. Hangul, which
    # has spaces, lies between.
    if code < 0x3130 or 0x31A0 <= code < 0x3200 or 0x3400 <= code < 0x4DC0 or 0x4E00 <= code < 0xA000:
        return _MARK if code == 0x30FB else _ALONE
    if 0xF900 <= code < 0xFB00 or 0xFF66 <= code < 0xFFA0 or 0x20000 <= code < 0x40000:
        return _ALONE
    if 0xFE30 <= code < 0xFE50 or 0xFF00 <= code < 0xFF66:
        letter = 0xFF10 <= code < 0xFF1A or 0xFF21 <= code < 0xFF3B or 0xFF41 <= code < 0xFF5B
        return _RUN if letter else _MARK
    return _RUN


@compiled
def _words(
    joined: NDArray[np.uint8], ends: NDArray[np.int64], words: NDArray[np.uint64], counts: NDArray[np.int64]
) -> int:
    used = 0
    for row in range(len(ends) - 1):
        begun, hashed = used, np.uint64(0)
        inside, spaced = False, np.uint64(1)
        place = ends[row]
        while place < ends[row + 1]:
            byte = joined[place]
            place += 1
            if 65 <= byte <= 90:
                byte += np.uint8(32)
            kind, length = _MARK, 0
            if byte >= 224:
                length = 3 if byte >= 240 else 2
                code = np.int64(byte) & (7 if byte >= 240 else 15)
                for after in range(length):
                    code = (code << 6) | (np.int64(joined[place + after]) & 63)
                kind = _kind(code)
            elif byte >= 128 or 97 <= byte <= 122 or 48 <= byte <= 57:
                kind = _RUN
            elif byte <= 32 or byte == 127:
                kind = _SPACE
            if kind == _RUN:
                hashed = ((hashed if inside else _START) ^ np.uint64(byte)) * _FNV
                for after in range(length):
                    hashed = (hashed ^ np.uint64(joined[place + after])) * _FNV
                place += length
                inside = True
                continue
            if inside:
                words[used] = (hashed | np.uint64(1)) ^ np.uint64(1) ^ spaced
                used, inside, spaced = used + 1, False, np.uint64(0)
            if kind == _SPACE:
                place += length
                spaced = np.uint64(1)
                continue
            hashed = (_START ^ np.uint64(byte)) * _FNV
            for after in range(length):
                hashed = (hashed ^ np.uint64(joined[place + after])) * _FNV
            place += length
            # Without spaces, words in another order are letters in another order: each counts as after one.
            if kind == _ALONE:
                spaced = np.uint64(1)
            words[used] = (hashed | np.uint64(1)) ^ np.uint64(1) ^ spaced
            used, spaced = used + 1, np.uint64(0)
        if inside:
            words[used] = (hashed | np.uint64(1)) ^ np.uint64(1) ^ spaced
            used += 1
        counts[row] = used - begun
    return used
