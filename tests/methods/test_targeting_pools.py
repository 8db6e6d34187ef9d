# ruff: noqa: RUF001 - texts in other scripts
"""Selection towards a target from pools with copies, junk, other scripts, and subtasks of unequal sizes."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.errors import SignalError
from gradwise.methods.targeting import MIN_CLOSENESS, Subtasks, match_ngrams
from gradwise.numerics.ngrams import word_ids
from gradwise.signals import Signals
from tests.methods.test_targeting import BAKERY, TRAINS, FromTexts, garbled, problems, signals, speeches

pytestmark = pytest.mark.filterwarnings("ignore:The pool holds little")


def embedded(texts: list[str], seed: int) -> Signals:
    """Signals in which copies have one embedding, as by a model, and which say nothing else."""
    rng, by_text = np.random.default_rng(seed), {}
    for text in texts:
        by_text.setdefault(text, rng.standard_normal(8).astype(np.float32))
    return replace(signals(texts), embedding=np.stack([by_text[text] for text in texts]))


def compared(pool: list[str], target: list[str], size: int) -> Any:
    return match_ngrams(FromTexts(pool), FromTexts(target), Subtasks.of_domains(None, len(target)), size)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_no_copy_is_picked_while_a_distinct_text_is_left(seed: int, mixed: bool) -> None:
    """Every text 20 times, one copy beside the other or far from it."""
    texts = list(dict.fromkeys(problems(BAKERY, 30, seed) + problems(TRAINS, 30, seed)))
    pool = texts * 20 if mixed else [text for text in texts for _ in range(20)]
    target = signals(problems(BAKERY, 20, seed + 9), 5)
    for count in (10, 40, len(texts)):
        picked = gw.Grace(count=count, target="target").select(embedded(pool, seed), target=target)
        assert len({pool[row] for row in picked.indices}) == count


@pytest.mark.parametrize("seed", range(3))
def test_copies_come_before_garbled_texts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = problems(BAKERY, 40, seed) + speeches(40, seed)
    junk = [garbled(text, "shuffled", rng) for text in problems(BAKERY, 10, seed + 3)]
    pool = texts + junk + texts
    ranking = compared(pool, problems(BAKERY, 30, seed + 9), 20).best(len(pool))
    place = np.argsort(ranking)
    first = np.array([text not in pool[:row] for row, text in enumerate(pool)])
    junk_rows = np.arange(80, 90)
    assert place[:80][first[:80]].max() < place[~first].min(), "distinct texts, then copies"
    assert place[~first].max() < place[junk_rows].min(), "then garbled texts"


def test_a_copy_differs_in_spaces_and_capitals_at_most() -> None:
    pool = [*problems(BAKERY, 9, 1), *speeches(9, 2)]
    copies = [pool[0].upper(), pool[0].replace(" ", "\n\n"), pool[0] + " More."]
    words = compared([*pool, *copies], problems(BAKERY, 9, 3), 4)
    assert sorted(words.best(21)[-2:].tolist()) == [18, 19]


def language(name: str, count: int, seed: int) -> list[str]:
    """Texts of 40 words, each of which is followed by one of three others."""
    follow = np.random.default_rng(len(name)).integers(0, 300, (300, 3))
    rng, texts = np.random.default_rng(seed), []
    for start in rng.integers(0, 300, count):
        words = [int(start)]
        for turn in rng.integers(0, 3, 39):
            words.append(int(follow[words[-1], turn]))
        texts.append(" ".join(f"{name}{word}" for word in words))
    return texts


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("kind", ["shuffled", "repeated"])
@pytest.mark.parametrize("seed", range(3))
def test_garbage_that_occurs_several_times_stays_under_its_share(kind: str, times: int, seed: int) -> None:
    """Each text of it vouched for the others, when copies counted."""
    rng = np.random.default_rng(seed)
    good, other = language("aim", 60, seed), language("another", 200, seed + 1)
    junk = [garbled(text, kind, rng) for text in language("aim", 40 // times, seed + 2)] * times
    pool, target = good + other + junk, language("aim", 30, seed + 3)
    for method in (gw.Grace(count=60), gw.Grace(count=60, trade_off=0.0)):
        picked = method.select(signals(pool, seed), target=signals(target, seed + 1)).indices
        assert (picked >= 260).mean() <= len(junk) / len(pool)
    words = compared(pool, target, 60)
    assert words.garbled[260:].mean() > 0.9 > 0.1 > words.garbled[:260].mean()


FRUITS = ["苹果", "香蕉", "汽车", "书本", "老师", "学生", "城市", "河流", "国王", "宝剑"]


def sums(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    form = "小明有{}个{}，卖掉了{}个，还剩下多少个？答案是{}。"
    pairs = rng.integers(2, 49, (count, 2)).tolist()
    return [form.format(a + b, FRUITS[rng.integers(10)], b, a) for a, b in pairs]


def tales(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    form = "{}的故事很长，夜里{}在城门外走着，没有人知道他从哪里来，第{}夜。"
    return [form.format(*rng.choice(FRUITS, 2), rng.integers(999)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_words_rank_a_pool_written_without_spaces(seed: int) -> None:
    pool = tales(200, seed) + sums(50, seed + 9)
    near, far = (compared(texts, sums(30, seed + 5), 12) for texts in (pool, tales(200, seed)))
    assert near.best(12).min() >= 200 and not near.garbled.any()
    assert far.closeness < MIN_CLOSENESS < near.closeness
    rng = np.random.default_rng(seed)
    junk = ["".join(rng.permutation(list(text))) for text in sums(30, seed + 77)]
    assert (compared(pool + junk, sums(30, seed + 5), 12).best(40) < 250).all(), "letters in random order"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("小明有3个苹果，卖掉。", 11), ("กินข้าว", 7), ("カタカナ・ひら　x", 8), ("ＡＢ１２！", 2),
        ("한국어 문장", 2), ("naïve Привет", 2), ("𠀀𠀁", 2), ("人々", 2), ("မြန်", 4), ("😀 ok", 2),
    ],
)  # fmt: skip
def test_words_of_other_scripts(text: str, count: int) -> None:
    offsets, words = word_ids([text, text + " x"])
    assert np.diff(offsets).tolist() == [count, count + 1]
    assert np.array_equal(words[:count], words[count : 2 * count])


@pytest.mark.parametrize("seed", range(3))
def test_where_words_tell_nothing_apart_the_ranking_is_random_and_that_is_said(seed: int) -> None:
    """Single words that no target text has; the first rows were taken."""
    pool = [f"word{number}" for number in np.random.default_rng(seed).permutation(400)]
    target = signals(problems(BAKERY, 20, seed), 6)
    words = compared(pool, problems(BAKERY, 20, seed), 20)
    assert words.tied and words.closeness is None
    best = words.best(100)
    assert 120 < best.mean() < 280 and len(set(best.tolist())) == 100
    turned = compared(pool[::-1], problems(BAKERY, 20, seed), 20).best(100)
    assert {pool[row] for row in best} == {pool[::-1][row] for row in turned}
    with pytest.warns(UserWarning, match="all 400 samples are equally close .* ranking by n-grams is random"):
        gw.Grace(count=20).select(signals(pool), target=target)


class TestCloseness:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_large_selection_is_not_said_to_be_far(self, seed: int) -> None:
        """The picks' mean becomes the pool's mean as the selection grows."""
        near = problems(BAKERY, 60, seed) + speeches(240, seed)
        for share in (0.1, 0.5, 1.0):
            words = compared(near, problems(BAKERY, 30, seed + 9), round(share * 300))
            assert words.closeness > 0.8, share
            far = compared(speeches(300, seed), problems(BAKERY, 30, seed + 9), round(share * 300))
            assert far.closeness < MIN_CLOSENESS, share

    @pytest.mark.parametrize("seed", range(3))
    def test_one_target_sample_says_nothing(self, seed: int) -> None:
        pool, target = signals(speeches(60, seed)), signals(problems(BAKERY, 1, seed), 1)
        assert compared(speeches(60, seed), problems(BAKERY, 1, seed), 6).closeness is None
        methods = (gw.Grace(count=6), gw.baselines.Dsir(count=6), gw.baselines.Nearest(count=6))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for method in methods:
                assert "closeness" not in method.select(pool, target=target).details


class TestSubtasks:
    @pytest.mark.parametrize("count", [40, 100])
    @pytest.mark.parametrize("sizes", [(32, 32), (56, 8), (60, 20)])
    @pytest.mark.parametrize("candidates", [None, "all", 160])
    def test_each_gets_its_share(self, sizes: tuple[int, int], candidates: Any, count: int) -> None:
        rng = np.random.default_rng(count)
        pool = problems(BAKERY, 150, 1) + problems(TRAINS, 150, 2) + speeches(300, 3)
        texts = problems(BAKERY, sizes[0], 4) + problems(TRAINS, sizes[1], 5)
        # Embeddings by which the second subtask is far closer to all of its samples than the first.
        centres, spread = np.eye(8, dtype=np.float32)[:3] * 3, np.array([1.0, 0.2, 1.0])
        kind = np.repeat([0, 1, 2], [150, 150, 300])
        embedding = centres[kind] + spread[kind, None] * rng.standard_normal((600, 8))
        aims = np.repeat([0, 1], sizes)
        target = replace(
            signals(texts, domain=np.array(["bakery", "trains"])[aims]),
            embedding=(centres[aims] + rng.standard_normal((len(texts), 8))).astype(np.float32),
        )
        known = replace(signals(pool), embedding=embedding.astype(np.float32))
        picked = gw.Grace(count=count, candidates=candidates).select(known, target=target).indices
        for number, size in enumerate(sizes):
            share = count * size / sum(sizes)
            assert (kind[picked] == number).sum() == pytest.approx(share, abs=max(2, 0.12 * share))

    @pytest.mark.parametrize("seed", range(3))
    def test_garbage_of_one_takes_nothing_from_it(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        pool = problems(BAKERY, 60, seed) + problems(TRAINS, 60, seed + 1) + speeches(60, seed + 2)
        junk = [garbled(text, "shuffled", rng) for text in problems(BAKERY, 60, seed + 3)]
        texts = problems(BAKERY, 20, seed + 4) + problems(TRAINS, 20, seed + 5)
        subtasks = Subtasks.of_domains(np.repeat(["a", "b"], 20), 40)
        best = match_ngrams(FromTexts(pool + junk), FromTexts(texts), subtasks, 40).best(40)
        assert (best < 60).sum() == pytest.approx(20, abs=2)
        assert ((best >= 60) & (best < 120)).sum() == pytest.approx(20, abs=2)


class TestNotOk:
    METHODS = (
        gw.Grace(count=20, target="target"),
        gw.Grace(count=20, target="target", importance="alignment"),
        gw.baselines.Dsir(count=20),
        gw.baselines.Nearest(count=20),
        gw.baselines.Less(count=20, checkpoints=1),
        gw.baselines.Tsds(count=20),
    )

    @staticmethod
    def _measured(texts: list[str], seed: int, **more: Any) -> Signals:
        rng = np.random.default_rng(seed)
        grad, embedding = (rng.standard_normal((len(texts), 8)).astype(np.float32) for _ in range(2))
        return replace(signals(texts, seed), grad=grad, embedding=embedding, **more)

    @pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
    @pytest.mark.parametrize("seed", range(3))
    def test_target_samples_that_are_not_ok_count_for_nothing(self, method: Any, seed: int) -> None:
        pool = self._measured(problems(BAKERY, 60, seed) + speeches(60, seed), seed)
        ok = np.arange(30) % 3 != 1
        domain = np.where(ok, "bakery", "plays")
        texts = [a if sound else b for a, b, sound in zip(problems(BAKERY, 30, 5), speeches(30, 6), ok)]  # noqa: B905
        target = self._measured(texts, seed + 9, ok=ok, domain=domain)
        target.embedding[~ok], target.grad[~ok] = 100.0, -100.0  # type: ignore[index]
        alone = method.select(pool, target=target.take(np.flatnonzero(ok)), seed=seed)
        assert np.array_equal(method.select(pool, target=target, seed=seed).indices, alone.indices)

    @pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
    def test_a_target_without_any_that_is_ok_is_refused(self, method: Any) -> None:
        pool = self._measured(problems(BAKERY, 60, 1), 1)
        target = self._measured(problems(BAKERY, 9, 2), 2, ok=np.zeros(9, dtype=bool))
        with pytest.raises(SignalError, match="none of the 9 target samples could be measured"):
            method.select(pool, target=target)


class TestNatural:
    """What is not ranked as garbled."""

    @pytest.mark.parametrize("seed", range(3))
    def test_texts_too_short_to_judge(self, seed: int) -> None:
        pool = speeches(200, seed) + ["positive", "negative", "yes, and no"] * 20
        words = compared(pool, problems(BAKERY, 30, seed), 20)
        assert not words.garbled[200:].any()

    @pytest.mark.parametrize("seed", range(3))
    def test_lists_of_numbers_towards_such_a_target(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        lists = [" ".join(map(str, row)) for row in rng.integers(0, 999, (140, 40)).tolist()]
        words = compared(speeches(300, seed) + lists[:100], lists[100:], 100)
        assert not words.garbled[300:].any()
        assert (words.best(100) >= 300).mean() > 0.9
