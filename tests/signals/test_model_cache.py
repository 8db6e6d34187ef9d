"""What a second scoring run of a model does not find out again, and when it does."""

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gradwise.signals import Signals, collect
from gradwise.signals.engine_check import EngineCheck
from gradwise.signals.model_cache import clear_cache
from tests.signals.zoo import make, samples

POOL = samples(6, longest=12)


@pytest.fixture(autouse=True)
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows with every engine check."""
    seen: list[int] = []
    before = EngineCheck.run

    def run(self: EngineCheck, order: Any) -> Any:
        seen.append(len(order))
        return before(self, order)

    monkeypatch.setattr(EngineCheck, "run", run)
    yield seen


def collected(model: Any, pool: Any = POOL, **options: Any) -> Signals:
    return collect(model, pool, **{"want": ("loss", "grad"), "grad_dim": 8, "progress": False} | options)


def same(one: Signals, other: Signals) -> None:
    for name in ("loss", "grad"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_the_same_request_is_tried_once(checks: list[int]):
    model = make("Llama")
    first = collected(model)
    second = collected(model)
    assert checks == [6]
    same(first, second)


def test_other_weights_of_the_same_model_are_measured_not_remembered(checks: list[int]):
    model = make("Llama")
    collected(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    later, fresh = collected(model), make("Llama")
    with torch.no_grad():
        fresh.lm_head.weight.mul_(2)
    same(later, collected(fresh))
    assert checks == [6, 6]


def _hooked(model: Any) -> None:
    model.model.layers[0].register_forward_hook(lambda *_: None)


def _replaced(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.GELU()


def _eager(model: Any) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("change", [_hooked, _replaced, _eager])
def test_a_changed_model_is_tried_again(change: Any, checks: list[int]):
    model = make("Llama")
    collected(model)
    change(model)
    collected(model)
    assert checks == [6, 6]


@pytest.mark.parametrize(
    "change",
    [
        {"want": ("loss", "grad", "embedding")},
        {"parameters": "*layers.1.*.weight"},
        {"batch_tokens": 24},
        {"autocast": torch.bfloat16},
        {"pool": samples(6, longest=20)},
        {"collator": lambda rows: {n: torch.tensor([row[n] for row in rows]) for n in rows[0]}},
    ],
)
def test_another_request_is_tried(change: dict[str, Any], checks: list[int]):
    model = make("Llama")
    equal = samples(6, longest=12, shortest=12)
    collected(model, equal)
    collected(model, **{"pool": equal} | change)
    assert checks == [6, 6]


def test_shorter_samples_are_not(checks: list[int]):
    model = make("Llama")
    collected(model)
    collected(model, samples(5, longest=8))
    assert checks == [6]


def test_an_adapter_without_gradients_is_tried_until_it_has_some(checks: list[int]):
    """A fresh LoRA has B = 0, where no gradient reaches A."""
    torch.manual_seed(0)
    model: Any = get_peft_model(make("Llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    for _ in range(2):
        collected(model)
    assert len(checks) == 2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    for _ in range(2):
        collected(model)
    assert len(checks) == 3


def test_what_was_said_to_the_user_is_said_again(checks: list[int]):
    class Mixing(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x - x.mean(dim=0, keepdim=True))

    model = make("Llama")
    model.model.layers[0].mlp = Mixing(model.model.layers[0].mlp)
    said: list[str] = []
    for _ in range(2):
        collected(model, want="loss", tell=said.append)
    assert len(checks) == 1
    assert len(said) == 2
    assert said[0] == said[1]
    assert "one sample at a time" in said[0]


def test_a_model_is_not_kept_alive():
    model = make("Llama")
    collected(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_is_known_can_be_forgotten(checks: list[int]):
    models = make("Llama"), make("GPT2")
    for asked in (lambda: None, clear_cache, lambda: clear_cache(models[0])):
        asked()
        for model in models:
            collected(model)
    assert len(checks) == 2 + 2 + 1


def test_weights_that_are_not_finite_are_tried_again(checks: list[int]):
    model = make("Llama")
    kept = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="could be measured"):
            collected(model)
    with torch.no_grad():
        model.lm_head.weight.copy_(kept)
    collected(model)
    assert len(checks) == 2
