"""TRL's SFTTrainer with gradwise's abilities, on conversations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

import gradwise as gw
from gradwise.methods.baselines import LengthTop

trl = pytest.importorskip("trl")

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


@pytest.fixture
def conversations(stories: Path) -> Dataset:
    """24 real speeches as answers to a request."""
    found = (stories.parent / "plays_train.jsonl").read_text().splitlines()[:24]
    texts = [json.loads(line)["text"][:120] for line in found]
    ask = {"role": "user", "content": "Speak."}
    return Dataset.from_list([{"messages": [ask, {"role": "assistant", "content": text}]} for text in texts])


@pytest.fixture
def sft(story_model, stories: Path, conversations: Dataset, tmp_path: Path) -> Any:
    """Makes an SFTTrainer, with gradwise or without."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = TEMPLATE

    def make(name: str, *, cls: Any, data: Dataset = conversations, **options: Any) -> Any:
        settings = trl.SFTConfig(
            str(tmp_path / name),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=1e-3,
            max_length=128,
            save_strategy="steps",
            save_steps=2,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            **options.pop("config", {}),
        )
        return cls(
            model=story_model(), args=settings, train_dataset=data, processing_class=tokenizer, **options
        )

    return make


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_nothing_decided_is_plain_sft(sft, conversations: Dataset) -> None:
    ours = sft("ours", cls=gw.with_gradwise(trl.SFTTrainer), recipe=gw.Recipe())
    ours.train()
    plan = ours.session.plan
    given = gw.Plan.of([range(24), range(24)])
    follow = sft("follow", cls=gw.with_gradwise(trl.SFTTrainer), plan=given)
    follow.train()
    theirs = sft("theirs", cls=trl.SFTTrainer, config={"train_sampling_strategy": "sequential"})
    theirs.train()
    assert sorted(plan.of_epoch(0)[0].indices.tolist()) == list(range(24))
    assert equal(weights(follow), weights(theirs))
    assert not equal(weights(ours), weights(theirs))


def test_selection_and_layers_on_conversations(sft, tmp_path: Path) -> None:
    recipe = gw.Recipe(select=LengthTop(count=8), layers=gw.Grass(active=1, period=100, probe=2))
    trainer = sft("out", cls=gw.with_gradwise(trl.SFTTrainer), recipe=recipe)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    tokens = [sum(label != -100 for label in labels[1:]) for labels in trainer.train_dataset["labels"]]
    longest = sorted(range(24), key=lambda i: -tokens[i])[:8]
    assert set(trainer.session.plan.indices.tolist()) == set(longest)
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    active = next(event["active"] for event in events if event["event"] == "layers")
    changed = {
        name.split(".")[2] for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])
    }
    assert changed == {str(active[0])}


def test_the_probe_does_not_count_in_trls_metrics(sft) -> None:
    logged = []
    for probe in (1, 3):
        recipe = gw.Recipe(layers=gw.Grass(active=5, embeddings="always", probe=probe))
        trainer = sft(f"probe{probe}", cls=gw.with_gradwise(trl.SFTTrainer), recipe=recipe)
        trainer.train()
        own = [
            {k: v for k, v in line.items() if "time" not in k and "second" not in k}
            for line in trainer.state.log_history
        ]
        logged.append(
            [
                {k: v for k, v in line.items() if k in ("num_tokens", "entropy", "mean_token_accuracy")}
                for line in own
            ]
        )
    assert logged[0] == logged[1] and logged[0][0]


def test_stopped_and_resumed(sft) -> None:
    recipe = gw.Recipe(layers=gw.Grass(active=2, period=2))
    cls = gw.with_gradwise(trl.SFTTrainer)
    whole = sft("whole", cls=cls, recipe=recipe)
    whole.train()
    resumed = sft("whole", cls=cls, recipe=recipe)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-4"))
    assert equal(weights(whole), weights(resumed))


def test_a_trainer_with_a_sampler_of_its_own_takes_layers_alone(
    story_model, stories: Path, tmp_path: Path
) -> None:
    """KTO keeps mismatched pairs for its estimate of the KL divergence, so its order must stay."""

    def kto(name: str, decisions: dict[str, Any]) -> Any:
        rows = [{"prompt": f"once {n}", "completion": " upon a time", "label": n % 2 == 0} for n in range(8)]
        settings = trl.KTOConfig(
            str(tmp_path / name), max_steps=3, per_device_train_batch_size=4, report_to=[], use_cpu=True,
            bf16=False, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        return gw.with_gradwise(trl.KTOTrainer)(
            model=story_model(), args=settings, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(stories), recipe=gw.Recipe.from_dict(decisions),
        )  # fmt: skip

    trainer = kto("layers", {"layers": {"method": "grass", "active": 1, "probe": 1, "period": 100}})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name.split(".")[2] for name, p in trainer.model.named_parameters() if not p.equal(before[name])}
    assert len(moved) == 1
    with pytest.raises(gw.RecipeError, match=r"select cannot be used here: .*serves its samples itself"):
        kto("selected", {"select": {"method": "random", "count": 4}})


@pytest.mark.parametrize(
    ("decisions", "said"),
    [
        ({"select": {"method": "grace", "fraction": 0.5}}, "select: grace scores single sequences"),
        ({"select": {"method": "length_top", "count": 2}}, "select: length_top scores single sequences"),
        ({"order": "d3"}, "order: d3 scores single sequences"),
        ({"select": {"method": "random", "count": 4}, "layers": {"method": "grass", "probe": 1}}, None),
    ],
)
def test_pairs_of_answers_are_selected_by_what_scores_nothing(
    story_model, stories: Path, tmp_path: Path, decisions: dict[str, Any], said: str | None
) -> None:
    rows = [{"prompt": f"once {n}", "chosen": " upon a time", "rejected": " no one"} for n in range(4)]
    settings = trl.DPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = gw.with_gradwise(trl.DPOTrainer)(
        model=story_model(), args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(stories), recipe=gw.Recipe.from_dict(decisions),
    )  # fmt: skip
    if said is None:
        trainer.train()
        return
    with pytest.raises(gw.RecipeError, match=said):
        trainer.train()
