"""Batches: padding changes no loss, and a packed sample learns what it would learn alone."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import gradwise as gw
from gradwise.data import Collator, check_dropped

PAD = 0


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    # Weights far from zero, so that a token that is seen makes itself felt.
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.5, **shape)).eval()
    model.set_attn_implementation(request.param)
    return model


def samples(*lengths: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        ids = rng.integers(1, 64, length).tolist()
        learned = rng.random(length) < 0.7
        labels = [token if keep else -100 for token, keep in zip(ids, learned, strict=True)]
        made.append({"input_ids": ids, "labels": labels, "domain": "x", "weight": 1.0, "origin": "f:1"})
    return made


def summed(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> float:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    ahead = batch["labels"][:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), ahead.flatten(), reduction="sum").item()


def apart(model: LlamaForCausalLM, made: list[dict]) -> float:
    """The oracle: each sample by itself, through no collator."""
    total = 0.0
    for sample in made:
        ids, labels = (torch.tensor([sample[name]]) for name in ("input_ids", "labels"))
        total += summed(model, {"input_ids": ids, "labels": labels})
    return total


def test_padding_changes_no_loss(model):
    made = samples(7, 3, 12, 1)
    batch = Collator(PAD, pad_to_multiple_of=8)(made)
    assert batch["input_ids"].shape == (4, 16)
    assert summed(model, batch) == pytest.approx(apart(model, made), rel=1e-5)


@pytest.mark.parametrize("multiple", [None, 16])
def test_packed_samples_learn_what_they_learn_apart(model, multiple):
    made = samples(7, 3, 12, 5, 1, 9)
    batch = Collator(PAD, multiple)([made[:3], made[3:5], made[5:]])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert summed(model, batch) == pytest.approx(apart(model, made), rel=1e-5)


def test_the_packed_test_would_notice_samples_seeing_each_other(model):
    made = samples(7, 3, 12)
    batch = Collator(PAD)([made])
    batch["position_ids"] = torch.arange(22)[None]
    assert summed(model, batch) != pytest.approx(apart(model, made), rel=1e-2)


def test_what_stands_in_the_padding_is_of_no_consequence(model):
    made = samples(6, 4, 3)
    rows = [made[:2], made[2:]]
    one, other = Collator(PAD)(rows), Collator(63)(rows)
    assert not torch.equal(one["input_ids"], other["input_ids"])
    assert summed(model, one) == pytest.approx(summed(model, other), rel=1e-6)


def test_unpacked_batch_by_hand():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = Collator(9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_packed_batch_by_hand_and_rows_are_left_alone():
    first = {"input_ids": [5, 6], "labels": [5, 6]}
    second = {"input_ids": torch.tensor([7, 8]), "labels": torch.tensor([7, 8])}
    batch = Collator(9)([[first, second], second])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [7, 8, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8], [-100, 8, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert second["labels"].tolist() == [7, 8]


@pytest.mark.parametrize("rows", [[], [[]]])
def test_empty_batches_are_refused(rows):
    with pytest.raises(ValueError, match="empty"):
        Collator(0)(rows)


def test_the_padding_token_is_the_tokenizers(stories, trimming):
    assert Collator.for_tokenizer(stories, 8) == Collator(stories.pad_token_id, 8)
    assert trimming.pad_token_id is None
    assert Collator.for_tokenizer(trimming).pad_token_id == trimming.eos_token_id


OWN_INPUTS = {
    "attention_mask": [0, 1, 1, 1, 1],
    "position_ids": [3, 4, 5, 6, 7],
    "token_type_ids": [0, 0, 1, 1, 1],
}


@pytest.mark.parametrize("name", OWN_INPUTS)
def test_what_a_sample_brings_is_in_the_batch(name: str):
    first, second = samples(5, 3)
    batch = Collator(PAD)([first | {name: OWN_INPUTS[name]}, second | {name: OWN_INPUTS[name][-3:]}])
    assert batch[name].tolist()[0] == OWN_INPUTS[name]
    assert batch[name].tolist()[1][:3] == OWN_INPUTS[name][-3:]
    if name != "attention_mask":
        assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


def test_a_sample_that_is_a_packed_row_is_read_as_one(model):
    made = samples(5, 3, 4)
    joined = {name: made[0][name] + made[1][name] for name in ("input_ids", "labels")}
    joined["labels"][5] = -100
    rows = [joined | {"position_ids": [0, 1, 2, 3, 4, 0, 1, 2]}, made[2] | {"position_ids": [0, 1, 2, 3]}]
    batch = Collator(PAD)(rows)
    assert "attention_mask" not in batch
    assert summed(model, batch) == pytest.approx(apart(model, made), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "packed", "said"),
    [
        ({"labels": None}, False, "has no labels"),
        ({"input_ids": None}, False, "has no input_ids"),
        ({"position_ids": [0, 1]}, False, "has 3 input_ids, and its column 'position_ids' is not one number"),
        ({"text": "once upon"}, False, "its column 'text' is not one number"),
        ({"attention_mask": [[1, 1, 1]]}, False, "its column 'attention_mask' is not one number"),
        ({"score": 0.5}, False, "its column 'score' is not one number"),
        ({"attention_mask": [0, 1, 1]}, True, "brings its own attention_mask, which packing replaces"),
        ({"position_ids": [1, 2, 3]}, True, "brings its own position_ids, which packing replaces"),
        ({"token_type_ids": [0, 0, 0]}, False, "Some samples have the column 'token_type_ids'"),
        ({"token_type_ids": [0, 0, 0]}, True, "Some samples have the column 'token_type_ids'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, Any], packed: bool, said: str):
    one, other = samples(3, 4)
    rows = [one | changes, other]
    with pytest.raises(gw.DataError, match=said):
        Collator(PAD)([rows] if packed else rows)
    usual = one | {"attention_mask": [1, 1, 1], "position_ids": [0, 1, 2]}
    assert set(Collator(PAD)([[usual, other]])) == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
@pytest.mark.parametrize(
    ("name", "usual", "meant"),
    [
        ("attention_mask", [1, 1, 1], [1, 1, 0]),
        ("token_type_ids", [0, 0, 0], [0, 1, 1]),
        ("position_ids", [0, 1, 2], [0, 1, 0]),
    ],
)
def test_columns_that_a_model_does_not_take(kind: Any, name: str, usual: list[int], meant: list[int]):
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], name: usual} for _ in range(4)]
    taken = {"input_ids", "labels"}
    check_dropped(kind(rows), taken, "Bloom")
    rows[2] = rows[2] | {name: meant}
    with pytest.raises(gw.DataError, match=f"a column '{name}', which Bloom does not take"):
        check_dropped(kind(rows), taken, "Bloom")
    check_dropped(kind(rows), {*taken, name}, "Bloom")
