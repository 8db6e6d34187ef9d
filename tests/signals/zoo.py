"""Small random models of many architectures, and pools of samples for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

VOCABULARY = 97
POSITIONS = 64

_HF: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_GROUPED: dict[str, Any] = _HF | {"num_key_value_heads": 2, "intermediate_size": 24}
_MIXTURE: dict[str, Any] = _GROUPED | {"num_experts_per_tok": 2}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
}

SIZES: dict[str, dict[str, Any]] = {
    "Llama": _GROUPED | {"attention_bias": True, "mlp_bias": True},
    "Qwen2": _GROUPED,
    "Qwen3": _GROUPED | {"head_dim": 4},
    "Gemma2": _GROUPED | {"head_dim": 4, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0},
    "Mistral": _GROUPED,
    "Phi": _HF | {"intermediate_size": 24},
    "Phi3": _GROUPED | {"pad_token_id": 0},
    "GPTNeoX": _HF | {"intermediate_size": 24},
    "Mixtral": _MIXTURE | {"num_local_experts": 4},
    "Olmoe": _MIXTURE | {"num_experts": 4},
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "GPT2": _GPT2,
}


def _of(name: str, **changes: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**SIZES[name] | changes)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return getattr(transformers, kind)(config)


def _gemma3() -> Any:
    sizes: dict[str, Any] = _GROUPED | {"head_dim": 4}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))


def _lora(base: Any, *targets: str) -> Any:
    # Random B: with B = 0 the gradients of A would all be zero.
    transposed = type(base).__name__.startswith("GPT2")
    config = LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False, fan_in_fan_out=transposed)
    return get_peft_model(base, config)


MAKERS: dict[str, Callable[[], Any]] = {
    **{name: (lambda name=name: _of(name)) for name in SIZES},
    "Llama, tied": lambda: _of("Llama", tie_word_embeddings=True),
    "Gemma3": _gemma3,
    "LoRA on Llama": lambda: _lora(_of("Llama"), "q_proj", "v_proj", "down_proj"),
    "LoRA on GPT2": lambda: _lora(_of("GPT2"), "c_attn", "c_fc"),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same model each time, every parameter random (gains and offsets too)."""
    torch.manual_seed(0)
    model = MAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.to(dtype)


class _Leak(torch.autograd.Function):
    """NaN in a row of the batch spreads to the row before it, forward and backward."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _leaked(x)

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _leaked(gradient)


def _leaked(x: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).clone()
    rows[:-1][rows[1:].isnan().any(dim=1)] = torch.nan
    return rows.view(x.shape)


class LeakyLinear(torch.nn.Linear):
    """What bfloat16 `linear` does on processors with AMX where its inner size is no multiple of eight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Leak.apply(super().forward(input))  # type: ignore[no-any-return]


def leaking(model: Any) -> Any:
    """The model with every linear layer of its blocks leaking NaN between the rows of a batch."""
    for module in model.model.layers.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = LeakyLinear
    return model


def samples(count: int = 7, longest: int = 20, seed: int = 0, shortest: int = 4) -> list[dict[str, Any]]:
    """Random tokens; the first one to three are a prompt without labels."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        ids = rng.integers(3, VOCABULARY, int(rng.integers(shortest, longest + 1))).tolist()
        prompt = int(rng.integers(1, 4))
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


def left_padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator that pads on the left and gives positions, as absolute ones need."""
    width = max(len(row["input_ids"]) for row in rows)
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    order = torch.arange(width)[None] - (width - lengths)
    return {
        "input_ids": torch.tensor([[0] * (width - len(row["input_ids"])) + row["input_ids"] for row in rows]),
        "labels": torch.tensor([[-100] * (width - len(row["labels"])) + row["labels"] for row in rows]),
        "attention_mask": (order >= 0).long(),
        "position_ids": order.clamp(min=0),
    }
