"""DiReCT in pools with junk, by gradients of a real model: each kind by itself stays under its share of the
pool, and exceeds it where the rule that keeps it out is switched off."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.methods.direct import problem

SENTENCES = [
    f"Once upon a time there was a little girl named {name}. She liked to play with her {toy}."
    for name in ("Lily", "Tom", "Sue", "Ben", "Anna", "Max")
    for toy in ("ball", "dog", "cat", "car", "doll", "book")
]
"""A target of formulaic sentences, whose gradients have much in common and are short."""
RULE_OF = {
    "fragments": "relative_shortness",
    "random tokens": "relative_lengths",
    "shuffled words": "relative_lengths",
    "repeated words": "relative_lengths",
}
"""The function of `problem` by which a kind of junk is left out."""
NATURAL, JUNK, PICKS, POOLS = 240, 27, 27, 12
"""Sizes of a pool and of a selection, and number of pools, drawn from one stock."""

Stock = dict[str, gw.Signals]


@pytest.fixture(scope="module")
def stock(stories: Path, tokenizer: Any, _story_model: Any) -> Stock:
    """Gradients of texts, of four kinds of junk made of them, and of two targets."""

    def rows(name: str, length: int = 64) -> list[list[int]]:
        lines = (stories.parent / f"{name}.jsonl").read_text().splitlines()
        records = map(json.loads, lines)
        texts = [record.get("text") or record["question"] + record["answer"] for record in records]
        return [tokenizer(text)["input_ids"][:length] for text in texts]

    rng = np.random.default_rng(0)
    texts = [*rows("plays_train")[:160], *rows("gsm8k_train")[:160]]
    whole = [row for row in texts if len(row) >= 48]
    some = [whole[place] for place in rng.permutation(len(whole))[:60]]
    kinds = {
        "texts": texts,
        "fragments": [row[place % 9 + 1 :][: 2 + place % 11] for place, row in enumerate(some)],
        "random tokens": rng.integers(3, len(tokenizer), (60, 40)).tolist(),
        "shuffled words": [[row[0], *rng.permutation(row[1:]).tolist()] for row in some],
        "repeated words": [(row[:6] * 64)[:64] for row in some],
        "sentences": [tokenizer(text)["input_ids"] for text in SENTENCES],
        "word problems": rows("gsm8k_held_out"),
    }
    return {
        kind: gw.collect(
            _story_model,
            [{"input_ids": row, "labels": row} for row in made],
            want=("grad",),
            grad_dim=512,
            progress=False,
        )
        for kind, made in kinds.items()
    }


def shares(stock: Stock, kind: str, target: str, method: gw.Direct) -> np.ndarray:
    """(POOLS,) the junk's share of the picks."""
    return np.array([(picks(stock, kind, target, method, seed) >= NATURAL).mean() for seed in range(POOLS)])


def picks(stock: Stock, kind: str, target: str, method: gw.Direct, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 5])
    drawn = [
        stock[name].take(np.sort(rng.permutation(len(stock[name]))[:count]))
        for name, count in (("texts", NATURAL), (kind, JUNK))
    ]
    return method.select(joined(*drawn), validation=stock[target], seed=seed).indices


def joined(*parts: gw.Signals) -> gw.Signals:
    fields: dict[str, Any] = {
        name: np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        for name in ("grad", "num_tokens")
    }
    return gw.Signals(sum(map(len, parts)), **fields)


