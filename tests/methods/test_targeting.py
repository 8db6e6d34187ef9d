"""Selection towards a target: shares of subtasks, junk that imitates the target, copies, unrelated pools."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradwise as gw
from gradwise.data.texts import Texts
from gradwise.errors import RecipeError, SignalError
from gradwise.methods import targeting
from gradwise.methods.targeting import MIN_CLOSENESS, Subtasks, closeness_of, joint, match_ngrams
from gradwise.numerics.ngrams import word_ids
from gradwise.numerics.transport import spread_mass
from gradwise.signals import Signals

BAKERY = "Anna bakes {a} loaves and sells {b} of them. How many are left? {a}-{b}={c}, so {c} are left."
TRAINS = "A train leaves at {a} and travels for {b} hours. When does it arrive? At {a}+{b}={c} o'clock."
PLAYS = [
    "My lord, the {0} of {1} comes hither with his men, and bids thee lay down thy sword before the gate.",
    "Speak, gentle {0}, for the night is long and {1} hath not yet slept beneath these cold grey towers.",
    "What news from {0}? The king of {1} is fallen, and all his banners burn upon the eastern shore.",
]
NAMES = ["York", "Kent", "Wales", "Norfolk", "Lancaster", "Rome", "Athens", "France", "Scotland", "Sicily"]


class FromTexts(Texts):
    """Texts that are given as they are."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__([{"input_ids": [0]}] * len(texts))
        self.texts = texts

    def take(self, rows: Any) -> "FromTexts":
        return FromTexts([self.texts[int(row)] for row in rows])

    def chunks(self) -> Any:
        for start in range(0, len(self.texts), 7):
            yield word_ids(self.texts[start : start + 7])


