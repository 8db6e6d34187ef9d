"""Transformer blocks are found from the structure, whatever the architecture."""

from typing import Any

import pytest
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from gradwise import RecipeError
from gradwise.structure import block_list, group_layers

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "head_dim": 8,
    "pad_token_id": 0,
}
MOE: dict[str, Any] = SMALL | {
    "num_local_experts": 4,
    "num_experts": 4,
    "moe_intermediate_size": 8,
    "num_experts_per_tok": 2,
}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL),
    "mistral": MistralConfig(**SMALL),
    "phi": PhiConfig(**{key: value for key, value in SMALL.items() if key != "head_dim"}),
    "gpt2": GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=64),
    "gpt_neox": GPTNeoXConfig(**{key: value for key, value in SMALL.items() if key != "head_dim"}),
    "mixtral": MixtralConfig(**MOE),
    "qwen3_moe": Qwen3MoeConfig(**MOE),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_one_place(name: str) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    groups = group_layers(model)
    assert len(groups.blocks) == 3
    placed = [p for layer in groups.blocks for p in layer] + list(groups.outside)
    assert len({id(p) for p in placed}) == len(placed)
    assert {id(p) for p in placed} == {id(p) for p in model.parameters()}
    outside = {id(p) for p in groups.outside}
    assert id(model.get_input_embeddings().weight) in outside
    assert id(model.get_output_embeddings().weight) in outside


def test_tied_weights_are_one_parameter(tiny_llama) -> None:
    tied, untied = tiny_llama(tie_word_embeddings=True), tiny_llama(tie_word_embeddings=False)
    assert len(group_layers(untied).outside) == len(group_layers(tied).outside) + 1


def test_blocks_are_found_through_peft(tiny_llama) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1, 3])
    groups = group_layers(peft.get_peft_model(tiny_llama(), config))
    assert [name.rsplit(".", 1)[1] for name in groups.names] == ["1", "3"]
    assert [len(layer) for layer in groups.blocks] == [2, 2] and not groups.outside


def test_frozen_parameters_belong_nowhere(tiny_llama) -> None:
    model = tiny_llama()
    model.model.layers[0].requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    groups = group_layers(model)
    assert len(groups.blocks) == 3
    assert all(p is not model.model.embed_tokens.weight for p in groups.outside)


def test_experts_do_not_pass_for_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(20))
            self.stack = nn.ModuleList(Block() for _ in range(2))

    assert block_list(Mixture())[0] == "stack"


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))]
)
def test_a_model_without_blocks_is_refused(model: nn.Module) -> None:
    with pytest.raises(RecipeError, match="no transformer blocks"):
        group_layers(model)


def test_blocks_that_are_all_frozen_are_refused(tiny_llama) -> None:
    model = tiny_llama()
    model.model.layers.requires_grad_(False)
    with pytest.raises(RecipeError, match="No transformer block has a trainable"):
        group_layers(model)
