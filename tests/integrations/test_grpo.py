"""TRL's GRPOTrainer with gradwise: a plan of prompts, repeated by the trainer's own loader."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import gradwise as gw
from gradwise.methods.baselines import RandomSubset
from tests.conftest import same_weights

trl = pytest.importorskip("trl")

THINGS = ("dog", "cat", "girl", "boy", "bird", "fish", "tree", "star")
PROMPTS = [f"Once upon a time, a {thing}" for thing in THINGS]

SHORT: dict[str, Any] = {"max_steps": 6, "save_strategy": "no", "per_device_train_batch_size": 8}


def letters(completions: list[str], **_: Any) -> list[float]:
    """More for more vowels, so that answers to one prompt differ."""
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


@pytest.fixture
def grpo(story_model: Callable[[], Any], stories: Path, tmp_path: Path) -> Any:
    """Makes a GRPOTrainer, with gradwise or without; two prompts and four answers to each in a step."""

    def make(name: str, *, cls: Any = None, data: Any = None, **options: Any) -> Any:
        settings = trl.GRPOConfig(
            str(tmp_path / name), num_generations=4, max_completion_length=6, learning_rate=1e-3,
            logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
            dataloader_pin_memory=False, **(SHORT | options.pop("config", {})),
        )  # fmt: skip
        data = data or Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
        return (cls or gw.with_gradwise(trl.GRPOTrainer))(
            model=story_model(), args=settings, train_dataset=data, reward_funcs=letters,
            processing_class=AutoTokenizer.from_pretrained(stories), **options,
        )  # fmt: skip

    return make


@pytest.fixture
def generated(grpo: Any) -> Callable[..., list[int]]:
    """Trains, and says which prompt each generation was for, in the order of generating."""

    def run(*given: Any, **options: Any) -> list[int]:
        trainer, seen = grpo(*given, **options), []

        def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            seen.extend(PROMPTS.index(prompt) for prompt in prompts)
            return letters(completions)

        reward.__name__ = "letters"
        trainer.reward_funcs = [reward]
        trainer.train()
        run.trainer = trainer  # type: ignore[attr-defined]
        return seen

    return run


@pytest.mark.parametrize(
    "config",
    [{}, {"num_iterations": 2}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}],
)
def test_a_plan_in_the_given_order_is_plain_grpo(grpo: Any, config: dict[str, Any]) -> None:
    ours = grpo("ours", plan=gw.Plan.of([range(8)] * 3), config=config)
    ours.train()
    theirs = grpo("theirs", cls=trl.GRPOTrainer, config={**config, "shuffle_dataset": False})
    theirs.train()
    assert same_weights(ours.model, theirs.model)
    assert not same_weights(ours.model, grpo("before").model)


def test_selected_prompts_in_the_order_of_the_plan(generated: Any) -> None:
    prompts = generated("out", recipe=gw.Recipe(select=RandomSubset(count=4)))
    plan = generated.trainer.session.plan
    epochs = [segment.indices.tolist() for segment in plan.segments]
    assert len(set(epochs[0])) == 4 and set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]
    assert prompts == [index for epoch in epochs[:3] for index in epoch for _ in range(4)]


def test_layers_are_measured_and_switched(generated: Any, tmp_path: Path) -> None:
    recipe = gw.Recipe(order=gw.baselines.GivenOrder(), layers=gw.Grass(active=1, period=100, probe=2))
    prompts = generated("out", recipe=recipe, config={"max_steps": 4})
    # Two steps measure all layers, on the prompts with which training then begins.
    assert prompts == [index for pair in (0, 2, 0, 2, 4, 6) for index in (pair, pair + 1) for _ in range(4)]
    trainer = generated.trainer
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    (active,) = next(event["active"] for event in events if event["event"] == "layers")
    fresh = dict(trainer.model.named_parameters())
    before = dict(
        trainer.model.__class__.from_pretrained(trainer.model.config._name_or_path).named_parameters()
    )
    changed = {name.split(".")[2] for name, p in fresh.items() if not p.equal(before[name])}
    assert changed == {str(active)}
    tokens = [line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line]
    assert tokens[1] == pytest.approx(2 * tokens[0], rel=0.2)


def test_measuring_layers_does_not_shift_when_answers_are_generated(generated: Any) -> None:
    recipe = gw.Recipe(order=gw.baselines.GivenOrder(), layers=gw.Grass(active=1, probe=1))
    prompts = generated("out", recipe=recipe, config={"max_steps": 4, "num_iterations": 2})
    assert prompts == [index for pair in (0, 0, 2) for index in (pair, pair + 1) for _ in range(4)]


def test_stopped_and_resumed(grpo: Any) -> None:
    """Four steps are an epoch; the checkpoint lies in the second."""
    recipe = gw.Recipe(layers=gw.Grass(active=2, period=2, probe=1))
    config = {"max_steps": 8, "save_strategy": "steps", "save_steps": 5}
    whole = grpo("whole", recipe=recipe, config=config)
    whole.train()
    resumed = grpo("whole", recipe=recipe, config=config)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-5"))
    assert same_weights(whole.model, resumed.model)
    shorter = grpo(
        "whole", recipe=recipe, config=config, data=Dataset.from_list([{"prompt": PROMPTS[0]}] * 4)
    )
    with pytest.raises(gw.CheckpointError, match="8 prompts, now 4"):
        shorter.train(resume_from_checkpoint=True)


def test_a_run_longer_than_its_plan_goes_through_further_epochs(
    generated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradwise.planning.epochs.MOST_EPOCHS", 2)
    prompts = generated("out", recipe=gw.Recipe(), config={"max_steps": 20})
    assert len(prompts) == 160
    assert all(sorted(prompts[start : start + 32]) == sorted([*range(8)] * 4) for start in range(0, 160, 32))


@pytest.mark.parametrize(
    ("decisions", "said"),
    [
        ({"select": {"method": "grace", "fraction": 0.5}}, "select: grace scores single sequences"),
        ({"order": "d3"}, "order: d3 scores single sequences"),
        ({"weights": "loss"}, "weights: loss cannot be used here"),
    ],
)
def test_what_scores_prompts_or_changes_the_loss_is_refused(grpo: Any, decisions: Any, said: str) -> None:
    with pytest.raises(gw.RecipeError, match=said):
        grpo("out", recipe=gw.Recipe.from_dict(decisions)).train()


def test_a_phase_of_annealing_is_refused(grpo: Any) -> None:
    recipe = gw.Recipe.from_dict({"anneal": {"method": "random", "fraction": 0.5}})
    with pytest.raises(gw.RecipeError, match=r"anneal cannot be used here: .*serves its samples itself"):
        grpo("out", recipe=recipe, config={"lr_scheduler_type": "warmup_stable_decay"})


def test_too_few_prompts_are_refused(grpo: Any) -> None:
    with pytest.raises(gw.RecipeError, match="takes 2 different prompts"):
        grpo("out", recipe=gw.Recipe(), data=Dataset.from_list([{"prompt": PROMPTS[0]}])).train()
    with pytest.raises(gw.RecipeError, match="1 rows fill no batch of 2"):
        grpo("few", recipe=gw.Recipe(select=RandomSubset(count=1))).train()


def test_streamed_prompts_take_layers_alone(grpo: Any) -> None:
    data: Any = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]).to_iterable_dataset()
    trainer = grpo("out", recipe=gw.Recipe(layers=gw.Grass(active=1, probe=1)), data=data)
    trainer.train()
    assert trainer.state.global_step == 6 and trainer.session.plan is None
    with pytest.raises(gw.RecipeError, match="select cannot be used here"):
        grpo("no", recipe=gw.Recipe(select=RandomSubset(count=4)), data=data)
