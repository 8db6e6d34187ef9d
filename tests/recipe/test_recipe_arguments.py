"""From a recipe's `train` section to the Trainer's arguments."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from gradwise import Recipe, RecipeError, Train
from gradwise.training.arguments import micro_batch, training_arguments


def built(train: Train, **changes: Any) -> TrainingArguments:
    given = {"output_dir": Path("out"), "seed": 3, "ranks": 1, "validation": False, "bars": False}
    return training_arguments(train, **(given | changes))


class TestTrainingArguments:
    def test_aliases(self):
        made = built(Train(epochs=2.5, batch_size=32, learning_rate=3e-4, schedule="cosine"))
        assert (made.num_train_epochs, made.learning_rate, made.lr_scheduler_type, made.seed) == (
            2.5,
            3e-4,
            "cosine",
            3,
        )
        assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (8, 4)
        assert made.output_dir == "out"
        assert made.disable_tqdm

    def test_any_other_argument_reaches_the_trainer(self):
        given = {
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "warmup_steps": 7,
            "save_strategy": "no",
            "max_steps": 12,
            "optim": "sgd",
            "logging_steps": 3,
            "dataloader_num_workers": 2,
            "adam_beta2": 0.95,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "gradient_checkpointing": True,
        }
        recipe = Recipe.from_dict({"train": given})
        made = built(recipe.train)
        assert (made.weight_decay, made.max_grad_norm, made.warmup_steps, made.max_steps) == (0.1, 0.5, 7, 12)
        assert (made.save_strategy, made.optim, made.logging_steps, made.adam_beta2) == ("no", "sgd", 3, 0.95)
        assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (2, 8)
        assert (made.dataloader_num_workers, made.report_to, made.gradient_checkpointing) == (2, [], True)

    def test_held_out_data_are_evaluated_unless_told_otherwise(self):
        assert (
            built(Train(), validation=True).eval_strategy,
            built(Train(), validation=True).eval_on_start,
        ) == ("epoch", True)
        silent = Train(arguments={"eval_strategy": "no", "eval_on_start": False})
        assert (
            built(silent, validation=True).eval_strategy,
            built(silent, validation=True).eval_on_start,
        ) == ("no", False)

    @pytest.mark.parametrize(
        "asked", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps"}, {"eval_on_start": True}]
    )
    def test_evaluation_without_held_out_data_is_refused(self, asked: dict[str, Any]):
        with pytest.raises(RecipeError, match=r"asks for evaluation, but data\.validation is not given"):
            built(Train(arguments=asked))

    def test_what_the_trainer_refuses_is_a_recipe_error(self):
        with pytest.raises(RecipeError, match=r"^train: "):
            built(Train(arguments={"optim": "no_such_optimizer"}))

    @given(st.integers(1, 4096), st.integers(1, 16), st.none() | st.integers(1, 64))
    def test_micro_batches_make_up_the_batch(self, batch_size: int, ranks: int, asked: int | None):
        if batch_size % ranks or (asked and (batch_size // ranks) % asked):
            with pytest.raises(RecipeError, match=rf"train\.batch_size is {batch_size}, which"):
                micro_batch(batch_size, ranks, asked)
            return
        size = micro_batch(batch_size, ranks, asked)
        assert batch_size % (size * ranks) == 0
        divisors = [d for d in range(1, 9) if (batch_size // ranks) % d == 0]
        assert size == (asked or max(divisors))

    def test_the_batch_is_global(self):
        made = built(Train(batch_size=64), ranks=4)
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps * 4 == 64
