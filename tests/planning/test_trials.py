"""Which contender of a trial wins, and that chance before it does not decide."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import gradwise as gw
from gradwise import GradwiseError
from gradwise.data import Collator
from gradwise.planning.context import Samples
from gradwise.planning.trials import decided, halves
from tests.conftest import same_weights


def after(**means: float) -> dict[str, np.ndarray]:
    """Losses of nine judges; each contender's differences from the first have a standard error of 0.1."""
    apart = np.tile([-1.0, 0.0, 1.0], 3)
    each = {name: mean + 0.3 * apart / np.std(apart, ddof=1) for name, mean in means.items()}
    first = next(iter(each))
    return {"before": np.ones(9), **each, first: np.full(9, means[first])}


@pytest.mark.parametrize(
    ("means", "winner"),
    [
        ({"a": 1.0, "b": 1.0}, "a"),
        ({"a": 1.0, "b": 0.91}, "a"),
        ({"a": 1.0, "b": 0.89}, "b"),
        ({"a": 1.0, "b": 0.89, "c": 0.8}, "c"),
        ({"a": 1.0, "b": 0.89, "c": 0.95}, "b"),
        ({"a": 1.0, "b": 1.5, "c": 0.95}, "a"),
    ],
)
def test_the_first_is_replaced_only_beyond_noise(means: dict[str, float], winner: str) -> None:
    won, found, noise = decided(after(**means))
    assert won == winner and found == pytest.approx(means) and noise == pytest.approx(0.1, rel=1e-2)


def test_differences_are_paired_by_judge() -> None:
    """Judges differ far more than contenders: by their spread alone nothing would replace the first."""
    spread = np.linspace(0, 50, 9)
    losses = {name: each + spread for name, each in after(a=1.0, b=0.89).items() if name != "before"}
    assert decided({"before": np.ones(9), **losses})[0] == "b"


@pytest.mark.parametrize("count", [1, 2])
def test_the_largest_noise_is_of_any_contender(count: int) -> None:
    losses = after(a=1.0, b=0.5)
    losses |= {f"c{n}": np.ones(9) + n for n in range(count)}
    assert decided(losses)[2] == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_never_wins(broken: float) -> None:
    found = decided({"before": np.ones(3), "a": np.full(3, broken), "b": np.full(3, 9.0)})
    assert found[0] == "b"
    with pytest.raises(GradwiseError, match="no contender has a finite held-out loss"):
        decided({"before": np.ones(3), "a": np.full(3, broken), "b": np.full(3, broken)})


def test_a_judge_without_a_loss_is_left_out() -> None:
    losses = {"before": [1, np.nan, 1], "a": [2, np.nan, 2.5], "b": [1, 5, 1]}
    assert decided({name: np.array(each, float) for name, each in losses.items()})[:2] == (
        "b",
        {"a": 2.25, "b": 1.0},
    )
    with pytest.raises(GradwiseError, match="none of the 2 validation samples that judge has a finite loss"):
        decided({"before": np.full(2, np.nan), "a": np.ones(2), "b": np.ones(2)})


@pytest.mark.filterwarnings("error")
def test_a_single_judge_knows_no_noise() -> None:
    losses = {"before": np.ones(1), "a": np.ones(1), "b": np.zeros(1)}
    assert decided(losses) == ("b", {"a": 1.0, "b": 0.0}, None)


def test_in_a_resumed_run_a_trial_is_that_of_the_uninterrupted_one(
    tiny_llama: Any, arguments: Any, tmp_path: Path
) -> None:
    """With dropout, in the middle of an epoch: neither the mode of the model nor what was drawn before may
    matter."""

    def rows(count: int, offset: int) -> Dataset:
        ids = [[(row * 7 + offset + place * 3) % 60 + 2 for place in range(8)] for row in range(count)]
        return Dataset.from_dict({"input_ids": ids, "labels": ids})

    def make() -> gw.Trainer:
        return gw.Trainer(
            tiny_llama(attention_dropout=0.3),
            arguments(
                max_steps=8, save_strategy="steps", save_steps=4, lr_scheduler_type="warmup_stable_decay"
            ),
            Collator(0),
            train_dataset=rows(40, 0),
            eval_dataset=rows(16, 1),
            recipe=gw.Recipe(anneal=gw.Trial(contenders=("random", "full"), count=8, steps=2, last=0.5)),
        )

    def losses() -> list[dict[str, float]]:
        lines = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
        return [line["losses"] for line in map(json.loads, lines) if line["event"] == "trial"]

    whole, resumed = make(), make()
    whole.train()
    before = losses()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert len(before) == 1 and losses() == before
    assert same_weights(whole.model, resumed.model)


def samples(numbers: list[int]) -> Samples:
    """One for each number; equal numbers make copies."""
    ids = [[2 + number % 50, 3, number, 5] for number in numbers]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
    return Samples(dataset, dataset, Collator(0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("section", ["anneal", "select"])
def test_no_judge_stands_in_the_pool_or_chooses(seed: int, section: str) -> None:
    """Thirty samples, nine of them in the pool and others twice."""
    rng = np.random.default_rng(seed)
    numbers = [*range(24), *rng.integers(9, 24, 6).tolist()]
    half = halves(samples(rng.permutation(numbers).tolist()), section, pool=samples([*range(9), 99]))
    pool_ids, choosing, judging = (
        {tuple(ids) for ids in part.dataset["input_ids"]}
        for part in (samples([*range(9), 99]), half.choosing, half.judging)
    )
    assert not judging & (pool_ids | choosing)
    assert len(half.choosing) == 15 and len(half.judging) == 15 - half.in_pool - half.twins
    assert half.in_pool and half.twins
    sentence = half.sentence(section)
    assert sentence is not None and f"{half.in_pool} are in the training data, {half.twins} are" in sentence


def test_judges_that_nobody_has_seen_stay() -> None:
    clean = halves(samples([*range(20)]), pool=samples([*range(30, 60)]))
    assert clean.sentence("anneal") is None and len(clean.judging) == 10


@pytest.mark.parametrize(
    ("numbers", "pool"), [([*range(20)], [*range(18)]), ([*range(3)] * 6, [30]), ([7] * 8, [30])]
)
def test_too_few_judges_are_refused(numbers: list[int], pool: list[int]) -> None:
    with pytest.raises(gw.RecipeError, match=r"neither in the training data nor copies .* give at least 4"):
        halves(samples(numbers), "select", pool=samples(pool))


def test_a_trial_of_annealing_selections_says_which_judges_it_leaves_out(
    story_model: Any, arguments: Any, speeches: Any
) -> None:
    trainer = gw.Trainer(
        story_model(),
        arguments(max_steps=8, lr_scheduler_type="warmup_stable_decay"),
        train_dataset=speeches.select(range(40)),
        eval_dataset=speeches.select(range(34, 54)),
        recipe=gw.Recipe(anneal=gw.Trial(contenders=("random", "full"), count=8, steps=1, last=0.5)),
    )
    messages: list[str] = []
    trainer.session.tell = messages.append
    with pytest.warns(UserWarning, match="also occur in the training data"):
        trainer.train()
    (sentence,) = [message for message in messages if "would judge" in message]
    left_out = int(sentence.split(": ")[1].split()[0])
    path = trainer.session.folder / "events.jsonl"
    (trial,) = [line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == "trial"]
    assert trial["judges"] == 10 - left_out < 10
