"""Weights in the loss: a run equals a hand-written loop in which every sample is passed through the model
alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, TrainingArguments

import gradwise as gw
from gradwise.data import Collator
from gradwise.training.weighting import WeightedLoss
from tests.conftest import same_weights, some
from tests.training.test_several_ranks import run

RATE, BATCH = 0.5, 8
PLAINLY = {
    "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "learning_rate": RATE,
    "num_train_epochs": 2,
}  # fmt: skip
IN_LOSS = gw.Recipe(weights="loss")


@pytest.fixture
def data(speeches: Dataset) -> Dataset:
    """22 samples with weights from 0.2 to 3; prompts of different lengths carry no loss."""
    rows = [speeches[number] for number in range(22)]
    for number, row in enumerate(rows):
        prompt = number % 5
        row["labels"] = [-100] * prompt + row["labels"][prompt:]
    weights = np.random.default_rng(0).uniform(0.2, 3.0, len(rows))
    return Dataset.from_list(rows).add_column("weight", weights.tolist())  # type: ignore[call-arg]


def by_hand(model: Any, data: Dataset, plan: gw.Plan, rows: list[list[int]], loss_weights: np.ndarray) -> Any:
    """Plain gradient descent on sum_i w_i (sum of the token losses of i) / tokens, one sample at a time.

    Args:
        rows: positions in the plan of the samples of each step.
    """
    for step in rows:
        samples = [data[int(plan.indices[place])] for place in step]
        tokens = sum(sum(label != -100 for label in sample["labels"][1:]) for sample in samples)
        model.zero_grad()
        for place, sample in zip(step, samples, strict=True):
            ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor(sample["labels"])
            logits = model(input_ids=ids).logits[0, :-1]
            total = cross_entropy(logits, labels[1:], reduction="sum")
            (float(loss_weights[plan.indices[place]]) * total / tokens).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
    return model


def steps_of(trainer: Any) -> list[list[int]]:
    """Positions in the plan of the samples of each step, from the lengths of the steps alone."""
    batches, start, found = trainer.session.schedule, 0, []
    for step in range(batches.steps):
        found.append(list(range(start, start + len(batches.samples(step)))))
        start = found[-1][-1] + 1
    return found


def normalised(data: Dataset) -> np.ndarray:
    weights = np.array(data["weight"])
    return weights / weights.mean()


def close(one: Any, other: Any) -> None:
    for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    ("accumulation", "packed"), some([(1, None), (4, None), (2, 64), (1, 64), (4, 64), (2, None)])
)
def test_equals_a_loop_by_hand(
    accumulation: int,
    packed: int | None,
    data: Dataset,
    story_model: Callable[[], Any],
    arguments: Callable[..., TrainingArguments],
) -> None:
    rows = BATCH if packed is None else 4
    given = arguments(
        per_device_train_batch_size=rows // accumulation, gradient_accumulation_steps=accumulation, **PLAINLY
    )
    trainer: Any = gw.Trainer(story_model(), given, Collator(0), data, recipe=IN_LOSS, packed_length=packed)
    trainer.train()
    plan = trainer.session.plan
    if packed is not None:
        assert any(len(row) > 1 for step in range(3) for row in trainer.session.schedule._step_rows(step))
    expected = by_hand(story_model(), data, plan, steps_of(trainer), normalised(data))
    close(trainer.model, expected)
    unweighted = by_hand(story_model(), data, plan, steps_of(trainer), np.ones(len(data)))
    with pytest.raises(AssertionError):
        close(trainer.model, unweighted)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_ranks_equal_a_loop_by_hand(
    data: Dataset, stories: Path, story_model: Callable[[], Any], tmp_path: Path
) -> None:
    """22 samples in batches of 8: the last step has too few for both ranks, and they are weighed as well."""
    out = run(2, tmp_path, data, stories, {"weights": "loss"}, **PLAINLY)
    plan = gw.Plan.load(out / "plan" / "plan.safetensors")
    ends = [8, 16, 22]
    steps = [
        list(range(22 * epoch + start, 22 * epoch + stop))
        for epoch in (0, 1)
        for start, stop in zip([0, *ends], ends, strict=False)
    ]
    expected = by_hand(story_model(), data, plan, steps, normalised(data))
    trained = AutoModelForCausalLM.from_pretrained(stories)
    trained.load_state_dict(torch.load(out / "weights-1.pt"))
    close(trained, expected)


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_equal_weights_change_nothing_at_all(
    weight: float,
    data: Dataset,
    story_model: Callable[[], Any],
    arguments: Callable[..., TrainingArguments],
) -> None:
    data = data.remove_columns("weight")

    def trained(name: str, given: Dataset, recipe: gw.Recipe) -> Any:
        trainer: Any = gw.Trainer(story_model(), arguments(name), Collator(0), given, recipe=recipe)
        trainer.train()
        return trainer.model

    equal = data.add_column("weight", [weight] * len(data))  # type: ignore[call-arg]
    assert same_weights(trained("plain", data, gw.Recipe()), trained("weighted", equal, IN_LOSS))


def test_a_plans_own_weights_are_used_as_they_are(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    plan = gw.Plan.of([range(8)], pool=len(data))
    weights = np.linspace(0.0, 4.0, 8)
    plan = replace(plan, segments=(replace(plan.segments[0], weights=weights),))
    given = arguments(**PLAINLY | {"per_device_train_batch_size": 8, "num_train_epochs": 1})
    trainer: Any = gw.Trainer(story_model(), given, Collator(0), data, recipe=IN_LOSS, plan=plan)
    trainer.train()
    close(trainer.model, by_hand(story_model(), data, plan, [list(range(8))], weights))


def test_grace_weighs_its_picks_by_what_they_stand_for(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    grace = gw.Grace(count=10, weighted=True, candidates="all", refresh_every=0)
    recipe = gw.Recipe(select=grace, weights="loss")
    trainer: Any = gw.Trainer(story_model(), arguments(num_train_epochs=2), Collator(0), data, recipe=recipe)
    trainer.train()
    for segment in trainer.session.plan.segments:
        assert len(np.unique(segment.indices)) == 10, "every pick once in each epoch"
        assert segment.weights is not None and segment.weights.mean() == pytest.approx(1)
        assert np.ptp(segment.weights) > 0


def test_samples_of_weight_0_are_left_out(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    weights = np.array(data["weight"])
    weights[::2] = 0.0
    data = data.remove_columns("weight").add_column("weight", weights.tolist())  # type: ignore[call-arg]
    trainer: Any = gw.Trainer(story_model(), arguments(), Collator(0), data, recipe=IN_LOSS)
    trainer.train()
    assert sorted(trainer.session.plan.indices.tolist()) == list(range(1, len(data), 2))


def test_resumed_is_never_stopped(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    def make() -> Any:
        given = arguments(num_train_epochs=2, save_strategy="steps", save_steps=3)
        recipe = gw.Recipe(layers=gw.Grass(active=2, period=2, probe=1), weights="loss")
        return gw.Trainer(story_model(), given, Collator(0), data, recipe=recipe)

    whole = make()
    whole.train()
    checkpoint = Path(str(whole.args.output_dir)) / "checkpoint-3"
    resumed = make()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same_weights(whole.model, resumed.model)
    other = make()
    other.session.recipe = replace(other.session.recipe, weights="repeat")
    with pytest.raises(gw.CheckpointError, match="weights"):
        other.train(resume_from_checkpoint=str(checkpoint))


class OwnLoss(transformers.Trainer):
    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        return model(**inputs).logits.float().square().mean()


def test_a_subclass_without_a_loss_of_its_own_is_served(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    class Other(transformers.Trainer):
        pass

    def trained(cls: Any, name: str) -> Any:
        trainer = cls(story_model(), arguments(name), Collator(0), data, recipe=IN_LOSS)
        trainer.train()
        return trainer.model

    assert same_weights(trained(gw.Trainer, "ours"), trained(gw.with_gradwise(Other), "other"))


def test_refused_where_weights_could_not_act(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    def refused(match: str, cls: Any = gw.Trainer, **changes: Any) -> None:
        with pytest.raises(gw.RecipeError, match=match):
            cls(story_model(), arguments(), Collator(0), data, recipe=IN_LOSS, **changes)

    refused("GradwiseOwnLoss computes its own loss", gw.with_gradwise(OwnLoss))
    refused("compute_loss_func", compute_loss_func=lambda *_, **__: None)
    with pytest.raises(gw.RecipeError, match="label_smoothing_factor"):
        gw.Trainer(story_model(), arguments(label_smoothing_factor=0.1), Collator(0), data, recipe=IN_LOSS)
    with pytest.raises(gw.RecipeError, match=r"train\.label_smoothing_factor"):
        gw.Recipe.from_dict({"weights": "loss", "train": {"label_smoothing_factor": 0.1}})


def test_refused_where_the_forward_pass_computes_the_loss_by_itself(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    model = story_model()
    inner = model.forward

    def forward(
        input_ids: Any,
        attention_mask: Any = None,
        labels: Any = None,
        num_items_in_batch: Any = None,
        **_: Any,
    ) -> Any:
        output = inner(input_ids=input_ids, attention_mask=attention_mask)
        output.loss = cross_entropy(
            output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        output.loss = output.loss / num_items_in_batch
        return output

    model.forward = forward
    trainer: Any = gw.Trainer(model, arguments(), Collator(0), data, recipe=IN_LOSS)
    with pytest.raises(gw.RecipeError, match="computes a loss of its own"):
        trainer.train()


def test_refused_where_the_model_lengthens_a_batch(story_model: Callable[[], Any]) -> None:
    """As with prompt tuning, whose virtual tokens stand before a sample's."""
    model, ids = story_model(), torch.ones((2, 5), dtype=torch.long)
    with (
        pytest.raises(gw.RecipeError, match=r"over 10 tokens of a batch of 6, .* Use weights: repeat"),
        WeightedLoss(model).using(torch.ones(2, 3)),
    ):
        model(input_ids=ids, labels=ids)


def test_says_so_where_there_is_nothing_to_weigh(
    data: Dataset, story_model: Callable[[], Any], arguments: Callable[..., TrainingArguments]
) -> None:
    said: list[str] = []
    trainer: Any = gw.Trainer(
        story_model(), arguments(), Collator(0), data.remove_columns("weight"), recipe=IN_LOSS
    )
    trainer.session.tell = said.append
    trainer.train()
    assert any("has no effect" in sentence for sentence in said)
    assert json.loads(json.dumps(trainer.session.recipe.to_dict()))["weights"] == "loss"
