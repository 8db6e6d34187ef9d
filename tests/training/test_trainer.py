"""The trainer: what it adds leaves ordinary training as it was, bit for bit."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch.utils.data import DataLoader

import gradwise as gw
from gradwise.data import Collator
from gradwise.methods.baselines import (
    AllLayers,
    EasyFirst,
    GivenOrder,
    Interleave,
    LengthTop,
    LossTop,
    RandomSubset,
    RoundRobinLayers,
    StaticLayers,
    TopLayers,
    UniformLayers,
)
from gradwise.trainer import TrainerMixin
from tests.conftest import same_weights

COLLATOR = Collator(pad_token_id=0)
POLICIES = [UniformLayers, StaticLayers, RoundRobinLayers, TopLayers, gw.Grass]


def train(
    model: Any, arguments: Any, data: Any, recipe: gw.Recipe | None = None, **options: Any
) -> gw.Trainer:
    trainer = gw.Trainer(model, arguments, COLLATOR, data, recipe=recipe or gw.Recipe(), **options)
    trainer.train()
    return trainer


def plain(model: Any, arguments: Any, data: Dataset, order: Any) -> None:
    """The Hugging Face Trainer on the samples in a given order."""
    arguments.train_sampling_strategy = "sequential"
    rows = data.select(order).remove_columns(["domain"])
    transformers.Trainer(model, arguments, COLLATOR, rows).train()


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


SETTINGS = {
    "plain": {},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    "clipping": {"max_grad_norm": 0.01},
    "no clipping": {"max_grad_norm": 0.0},
    "cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 3, "weight_decay": 0.1},
    "bf16": {"bf16": True},
    "activation checkpointing": {"gradient_checkpointing": True},
    "workers": {"dataloader_num_workers": 2},
    "drop last": {"per_device_train_batch_size": 7, "dataloader_drop_last": True},
    "max steps": {"max_steps": 7},
    "sgd": {"optim": "sgd"},
    "smoothing": {"label_smoothing_factor": 0.1},
}


# All layers drawn and probed is the harder case; without a layer policy, a few settings.
WITHOUT_POLICY = ("plain", "accumulation", "clipping", "bf16")


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        pytest.param(
            settings,
            layers,
            id=f"{name}-{type(layers).__name__}",
            marks=[] if isinstance(layers, gw.Grass) or name in WITHOUT_POLICY else [pytest.mark.exhaustive],
        )
        for name, settings in SETTINGS.items()
        for layers in (AllLayers(), gw.Grass(active=5, embeddings="always", probe=1))
    ],
)
def test_nothing_decided_is_the_plain_trainer_bit_for_bit(
    story_model, arguments, speeches, settings: dict[str, Any], layers: Any
) -> None:
    data = speeches.select(range(26))
    ours, theirs = story_model(), story_model()
    trainer = train(ours, arguments("ours", **settings), data, gw.Recipe(layers=layers, seed=4))
    assert trainer.session.plan is not None
    plain(theirs, arguments("theirs", **settings), data, trainer.session.plan.of_epoch(0)[0].indices)
    assert same_weights(ours, theirs)
    assert not same_weights(ours, story_model())


def test_several_epochs_are_those_of_the_plain_trainer(story_model, arguments, speeches) -> None:
    """With `order: given` every epoch is the same, so that the plain Trainer can follow."""
    data = speeches.select(range(10))
    ours, theirs = story_model(), story_model()
    trainer = train(ours, arguments("ours", num_train_epochs=2.5), data, gw.Recipe(order=GivenOrder()))
    plain(theirs, arguments("theirs", num_train_epochs=2.5), data, range(10))
    assert trainer.state.global_step == 8
    assert same_weights(ours, theirs)


def test_dropout_sees_the_same_random_state(tiny_llama, arguments, speeches) -> None:
    rows = [{"input_ids": [i % 64 for i in ids[:20]]} for ids in speeches["input_ids"]]
    data = Dataset.from_list([row | {"labels": row["input_ids"], "domain": "d"} for row in rows])
    ours, theirs = tiny_llama(attention_dropout=0.5), tiny_llama(attention_dropout=0.5)
    settings = {"num_train_epochs": 2, "gradient_accumulation_steps": 2}
    recipe = gw.Recipe(order=GivenOrder(), layers=gw.Grass(active=4, embeddings="always", probe=2))
    train(ours, arguments("ours", **settings), data, recipe)
    plain(theirs, arguments("theirs", **settings), data, range(80))
    assert same_weights(ours, theirs)


@pytest.mark.parametrize(
    ("layers", "workers"),
    [
        (AllLayers(), 0),
        (gw.Grass(active=2, period=2, probe=1), 2),
        pytest.param(AllLayers(), 2, marks=pytest.mark.exhaustive),
        pytest.param(gw.Grass(active=2, period=2, probe=1), 0, marks=pytest.mark.exhaustive),
    ],
)
def test_accumulation_serves_the_same_samples_in_the_same_order(
    story_model, arguments, speeches, layers: Any, workers: int
) -> None:
    """4x2 = 2x4: the same samples exactly; weights as far as the order of a float sum allows."""
    models, orders = [], []
    for micro, passes in ((4, 2), (2, 4), (8, 1)):
        model = story_model()
        seen: list[Any] = []
        settings = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": passes}
        trainer = gw.Trainer(
            model,
            arguments(f"{micro}x{passes}", dataloader_num_workers=workers, **settings),
            COLLATOR,
            speeches,
            recipe=gw.Recipe(layers=layers),
        )
        watch_served(trainer, seen)
        trainer.train()
        models.append(model)
        orders.append(seen)
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 80
    if isinstance(layers, AllLayers):
        for other in models[1:]:
            for one, two in zip(models[0].parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def watch_served(trainer: Any, seen: list[Any]) -> None:
    """Record the tokens that reach the model in training steps, padding removed; the probe is left out."""
    inner = trainer.training_step

    def training_step(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen.append(tuple(ids[mask.bool()].tolist()))
        return inner(model, inputs, *rest, **options)

    trainer.training_step = training_step


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_trains_what_it_draws(
    story_model, arguments, speeches, policy: type, tmp_path: Path
) -> None:
    model = story_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    layers = policy(active=1, period=100)
    trainer = train(model, arguments(), speeches, gw.Recipe(layers=layers))
    drawn = next(line for line in lines(tmp_path / "out", "events.jsonl") if line["event"] == "layers")
    changed = {name.split(".")[2] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {str(drawn["active"][0])}
    assert trainer.session.trainable == drawn["trainable"] == 45_440
    assert all(p.requires_grad for p in model.parameters())


def test_the_probe_leaves_no_trace_in_the_run(story_model, arguments, speeches, tmp_path: Path) -> None:
    """Its steps are in the events, charged; metrics, plan and optimizer do not show it."""
    recipe = gw.Recipe(layers=gw.Grass(active=2, probe=3))
    train(story_model(), arguments(gradient_accumulation_steps=2), speeches, recipe)
    events = lines(tmp_path / "out", "events.jsonl")
    assert [event["event"] for event in events[:3]] == ["plan", "probe", "layers"]
    assert events[1]["steps"] == 3
    assert [line["step"] for line in lines(tmp_path / "out") if "loss" in line] == list(range(1, 11))


def test_losses_in_the_record_are_the_models(story_model, arguments, speeches, tmp_path: Path) -> None:
    """Token mean over the whole step, although it was computed in three passes."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 1}
    trainer = train(story_model(), arguments(**settings), speeches)
    model = story_model()
    total = tokens = 0.0
    assert trainer.session.plan is not None
    for index in trainer.session.plan.indices[:12]:
        ids = torch.tensor([speeches[int(index)]["input_ids"]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    line = lines(tmp_path / "out")[0]
    assert line["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert line["label_tokens"] == tokens and line["learning_rate"] == 1e-3


def test_selection_and_order_reach_the_model(story_model, arguments, speeches, tmp_path: Path) -> None:
    recipe = gw.Recipe(select=LengthTop(count=8), order=GivenOrder())
    trainer = gw.Trainer(story_model(), arguments(), COLLATOR, speeches, recipe=recipe)
    seen: list[Any] = []
    watch_served(trainer, seen)
    trainer.train()
    longest = sorted(range(80), key=lambda i: -len(speeches[i]["input_ids"]))[:8]
    assert seen == [tuple(speeches[i]["input_ids"]) for i in longest]
    plan = next(event for event in lines(tmp_path / "out", "events.jsonl") if event["event"] == "plan")
    assert (plan["pool"], plan["selected"], plan["length"]) == (80, 8, 8)


@pytest.mark.parametrize("select", [LossTop(fraction=0.2), RandomSubset(count=16)])
@pytest.mark.parametrize("order", [EasyFirst(), Interleave()])
def test_decisions_that_need_signals_collect_them(
    story_model, arguments, speeches, select: Any, order: Any
) -> None:
    model = story_model()
    trainer = train(model, arguments(num_train_epochs=2), speeches, gw.Recipe(select=select, order=order))
    plan = trainer.session.plan
    assert plan is not None and len(plan) == 32 and len(set(plan.indices.tolist())) == 16
    losses = []
    for index in plan.of_epoch(0)[0].indices:
        ids = torch.tensor([speeches[int(index)]["input_ids"]])
        losses.append(story_model()(input_ids=ids, labels=ids).loss.item())
    if isinstance(order, EasyFirst):
        assert all(later - earlier > -1e-4 for earlier, later in pairwise(losses))


def test_weights_become_copies(story_model, arguments, speeches) -> None:
    weighted = speeches.select(range(8)).add_column("weight", [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    trainer = train(story_model(), arguments(), weighted, gw.Recipe(order=GivenOrder()))
    assert trainer.session.plan is not None
    assert trainer.session.plan.indices.tolist() == [0, 0, 0, 1, 2, 3, 4, 5]
    assert trainer.session.plan.segments[0].weights is not None


def test_packing_trains_on_the_same_samples_in_the_same_order(story_model, arguments, speeches) -> None:
    trainer = gw.Trainer(
        story_model(), arguments(), COLLATOR, speeches, recipe=gw.Recipe(), packed_length=256
    )
    seen: list[int] = []
    inner = trainer.training_step

    def training_step(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        assert "attention_mask" not in inputs and inputs["input_ids"].shape[1] <= 256
        seen.append(int((inputs["labels"] != -100).sum()))
        return inner(model, inputs, *rest, **options)

    trainer.training_step = training_step  # type: ignore[method-assign]
    trainer.train()
    assert sum(seen) == sum(len(ids) - 1 for ids in speeches["input_ids"])
    assert trainer.state.global_step == math.ceil(trainer.session.schedule._rows[0] / 4) < 20


def test_a_plan_of_ones_own_is_followed(story_model, arguments, speeches) -> None:
    plan = gw.Plan.of([[5, 5, 7, 1, 0]], pool=80)
    trainer = gw.Trainer(story_model(), arguments(), COLLATOR, speeches, plan=plan)
    seen: list[Any] = []
    watch_served(trainer, seen)
    trainer.train()
    assert seen == [tuple(speeches[i]["input_ids"]) for i in (5, 5, 7, 1, 0)]


def test_adapters_train_under_a_layer_policy(story_model, arguments, speeches, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(story_model(), peft.LoraConfig(r=2, target_modules="all-linear"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, arguments(), speeches, gw.Recipe(layers=gw.Grass(active=1, period=100, probe=1)))
    active = next(line for line in lines(tmp_path / "out", "events.jsonl") if line["event"] == "layers")[
        "active"
    ]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("lora" in name and f"layers.{active[0]}." in name for name in changed)


def test_what_an_adapter_trains_outside_of_the_blocks_is_not_frozen_for_good(
    story_model, arguments, speeches
) -> None:
    """It was saved as it was drawn."""
    peft = pytest.importorskip("peft")

    def made(policy: gw.Grass) -> gw.Trainer:
        config = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["embed_tokens"])
        model = peft.get_peft_model(story_model(), config)
        return gw.Trainer(model, arguments(), train_dataset=speeches, recipe=gw.Recipe(layers=policy))

    with pytest.raises(gw.RecipeError, match=r"outside of the blocks \(.*embed_tokens.*embeddings: always"):
        made(gw.Grass(active=2))
    made(gw.Grass(active=2, embeddings="always"))


def test_a_new_head_that_stays_frozen_is_named(story_model, arguments, speeches) -> None:
    config = story_model().config
    config.num_labels, config.pad_token_id = 1, 0
    model = transformers.LlamaForSequenceClassification(config)
    with pytest.warns(UserWarning, match="never freezes the head of LlamaForSequenceClassification"):
        gw.Trainer(model, arguments(), train_dataset=speeches, recipe=gw.Recipe(layers=gw.Grass(active=2)))


def test_evaluation_goes_into_the_metrics(story_model, arguments, speeches, tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "eval_on_start": True, "num_train_epochs": 2}
    train(story_model(), arguments(**settings), speeches, eval_dataset=speeches.select(range(8)))
    held_out = [(line["step"], line["eval_loss"]) for line in lines(tmp_path / "out") if "eval_loss" in line]
    assert [step for step, _ in held_out] == [0, 20, 40]
    assert held_out[0][1] > held_out[-1][1]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(
    story_model, arguments, speeches
) -> None:
    model = story_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    with pytest.raises(gw.GradwiseError, match=r"nan at step 1 \(samples 0, 1, 2, 3 of the data\)"):
        train(model, arguments(), speeches, gw.Recipe(order=GivenOrder()))


def test_training_twice_starts_from_what_the_first_left(story_model, arguments, speeches) -> None:
    trainer = gw.Trainer(
        story_model(), arguments(max_steps=3), COLLATOR, speeches, recipe=gw.Recipe(layers=gw.Grass())
    )
    first = trainer.train().training_loss
    assert trainer.train().training_loss < first


REFUSED = {
    "train_sampling_strategy": ({"train_sampling_strategy": "group_by_length"}, "order"),
    "auto_find_batch_size": ({"auto_find_batch_size": True}, "samples form a step"),
    "ignore_data_skip": ({"ignore_data_skip": True}, "resuming"),
    "save_only_model": ({"save_only_model": True}, "resume exactly"),
    "split_batches": ({"accelerator_config": {"split_batches": True}}, "which rank"),
}


@pytest.mark.parametrize(("settings", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_settings_that_would_be_ignored_are_refused(
    story_model, arguments, speeches, settings, reason: str
) -> None:
    with pytest.raises(gw.RecipeError, match=reason):
        gw.Trainer(story_model(), arguments(**settings), COLLATOR, speeches)


def test_mistakes_are_named(story_model, arguments, speeches) -> None:
    with pytest.raises(gw.RecipeError, match="section 'model'"):
        gw.Trainer(story_model(), arguments(), COLLATOR, speeches, recipe=gw.Recipe(model=gw.Model(name="x")))
    with pytest.raises(gw.RecipeError, match="has 5 layers"):
        train(story_model(), arguments(), speeches, gw.Recipe(layers=gw.Grass(active=6)))
    with pytest.raises(gw.RecipeError, match="subclass of transformers"):
        gw.with_gradwise(dict)
    with pytest.raises(gw.RecipeError, match="`domain` column"):
        train(story_model(), arguments(), speeches.remove_columns(["domain"]), gw.Recipe(order=Interleave()))


def test_other_subclasses_keep_their_own_behaviour(story_model, arguments, speeches) -> None:
    class Doubled(transformers.Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(*args, **kwargs)

    doubled = gw.with_gradwise(Doubled)
    assert issubclass(doubled, TrainerMixin) and issubclass(doubled, Doubled)
    assert gw.with_gradwise(doubled) is doubled
    losses = []
    for kind in (doubled, gw.Trainer):
        trainer = kind(
            story_model(), arguments(kind.__name__, max_steps=1), COLLATOR, speeches, recipe=gw.Recipe()
        )
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(2 * losses[1])


def test_a_gradient_that_is_not_finite_stops_the_run_at_its_step(story_model, arguments, speeches) -> None:
    """The loss of that step is still finite; clipping would spoil every weight, and a checkpoint would keep
    it."""
    model = story_model()
    trainer = gw.Trainer(model, arguments(logging_steps=100), COLLATOR, speeches)
    inner = trainer.training_step

    def training_step(*passed: Any, **options: Any) -> Any:
        loss = inner(*passed, **options)
        if trainer.state.global_step == 2:
            model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = float("inf")
        return loss

    trainer.training_step = training_step  # type: ignore[method-assign]
    with pytest.raises(gw.GradwiseError, match=r"gradient norm is (inf|nan) at step 3"):
        trainer.train()


def test_a_sample_without_a_finite_loss_is_set_aside_and_reported(
    story_model, arguments, speeches, tmp_path: Path
) -> None:
    empty = {"input_ids": [5, 6], "labels": [-100, -100], "domain": "d0"}
    data = Dataset.from_list([empty, *speeches.select(range(11))])
    trainer = train(story_model(), arguments(), data, gw.Recipe(order=EasyFirst()))
    assert trainer.session.plan is not None
    assert sorted(trainer.session.plan.indices.tolist()) == list(range(1, 12))
    signals = lines(tmp_path / "out", "events.jsonl")[0]
    assert (signals["event"], signals["set_aside"], signals["first"]) == ("signals", 1, [0])


@pytest.mark.parametrize("values", [[-1.0, 1.0], [float("nan"), 1.0], ["a", "b"]])
def test_weights_must_be_weights(story_model, arguments, speeches, values: list[Any]) -> None:
    with pytest.raises(gw.DataError, match="`weight` must hold numbers"):
        train(story_model(), arguments(), speeches.select(range(2)).add_column("weight", values))


def test_asking_for_the_loader_leaves_the_record_alone(
    story_model, arguments, speeches, tmp_path: Path
) -> None:
    trainer = train(story_model(), arguments(), speeches)
    before = lines(tmp_path / "out")
    assert len(trainer.get_train_dataloader()) == 20
    trainer.evaluate(speeches.select(range(4)))
    assert lines(tmp_path / "out")[: len(before)] == before


def test_own_loaders_and_searches_are_refused(story_model, arguments, speeches) -> None:
    class OwnBatches(transformers.Trainer):
        def get_batch_samples(self, *_: Any) -> Any:
            return [], None

    with pytest.raises(gw.RecipeError, match="its own get_batch_samples"):
        gw.with_gradwise(OwnBatches)

    class OwnLoader(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, batch_size=4, collate_fn=COLLATOR)  # type: ignore[arg-type]

    ids = speeches.select_columns(["input_ids", "labels"])
    own = gw.with_gradwise(OwnLoader)
    with pytest.raises(gw.RecipeError, match=r"select cannot be used here: .*serves its samples itself"):
        own(
            story_model(),
            arguments(),
            COLLATOR,
            ids,
            recipe=gw.Recipe(select=gw.baselines.RandomSubset(count=4)),
        )
    trainer = own(story_model(), arguments(max_steps=2), COLLATOR, ids, recipe=gw.Recipe())
    plain: Any = OwnLoader(story_model(), arguments("plain", max_steps=2), COLLATOR, ids)
    trainer.train()
    plain.train()
    assert same_weights(trainer.model, plain.model)
    with pytest.raises(gw.RecipeError, match="does not search"):
        gw.Trainer(story_model(), arguments(), COLLATOR, speeches).hyperparameter_search()


def test_without_tokenizer_and_collator_samples_are_padded(story_model, arguments, speeches) -> None:
    trainer = gw.Trainer(model=story_model(), args=arguments(max_steps=2), train_dataset=speeches)
    trainer.train()
    assert trainer.state.global_step == 2


def test_packing_mistakes_are_named(story_model, arguments, speeches) -> None:
    with pytest.raises(gw.DataError, match="more than the packed length 8"):
        gw.Trainer(story_model(), arguments(), COLLATOR, speeches, packed_length=8).train()
    with pytest.raises(gw.RecipeError, match="needs gradwise's own Collator"):
        collate = transformers.default_data_collator
        gw.Trainer(story_model(), arguments(), lambda rows: collate(rows), speeches, packed_length=64).train()


def test_held_out_loss_weighs_label_tokens_alike(story_model, arguments, speeches, tmp_path: Path) -> None:
    """In batches of one and of four: the Trainer's mean of means moves, this does not."""
    rows = [speeches[i] for i in range(12)]
    uneven = [
        {name: row[name][: 8 + 9 * (i % 4)] for name in ("input_ids", "labels")} for i, row in enumerate(rows)
    ]
    found = {}
    for size in (1, 4):
        model = story_model()
        settings = arguments(
            f"by{size}", per_device_eval_batch_size=size, max_steps=1, eval_strategy="steps", eval_steps=1
        )
        trainer = gw.Trainer(model, settings, Collator(0), speeches, uneven)
        trainer.train()
        lines = [
            json.loads(line) for line in (tmp_path / f"by{size}" / "metrics.jsonl").read_text().splitlines()
        ]
        found[size] = next(line for line in lines if "eval_loss" in line)
        per_sample = gw.collect(model, uneven, want="loss", progress=False)
        assert per_sample.loss is not None and per_sample.num_tokens is not None
        exact = float(per_sample.loss @ per_sample.num_tokens / per_sample.num_tokens.sum())
        assert found[size]["held_out_loss"] == pytest.approx(exact, rel=1e-5)
    assert found[1]["held_out_loss"] == pytest.approx(found[4]["held_out_loss"], rel=1e-5)
    assert found[1]["eval_loss"] != pytest.approx(found[4]["eval_loss"], rel=1e-4)
