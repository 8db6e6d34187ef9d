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
from gradwise.planning.trials import decided
from tests.conftest import same_weights


def test_the_lowest_mean_wins_and_the_first_among_equals() -> None:
    losses = {"before": np.ones(4), "a": np.array([2.0, 1.0, 2.0, 1.0]), "b": np.full(4, 1.5)}
    winner, means, noise = decided(losses)
    assert (winner, means) == ("a", {"a": 1.5, "b": 1.5})
    assert noise == pytest.approx(np.std(losses["a"], ddof=1) / 2, rel=1e-2)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_never_wins(broken: float) -> None:
    found = decided({"before": np.ones(3), "a": np.full(3, broken), "b": np.full(3, 9.0)})
    assert found[0] == "b"
    with pytest.raises(GradwiseError, match="no contender has a finite held-out loss"):
        decided({"before": np.ones(3), "a": np.full(3, broken), "b": np.full(3, broken)})


def test_a_judge_without_a_loss_is_left_out() -> None:
    losses = {"before": [1, np.nan, 1], "a": [2, np.nan, 1], "b": [1, 5, 1]}
    assert decided({name: np.array(each, float) for name, each in losses.items()})[:2] == (
        "b",
        {"a": 1.5, "b": 1.0},
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
