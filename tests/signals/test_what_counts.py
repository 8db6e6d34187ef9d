"""What gradients are taken over, and what samples bring besides ids and labels."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy

import gradwise as gw
from gradwise.signals import collect
from gradwise.signals.scope import resolve
from tests.signals.zoo import VOCABULARY, make, samples

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NO_WEIGHTS: dict[str, tuple[dict[str, Any], tuple[str, ...], int]] = {
    "GptOss": (
        {"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2}, ("proj_bias", "sinks"), 7 * 2
    ),
    "Cohere": ({"use_qk_norm": True}, ("norm",), 7 * 2),
    "Mamba": ({"state_size": 4, "time_step_rank": 2}, ("A_log", "conv1d", ".D"), 4 * 2),
}  # fmt: skip
"""Settings, parameters of two or more dimensions that are no linear weights, and how many are."""


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_blocks_are_linear_weights(name: str):
    changes, others, count = NO_WEIGHTS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    inside = [name for name, p in model.named_parameters() if ".layers." in name and p.ndim >= 2]
    assert any(other in name for name in inside for other in others)
    found = resolve(model, "blocks").parameters
    assert set(found) == {name for name in inside if not any(other in name for other in others)}
    assert len(found) == count


@pytest.mark.parametrize("parameters", ["blocks", "all", "*experts*"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_packed_expert_weights_are_refused_by_name(parameters: str, dtype: torch.dtype):
    model = make("Mixtral")
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = nn.Parameter(torch.zeros(4, 16, 3, 8).to(dtype), requires_grad=False)
    with pytest.raises(gw.SignalError, match=r"quantised weights.*layers.1.mlp.experts.down_proj"):
        resolve(model, parameters)


def loss_of(model: Any, sample: dict[str, Any]) -> float:
    """The oracle: the sample as it is, by itself."""
    inputs = {name: torch.tensor([values]) for name, values in sample.items()}
    labels = inputs.pop("labels")[0, 1:]
    with torch.no_grad():
        logits = model.eval()(**inputs, use_cache=False).logits[0, :-1]
    return float(cross_entropy(logits, labels))


def brought(name: str) -> list[dict[str, Any]]:
    rows = []
    for row in samples(5):
        count = len(row["input_ids"])
        values = {
            "attention_mask": [0] + [1] * (count - 1),
            "position_ids": list(range(5, 5 + count)),
            "packed": [*range(3), *range(count - 3)],
        }[name]
        rows.append(row | {name.replace("packed", "position_ids"): values})
    return rows


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "packed"])
def test_what_samples_bring_is_honoured(name: str, kind: Any):
    """GPT2's positions are absolute, so that they matter."""
    model, rows = make("GPT2"), brought(name)
    found = collect(model, kind(rows), want=("loss", "grad"), grad_dim=8, progress=False)
    assert found.loss is not None
    np.testing.assert_allclose(found.loss, [loss_of(model, row) for row in rows], rtol=1e-4)
    plain = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
    without = collect(model, kind(plain), want="loss", progress=False)
    assert found.loss is not None and without.loss is not None
    assert not np.allclose(found.loss, without.loss, rtol=1e-3)


def test_copies_agree_in_all_that_they_bring():
    model, row = make("GPT2"), samples(1)[0]
    count = len(row["input_ids"])
    rows = [row | {"position_ids": list(range(start, start + count))} for start in (0, 9, 0)]
    found = collect(model, rows, want="loss", progress=False).loss
    assert found is not None and found[0] == found[2] != found[1]


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("attention_mask", [1, 1], "numbers? in it|attention_mask"),
        ("position_ids", [[0, 1, 2, 3]], "position_ids"),
        ("position_ids", 3, "position_ids"),
        ("position_ids", "abcd", "position_ids"),
    ],
)
def test_what_cannot_be_read_is_refused(kind: Any, column: str, value: Any, said: str):
    rows = [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6], column: value} for _ in range(3)]
    with pytest.raises(gw.GradwiseError, match=said):
        collect(make("Llama"), kind(rows), want="loss", progress=False)


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_what_the_model_does_not_take_is_refused(kind: Any):
    rows = [row | {"position_ids": [0] * len(row["input_ids"])} for row in samples(3)]
    with pytest.raises(gw.DataError, match=r"position_ids.*BloomForCausalLM does not take"):
        collect(make("Bloom"), kind(rows), want="loss", progress=False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"input_ids": [3, 4, 5]}], "has no labels"),
        ([{"labels": [3, 4, 5]}], "has no input_ids"),
        ([[3, 4, 5]], "has no input_ids"),
        (iter([1]), "can be indexed; found list_iterator"),
        (
            Dataset.from_list([{"input_ids": [3, 4], "labels": [3, 4]}]).to_iterable_dataset(),
            "can be indexed",
        ),
        ({"train": []}, "found dict. Give one of its splits"),
        (Dataset.from_list([{"input_ids": [3, 4, 5]}]), "has no labels"),
        (Dataset.from_list([{"input_ids": "once", "labels": [3, 4]}]), "input_ids"),
    ],
)
def test_what_is_no_data_set_of_samples(data: Any, said: str):
    with pytest.raises(gw.GradwiseError, match=said):
        collect(make("Llama"), data, want="loss", progress=False)


WRONG: dict[str, tuple[Any, ...]] = {
    "model": (None, "gpt2", nn.Identity()),
    "collator": (3, lambda _: 3, lambda _: {"input_ids": torch.zeros(1, 3)}),
    "parameters": (3, [3], None),
    "grad_dim": ("8", 2.5, 0, True),
    "batch_tokens": ("4", 0.5, float("nan"), 0),
    "seed": (-1, "a", None, 0.5),
    "store": (3,),
    "pooling": (3, None),
    "layer": ("a", 1.5),
    "grad_dtype": (3, torch.float16),
    "autocast": ("bf16", torch.int8),
    "tell": (3,),
    "dataset": (
        [], [None], "abc", [{"input_ids": [2**70, 4], "labels": [3, 4]}],
        [{"input_ids": [3, 4, 5], "labels": [3.5, 4, 5]}],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_arguments_of_another_kind_are_named(name: str, value: Any):
    given = {
        "model": make("Llama"),
        "dataset": samples(3),
        "want": ("loss", "embedding", "grad"),
        "grad_dim": 4,
    }
    with pytest.raises(gw.SignalError) as caught:
        collect(**given | {name: value}, progress=False)
    assert name in str(caught.value) or name == "dataset"


def test_signals_hold_a_row_for_each_sample():
    with pytest.raises(gw.SignalError, match=r"5 samples need as many rows of loss; found shape \(3,\)"):
        gw.Signals(5, loss=np.ones(3, np.float32))
    with pytest.raises(gw.SignalError, match="by the path of their folder"):
        gw.Signals.open(3)  # type: ignore[arg-type]