def without(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    monkeypatch.setattr(problem, rule, lambda _signals, rows, _validation: np.zeros(len(rows)))


SHARE = JUNK / (JUNK + NATURAL)


@pytest.mark.parametrize("kind", RULE_OF)
@pytest.mark.parametrize("target", ["sentences", "word problems"])
@pytest.mark.parametrize("normalise", ["unit", "none"])
def test_each_kind_of_junk_stays_under_its_share(
    stock: Stock, kind: str, target: str, normalise: Any
) -> None:
    method = gw.Direct(count=PICKS, normalise=normalise)
    assert (shares(stock, kind, target, method) <= SHARE).all()


@pytest.mark.parametrize(
    ("kind", "target", "normalise"),
    [
        ("fragments", "sentences", "unit"),
        ("fragments", "sentences", "none"),
        ("repeated words", "sentences", "unit"),
        ("shuffled words", "word problems", "unit"),
        ("random tokens", "word problems", "none"),
    ],
)
def test_without_its_rule_each_kind_exceeds_its_share(
    stock: Stock, kind: str, target: str, normalise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests above would find if nothing kept junk out."""
    without(monkeypatch, RULE_OF[kind])
    assert (shares(stock, kind, target, gw.Direct(count=PICKS, normalise=normalise)) > SHARE).all()


def test_of_copies_one_is_picked(stock: Stock) -> None:
    """27 copies of the usable text that is nearest to the target."""
    alone = gw.Direct(count=1, tau=9.0).select(stock["texts"], validation=stock["word problems"]).indices
    copies = dict(stock, copies=stock["texts"].take(np.repeat(alone, 60)))
    for seed in range(POOLS):
        one, unlimited = (
            (picks(copies, "copies", "word problems", method, seed) >= NATURAL).sum()
            for method in (gw.Direct(count=PICKS), gw.Direct(count=PICKS, copies=None))
        )
        assert one <= 1 and unlimited / PICKS > SHARE


def test_fragments_left_out_are_counted_and_named(stock: Stock) -> None:
    pool = joined(stock["texts"], stock["fragments"])
    found = gw.Direct(count=PICKS).select(pool, validation=stock["sentences"])
    assert found.details["short_left_out"] == len(stock["fragments"])
    assert found.summary is not None
    for text in (found.summary, found.why[0]):
        assert f"{len(stock['fragments'])} too short" in text
    assert "left out" not in gw.Direct(count=9, outliers="keep").select(pool, validation=pool).why[0]


def test_texts_like_the_validation_samples_are_not_too_short(
    stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = stock["texts"]
    pool, held_out = texts.take(np.arange(0, 320, 2)), texts.take(np.arange(1, 320, 4))
    found = gw.Direct(count=PICKS).select(pool, validation=held_out)
    assert found.details["short_left_out"] == 0
    without(monkeypatch, "relative_shortness")
    same = gw.Direct(count=PICKS).select(pool, validation=held_out)
    assert same.indices.tolist() == found.indices.tolist()


@pytest.mark.parametrize(
    ("tokens", "theirs", "short"),
    [
        ([2, 9, 10, 30, 40, 40, 40], [20] * 10, [0, 1]),  # half of what validation samples have
        ([2, 9, 10, 30, 40, 40, 40], [4] * 10, []),  # validation samples are as short
        ([2, 5, 10, 10, 11], [80] * 10, [0]),  # half of the pool's median, since all of the pool is shorter
        (
            [1, 9, 10, 30, 40, 40, 40],
            [1, *[20] * 99],
            [0, 1],
        ),  # nearly all validation samples, not the shortest
        ([2, 15, 16, 90, 90, 90, 90], [80] * 10, [0, 1]),  # no sample of 16 label tokens is a fragment
    ],
)
def test_too_short_is_its_definition(tokens: list[int], theirs: list[int], short: list[int]) -> None:
    pool, held_out = (
        gw.Signals(len(each), grad=np.ones((len(each), 2), np.float32), num_tokens=np.array(each))
        for each in (tokens, theirs)
    )
    shortness = problem.relative_shortness(pool, np.arange(len(tokens)), held_out)
    usual = min(np.quantile(theirs, 0.05), np.median(tokens))
    np.testing.assert_allclose(shortness, min(usual / 2, 16) / np.array(tokens))
    assert np.flatnonzero(shortness > 1).tolist() == short


def test_where_too_few_remain_the_longest_of_the_short_ones_stay(stock: Stock) -> None:
    fragments = stock["fragments"].take(np.arange(40))
    pool = joined(stock["texts"].take(np.arange(50)), fragments)
    found = gw.Direct(count=40).select(pool, validation=stock["word problems"])
    assert found.details["short_left_out"] == 40 - 15, (
        "65 of 90 remain: half of those that need not be picked"
    )
