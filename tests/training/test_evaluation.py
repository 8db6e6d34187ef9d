"""Evaluations, and what a step records, are those of one process on any number of ranks."""

import json
import math
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import EarlyStoppingCallback

import gradwise as gw
from gradwise.data import Collator
from tests.signals.processes import ended, start_trainers
from tests.training.evaluation_worker import CASES, run

Alone = Callable[[str], dict[str, Any]]
TIMED = ("seconds", "_runtime", "_per_second", "_preparation_time")


@pytest.fixture(scope="session")
def uneven(speeches: Dataset) -> Dataset:
    """60 samples of 5 to 64 tokens, in which up to three fifths of the labels are masked."""

    def cut(row: dict[str, Any], i: int) -> dict[str, Any]:
        ids = row["input_ids"][: 5 + (i * 37) % 60]
        masked = len(ids) * (i % 4) // 5
        return {"input_ids": ids, "labels": [-100] * masked + ids[masked:]}

    return speeches.select(range(60)).map(cut, with_indices=True)


@pytest.fixture(scope="session")
def alone(stories: Path, uneven: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What one process finds in a case."""
    out = tmp_path_factory.mktemp("alone")
    return cache(lambda name: run(name, str(stories), uneven, out))


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.endswith(TIMED)}


def _on_a_rank(rank: int, model: Path, data: Dataset, out: Path) -> None:
    found = {name: run(name, str(model), data, out) for name in CASES}
    if rank == 0:
        (out / "found.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_ranks(ranks: int, alone: Alone, stories: Path, uneven: Dataset, tmp_path: Path) -> None:
    processes = start_trainers(ranks, tmp_path, _on_a_rank, stories, uneven, tmp_path)
    assert [ended(process, 600) for process in processes] == [0] * ranks
    together = json.loads((tmp_path / "found.json").read_text())
    for name in CASES:
        expected, found = alone(name), together[name]
        assert found["seen"] == expected["seen"]
        near = {"abs": 0.02, "rel": 0.02} if name.startswith("bfloat16") else {"abs": 1e-4, "rel": 1e-4}
        for kind in ("metrics", "predicted"):
            assert untimed(found[kind]) == pytest.approx(untimed(expected[kind]), nan_ok=True, **near), name
        assert len(found["lines"]) == len(expected["lines"])
        for line, other in zip(found["lines"], expected["lines"], strict=True):
            assert untimed(line) == pytest.approx(untimed(other), nan_ok=True, **near), name


class TestAlone:
    def test_is_that_of_the_data_whatever_the_training_loss(self, alone: Alone) -> None:
        plain = alone("predictions, moved now and then")["lines"][0]
        for name in ("smoothed", "another loss"):
            line = alone(name)["lines"][0]
            assert line["held_out_loss"] == pytest.approx(plain["held_out_loss"], rel=1e-6)
            assert abs(line["eval_loss"] - plain["eval_loss"]) > 0.1

    def test_several_sets(self, alone: Alone) -> None:
        lines = [line for line in alone("two sets")["lines"] if "loss" not in line]
        assert ["held_out_loss/one" in line for line in lines] == [True, False] * 3
        assert ["held_out_loss/two" in line for line in lines] == [False, True] * 3
        assert {"eval_one_held_out_loss", "eval_two_held_out_loss"} <= set(alone("two sets")["metrics"])

    def test_predictions_have_their_own(self, alone: Alone) -> None:
        for name in ("two sets", "smoothed"):
            assert math.isfinite(alone(name)["predicted"]["test_held_out_loss"])

    def test_chooses_the_best_model_and_stops_early(
        self, story_model: Any, arguments: Any, uneven: Dataset
    ) -> None:
        args = arguments(
            max_steps=6,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="held_out_loss",
        )
        data, held_out = uneven.select(range(24)), uneven.select(range(24, 30))
        # No step is better by 100 nats than the first.
        stop = [EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=100.0)]
        trainer = gw.Trainer(story_model(), args, Collator(0), data, eval_dataset=held_out, callbacks=stop)
        trainer.train()
        losses = [line["eval_held_out_loss"] for line in trainer.state.log_history if "eval_loss" in line]
        assert trainer.state.best_metric == min(losses)
        assert trainer.state.global_step == 3

    @pytest.mark.parametrize(
        ("saved", "said"),
        [
            ("checkpoint-30", None),
            ("checkpoint-20", "is that of checkpoint-20"),
            (None, "is that of the last"),
        ],
    )
    def test_says_where_the_best_was_not_saved(
        self, story_model: Any, arguments: Any, uneven: Dataset, saved: str | None, said: str | None
    ) -> None:
        trainer = gw.Trainer(story_model(), arguments(), Collator(0), uneven)
        trainer.args.load_best_model_at_end = True
        trainer.state.best_global_step = 30
        trainer.state.best_model_checkpoint = saved and f"out/{saved}"
        sentences: list[str] = []
        trainer.session.tell = sentences.append
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        assert len(sentences) == (said is not None)
        if said:
            assert "after step 30 was the best, and no checkpoint was saved then" in sentences[0]
            assert said in sentences[0]

    def test_an_output_that_cannot_be_read_has_none(
        self, story_model: Any, arguments: Any, uneven: Dataset
    ) -> None:
        model = story_model()
        forward = model.forward
        model.forward = wraps(forward)(lambda **inputs: forward(**inputs).to_tuple())
        trainer = gw.Trainer(model, arguments(), Collator(0), uneven, eval_dataset=uneven.select(range(3)))
        metrics = trainer.evaluate()
        assert "eval_loss" in metrics and "eval_held_out_loss" not in metrics