def problems(form: str, count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(2, 99, (count, 2)).tolist()
    return [form.format(a=a + b, b=b, c=a) for a, b in pairs]


def speeches(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [PLAYS[n % 3].format(*rng.choice(NAMES, 2, replace=False)) for n in range(count)]


def signals(texts: list[str], seed: int = 0, **values: Any) -> Signals:
    """With embeddings that say nothing, so that words decide."""
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((len(texts), 8)).astype(np.float32)
    tokens = np.full(len(texts), 9, dtype=np.int32)
    return Signals(len(texts), texts=FromTexts(texts), embedding=embedding, num_tokens=tokens, **values)


class TestJoint:
    def test_one_subtask_ranks_as_it_is(self) -> None:
        scores = np.random.default_rng(0).standard_normal((1, 9))
        assert np.array_equal(joint(scores, np.ones(1)), scores[0])

    @pytest.mark.parametrize("seed", range(5))
    def test_each_subtask_gets_its_share(self, seed: int) -> None:
        """However much higher the scores of one are."""
        rng = np.random.default_rng(seed)
        scores, shares = rng.random((2, 400)) * [[1.0], [100.0]], np.array([0.75, 0.25])
        ranking = np.argsort(-joint(scores, shares))
        for count in (20, 40, 160):
            best = ranking[:count]
            assert set(np.argsort(-scores[1])[: count // 4]) <= set(ranking[: count + 1].tolist())
            assert len(np.intersect1d(best, np.argsort(-scores[0])[:count])) >= 0.7 * count
            assert set(np.argsort(-scores[1])[: count // 5]) <= set(best.tolist())
            assert set(np.argsort(-scores[0])[: count // 2]) <= set(best.tolist())

    def test_small_domains_are_one_subtask(self) -> None:
        domain = np.array(["a"] * 10 + ["b"] * 3 + ["c"] * 2)
        found = Subtasks.of_domains(domain, 15)
        assert found.names == ("a", "others")
        assert found.shares.tolist() == pytest.approx([2 / 3, 1 / 3])


def garbled(text: str, kind: str, rng: np.random.Generator) -> str:
    words = text.split()
    if kind == "shuffled":
        return " ".join(rng.permutation(words))
    return " ".join(words[:7] * 6)


@pytest.mark.parametrize("kind", ["shuffled", "repeated"])
@pytest.mark.parametrize("seed", range(4))
def test_garbage_that_imitates_the_target_stays_under_its_share(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    good, other = problems(BAKERY, 60, seed) + problems(TRAINS, 60, seed + 50), speeches(120, seed)
    junk = [garbled(text, kind, rng) for text in problems(BAKERY, 30, seed + 99)]
    pool, target = good + other + junk, problems(BAKERY, 40, seed + 7)
    for method in (gw.Grace(count=30, target="target"), gw.Grace(count=30, target="target", trade_off=0.0)):
        picked = method.select(signals(pool, seed), target=signals(target, seed + 1)).indices
        assert (picked >= 240).mean() <= 30 / len(pool)
        assert (picked < 120).mean() > 0.9


def test_each_subtask_has_picks() -> None:
    pool = problems(BAKERY, 60, 1) + problems(TRAINS, 60, 2) + speeches(60, 3)
    texts = problems(BAKERY, 20, 4) + problems(TRAINS, 20, 5)
    target = signals(texts, 6, domain=np.array(["bakery"] * 20 + ["trains"] * 20))
    picked = gw.Grace(count=20, target="target").select(signals(pool), target=target).indices
    assert (picked < 60).sum() >= 6
    assert ((picked >= 60) & (picked < 120)).sum() >= 6


@pytest.mark.parametrize("seed", range(3))
def test_each_subtask_has_its_share_of_a_budget_in_tokens(seed: int) -> None:
    """Also where the samples of one are five times as long."""
    pool = problems(BAKERY, 90, seed) + problems(TRAINS, 90, seed + 1) + speeches(60, seed + 2)
    tokens = np.where(np.arange(240) < 90, 50, 10).astype(np.int32)
    texts = problems(BAKERY, 20, seed + 4) + problems(TRAINS, 20, seed + 5)
    target = signals(texts, 6, domain=np.array(["bakery"] * 20 + ["trains"] * 20))
    rng, places = np.random.default_rng(seed), np.eye(8, dtype=np.float32)
    near = (rng.standard_normal((240, 8)) / 10 + places[np.arange(240) // 90]).astype(np.float32)
    known = replace(signals(pool), num_tokens=tokens, embedding=near)
    target = replace(target, embedding=places[np.arange(40) // 20])
    picked = gw.Grace(tokens=800, candidates="all", target="target").select(known, target=target).indices
    by_kind = np.bincount(np.searchsorted([90, 180], picked, side="right"), tokens[picked], minlength=3)
    # All but what a last sample of 50 tokens could not fill.
    assert by_kind[:2].min() > 400 - 50
    assert 790 <= by_kind.sum() <= 800


@pytest.mark.parametrize("seed", range(3))
def test_each_domain_has_its_minimum_of_a_budget_in_tokens(seed: int) -> None:
    domain = np.where(np.arange(120) < 100, "common", "rare")
    loss = np.where(domain == "rare", 0, np.random.default_rng(seed).random(120)).astype(np.float32)
    tokens = np.where(domain == "rare", 10, 4).astype(np.int32)
    pool = replace(signals(speeches(120, seed), seed), domain=domain, loss=loss, num_tokens=tokens)
    settings: dict[str, Any] = {"tokens": 120, "importance": "loss", "trade_off": 0.1, "by_length": False}
    free, held = (gw.Grace(**settings, domain_minimum=part).select(pool).indices for part in (0, 1))
    # A third of the pool's label tokens are the rare domain's.
    assert tokens[free][domain[free] == "rare"].sum() < 30
    assert tokens[held][domain[held] == "rare"].sum() == 40
    assert tokens[held].sum() == 120


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_that_is_longer_than_the_budget_changes_nothing(seed: int) -> None:
    pool, target = signals(problems(BAKERY, 90, seed)), signals(problems(BAKERY, 20, seed + 1), 6)
    rng = np.random.default_rng(seed)
    tokens, picks = rng.integers(5, 20, 90).astype(np.int32), []
    grace = gw.Grace(tokens=150, candidates="all", target="target")
    furthest = int(np.argmin(grace.begin(pool, pool=90, target=target).importance))
    for longest in (200, 2_000_000):
        tokens[furthest] = longest
        found = grace.select(replace(pool, num_tokens=tokens), target=target)
        assert tokens[found.indices].sum() <= 150
        picks.append(found.indices.tolist())
    assert picks[0] == picks[1]


def test_a_budget_of_tokens_is_filled_where_answers_are_short() -> None:
    """There are then more picks than the pool's mean length suggests, and than samples are ranked for it."""
    texts = speeches(240, 1) + problems(BAKERY, 60, 2)
    tokens = np.where(np.arange(300) < 240, 90, 5).astype(np.int32)
    pool, target = replace(signals(texts), num_tokens=tokens), signals(problems(BAKERY, 20, 3), 6)
    grace = gw.Grace(tokens=250, candidates=8, target="target")
    with pytest.warns(UserWarning, match="45 of 50 picks follow n-grams alone, since only 8 samples"):
        picked = grace.select(pool, target=target)
    assert tokens[picked.indices].sum() == 250
    assert picked.indices.min() >= 240


def test_samples_without_a_label_token_do_not_fill_a_budget() -> None:
    tokens = np.where(np.arange(100) % 2, 0, 10).astype(np.int32)
    pool = replace(signals(speeches(100, 1)), num_tokens=tokens, loss=np.arange(100, dtype=np.float32))
    grace = gw.Grace(tokens=100, candidates=6, importance="loss", by_length=False)
    with pytest.warns(UserWarning, match="random"):
        picked = grace.select(pool)
    assert np.maximum(tokens[picked.indices], 1).sum() <= 100 + 6, "6 may be picked for their own sake"


def test_many_subtasks_are_compared_a_few_at_a_time(monkeypatch: Any) -> None:
    """Each takes memory for its n-grams."""
    pool, texts = FromTexts(speeches(40, 1)), FromTexts(problems(BAKERY, 50, 2))
    subtasks = Subtasks(tuple("abcde"), np.arange(50) % 5)
    at_once = match_ngrams(pool, texts, subtasks, 10)
    numbers, compare = [], targeting.affinities

    def watched(chunks: Any, counts: Any, targets: Any) -> Any:
        numbers.append(len(targets))
        return compare(chunks, counts, targets)

    monkeypatch.setattr(targeting, "affinities", watched)
    monkeypatch.setattr(targeting, "AT_ONCE", 2)
    few = match_ngrams(pool, texts, subtasks, 10)
    assert numbers == [2, 2, 1]
    assert np.array_equal(few.score, at_once.score) and few.closeness == at_once.closeness


def test_no_copy_while_a_distinct_sample_is_left() -> None:
    pool = [problems(BAKERY, 1, 0)[0]] * 30 + problems(BAKERY, 30, 1)
    known = signals(pool)
    embedding = np.array(known.embedding)
    embedding[:30] = embedding[0]
    known = Signals(60, texts=known.texts, embedding=embedding, num_tokens=known.num_tokens)
    picked = gw.Grace(count=20, target="target").select(known, target=signals(problems(BAKERY, 10, 2), 9))
    assert (picked.indices < 30).sum() <= 1


def test_a_pool_without_anything_relevant_is_said() -> None:
    target = FromTexts(problems(BAKERY, 40, 1))
    subtasks = Subtasks.of_domains(None, 40)
    far: Any = match_ngrams(FromTexts(speeches(200, 2)), target, subtasks, 20)
    near: Any = match_ngrams(FromTexts(speeches(150, 2) + problems(BAKERY, 50, 3)), target, subtasks, 20)
    assert far.closeness < MIN_CLOSENESS < near.closeness
    with pytest.warns(UserWarning, match="little that resembles the target"):
        gw.Grace(count=20, target="target").select(signals(speeches(200, 2)), target=signals(target.texts))


@pytest.mark.parametrize("seed", range(3))
def test_some_texts_of_a_large_pool_say_whether_it_is_far(seed: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(targeting, "CLOSENESS_TEXTS", 150)
    target, subtasks = FromTexts(problems(BAKERY, 40, seed)), Subtasks.of_domains(None, 40)
    pools = {"far": speeches(600, seed), "near": speeches(450, seed) + problems(BAKERY, 150, seed + 9)}
    for name, texts in pools.items():
        whole: Any = match_ngrams(FromTexts(texts), target, subtasks, 60).closeness
        some: Any = closeness_of(FromTexts(texts), target, subtasks, 60, seed)
        assert some == pytest.approx(whole, abs=0.15), name
        assert (some < MIN_CLOSENESS) == (whole < MIN_CLOSENESS) == (name == "far")


@pytest.mark.parametrize(
    "method",
    [
        gw.Grace(count=5, target="target"),
        gw.baselines.Dsir(count=5),
        gw.baselines.Nearest(count=5),
        gw.baselines.Tsds(count=5),
        gw.baselines.Less(count=5, checkpoints=1),
    ],
    ids=lambda method: method.method,
)
class TestEvery:
    def test_picks_differ_and_repeat_by_seed(self, method: Any) -> None:
        pool, target = signals(problems(BAKERY, 40, 1)), signals(problems(BAKERY, 9, 2), 5)
        grads: Any = {"grad": np.random.default_rng(3).standard_normal((40, 6)).astype(np.float32)}
        aims: Any = {"grad": np.random.default_rng(4).standard_normal((9, 6)).astype(np.float32)}
        pool, target = replace(pool, **grads), replace(target, **aims)
        first = method.select(pool, target=target, seed=1)
        assert len(set(first.indices.tolist())) == 5
        assert np.array_equal(first.indices, method.select(pool, target=target, seed=1).indices)

    def test_what_could_not_be_measured_leaves_its_place_to_others(self, method: Any) -> None:
        rng = np.random.default_rng(3)
        sound, fine = np.arange(12) % 2 == 1, np.arange(9) != 4
        pool = signals(problems(BAKERY, 12, 1), ok=sound)
        target = signals(problems(BAKERY, 9, 2), 5, ok=fine)
        pool = replace(pool, grad=rng.standard_normal((12, 6)).astype(np.float32))
        target = replace(target, grad=rng.standard_normal((9, 6)).astype(np.float32))
        picked = method.select(pool, target=target)
        assert len(picked.indices) == 5 and sound[picked.indices].all()
        # GRACE compares the words of all of the pool before it measures any of it.
        aims, rows = target.take(np.flatnonzero(fine)), np.flatnonzero(sound)
        if method.method == "grace":
            alone = method.select(pool, target=aims).indices
        else:
            alone = rows[method.select(pool.take(rows), target=aims).indices]
        assert picked.indices.tolist() == alone.tolist()

    @pytest.mark.parametrize("far", [True, False])
    def test_a_pool_without_anything_relevant_is_said(self, method: Any, far: bool) -> None:
        pool = signals(speeches(60, 2) if far else speeches(40, 2) + problems(BAKERY, 20, 3))
        pool = replace(pool, grad=np.random.default_rng(3).standard_normal((60, 6)).astype(np.float32))
        target = signals(problems(BAKERY, 9, 2), 5)
        target = replace(target, grad=np.random.default_rng(4).standard_normal((9, 6)).astype(np.float32))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            picked = method.select(pool, target=target)
        messages = [str(each.message) for each in caught]
        assert ["little that resembles the target" in each for each in messages] == [True] * far
        assert bool(method.advice(picked)) is far

    def test_a_target_is_needed(self, method: Any) -> None:
        with pytest.raises(SignalError, match="target"):
            method.select(signals(problems(BAKERY, 40, 1)))


@pytest.mark.parametrize("aim", [np.zeros(6), np.full(6, np.nan), np.eye(6)[5]])
@pytest.mark.parametrize(
    "method",
    [gw.Grace(count=5, target="target", importance="alignment"), gw.baselines.Less(count=5, checkpoints=1)],
    ids=lambda method: method.method,
)
def test_a_target_that_tells_no_sample_from_another_is_refused(method: Any, aim: Any) -> None:
    """Or the pool's order would decide."""
    grad = np.random.default_rng(3).standard_normal((40, 6)).astype(np.float32)
    grad[:, 5] = 0
    pool = replace(signals(problems(BAKERY, 40, 1)), grad=grad)
    target = replace(signals(problems(BAKERY, 9, 2)), grad=np.tile(aim, (9, 1)).astype(np.float32))
    with pytest.raises(SignalError, match=r"finite and not zero|are orthogonal to the target"):
        method.select(pool, target=target)


@pytest.mark.parametrize("method", [gw.baselines.Nearest(count=5), gw.baselines.Tsds(count=5)])
def test_embeddings_that_are_all_alike_are_refused(method: Any) -> None:
    target = Signals(2, embedding=np.eye(4, dtype=np.float32)[:2])
    with pytest.raises(SignalError, match="the embeddings of all 12 samples are orthogonal to the target"):
        method.select(Signals(12, embedding=np.ones((12, 4), np.float32)), target=target)


def test_a_sample_in_the_middle_of_the_pool_has_its_own_density() -> None:
    """It has no direction, and so no neighbours, not even itself."""
    around = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    pool = np.concatenate([around, -around, np.zeros((1, 4), np.float32)])
    with np.errstate(all="raise"):
        picked = gw.baselines.Tsds(count=13).select(
            Signals(13, embedding=pool), target=Signals(2, embedding=around[:2] + 0.1)
        )
    assert sorted(picked.indices.tolist()) == list(range(13))


def test_nearest_takes_turns() -> None:
    pool = np.eye(4)[[0, 0, 1, 1, 2, 3]] + 0.01 * np.arange(6)[:, None]
    target = Signals(2, embedding=np.eye(4, dtype=np.float32)[[0, 1]])
    picked = gw.baselines.Nearest(count=4).select(
        Signals(6, embedding=pool.astype(np.float32)), target=target
    )
    assert sorted(picked.indices.tolist()) == [0, 1, 2, 3]


def test_less_by_hand() -> None:
    rng = np.random.default_rng(0)
    pool, aims = rng.standard_normal((12, 8)), rng.standard_normal((20, 8))
    domain = np.array(["a"] * 10 + ["b"] * 10)
    score = np.full(12, -np.inf)
    for part in (slice(0, 10), slice(10, 20)):
        total = np.zeros(12)
        for rate, block in ((0.75, slice(0, 4)), (0.25, slice(4, 8))):
            mean = aims[part, block].mean(axis=0)
            lengths = np.linalg.norm(pool[:, block], axis=1) * np.linalg.norm(mean)
            total += rate * (pool[:, block] @ mean) / lengths
        score = np.maximum(score, total)
    method = gw.baselines.Less(count=5, checkpoints=2)
    picked = method.select(Signals(12, grad=pool), target=Signals(20, grad=aims, domain=domain))
    assert picked.indices.tolist() == np.argsort(-score)[:5].tolist()


def test_mass_is_the_optimum_of_a_linear_program() -> None:
    from scipy.optimize import linprog

    rng = np.random.default_rng(0)
    for spread in (0.1, 0.4, 0.8):
        d, density = rng.random((3, 7)), 1 + rng.random(7)
        found = spread_mass(d, density, spread, 7)
        scale = np.abs(np.sort(d, axis=1)).mean()
        # Variables: 3 x 7 couplings, then the cap.
        cost = np.append((1 - spread) * d.ravel() / scale, spread * 3)
        rows = np.kron(np.eye(3), np.ones(7))
        caps = np.hstack([np.diag(np.tile(density, 3)), -np.ones((21, 1))])
        best = linprog(cost, caps, np.zeros(21), np.hstack([rows, np.zeros((3, 1))]), np.full(3, 1 / 3))
        moved = best.x[:21].reshape(3, 7).sum(axis=0)
        assert np.abs(found - moved).max() < 1e-3


class TestRecipes:
    def test_a_target_that_is_not_given(self) -> None:
        with pytest.raises(RecipeError, match=r"give data\.target"):
            _ = gw.Recipe(select=gw.Grace(count=5, target="target")).goal
        with pytest.raises(RecipeError, match="none is given"):
            _ = gw.Recipe(select=gw.baselines.Dsir(count=5)).goal

    def test_which_set_a_selection_aims_at(self) -> None:
        def goal(select: Any, **data: str) -> str | None:
            return gw.Recipe.from_dict({"data": {"train": "t", **data}, "select": select}).goal

        grace = {"method": "grace", "count": 5}
        assert goal(grace, validation="v") is None
        assert goal(grace, validation="v", target="g") == "target"
        assert goal(grace | {"target": "validation"}, validation="v") == "validation"
        assert goal({"method": "dsir", "count": 5}, validation="v") == "validation"
        with pytest.raises(RecipeError, match="no effect"):
            goal(grace | {"target": "validation"}, validation="v", target="g")

    def test_importance_that_ignores_the_target(self) -> None:
        with pytest.raises(
            RecipeError, match=r"or, where that is unset, data.target; .* relevance or alignment"
        ):
            gw.Grace(count=5, target="target", importance="loss")
        with pytest.raises(RecipeError, match="needs a target"):
            gw.Grace(count=5, importance="relevance")


def _write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


class TestParts:
    """What chooses never measures."""

    @pytest.fixture
    def tokenizer(self, stories: Path) -> Any:
        from gradwise.recipe import Model
        from gradwise.run.model import load_tokenizer

        return load_tokenizer(Model(name=str(stories)))

    def _parts(self, tmp_path: Path, tokenizer: Any, goal: Any, **parts: list[str]) -> Any:
        from gradwise.data import Data
        from gradwise.data.parts import load_parts

        files: Any = {name: _write(tmp_path / f"{name}.jsonl", texts) for name, texts in parts.items()}
        return load_parts(Data(**files), tokenizer, goal=goal, progress=False)

    def test_what_only_the_annealing_phase_trains_on_does_not_measure(
        self, tmp_path: Path, tokenizer: Any
    ) -> None:
        from gradwise.data import Data, Source
        from gradwise.data.parts import load_parts

        texts, files = problems(BAKERY, 20, 1), {}
        for name, some in {"train": speeches(9, 1), "target": texts, "own": texts[:10]}.items():
            files[name] = _write(tmp_path / f"{name}.jsonl", some)
        own: Any = Source(files.pop("own"))
        parts = load_parts(Data(**files), tokenizer, goal="target", annealing=own, progress=False)
        assert parts.annealing is not None and parts.validation is not None
        anneals, measures = (
            set(map(tuple, part.dataset["input_ids"])) for part in (parts.annealing, parts.validation)
        )
        assert measures and not anneals & measures
        assert any("that measure are among anneal.data; they are left out" in note for note in parts.notes)

    @pytest.mark.parametrize("given", ["target", "validation"])
    def test_a_single_set_is_split(self, tmp_path: Path, tokenizer: Any, given: Any) -> None:
        texts = problems(BAKERY, 11, 1)
        parts = self._parts(tmp_path, tokenizer, given, train=speeches(9, 1), **{given: texts})
        chooses, measures = (set(map(tuple, part.dataset["input_ids"])) for part in parts[2:0:-1])
        assert len(parts.target) + len(parts.validation) == 11
        assert not chooses & measures
        assert any("is split" in note for note in parts.notes)

    def test_common_samples_do_not_measure(self, tmp_path: Path, tokenizer: Any) -> None:
        texts = problems(BAKERY, 9, 1)
        parts = self._parts(
            tmp_path, tokenizer, "target", train=speeches(9, 1), target=texts[:6], validation=texts[4:]
        )
        assert (len(parts.target), len(parts.validation)) == (6, 3)
        assert any("2 of 5 samples that measure are among the target's" in note for note in parts.notes)

    def test_what_stands_in_the_pool_does_not_measure(self, tmp_path: Path, tokenizer: Any) -> None:
        texts = problems(BAKERY, 20, 1)
        parts = self._parts(tmp_path, tokenizer, "target", train=[*speeches(9, 1), *texts[:10]], target=texts)
        trains = set(map(tuple, parts.train.dataset["input_ids"]))
        assert not trains & set(map(tuple, parts.validation.dataset["input_ids"]))
        assert any("also stand in the training data" in note for note in parts.notes)
