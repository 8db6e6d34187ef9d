"""Packing is tried on every architecture before the first step, and the verdict is that of the losses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy

import gradwise as gw
from gradwise import Collator
from gradwise.training.packing import influence
from tests.signals.zoo import MAKERS, VOCABULARY, make, samples

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "Cohere": {},
    "Falcon": {"alibi": True, "new_decoder_architecture": False},
    "GptOss": {"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Mamba": {"state_size": 4, "time_step_rank": 2},
    "Mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "Mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2},
    "Olmo2": {},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "RecurrentGemma": {"lru_width": 16, "num_hidden_layers": 3, "attention_window_size": 8},
    "Starcoder2": {},
    "XGLM": {"d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4},
}
LEAKING = {"Bloom", "Falcon", "GptOss", "Mamba", "Mamba2", "Mpt", "OPT", "RecurrentGemma", "XGLM"}
TOKENS = list(range(3, 40))


def made(name: str) -> Any:
    """A small random model as the Trainer sets it up."""
    if name in MAKERS:
        model = make(name)
    else:
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SMALL | MORE[name])
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.config.use_cache = False
    return model


def summed(model: Any, batch: dict[str, torch.Tensor]) -> float:
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"))


@pytest.mark.parametrize("name", [*MAKERS, *MORE])
def test_the_verdict_is_that_of_the_losses(name: str) -> None:
    """The oracle: packed samples learn what they learn alone, through nothing of what is tested."""
    model, collate, rows = made(name), Collator(0), samples(3, longest=9, shortest=5)
    packed = summed(model, collate([rows]))
    alone = sum(summed(model, collate([row])) for row in rows)
    leaks = abs(packed - alone) > 1e-5 * alone
    assert leaks == (name in LEAKING)
    for count in (1, 2):
        said = influence(model, TOKENS, collate, rows=count, autocast=None)
        assert (said is not None) == leaks, said
        assert not leaks or type(model).__name__ in str(said)


class Flawed(nn.Module):
    """Stands after a block: what a model may do that the mask does not show."""

    def __init__(self, block: nn.Module, flaw: Any) -> None:
        super().__init__()
        self.block, self.flaw = block, flaw

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.flaw(self.block(*args, **kwargs))


FLAWS: dict[str, tuple[Any, str]] = {
    "a convolution": (lambda x: x + 0.2 * x.roll(1, dims=1), "see each other"),
    "positions of the row": (
        lambda x: x + 0.1 * torch.arange(x.shape[1])[:, None].to(x.dtype),
        "other logits than they give alone",
    ),
    "looks ahead": (lambda x: x + 0.2 * x.roll(-1, dims=1), "see each other"),
    "an error": (lambda x: x.view(-1, 7, 16), r"cannot take packed rows \(RuntimeError"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flaw", FLAWS)
def test_what_a_model_may_do(flaw: str, dtype: torch.dtype) -> None:
    model = made("Llama").to(dtype).train()
    assert influence(model, TOKENS, Collator(0), rows=2, autocast=None) is None
    layers: Any = model.model.layers
    layers[0] = Flawed(layers[0], FLAWS[flaw][0])
    said = influence(model, TOKENS, Collator(0), rows=2, autocast=None)
    assert said is not None
    assert re.search(FLAWS[flaw][1], said)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("tokens", [[5], [5, 5, 5], [5, 6]])
def test_few_tokens_are_enough(tokens: list[int]) -> None:
    for name, leaks in (("Llama", False), ("Bloom", True)):
        said = influence(made(name), tokens, Collator(0), rows=1, autocast=None)
        assert (said is not None) == leaks


def trainer(model: Any, arguments: Any, **options: Any) -> gw.Trainer:
    settings = arguments(max_steps=1, per_device_train_batch_size=8)
    return gw.Trainer(model, settings, train_dataset=samples(8), packed_length=64, **options)


def test_refused_before_the_first_step(arguments: Any, tmp_path: Path) -> None:
    with pytest.raises(gw.RecipeError, match=r"packed samples see each other in Bloom.*packing: auto"):
        trainer(made("Bloom"), arguments).train()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("name", "rows"), [("Bloom", 8), ("Llama", 2)])
def test_trained_unpacked_by_choice(arguments: Any, tmp_path: Path, name: str, rows: int) -> None:
    """The step's loss is that of a run without packing."""
    said: list[str] = []
    one = trainer(made(name), arguments, unpack_if_needed=True)
    one.session.tell = said.append
    one.train()
    assert len(said) == (name == "Bloom")
    assert one.session.schedule._rows[0] == rows
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert ("unpacked" in [event["event"] for event in events]) == (name == "Bloom")
    plain = gw.Trainer(
        made(name), arguments("plain", max_steps=1, per_device_train_batch_size=8), train_dataset=samples(8)
    )
    plain.train()
    losses = [run.state.log_history[0]["loss"] for run in (one, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_flash_attention_is_not_tried(arguments: Any) -> None:
    model = made("Llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(gw.RecipeError, match="flash_attention_2 would let packed samples see each other"):
        trainer(model, arguments).train()


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
@pytest.mark.parametrize(("name", "said"), [("Falcon", "The training data are packed rows"), ("Olmo2", None)])
def test_rows_packed_by_others(arguments: Any, name: str, said: str | None, kind: Any) -> None:
    rows = [
        {"input_ids": ids, "labels": ids, "position_ids": [0, 1, 2, 0, 1]} for ids in ([3, 4, 5, 6, 7],) * 4
    ]
    one = gw.Trainer(made(name), arguments(max_steps=1), train_dataset=kind(rows))
    if said is None:
        one.train()
        return
    with pytest.raises(gw.RecipeError, match=said):
        one.train()


def test_columns_that_the_trainer_would_drop(arguments: Any) -> None:
    rows = [row | {"position_ids": [7] * len(row["input_ids"])} for row in samples(4)]
    for data in (rows, Dataset.from_list(rows)):
        with pytest.raises(gw.DataError, match="'position_ids', which BloomForCausalLM does not take"):
            gw.Trainer(made("Bloom"), arguments(max_steps=1), train_dataset=data).train()
